"""Commands with a limit."""

from __future__ import annotations

import sys
from math import inf
from pathlib import Path

import pytest

from benchmarks.chaos.processes import marked
from benchmarks.gpu.process import Outcome, run_limited, started, tail

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

HANG = "import time; print('up', flush=True); time.sleep(10**6)"
LEAVE = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {HANG!r}]"


def test_a_command_that_ends(tmp_path: Path) -> None:
    """Its output is appended to the log, and its exit code returned."""
    log = tmp_path / "logs" / "step.log"
    for code in (0, 3):
        command = [sys.executable, "-c", f"import os; print(os.environ['SAID']); exit({code})"]
        outcome = run_limited(command, log, inf, {"SAID": f"code {code}"})
        assert outcome.exit_code == code
        assert outcome.problem == (f"exit code {code}" if code else None)
    assert tail(log).splitlines() == ["code 0", "code 3"]
    assert tail(tmp_path / "missing.log") == ""


@pytest.mark.parametrize("limit", [-1, 1])
def test_one_that_hangs_is_killed(tmp_path: Path, limit: float) -> None:
    """With its child in a session of its own, as torchrun's ranks are."""
    mark, value = "TEST_RUN_LIMITED", str(tmp_path)
    code = f"{LEAVE}, start_new_session=True).wait()"
    log = tmp_path / "log"
    outcome = run_limited([sys.executable, "-c", code], log, limit, {mark: value})
    assert outcome.exit_code is None
    assert str(outcome.problem).startswith("killed at its limit")
    assert marked(mark, value) == []


def test_what_a_command_leaves_behind_is_killed(tmp_path: Path) -> None:
    mark, value = "TEST_RUN_LIMITED", str(tmp_path)
    code = f"{LEAVE}, start_new_session=True, stdout=2)"
    outcome = run_limited([sys.executable, "-c", code], tmp_path / "log", inf, {mark: value})
    assert outcome.exit_code == 0
    assert marked(mark, value) == []


def test_an_inner_command_is_killed_alone(tmp_path: Path) -> None:
    """The step that runs a case goes on when the case is killed."""
    inner = f"[sys.executable, '-c', {HANG!r}], pathlib.Path(sys.argv[1]), 0.5"
    code = "import pathlib, sys; from benchmarks.gpu.process import run_limited; "
    code += f"print(run_limited({inner}))"
    command = [sys.executable, "-c", code, str(tmp_path / "inner.log")]
    outcome = run_limited(command, tmp_path / "log", inf, {"PYTHONPATH": str(Path.cwd())})
    assert outcome.exit_code == 0
    assert "exit_code=None" in tail(tmp_path / "log")


def test_an_error_ends_the_command(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        started([sys.executable, "-c", HANG], tmp_path / "log") as process,
    ):
        raise KeyboardInterrupt
    assert process.returncode == -9
    assert Outcome(process.returncode, 0).problem == "exit code -9"
