"""A worker process that dies ends the job, whatever the moment: exit code 1 and a line."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quickdraw_dist.data.drawings.classes import official_names

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")

Reached = Callable[[int, Path], bool]
"""Whether a worker, by its process id, has reached a moment; the path is the dataset's folder."""

MOMENTS: dict[str, Reached] = {
    "spawned": lambda worker, dest: True,
    "imports numpy": lambda worker, dest: "numpy" in _proc(worker, "maps"),
    "has started": lambda worker, dest: "isal" in _proc(worker, "maps"),
    "first shard": lambda worker, dest: any(dest.glob("*/*.tar")),
    "first group": lambda worker, dest: any(dest.glob("parts/*.json")),
}


@pytest.fixture(scope="module")
def bitmaps(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All 345 classes: their names, counts and headers are more than a pipe holds."""
    folder = tmp_path_factory.mktemp("bitmaps")
    rows = (np.arange(60 * 784) * 7 % 251).astype(np.uint8).reshape(60, 784)
    for name in official_names():
        np.save(folder / f"{name}.npy", rows)
    return str(folder)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_worker_ends_the_job(bitmaps: str, tmp_path: Path, moment: str) -> None:
    """Killed for memory while it starts, its parent once waited for ever to hand it its work."""
    sizes = ("--shard.drawings_per_shard", "256", "--shard.block", "64")
    flags = ("--source", bitmaps, "--dest", str(tmp_path), "--processes", "2", *sizes)
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.shard", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 60
        while not (ready := [w for w in _workers(job.pid) if MOMENTS[moment](w, tmp_path)]):
            assert job.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        os.kill(ready[0], signal.SIGKILL)
        printed = job.communicate(timeout=60)[1]
    finally:
        job.kill()
    assert job.returncode == 1, printed
    assert "error: a worker process died, perhaps out of memory" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("moment", ["spawned", "imports numpy", "has started"])
def test_a_killed_job_leaves_no_worker(bitmaps: str, tmp_path: Path, moment: str) -> None:
    """Also one that was still starting, which once waited for work for ever."""
    flags = ("--source", bitmaps, "--dest", str(tmp_path), "--processes", "2")
    job = subprocess.Popen(
        [sys.executable, "-m", "jobs.shard", *flags, "--shard.drawings_per_shard", "1024"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    while not any(MOMENTS[moment](worker, tmp_path) for worker in _workers(job.pid)):
        assert job.poll() is None
        time.sleep(0.002)
    job.kill()
    job.communicate(timeout=60)  # workers hold its output open until they end


def _workers(parent: int) -> list[int]:
    """Process ids of the pool's processes that are alive."""
    children = _proc(parent, f"task/{parent}/children").split()
    return [int(child) for child in children if "spawn_main" in _proc(int(child), "cmdline")]


def _proc(process: int, name: str) -> str:
    """A file about a process, empty when it has ended."""
    try:
        return Path(f"/proc/{process}/{name}").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
