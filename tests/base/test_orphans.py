"""Workers end with their parent, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from quickdraw_dist.base.orphans import PARENT

END = "import time; from quickdraw_dist.base.orphans import die_with_parent; die_with_parent(); "


def test_ends_with_its_parent() -> None:
    """A worker whose torchrun was killed holds the run's lock and a GPU, and nobody stops it."""
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    outlive = END + "print('ready', flush=True); time.sleep(60); print('still here')"
    parent = subprocess.Popen(
        [sys.executable, "-c", start, outlive], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    # The child has the other end of this pipe: reading ends when it is gone.
    assert parent.communicate()[0] == ""


def test_ends_when_its_parent_was_gone_before_it_asked() -> None:
    """Killed while the worker was being started: its parent is somebody else by now."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for parent, code in ((gone.pid, 1), (os.getpid(), 0)):
        environment = os.environ | {PARENT: str(parent)}
        assert subprocess.run([sys.executable, "-c", END], env=environment).returncode == code


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
