"""The scripts of slurm/, submitted to a real Slurm of several nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support.slurm import SOURCE, Slurm

DRAWINGS, BATCH, EPOCHS = 2160, 96, 3  # nine tenths of the drawings, to train
STEPS = DRAWINGS // BATCH

SETTINGS = ["--train.global_batch", str(BATCH), "--train.epochs", str(EPOCHS)]
SETTINGS += ["--train.log_every", "1", "--model.width", "4", "--metrics.port", "0"]
SETTINGS += ["--checkpoint.every_drawings", str(4 * BATCH)]

CPU = {"DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
RANKS = "python -u -m quickdraw_dist.train"
"""What torchrun starts; its own command line and the launcher's have no -u."""


def train(slurm: Slurm, output: str, *options: str, ranks: int = 1) -> str:
    """Submit a training run on two nodes with `ranks` ranks each; returns the job's number.

    One is the default: ranks take seconds to start here, and the order does not depend on them.
    """
    script = ["--nodes=2", *options, "slurm/train.sh", *SETTINGS]
    return slurm.submit(*script, OUTPUT=f"runs/{output}", NPROC=str(ranks), **CPU)


def last_meta(slurm: Slurm, output: str) -> Any:
    """Return meta.json of the newest checkpoint."""
    newest = max((slurm.repository / "runs" / output / "checkpoints").iterdir())
    return json.loads((newest / "meta.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, sharded: Path) -> str:
    """The order digest of a run that is never stopped."""
    job = train(slurm, "whole", ranks=2)
    assert slurm.completes(job)["Restarts"] == "0"
    assert "start 1: 2 nodes of 2 ranks, cpu, head n1:" in slurm.said(job)
    meta = last_meta(slurm, "whole")
    assert meta["step"] == EPOCHS * STEPS
    return str(meta["order_digest"])


def assert_resumed(slurm: Slurm, job: str, output: str, undisturbed: str) -> None:
    """Wait for the job's end: it has resumed and delivered the order of the undisturbed run."""
    slurm.completes(job)
    assert "resumed runs/" in slurm.said(job)
    assert last_meta(slurm, output)["order_digest"] == undisturbed


def test_a_more_urgent_job_takes_the_nodes(slurm: Slurm, undisturbed: str) -> None:
    """A job preempted by Slurm (TERM to the step only) saves, is requeued and resumes."""
    job = train(slurm, "preempted", ranks=2)
    slurm.wait_for_step(job, "runs/preempted", 6)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "hostname")
    slurm.completes(urgent)
    assert_resumed(slurm, job, "preempted", undisturbed)
    assert slurm.show(job)["Restarts"] == "1"
    assert "stopped by a signal and saved" in slurm.said(job)


def test_a_signalled_job_saves_requeues_itself_and_resumes(slurm: Slurm, undisturbed: str) -> None:
    """`scancel --signal=USR1 --batch` frees the nodes without losing work."""
    job = train(slurm, "signalled")
    slurm.wait_for_step(job, "runs/signalled", 6)
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    assert_resumed(slurm, job, "signalled", undisturbed)
    assert slurm.show(job)["Restarts"] == "1"
    assert "stopped by a signal and saved" in slurm.said(job)
    assert "back into the queue" in slurm.said(job)
    assert f"job {job}, start 2: 2 nodes of 1 ranks" in slurm.said(job)


def test_a_job_at_its_time_limit_saves_and_resumes(slurm: Slurm, undisturbed: str) -> None:
    """The ranks are stopped until Slurm warns of the job's limit of a minute."""
    job = train(slurm, "limited", "--time=1", "--signal=B:USR1@20")
    slurm.wait_for_step(job, "runs/limited", 6)
    slurm.nodes["n1"].signal("STOP", RANKS)
    slurm.wait_for_text(job, "asked to stop")
    slurm.nodes["n1"].signal("CONT", RANKS)
    slurm.wait_for_text(job, "stopped by a signal and saved")
    slurm.wait_for_text(job, "back into the queue")
    slurm.run("scontrol", "update", f"jobid={job}", "TimeLimit=60")
    assert_resumed(slurm, job, "limited", undisturbed)
    assert int(slurm.show(job)["Restarts"]) >= 1


def test_scancel_saves_but_does_not_requeue(slurm: Slurm, undisturbed: str) -> None:
    """A cancelled job stays cancelled; the same sbatch later resumes the run."""
    job = train(slurm, "cancelled")
    slurm.wait_for_step(job, "runs/cancelled", 6)
    slurm.run("scancel", job)
    assert slurm.wait(job)["JobState"] == "CANCELLED"
    assert "stopped by a signal and saved" in slurm.said(job)
    assert "back into the queue" not in slurm.said(job)
    assert_resumed(slurm, train(slurm, "cancelled"), "cancelled", undisturbed)


def test_a_job_whose_node_dies_resumes(slurm: Slurm, undisturbed: str) -> None:
    """Slurm requeues the job itself, and the run resumes when there are two nodes again."""
    job = train(slurm, "lost")
    slurm.wait_for_step(job, "runs/lost", 6)
    slurm.lose("n2")
    slurm.wait_until(job, "PENDING")
    slurm.replace("n2")
    assert_resumed(slurm, job, "lost", undisturbed)
    assert slurm.show(job)["Restarts"] == "1"


def test_a_crash_is_not_requeued(slurm: Slurm, undisturbed: str) -> None:
    """A rank killed on one node ends the ranks of both and fails the job; the run can resume."""
    job = train(slurm, "crashed")
    slurm.wait_for_step(job, "runs/crashed", 6)
    slurm.nodes["n2"].signal("KILL", RANKS)
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "1:0", "0")
    assert_resumed(slurm, train(slurm, "crashed"), "crashed", undisturbed)


