"""Exact metrics over a whole split: top-1, top-3, MAP@3, per class, and the confusion matrix."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.device import DeviceBatch, on_device
from quickdraw_dist.distributed.ranks import World, sum_over_ranks
from quickdraw_dist.models.input import NetworkInput, Stored, stored, thumbnails

RATES = ("top1", "top3", "map3", "mean_class_accuracy", "loss")
"""Metrics of an evaluation that are means over drawings."""

MISTAKES = 40
"""How many mistakes a report shows at most."""


@dataclass(frozen=True)
class Mistake:
    """A drawing whose first guess was wrong."""

    pixels: NDArray[np.uint8]  # (28, 28), white ink on black
    label: int
    predicted: int
    confidence: float  # probability given to the predicted class, 0 to 1
    row: int  # (label, row) is the drawing's identity in the source


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model on one split, every drawing counted once."""

    split: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]  # (C, C): rows are true classes, columns predictions
    top3_per_class: NDArray[np.int64]  # (C,): drawings whose class is among the first three
    map3: float  # mean of 1, 1/2, 1/3 or 0 by the rank of the true class among the guesses
    loss: float  # mean cross entropy, nats, without label smoothing
    mistakes: tuple[Mistake, ...] = ()
    recognized: int = 0  # drawings that are known to have been recognised as they were drawn
    recognized_hits: int = 0  # those of them whose first guess is right

    @cached_property
    def support(self) -> NDArray[np.int64]:
        """Drawings of each class, (C,)."""
        return np.asarray(self.confusion.sum(axis=1))

    @property
    def drawings(self) -> int:
        """Drawings in the split."""
        return int(self.support.sum())

    @property
    def top1(self) -> float:
        """Share of drawings whose first guess is right; NaN without drawings."""
        return float(np.trace(self.confusion)) / (self.drawings or math.nan)

    @property
    def top1_recognized(self) -> float:
        """`top1` of the recognised drawings; NaN without any, as for bitmaps."""
        return self.recognized_hits / (self.recognized or math.nan)

    @property
    def top3(self) -> float:
        """Share of drawings whose class is among the first three guesses; NaN without drawings."""
        return float(self.top3_per_class.sum()) / (self.drawings or math.nan)

    @cached_property
    def class_accuracy(self) -> NDArray[np.float64]:
        """Top-1 share of each class, (C,); NaN for a class without drawings."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.diag(self.confusion) / self.support, dtype=np.float64)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the per-class top-1 shares over the classes that have drawings."""
        return float(np.nanmean(self.class_accuracy)) if self.drawings else math.nan

    def confused_pairs(self, count: int) -> list[tuple[int, int, int]]:
        """Return the most frequent mistakes first, as (true label, predicted label, drawings)."""
        off = self.confusion.copy()
        np.fill_diagonal(off, 0)
        order = np.argsort(-off, axis=None, kind="stable")[:count]
        pairs = [(int(i) // off.shape[1], int(i) % off.shape[1]) for i in order]
        return [(true, guess, int(off[true, guess])) for true, guess in pairs if off[true, guess]]

    def to_bytes(self) -> bytes:
        """Return the evaluation as an .npz file without pickle."""
        rest = {"split": self.split, "classes": self.classes, "map3": self.map3, "loss": self.loss}
        rest |= {"recognized": self.recognized, "recognized_hits": self.recognized_hits}
        values = [(m.label, m.predicted, m.row, m.confidence) for m in self.mistakes]
        out = io.BytesIO()
        np.savez_compressed(
            out,
            rest=np.frombuffer(json.dumps(rest).encode(), np.uint8),
            confusion=self.confusion,
            top3_per_class=self.top3_per_class,
            pixels=np.array([m.pixels for m in self.mistakes], np.uint8).reshape(-1, 28, 28),
            facts=np.array(values, np.float64).reshape(-1, 4),
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Evaluation:
        """Read what `to_bytes` has written to `url`.

        Raises:
            CorruptError: it is something else, or damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                rest = json.loads(arrays["rest"].tobytes())
                rows = zip(arrays["pixels"], arrays["facts"].tolist(), strict=True)
                return cls(
                    rest["split"],
                    tuple(rest["classes"]),
                    arrays["confusion"],
                    arrays["top3_per_class"],
                    rest["map3"],
                    rest["loss"],
                    tuple(
                        Mistake(pixels, int(label), int(guess), confidence, int(row))
                        for pixels, (label, guess, row, confidence) in rows
                    ),
                    rest.get("recognized", 0),
                    rest.get("recognized_hits", 0),
                )
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise CorruptError(url, None, f"not a stored evaluation: {error}") from None

    def metrics(self) -> dict[str, float | int | str | None]:
        """Return the overall metrics, ready for JSON; None where there are no drawings. Those of
        recognised drawings are there if there are any."""
        metrics: dict[str, float | int | str | None] = {
            "split": self.split,
            "drawings": self.drawings,
            "classes": len(self.classes),
            "top1": round(self.top1, 6),
            "top3": round(self.top3, 6),
            "map3": round(self.map3, 6),
            "mean_class_accuracy": round(self.mean_class_accuracy, 6),
            "loss": round(self.loss, 6),
        }
        if self.recognized:
            metrics["recognized_drawings"] = self.recognized
            metrics["top1_recognized"] = round(self.top1_recognized, 6)
        undefined = {} if self.drawings else dict.fromkeys(RATES)
        return metrics | undefined


class _Counters:
    """Counters on the device, so that no batch waits for the host."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self.hits = torch.zeros(3, classes, dtype=torch.int64, device=device)  # by rank, class
        self.loss = torch.zeros(1, dtype=torch.float32, device=device)
        # Drawings that were recognised as they were drawn, and correct first guesses among them.
        self.recognized = torch.zeros(2, dtype=torch.int64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor, drawings: Stored) -> torch.Tensor:
        """Count (B, C) float32 logits and their (B,) labels; return the first guesses, (B,)."""
        classes = logits.shape[1]
        guesses = logits.topk(min(3, classes), dim=1).indices  # (B, 3)
        ones = torch.ones_like(labels)
        self.confusion.index_add_(0, labels * classes + guesses[:, 0], ones)
        for rank in range(guesses.shape[1]):
            self.hits[rank].index_add_(0, labels, (guesses[:, rank] == labels).long())
        self.loss += functional.cross_entropy(logits, labels, reduction="sum")
        if not isinstance(drawings, torch.Tensor):
            recognized = drawings[4] == RECOGNIZED
            right = recognized & (guesses[:, 0] == labels)
            self.recognized += torch.stack([recognized.sum(), right.sum()])
        return guesses[:, 0]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    split: str,
    classes: tuple[str, ...],
    source: NetworkInput,
    world: World,
    autocast: torch.autocast,
    keep_mistakes: int = 0,
) -> Evaluation:
    """Run a model over this rank's batches and sum the counters over all ranks.

    Args:
        model: unwrapped, with the same weights and buffers on every rank.
        batches: this rank's share of the split; shares may differ in length.
        split: name for the report.
        classes: names of the classes, in the order of the logits.
        source: what the model's input is made of, on the model's device.
        world: the ranks to sum over; every rank gets the same metrics.
        autocast: the context that sets the forward pass's precision.
        keep_mistakes: how many of this rank's most confident mistakes to keep, with pixels.
    """
    was_training = model.training
    model.eval()
    counters = _Counters(len(classes), world.device)
    mistakes: list[Mistake] = []
    for batch in on_device(batches, world.device):
        drawings = stored(batch.drawings)
        pictures = source(drawings)
        with autocast:
            logits = model(pictures).float()
        guesses = counters.add(logits, batch.labels, drawings)
        if keep_mistakes:
            mistakes += _mistakes(batch, drawings, guesses, logits, keep_mistakes)
            mistakes = sorted(mistakes, key=lambda m: -m.confidence)[:keep_mistakes]
    model.train(was_training)
    for counter in (counters.confusion, counters.hits, counters.loss, counters.recognized):
        sum_over_ranks(counter)
    hits = counters.hits.cpu().numpy()
    recognized, recognized_hits = counters.recognized.tolist()
    total = int(counters.confusion.sum()) or math.nan
    return Evaluation(
        split=split,
        classes=classes,
        confusion=counters.confusion.cpu().numpy().reshape(len(classes), len(classes)),
        top3_per_class=hits.sum(axis=0),
        map3=float((hits.sum(axis=1) / np.array([1, 2, 3])).sum() / total),
        loss=float(counters.loss) / total,
        mistakes=tuple(mistakes),
        recognized=recognized,
        recognized_hits=recognized_hits,
    )


def _mistakes(
    batch: DeviceBatch, drawings: Stored, guesses: torch.Tensor, logits: torch.Tensor, most: int
) -> list[Mistake]:
    """Return the `most` most confident mistakes of a batch; chosen on the device."""
    confidence = logits.softmax(1).gather(1, guesses[:, None]).flatten()  # (B,)
    wrong = (guesses != batch.labels).nonzero().flatten()
    surest = confidence[wrong].topk(min(most, len(wrong)))
    indices, host = wrong[surest.indices], batch.host
    pictures = thumbnails(drawings)[indices].cpu().numpy()  # a copy
    return [
        Mistake(
            pixels=pixels,
            label=int(host.labels[index]),
            predicted=guess,
            confidence=sure,
            row=int(host.rows[index]),
        )
        for pixels, index, guess, sure in zip(
            pictures,
            indices.tolist(),
            guesses[indices].tolist(),
            surest.values.tolist(),
            strict=True,
        )
    ]
