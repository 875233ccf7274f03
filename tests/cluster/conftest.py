"""Real infrastructure for the tests in this folder: `make test-cluster`. Needs root."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support import images
from tests.cluster.support.hosts import require
from tests.cluster.support.manifests import ROOT
from tests.cluster.support.slurm import SOURCE, Slurm


def left_behind(name: str) -> list[str]:
    """List the processes of this machine with this text in command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            about = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if name.encode() in about and process.name != str(os.getpid()):
                found.append(about.decode(errors="replace")[:200])
    return found


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The images of dockerfiles/ by the names that the manifests have for them."""
    scratch = tmp_path_factory.mktemp("images")
    return {f"quickdraw-{name}": images.build(name, scratch) for name in ("train", "jobs")}


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of three nodes, and a folder that is this checkout, installed, to submit from."""
    require("munged", "slurmctld", "slurmd", "sbatch")
    repository = tmp_path_factory.mktemp("slurm") / "quickdraw_dist"
    repository.mkdir()
    for part in ("quickdraw_dist", "jobs", "slurm", "configs"):
        (repository / part).symlink_to(ROOT / part)
    (repository / ".venv").symlink_to(sys.prefix)
    cluster = Slurm(tmp_path_factory.mktemp("cluster"), repository)
    yield cluster
    cluster.close()
    assert str(cluster.folder) not in Path("/proc/mounts").read_text()
    assert left_behind(str(cluster.folder)) == []


@pytest.fixture(scope="session")
def sharded(slurm: Slurm) -> Path:
    """The dataset of `sbatch slurm/shard.sh` in two tasks, verified by the job that follows."""
    array = slurm.submit("--array=0-1", "slurm/shard.sh", **SOURCE)
    for task in ("0", "1"):
        slurm.completes(f"{array}_{task}")
    verify = slurm.said(f"{array}_0").split("Submitted batch job ")[1].split()[0]
    slurm.completes(verify)
    assert "2,400 drawings of 6 classes" in slurm.said(verify)
    assert "every row exactly once" in slurm.said(verify)
    return slurm.repository / "data" / "shards"
