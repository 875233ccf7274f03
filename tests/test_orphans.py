"""Workers end with their parent, however that ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def test_shard_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    """The workers hold the parent's output open: it ends only when the last of them is gone."""
    source = ["--source", "synthetic:?classes=4&per_class=50000", "--dest", str(tmp_path)]
    sizes = ["--processes", "2", "--shard.drawings_per_shard", "256", "--shard.block", "256"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.shard", *source, *sizes],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "parts"
    while not (parts.is_dir() and list(parts.glob("*.json"))):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    built = len(list(parts.glob("*.json")))
    assert 0 < built < 200_000 / (8 * 256)
    assert not (tmp_path / "manifest.json").exists()
