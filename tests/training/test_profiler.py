"""--train.profile: a trace that opens, and a page whose parts add up, for every rank."""

from __future__ import annotations

import gzip
import json
import re
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.datasets import Dataset


def shares(page: str) -> dict[str, float]:
    """The first table: milliseconds of a step by part."""
    rows = re.findall(r"^\| ([^`|]+) \| ([\d.]+) \| [\d.]+% \|$", page, re.MULTILINE)
    return {name: float(milliseconds) for name, milliseconds in rows}


@pytest.mark.parametrize(("ranks", "steps", "traced"), [(2, 3, 3), (1, 1_000, 8)])
def test_profile(
    processes: ForkServerContext,
    dataset: Dataset,
    tmp_path: Path,
    ranks: int,
    steps: int,
    traced: int,
) -> None:
    """As many steps as asked for, or as the run has left of its 14; also where a step is cut into
    two passes."""
    arguments = ["--data", dataset.folder, "--output", str(tmp_path), "--train.epochs", "1"]
    arguments += ["--train.global_batch", "128", "--train.micro_batch", "80", "--model.width", "2"]
    arguments += ["--metrics.port", "0", "--train.device", "cpu", "--train.profile", str(steps)]
    said = runs.run_forked(processes, ranks, [*arguments, *runs.NO_PAGE])
    assert str(tmp_path / "profile" / "rank-0.md") in said
    for rank in range(ranks):
        page = (tmp_path / "profile" / f"rank-{rank}.md").read_text()
        found = re.search(rf"Rank {rank} of {ranks}: where (\d+) steps went", page)
        assert found is not None
        assert int(found.group(1)) == traced if steps == 3 else int(found.group(1)) >= traced
        parts = shares(page)
        whole = parts.pop("a step")
        assert {"data wait", "forward", "backward", "optimizer"} < parts.keys()
        assert sum(parts.values()) == pytest.approx(whole, abs=0.05)
        assert all(part >= 0 for part in parts.values())
        assert "`aten::" in page or "`mkldnn" in page
        trace = json.loads(
            gzip.decompress((tmp_path / "profile" / f"rank-{rank}.json.gz").read_bytes())
        )
        names = [event.get("name") for event in trace["traceEvents"]]
        assert names.count("optimizer") >= 3
