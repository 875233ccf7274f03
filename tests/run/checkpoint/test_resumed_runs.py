"""A run that is killed and started again is the run that was never touched, bit for bit."""

from __future__ import annotations

import signal
import subprocess
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.support import runs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small one that the runs are made for."""
    return runs.make_dataset(tmp_path_factory.mktemp("resume") / "shards")


def start(dataset: Path, output: Path, ranks: int, *extra: str) -> subprocess.Popen[str]:
    """As a user does."""
    command = runs.torchrun(ranks) if ranks > 1 else runs.ALONE
    return runs.start(command, runs.settings(dataset, output, *extra))


@pytest.mark.parametrize(("ranks", "extra"), [(1, []), (2, []), (3, ["--train.micro_batch", "20"])])
def test_killed_run_resumes_bit_for_bit(
    dataset: Path, tmp_path: Path, processes: ForkServerContext, ranks: int, extra: list[str]
) -> None:
    """SIGKILL to everything in mid-epoch, the same command again: equal final weights."""
    runs.run_here(processes, ranks, runs.settings(dataset, tmp_path / "whole", *extra))
    arguments = runs.settings(dataset, tmp_path / "killed", *extra)
    killed = runs.Here(processes, ranks, arguments)
    killed.wait_for("checkpoint saved at step 2")
    killed.kill()
    runs.run_here(processes, ranks, arguments)
    assert runs.last_meta(tmp_path / "killed")["restarts"] == 1
    runs.assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert "this run is finished" in runs.run_here(processes, ranks, arguments)


def test_another_world_goes_on_in_the_same_order(
    dataset: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """One rank, two that a signal ends, and three: the drawings come as to one alone."""
    runs.run_here(processes, 1, runs.settings(dataset, tmp_path / "whole"))
    stopped = start(dataset, tmp_path / "stopped", 2)
    runs.wait_for(stopped, "epoch 1/2  step 3/5")
    stopped.terminate()
    output, _ = stopped.communicate()
    assert "stopped by a signal and saved" in output, output
    runs.run_here(processes, 3, runs.settings(dataset, tmp_path / "stopped"))
    whole, other = (runs.last_meta(tmp_path / name) for name in ("whole", "stopped"))
    assert whole["order_digest"] == other["order_digest"]


def test_single_process_leaves_with_85_after_a_signal(dataset: Path, tmp_path: Path) -> None:
    """'Saved, requeue me' is what a scheduler is told."""
    process = start(dataset, tmp_path / "run", 1)
    runs.wait_for(process, "epoch 1/2  step 2/5")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 85, output


def test_a_refusal_of_the_first_rank_ends_all_with_its_line(dataset: Path, tmp_path: Path) -> None:
    """No rank waits for another or shows a traceback; a folder of broken checkpoints is named."""
    broken = tmp_path / "run" / "checkpoints" / "step-000000004"
    broken.mkdir(parents=True)
    (broken / "meta.json").write_text("{}")
    process = start(dataset, tmp_path / "run", 2)
    output, _ = process.communicate()
    assert process.returncode == 1  # torchrun's answer to any failure
    assert f"error: --output {tmp_path / 'run'}: holds a run, but no checkpoint" in output
    assert "skipped" in output and "[rank" not in output
    assert "exitcode  : 2" in output  # torchrun may end the other rank before it says so, too
    assert f"traceback : error: --output {tmp_path / 'run'}" in output  # among the last lines


def test_more_ranks_than_lanes_cannot_go_on(
    dataset: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """The order was fixed with the lanes; the message says whose they are and how many fit."""
    runs.run_here(processes, 1, runs.settings(dataset, tmp_path / "run", "--stream.lanes", "1"))
    said, codes = runs.Here(processes, 2, runs.settings(dataset, tmp_path / "run")).end()
    assert codes == [2, 2]
    assert "started with 1 lanes" in said and "Resume it on 1 ranks or fewer" in said
