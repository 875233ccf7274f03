"""Metrics of a split: equal to torchmetrics and to their definitions, on any number of ranks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.evaluation.metrics import RATES, Evaluation, evaluate
from quickdraw_dist.models.input import NetworkInput, Normalisation, Raster
from tests.support.processes.ranks import run_ranks

ROOT = Path(__file__).parents[2]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class ReadsItsPixels(nn.Module):
    """A network whose logits are the drawing's first pixels, which a test sets."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, drawings: torch.Tensor) -> torch.Tensor:
        assert drawings.shape[1:] == (1, 28, 28)
        assert not self.training
        return drawings.flatten(1)[:, : self.classes]


class Drawings:
    """Drawings whose pixels hold distinct logits in random order, every class among the labels."""

    def __init__(self, classes: int, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.classes = classes
        self.pixels = np.zeros((count, 784), np.uint8)
        for row in self.pixels:
            row[:classes] = rng.choice(min(256, 4 * classes), classes, replace=False)
        self.labels = rng.permutation(np.arange(count) % classes)
        self.rows = rng.permutation(10 * count)[:count].astype(np.uint32)

    @property
    def logits(self) -> torch.Tensor:
        """The network's logits, (N, C) float64."""
        return torch.from_numpy(self.pixels[:, : self.classes].astype(np.float64)) * SCALE

    def batches(self, sizes: Sequence[int], start: int = 0) -> Iterator[Batch]:
        """Consecutive batches of these sizes; the buffers of one are overwritten by the next, as
        the loader does."""
        capacity = max(sizes, default=0)
        drawings = torch.empty(capacity, 28, 28, dtype=torch.uint8)
        labels = torch.empty(capacity, dtype=torch.int64)
        rows = np.empty(capacity, np.uint32)
        for step, size in enumerate(sizes):
            here = slice(start, start + size)
            drawings[:size] = torch.from_numpy(self.pixels[here]).view(-1, 28, 28)
            labels[:size] = torch.from_numpy(self.labels[here])
            rows[:size] = self.rows[here]
            yield Batch(step, drawings[:size], labels[:size], rows[:size])
            start += size


SCALE = 0.05
"""A logit per grey level; `measure` chooses the std so that normalisation gives this."""


def measure(
    drawings: Drawings, batches: Iterator[Batch], world: World = ALONE, keep_mistakes: int = 0
) -> Evaluation:
    """Evaluate the network that reads its pixels."""
    return evaluate(
        ReadsItsPixels(drawings.classes),
        batches,
        split="test",
        classes=tuple(f"class {n}" for n in range(drawings.classes)),
        source=NetworkInput(Raster(), Normalisation(0.0, 1 / (255 * SCALE))),
        world=world,
        autocast=torch.autocast("cpu", enabled=False),
        keep_mistakes=keep_mistakes,
    )


def map3(logits: torch.Tensor, labels: Sequence[int]) -> float:
    """Mean average precision at three, as the Kaggle competition defines it."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        ranking = sorted(range(len(row)), key=lambda guess: -row[guess])
        for rank, guess in enumerate(ranking[:3], 1):
            if guess == label:
                total += 1 / rank
    return total / len(labels)


# -- against other implementations -----------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 4, 20])
@pytest.mark.parametrize(
    "sizes", [(97,), (32, 32, 32, 1), (5, 0, 92)], ids=["one batch", "uneven", "with an empty one"]
)
def test_metrics_match_their_definitions(classes: int, sizes: tuple[int, ...]) -> None:
    """The report's numbers are compared with those of other models: they must be the usual ones,
    for any batch sizes, also with fewer classes than three guesses."""
    from torchmetrics.functional.classification import (  # slow, and the ranks do not need it
        multiclass_accuracy,
        multiclass_confusion_matrix,
    )

    drawings = Drawings(classes, 97)
    result = measure(drawings, drawings.batches(sizes))
    logits, labels = drawings.logits, torch.from_numpy(drawings.labels)
    assert result.drawings == 97
    assert result.support.tolist() == torch.bincount(labels, minlength=classes).tolist()

    expected = multiclass_confusion_matrix(logits, labels, classes)
    assert result.confusion.tolist() == expected.tolist()

    def accuracy(average: str, top_k: int) -> Any:
        return multiclass_accuracy(logits, labels, classes, average=average, top_k=top_k)

    best = min(3, classes)
    assert result.top1 == pytest.approx(float(accuracy("micro", 1)))
    assert result.mean_class_accuracy == pytest.approx(float(accuracy("macro", 1)))
    assert result.class_accuracy.tolist() == pytest.approx(accuracy("none", 1).tolist())
    assert result.top3 == pytest.approx(float(accuracy("micro", best)))
    per_class = result.top3_per_class / result.support
    assert per_class.tolist() == pytest.approx(accuracy("none", best).tolist())
    assert result.map3 == pytest.approx(map3(logits, drawings.labels.tolist()))
    loss = nn.functional.cross_entropy(logits, labels)
    assert result.loss == pytest.approx(float(loss), rel=1e-5)


def test_a_class_without_drawings() -> None:
    """It has no accuracy, and the mean over classes excludes it, also if it is predicted."""
    drawings = Drawings(4, 40)
    drawings.labels[drawings.labels == 2] = 1
    result = measure(drawings, drawings.batches((40,)))
    assert result.support[2] == 0
    assert result.confusion[:, 2].sum() > 0
    assert np.isnan(result.class_accuracy[2])
    shares = [result.confusion[c, c] / result.support[c] for c in (0, 1, 3)]
    assert result.mean_class_accuracy == pytest.approx(sum(shares) / 3)


def test_nothing_to_measure() -> None:
    """A split may be empty: that is no accuracy of 0 % and no loss of 0."""
    metrics = measure(Drawings(3, 3), iter(())).metrics()
    assert metrics["drawings"] == 0
    assert {metrics[name] for name in RATES} == {None}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_metrics_are_json() -> None:
    """They go into metrics.jsonl, the checkpoint's meta.json and a job's output."""
    drawings = Drawings(5, 30)
    metrics = measure(drawings, drawings.batches((30,))).metrics()
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["split"] == "test"
    assert (metrics["classes"], metrics["drawings"]) == (5, 30)


def test_confused_pairs() -> None:
    """Most frequent first, true class before guess, and no pair that did not happen."""
    confusion = np.array([[5, 2, 0], [7, 1, 0], [0, 3, 9]])
    result = Evaluation("test", ("a", "b", "c"), confusion, np.zeros(3, np.int64), 0.0, 0.0)
    assert result.confused_pairs(2) == [(1, 0, 7), (2, 1, 3)]
    assert result.confused_pairs(10) == [(1, 0, 7), (2, 1, 3), (0, 1, 2)]


def test_the_model_is_left_as_it_was() -> None:
    """Evaluation during training must switch dropout and batch norm back on."""
    drawings = Drawings(3, 3)
    for training in (True, False):
        model = ReadsItsPixels(3).train(training)
        evaluate(
            model, drawings.batches((3,)), split="val", classes=("a", "b", "c"),
            source=NetworkInput(Raster(), Normalisation(0.0, 1.0)), world=ALONE,
            autocast=torch.autocast("cpu", enabled=False),
        )  # fmt: skip
        assert model.training is training


# -- mistakes --------------------------------------------------------------------------------------


def test_mistakes_are_the_most_confident_ones() -> None:
    """The report shows where the model is most confident and wrong; (label, row) identifies the
    drawing in the source, so both and the pixels must be that drawing's."""
    drawings = Drawings(5, 80)
    result = measure(drawings, drawings.batches((30, 30, 20)), keep_mistakes=12)
    probabilities = drawings.logits.softmax(1)
    confidence, guess = (values.numpy() for values in probabilities.max(1))
    wrong = [n for n in range(80) if guess[n] != drawings.labels[n]]
    assert len(wrong) > 20
    expected = sorted((confidence[n] for n in wrong), reverse=True)[:12]
    assert [m.confidence for m in result.mistakes] == pytest.approx(expected, rel=1e-5)
    index = {int(row): n for n, row in enumerate(drawings.rows)}
    for mistake in result.mistakes:
        n = index[mistake.row]
        assert (mistake.label, mistake.predicted) == (drawings.labels[n], guess[n])
        assert mistake.confidence == pytest.approx(confidence[n], rel=1e-5)
        assert mistake.pixels.dtype == np.uint8
        assert mistake.pixels.shape == (28, 28)
        assert mistake.pixels.tobytes() == drawings.pixels[n].tobytes()
    assert len({m.row for m in result.mistakes}) == 12


def test_fewer_mistakes_than_asked_for() -> None:
    """A good model makes few; a validation during training keeps none."""
    drawings = Drawings(4, 20)
    drawings.labels = drawings.logits.argmax(1).numpy()
    drawings.labels[3] = (drawings.labels[3] + 1) % 4
    assert len(measure(drawings, drawings.batches((20,)), keep_mistakes=60).mistakes) == 1
    assert measure(drawings, drawings.batches((20,))).mistakes == ()


@pytest.mark.parametrize("keep_mistakes", [0, 12])
def test_stored_as_bytes(keep_mistakes: int) -> None:
    """A run stores its last validation in its folder, and its page can be made from it later."""
    drawings = Drawings(5, 80)
    whole = measure(drawings, drawings.batches((80,)), keep_mistakes=keep_mistakes)
    again = Evaluation.from_bytes(whole.to_bytes(), "validation.npz")
    assert again.metrics() == whole.metrics()
    assert (again.classes, again.loss, again.map3) == (whole.classes, whole.loss, whole.map3)
    assert np.array_equal(again.confusion, whole.confusion)
    assert np.array_equal(again.top3_per_class, whole.top3_per_class)
    assert len(again.mistakes) == len(whole.mistakes) == keep_mistakes
    for one, other in zip(again.mistakes, whole.mistakes, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert replace(one, pixels=other.pixels) == other


def test_other_bytes_are_refused() -> None:
    """Half a file, another program's, and one that needs pickle."""
    drawings = Drawings(5, 20)
    whole = measure(drawings, drawings.batches((20,))).to_bytes()
    other, pickled = io.BytesIO(), io.BytesIO()
    np.savez(other, confusion=np.zeros(3))
    np.savez(pickled, rest=np.array([{}], dtype=object))
    for data in (b"", b"text", whole[:-100], other.getvalue(), pickled.getvalue()):
        with pytest.raises(CorruptError, match=r"runs/x/validation\.npz: not a stored evaluation"):
            Evaluation.from_bytes(data, "runs/x/validation.npz")


# -- ties ------------------------------------------------------------------------------------------


def tied(classes: int) -> Drawings:
    """Return drawings whose logits are all equal, as those of a dead network."""
    drawings = Drawings(classes, 4 * classes)
    drawings.pixels[:] = 7
    return drawings


@pytest.mark.parametrize("classes", [2, 3, 5, 20])
def test_ties_are_one_guess(classes: int) -> None:
    """Equal logits give one guess per rank, so a dead network scores chance and not more."""
    drawings = tied(classes)
    result = measure(drawings, drawings.batches((4 * classes,)))
    assert result.drawings == 4 * classes
    assert result.top1 == pytest.approx(1 / classes)
    assert result.top3 == pytest.approx(min(3, classes) / classes)
    expected = sum(1 / rank for rank in range(1, min(3, classes) + 1)) / classes
    assert result.map3 == pytest.approx(expected)


@pytest.mark.parametrize("classes", [5, 20])
def test_mistakes_agree_with_the_confusion_matrix(classes: int) -> None:
    """A drawing that counts as right must not be shown as a mistake. Ties are common in bf16,
    which has 8 significant bits."""
    drawings = tied(classes)
    result = measure(drawings, drawings.batches((4 * classes,)), keep_mistakes=10**6)
    shown = np.zeros_like(result.confusion)
    for mistake in result.mistakes:
        shown[mistake.label, mistake.predicted] += 1
    counted = result.confusion.copy()
    np.fill_diagonal(counted, 0)
    assert shown.tolist() == counted.tolist()


# -- two ranks -------------------------------------------------------------------------------------

SHARES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # name: batch sizes of either rank; 41 drawings in all
    "even": ((11, 10), (20,)),
    "uneven": ((8, 8, 8, 8, 1), (8,)),
    "one has none": ((41,), ()),
    "the first has none": ((), (20, 21)),
}


@pytest.fixture(scope="module")
def pair(
    processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The result of each of two real gloo ranks, for all shares at once."""
    return run_ranks(processes, 2, tmp_path_factory.mktemp("pair"), run_rank)


def summary(result: Evaluation) -> dict[str, Any]:
    """Return all of an evaluation but the mistakes."""
    return {
        "metrics": result.metrics(),
        "confusion": result.confusion.tolist(),
        "top3_per_class": result.top3_per_class.tolist(),
    }


@pytest.mark.parametrize("name", SHARES)
def test_two_ranks_find_the_same(name: str, pair: list[dict[str, Any]]) -> None:
    """Every drawing counts once on any number of ranks, with shares of any length, also empty
    ones; and all ranks get the same metrics, as all of them decide by these."""
    drawings = Drawings(4, 41)
    expected = summary(measure(drawings, drawings.batches((41,))))
    for found in pair:
        found_metrics, metrics = found[name].pop("metrics"), dict(expected["metrics"])
        assert found_metrics.pop("loss") == pytest.approx(metrics.pop("loss"), abs=2e-6)
        assert found_metrics == metrics
        assert found[name] == {k: v for k, v in expected.items() if k != "metrics"}


def run_rank(rank: int, size: int) -> dict[str, Any]:
    """Evaluate one rank's share of every split into two."""
    torch.set_num_threads(1)
    world = World(rank, size, rank, size, torch.device("cpu"))
    drawings, found = Drawings(4, 41), {}
    for name, shares in SHARES.items():
        start = sum(shares[0]) if rank else 0
        found[name] = summary(measure(drawings, drawings.batches(shares[rank], start), world))
    return found
