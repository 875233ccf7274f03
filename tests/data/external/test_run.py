"""Whole runs on tars that webdataset wrote: no manifest, equal steps, honest resumes."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import torch
import webdataset

from tests.support import runs

CLASSES = ("dots", "lines", "boxes")


def write_shards(folder: Path, sizes: list[int], wrong_in: int = -1) -> None:
    """png + cls, in shards of these sizes; one shard may have a label that is no class."""
    folder.mkdir(parents=True)
    for shard, size in enumerate(sizes):
        random = np.random.default_rng(shard)
        with webdataset.TarWriter(str(folder / f"x-{shard:02d}.tar"), mtime=0) as writer:
            for number in range(size):
                label = number % len(CLASSES)
                picture = (random.random((28, 28)) < 0.1 + 0.2 * label) * np.uint8(255)
                wrong = 9 if shard == wrong_in else label
                writer.write({"__key__": f"{shard}-{number}", "png": picture, "cls": wrong})


def settings(data: Path, output: Path, *extra: str) -> list[str]:
    """Of a small run on these tars."""
    arguments = ["--data", str(data), "--output", str(output), "--stream.reader", "webdataset"]
    arguments += ["--stream.class_names", *CLASSES, "--train.epochs", "2", "--train.log_every", "1"]
    arguments += ["--train.global_batch", "32", "--train.deterministic", "true"]
    arguments += ["--model.width", "4", "--train.device", "cpu", "--metrics.port", "0"]
    return [*arguments, *runs.NO_PAGE, *extra]


def test_two_ranks_resume_exactly_at_an_epoch(processes: ForkServerContext, tmp_path: Path) -> None:
    """Uneven shards, equal steps; killed in the second epoch, the same command ends with the
    weights and order of a run that was never touched."""
    write_shards(tmp_path / "data" / "train", [70, 100, 30, 60])
    write_shards(tmp_path / "data" / "val", [40])
    said = runs.run_forked(processes, 2, settings(tmp_path / "data", tmp_path / "whole"))
    assert "260 drawings (all, as counted) of 4 shards, 8 steps of 32" in said
    assert said.count("does not promise that a drawing comes exactly once") == 1
    assert "epoch 2/2  step 8/8" in said and "no validation split" not in said
    whole = runs.newest(tmp_path / "whole")
    meta = whole.meta
    assert meta["classes"] == list(CLASSES)
    assert (meta["step"], meta["lanes"], meta["epoch_drawings"]) == (16, 0, 260)
    assert meta["validation"]["drawings"] == 40

    arguments = settings(tmp_path / "data", tmp_path / "killed")
    runs.kill_forked(processes, 2, arguments, step=8 + 3)
    said = runs.run_forked(processes, 2, arguments)
    assert "epoch 2, step 0 of 8" in said and "shuffled again" not in said
    again = runs.newest(tmp_path / "killed")
    assert again.meta["order_digest"] == meta["order_digest"]
    assert again.meta["normalisation"] == meta["normalisation"]
    for name, value in whole.weights.items():
        assert torch.equal(value, again.weights[name]), name


def test_in_mid_epoch_it_goes_on_otherwise_and_says_so(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """Without a validation split, too: one line says so, and the newest checkpoints are kept."""
    write_shards(tmp_path / "data", [70, 100])
    often = settings(tmp_path / "data", tmp_path / "run", "--checkpoint.every_drawings", "64")
    often += ["--train.epochs", "1"]
    saved = tmp_path / "run" / "checkpoints" / "step-000000002" / "meta.json"
    runs.kill_forked(processes, 1, often, step=4, phase="checkpoint", after=saved)
    said = runs.run_forked(processes, 1, often)
    assert "epoch 1, step 2 of 5" in said
    assert "the 3 steps left in this epoch are shuffled again" in said
    assert said.count("no validation split") == 1 and "validation after" not in said
    meta = runs.last_meta(tmp_path / "run")
    assert (meta["step"], meta["validation"]) == (5, None)
    kept = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000000004", "step-000000005"]
    assert "this run is finished" in runs.run_forked(processes, 1, often)
    grown = [*often, "--stream.epoch_drawings", "64", "--train.epochs", "2"]
    said = runs.run_forked(processes, 1, grown)
    assert "stream.epoch_drawings: 0 -> 64" in said and "epoch 2/2  step 2/2" in said


def test_any_rank_names_the_drawing_that_it_cannot_use(tmp_path: Path) -> None:
    """Without counting, as the length of an epoch is given, it is found in training."""
    write_shards(tmp_path / "data", [50, 50], wrong_in=1)
    arguments = settings(tmp_path / "data", tmp_path / "run", "--stream.epoch_drawings", "64")
    process = runs.start(runs.torchrun(2), arguments)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert f"error: {tmp_path}/data/x-01.tar: 1-" in said
    assert "label 9, but there are 3 classes (0 to 2)" in said
