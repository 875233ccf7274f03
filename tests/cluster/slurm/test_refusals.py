"""The scripts name what is missing in one line instead of a traceback of srun."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.support.manifests import ROOT
from tests.cluster.support.slurm import Slurm


@pytest.mark.parametrize(
    ("script", "environment", "line"),
    [
        ("train", {"VENV": "nowhere"}, "VENV=nowhere: no Python there. Run 'make install' in"),
        ("train", {"DATA": "nowhere"}, "Run 'sbatch slurm/shard.sh' to make one."),
        ("evaluate", {"DATA": "nowhere"}, "Run 'sbatch slurm/shard.sh' to make one."),
        ("shard", {"CONTAINER": "docker:x"}, "Use pyxis:IMAGE, apptainer:IMAGE or nothing."),
        ("verify", {"CONTAINER": "pyxis:x"}, "this cluster's srun has no pyxis"),
        ("verify", {"CONTAINER": "apptainer:x"}, "no apptainer on n"),
    ],
)
def test_missing_step_is_named(
    slurm: Slurm, script: str, environment: dict[str, str], line: str
) -> None:
    array = ["--array=0"] if script == "shard" else []
    job = slurm.submit(*array, f"slurm/{script}.sh", **environment) + ("_0" if array else "")
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0")
    assert line in slurm.said(job)


def test_no_gpus(slurm: Slurm, tmp_path: Path) -> None:
    """On nodes without GPUs the job fails instead of training on CPUs by mistake."""
    (tmp_path / "manifest.json").touch()
    job = slurm.submit("slurm/train.sh", DATA=str(tmp_path))
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert "this job was given no GPU" in slurm.said(job)
    assert "NPROC=2 DEVICE=cpu" in slurm.said(job)


def test_another_folder(slurm: Slurm, tmp_path: Path) -> None:
    """Slurm copies the script, so it looks for the package where sbatch was run."""
    script = str(slurm.repository / "slurm" / "train.sh")
    job = slurm.submit(f"--chdir={tmp_path}", f"--output={tmp_path}/said", script)
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert f"{tmp_path} is not the repository's folder" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("script", ["shard", "verify", "train", "evaluate"])
def test_without_sbatch(script: str, tmp_path: Path) -> None:
    """Run on the login node, a script says that it is a job."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/true")
    done = subprocess.run(
        ["bash", f"slurm/{script}.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"Run sbatch slurm/{script}.sh." in done.stderr
