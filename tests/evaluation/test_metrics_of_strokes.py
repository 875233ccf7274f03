"""Metrics of drawings that are stored as strokes: with those that Google recognised apart."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch

from quickdraw_dist import models
from quickdraw_dist.base.settings import Model
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED, UNKNOWN
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.evaluation.metrics import Evaluation, evaluate
from quickdraw_dist.evaluation.report import write_report
from quickdraw_dist.models.input import NetworkInput, Normalisation, Raster
from tests.support.data.strokes import random_strokes, stroke_batch
from tests.support.pages import Page
from tests.support.processes.ranks import run_ranks

COUNT, CLASSES = 60, 3
STROKES = random_strokes(COUNT, "evaluated")
LABELS = np.arange(COUNT) % CLASSES


def batches(content: str, sizes: Sequence[int], start: int = 0) -> Iterator[Batch]:
    """The drawings from `start` on, in batches of these sizes."""
    for step, size in enumerate(sizes):
        some = STROKES.slice(start, start + size)
        pixels = torch.from_numpy(raster.plain(some))
        drawings = stroke_batch(some) if content == "strokes" else pixels
        here = slice(start, start + size)
        rows = np.arange(COUNT, dtype=np.uint32)[here]
        yield Batch(step, drawings, torch.from_numpy(LABELS[here]), rows)
        start += size


def measure(
    own: Raster,
    given: Iterator[Batch],
    world: World = World(0, 1, 0, 1, torch.device("cpu")),  # noqa: B008 it is frozen
    keep_mistakes: int = 0,
) -> Evaluation:
    """Evaluate a small network with random weights."""
    torch.manual_seed(4)
    return evaluate(
        models.build(Model(width=2), CLASSES, own.channels, own.side),
        given,
        split="test",
        classes=("a", "b", "c"),
        source=NetworkInput(own, Normalisation(0.2, 0.4)),
        world=world,
        autocast=torch.autocast("cpu", enabled=False),
        keep_mistakes=keep_mistakes,
    )


@pytest.mark.parametrize("own", [Raster("strokes"), Raster("strokes", 40, 4), Raster()])
def test_recognized_drawings_apart(own: Raster) -> None:
    """Accuracy over the drawings that are known to have been recognised, which the mistakes of all
    others confirm; however they come in batches."""
    whole = measure(own, batches("strokes", (COUNT,)), keep_mistakes=COUNT)
    missed = {mistake.row for mistake in whole.mistakes}
    recognized = np.flatnonzero(STROKES.recognized == RECOGNIZED)
    right = [row for row in recognized.tolist() if row not in missed]
    assert 0 < len(recognized) < COUNT and len(missed) == COUNT - int(np.trace(whole.confusion))
    assert (whole.recognized, whole.recognized_hits) == (len(recognized), len(right))
    metrics = whole.metrics()
    assert metrics["recognized_drawings"] == len(recognized)
    assert metrics["top1_recognized"] == pytest.approx(len(right) / len(recognized), abs=1e-6)
    pieces = measure(own, batches("strokes", (7, 40, 13)))
    assert pieces.metrics() == pytest.approx(metrics, abs=1e-5)


def test_bitmaps_of_strokes() -> None:
    """A network of strokes sees the same in bitmaps; those have no verdicts."""
    strokes = measure(Raster("strokes"), batches("strokes", (COUNT,)))
    bitmaps = measure(Raster("strokes"), batches("bitmaps", (COUNT,)))
    assert bitmaps.loss == pytest.approx(strokes.loss, abs=1e-3)
    assert bitmaps.recognized == 0 and math.isnan(bitmaps.top1_recognized)
    assert "top1_recognized" not in bitmaps.metrics()


@pytest.mark.parametrize("own", [Raster("strokes"), Raster("strokes", 40, 4)])
def test_mistakes_are_shown_with_28_pixels(own: Raster) -> None:
    """Whatever the network looks at, the page shows ink."""
    result = measure(own, batches("strokes", (25, 35)), keep_mistakes=10)
    assert len(result.mistakes) == 10
    for mistake in result.mistakes:
        pixels = raster.plain(STROKES.slice(mistake.row, mistake.row + 1))[0].astype(int)
        assert mistake.pixels.dtype == np.uint8
        assert np.abs(mistake.pixels - pixels).max() <= 1


def test_stored_as_bytes() -> None:
    """Verdicts survive in a run's folder; a file from before there were any has none."""
    whole = measure(Raster("strokes"), batches("strokes", (COUNT,)), keep_mistakes=3)
    again = Evaluation.from_bytes(whole.to_bytes(), "validation.npz")
    assert again.metrics() == whole.metrics()
    with np.load(io.BytesIO(whole.to_bytes())) as stored:
        arrays = dict(stored)
    rest = json.loads(arrays["rest"].tobytes())
    for name in ("recognized", "recognized_hits"):
        del rest[name]
    arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    older = io.BytesIO()
    np.savez_compressed(older, **arrays)
    before = Evaluation.from_bytes(older.getvalue(), "validation.npz")
    assert before.top1 == whole.top1 and before.recognized == 0


def test_report(tmp_path: Path) -> None:
    """The page and its numbers have the accuracy over recognised drawings if there are any."""
    for content in ("strokes", "bitmaps"):
        result = measure(Raster("strokes"), batches(content, (COUNT,)), keep_mistakes=3)
        page = Page(write_report(result, tmp_path / content, title=content, details={}))
        numbers = json.loads((tmp_path / content / "evaluation.json").read_text())
        assert ("Top-1, recognised" in page.text("dl")) == (content == "strokes")
        assert ("top1_recognized" in numbers) == (content == "strokes")
        assert f"{result.top1:.2%}" in page.text("dl")


def test_two_ranks_add_up(processes: ForkServerContext, tmp_path: Path) -> None:
    """Verdicts are summed over ranks as all counters are."""
    expected = measure(Raster("strokes"), batches("strokes", (COUNT,)))
    for found in run_ranks(processes, 2, tmp_path, run_rank):
        assert found == (expected.recognized, expected.recognized_hits)


def run_rank(rank: int, size: int) -> tuple[int, int]:
    """Evaluate 20 drawings on the first rank, the others on the second."""
    torch.set_num_threads(1)
    share = batches("strokes", (30, 10), 20) if rank else batches("strokes", (20,))
    world = World(rank, size, rank, size, torch.device("cpu"))
    result = measure(Raster("strokes"), share, world)
    return result.recognized, result.recognized_hits


def test_no_verdict_is_no_recognition() -> None:
    """Where the source does not say, no accuracy is claimed."""
    unknown = random_strokes(12, "unknown")
    unknown.recognized[:] = UNKNOWN
    labels = torch.from_numpy(LABELS[:12])
    batch = Batch(0, stroke_batch(unknown), labels, np.arange(12, dtype=np.uint32))
    assert "top1_recognized" not in measure(Raster("strokes"), iter([batch])).metrics()
