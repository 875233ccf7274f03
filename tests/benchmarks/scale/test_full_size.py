"""The rehearsal at full size, very small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import CONTENTS
from benchmarks.scale.full_size import page, source
from quickdraw_dist.data.drawings.classes import official
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import manifest


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.01, 0.0001])
def test_the_source_has_that_fraction(fraction: float) -> None:
    whole = sum(entry.drawings for entry in official())
    assert sum(open_source(source(fraction)).counts) == pytest.approx(whole * fraction, rel=0.01)


def test_the_page_says_how_to_run_it_again() -> None:
    measured = {"fraction": 0.02, "content": "strokes", "settings": ["--train.epochs", "1"]}
    text = page(measured, {})
    assert text.startswith("# The full-size rehearsal, with pen strokes")
    assert "`make full-size ARGS='--page --content strokes --fraction 0.02'`" in text


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("content", CONTENTS)
def test_all_phases(tmp_path: Path, content: str) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale.full_size",
        "--folder",
        str(tmp_path / "full"),
    ]
    small = ["--content", content, "--resident", "--fraction", "0.00002"]
    small += ["--model.width", "2", "--train.global_batch", "256"]
    done = subprocess.run([*command, *small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    drawings = sum(open_source(source(0.00002)).counts)
    assert metrics["shard"]["drawings"] == metrics["verify"]["drawings"] == drawings
    dataset = manifest.read(str(tmp_path / "full" / "shards"))
    assert dataset.settings.content == content
    train = dataset.drawings("train")
    assert metrics["train"]["drawings"] == train // 256 * 256
    for phase in ("shard", "verify", "train", "train, resident"):
        assert metrics[phase]["peak_memory_bytes"] > 10**7
    assert metrics["shard"]["bytes_written"] == metrics["verify"]["bytes_read"] > 0
