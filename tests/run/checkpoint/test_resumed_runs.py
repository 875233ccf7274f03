"""A run that is killed and started again ends like one that was never killed, bit for bit."""

from __future__ import annotations

import signal
import subprocess
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.support import runs


@pytest.fixture(scope="module")
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset of tests.support.runs, of bitmaps unless a test asks for strokes."""
    content = getattr(request, "param", "bitmaps")
    return runs.make_dataset(tmp_path_factory.mktemp("resume") / "shards", content=content)


ALL_CHANNELS = ["--strokes.channels", "4", "--strokes.side", "20"]


def start(dataset: Path, output: Path, ranks: int, *extra: str) -> subprocess.Popen[str]:
    """Start the training command as a user does."""
    command = runs.torchrun(ranks) if ranks > 1 else runs.ALONE
    return runs.start(command, runs.settings(dataset, output, *extra))


@pytest.mark.parametrize(
    ("dataset", "ranks", "extra"),
    [
        pytest.param("bitmaps", 1, [], marks=pytest.mark.slow),
        ("bitmaps", 2, []),
        pytest.param("bitmaps", 3, ["--train.micro_batch", "20"], marks=pytest.mark.slow),
        pytest.param("strokes", 1, [], marks=pytest.mark.slow),
        ("strokes", 2, ALL_CHANNELS),
        pytest.param("strokes", 3, ["--train.micro_batch", "20"], marks=pytest.mark.slow),
    ],
    indirect=["dataset"],
)
def test_killed_run_resumes_bit_for_bit(
    dataset: Path, tmp_path: Path, processes: ForkServerContext, ranks: int, extra: list[str]
) -> None:
    """SIGKILL to all ranks within an epoch, then the same command: equal final weights."""
    runs.run_forked(processes, ranks, runs.settings(dataset, tmp_path / "whole", *extra))
    arguments = runs.settings(dataset, tmp_path / "killed", *extra)
    saved = tmp_path / "killed" / "checkpoints" / "step-000000002" / "meta.json"
    runs.kill_forked(processes, ranks, arguments, step=3, after=saved)
    runs.run_forked(processes, ranks, arguments)
    assert runs.last_meta(tmp_path / "killed")["restarts"] == 1
    runs.assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    assert "this run is finished" in runs.run_forked(processes, ranks, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["bitmaps", "strokes"], indirect=True)
def test_another_number_of_ranks_resumes_in_the_same_order(
    dataset: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """Two ranks that a signal stops, resumed by three, get the drawings that one rank gets."""
    runs.run_forked(processes, 1, runs.settings(dataset, tmp_path / "whole"))
    stopped = start(dataset, tmp_path / "stopped", 2)
    runs.wait_for_step(stopped, tmp_path / "stopped", 3)
    stopped.terminate()
    output, _ = stopped.communicate()
    assert "stopped by a signal and saved" in output, output
    runs.run_forked(processes, 3, runs.settings(dataset, tmp_path / "stopped"))
    whole, other = (runs.last_meta(tmp_path / name) for name in ("whole", "stopped"))
    assert whole["order_digest"] == other["order_digest"]


def test_single_process_leaves_with_85_after_a_signal(dataset: Path, tmp_path: Path) -> None:
    """Exit code 85 tells a scheduler: saved, requeue me."""
    process = start(dataset, tmp_path / "run", 1)
    runs.wait_for_step(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 85, output


@pytest.mark.slow
def test_an_error_of_the_first_rank_ends_all_with_its_line(dataset: Path, tmp_path: Path) -> None:
    """A folder of broken checkpoints: no rank waits for another or prints a traceback."""
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


def test_more_ranks_than_lanes_cannot_resume(
    dataset: Path, tmp_path: Path, processes: ForkServerContext
) -> None:
    """The lanes of the run are fixed; the message says how many ranks they allow."""
    runs.run_forked(processes, 1, runs.settings(dataset, tmp_path / "run", "--stream.lanes", "1"))
    said, codes = runs.ForkedRun(
        processes, 2, runs.settings(dataset, tmp_path / "run")
    ).communicate()
    assert codes == [2, 2]
    assert "started with 1 lanes" in said and "Resume it on 1 ranks or fewer" in said
