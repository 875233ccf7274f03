"""Processors that a process may use, by the scheduler and by its cgroup."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quickdraw_dist.base import process as module
from quickdraw_dist.base.process import processors, quota


def test_the_share_of_a_group() -> None:
    assert quota("max 100000\n") == math.inf
    assert quota("max") == math.inf
    assert quota("400000 100000\n") == 4
    assert quota("50000 100000\n") == 0.5
    assert quota("250000 50000\n") == 5


@pytest.mark.parametrize(
    ("limit", "right"), [("max 100000", 8), ("350000 100000", 3), ("20000 100000", 1)]
)
def test_a_container_with_a_limit(
    limit: str, right: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text(limit)  # a group around ours, or our own
    assert processors() == right


@pytest.mark.skipif(sys.platform != "linux", reason="no processor to bind to here")
def test_bound_to_one_processor() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}})\n"
    code += "from quickdraw_dist.base.process import processors; print(processors())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
