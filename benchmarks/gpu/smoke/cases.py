"""What the smoke step runs: which settings, and how they are started. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Literal

Kind = Literal["train", "joined", "launched", "resumed", "evaluated"]
"""train: one process. joined: one rank in a process group, with DDP. launched: one rank under
quickdraw_dist.launch and torchrun. resumed: stopped by TERM, resumed, and compared with a run that
was not stopped. evaluated: trained, then jobs.evaluate with its report."""

PRECISIONS = ("bf16", "fp16", "fp32")
MODES = ("off", "default", "reduce-overhead", "max-autotune")

Settings = dict[str, object]


@dataclass(frozen=True)
class Case:
    """A training run, or several that belong together."""

    name: str
    kind: Kind = "train"
    settings: Settings = field(default_factory=dict)
    content: str = "bitmaps"
    """What is stored of the drawings: bitmaps or strokes."""


def cases(on_gpu: bool) -> list[Case]:
    """All cases, in order of worth; what compiles for minutes comes last."""
    plain = [_plain(*both) for both in product(PRECISIONS, MODES) if on_gpu or _small(*both)]
    slow = [case for case in plain if "max-autotune" in case.name]
    first = [case for case in plain if case not in slow]
    return [*first, *_others(on_gpu), *slow]


def _plain(precision: str, mode: str) -> Case:
    return Case(f"{precision}, {mode}", settings=_settings(precision, mode))


def _settings(precision: str, mode: str) -> Settings:
    return {"train.precision": precision, "train.compile": mode}


def _small(precision: str, mode: str) -> bool:
    """Whether the pair is also tried without a GPU."""
    return (precision, mode) in (("fp32", "off"), ("bf16", "off"), ("fp32", "default"))


def _others(on_gpu: bool) -> list[Case]:
    """Everything beside precisions and modes; each with the modes that could break it."""
    precision, usual = ("bf16", "default") if on_gpu else ("fp32", "off")
    replayed = [usual, "reduce-overhead"] if on_gpu else [usual]
    resident: Settings = {"stream.resident": True}
    pieces: Settings = {"train.micro_batch": 300 if on_gpu else 10}
    everything: Settings = {
        "optimizer.name": "sgd", "optimizer.learning_rate": 0.02, "optimizer.weight_decay": 5e-4,
        "augment.affine": True, "augment.flip": 0.5, "augment.erase": 0.5, "augment.thickness": 0.5,
        "train.channels_last": False,
    }  # fmt: skip
    strokes: Settings = {"strokes.channels": 4, "augment.affine": True}
    found = [
        Case("evaluated", "evaluated", _settings(precision, usual)),
        Case("strokes, evaluated", "evaluated", _settings(precision, usual), "strokes"),
        Case("launched", "launched", _settings(precision, usual)),
    ]
    for mode in replayed:
        settings = _settings(precision, mode)
        found += [
            Case(f"resident, {mode}", settings=settings | resident),
            Case(f"strokes, {mode}", settings=settings | strokes, content="strokes"),
            Case(f"strokes, resident, {mode}", settings=settings | resident, content="strokes"),
            Case(f"joined, {mode}", "joined", settings),
            Case(f"stopped and resumed, {mode}", "resumed", settings),
            Case(f"joined, micro-batches, {mode}", "joined", settings | pieces),
        ]
    if on_gpu:
        graphs = _settings(precision, "reduce-overhead")
        found += [
            Case("micro-batches, reduce-overhead", settings=graphs | pieces),
            Case("stopped and resumed, off", "resumed", _settings(precision, "off")),
            Case("sgd, all augmentations", settings=_settings(precision, usual) | everything),
        ]
    return found
