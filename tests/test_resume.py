"""A run that is killed and started again is the run that was never touched, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs import shard

GLOBAL_BATCH = 96
STEPS = 2 * (540 // GLOBAL_BATCH)  # 600 drawings, nine tenths to train, two epochs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 synthetic drawings of 6 classes, in small shards and blocks that lanes meet in."""
    folder = tmp_path_factory.mktemp("resume") / "shards"
    source = ["--source", "synthetic:?classes=6&per_class=100&seed=3", "--processes", "1"]
    sizes = ["--shard.drawings_per_shard", "100", "--shard.block", "32"]
    shard.main([*source, "--dest", str(folder), *sizes])
    return folder


def start(dataset: Path, output: Path, ranks: int, *extra: str) -> subprocess.Popen[str]:
    """The training command, in a process group of its own, its lines readable one by one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *(launcher if ranks > 1 else []), "-m", "quickdraw_dist.train"]
    settings = ["--data", str(dataset), "--output", str(output), "--train.epochs", "2"]
    settings += ["--train.global_batch", str(GLOBAL_BATCH), "--train.deterministic", "true"]
    settings += ["--train.log_every", "1", "--checkpoint.every_drawings", str(2 * GLOBAL_BATCH)]
    settings += ["--model.width", "4", "--train.device", "cpu", "--metrics.port", "0", *extra]
    return subprocess.Popen(
        [*command, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """All of its output; it must end well."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read lines until one has the text."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("never said " + text + ":\n" + "".join(lines))


def last_state(output: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Weights and meta of the newest checkpoint."""
    newest = max((output / "checkpoints").iterdir())
    meta = json.loads((newest / "meta.json").read_text())
    return load_file(newest / "model.safetensors"), meta


def assert_equal_runs(one: Path, other: Path) -> None:
    """The same weights, averages and order, bit for bit."""
    (weights, meta), (other_weights, other_meta) = last_state(one), last_state(other)
    assert meta["step"] == other_meta["step"] == STEPS
    assert meta["order_digest"] == other_meta["order_digest"]
    assert weights.keys() == other_weights.keys()
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name]), name


@pytest.mark.parametrize(("ranks", "extra"), [(1, []), (2, []), (3, ["--train.micro_batch", "20"])])
def test_killed_run_resumes_bit_for_bit(
    dataset: Path, tmp_path: Path, ranks: int, extra: list[str]
) -> None:
    """SIGKILL to everything in mid-epoch, the same command again: equal final weights."""
    finish(start(dataset, tmp_path / "whole", ranks, *extra))
    killed = start(dataset, tmp_path / "killed", ranks, *extra)
    wait_for(killed, "checkpoint saved at step 2")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    said = finish(start(dataset, tmp_path / "killed", ranks, *extra))
    assert "resumed" in said
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")
    if ranks == 1:
        assert "this run is finished" in finish(start(dataset, tmp_path / "killed", ranks))


def test_signal_saves_and_other_world_goes_on(dataset: Path, tmp_path: Path) -> None:
    """TERM to one rank's launcher saves; another number of ranks goes on in the same order."""
    finish(start(dataset, tmp_path / "whole", 1))
    stopped = start(dataset, tmp_path / "stopped", 2)
    wait_for(stopped, "epoch 1/2  step 3/5")
    stopped.terminate()
    output, _ = stopped.communicate()
    assert "stopped by a signal; saved" in output, output
    finish(start(dataset, tmp_path / "stopped", 3))
    assert (
        last_state(tmp_path / "whole")[1]["order_digest"]
        == (last_state(tmp_path / "stopped")[1]["order_digest"])
    )


def test_single_process_leaves_with_85_after_a_signal(dataset: Path, tmp_path: Path) -> None:
    """'Saved, requeue me' is what a scheduler is told."""
    process = start(dataset, tmp_path / "run", 1)
    wait_for(process, "epoch 1/2  step 2/5")
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
    assert "passed over" in output and "[rank" not in output
    assert "exitcode  : 2" in output  # torchrun may end the other rank before it says so, too


def test_more_ranks_than_lanes_cannot_go_on(dataset: Path, tmp_path: Path) -> None:
    """The order was fixed with the lanes; the message says whose they are and how many fit."""
    finish(start(dataset, tmp_path / "run", 1, "--stream.lanes", "1"))
    process = start(dataset, tmp_path / "run", 2)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "begun with 1 lanes" in output and "at most 1 ranks can go on" in output