def test_a_wrong_setting_fails_the_job(slurm: Slurm, sharded: Path) -> None:
    """Exit code 2 and one line with the error; the job is not requeued."""
    job = slurm.submit("--nodes=2", "slurm/train.sh", "--train.epoch", "3", **CPU)
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0")
    assert "--train.epoch" in slurm.said(job) and "--train.epochs" in slurm.said(job)


def test_without_edits_on_nodes_with_gpus(slurm: Slurm, sharded: Path, tmp_path: Path) -> None:
    """A whole node with one rank per GPU, or some GPUs of a node. (The devices are not real, so a
    program prints what it was given.)"""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/bash\necho "GPUs $CUDA_VISIBLE_DEVICES: $*"\n')
    python.chmod(0o755)
    for options, devices in (
        ([], "0,1,2,3,4,5,6,7"),
        (["--oversubscribe", "--gpus-per-node=2", "--cpus-per-task=4", "--mem=4G"], "0,1"),
    ):
        job = slurm.submit("--partition=gpu", *options, "slurm/train.sh", VENV=str(tmp_path))
        slurm.completes(job)
        ranks = len(devices.split(","))
        launcher = f"-m quickdraw_dist.launch --nnodes=1 --nproc-per-node={ranks} "
        assert f"GPUs {devices}: {launcher}" in slurm.said(job)
        assert "--train.device cuda" in slurm.said(job)


def test_pipeline(slurm: Slurm) -> None:
    """Each job starts after the one before, although the training is stopped in between."""
    environment = SOURCE | CPU | {"DATA": "data/pipeline", "OUTPUT": "runs/pipeline"}
    environment |= {"WORKERS": "2", "NODES": "2"}
    said = slurm.run("bash", "slurm/pipeline.sh", *SETTINGS, **environment)
    jobs = {line.split(":")[0]: line.split()[2].strip(",") for line in said.splitlines()}
    slurm.wait_for_step(jobs["train"], "runs/pipeline", 6)
    slurm.run("scancel", "--signal=USR1", "--batch", jobs["train"])
    slurm.completes(jobs["train"])
    slurm.completes(jobs["evaluate"])
    assert slurm.show(jobs["train"])["Restarts"] == "1"
    assert '"top1": ' in slurm.said(jobs["evaluate"])
    assert (slurm.repository / "runs/pipeline/report-test/index.html").exists()
