"""What is compared, as data: tasks, their arms, the questions, and the order of the runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Arm:
    """What is stored of every drawing, and the settings of the training command."""

    name: str
    settings: dict[str, object] = field(default_factory=dict)
    content: str = "bitmaps"
    """As `shard.content`."""


@dataclass(frozen=True)
class Task:
    """Drawings, a length of training, and the arms that are compared on them."""

    classes: int
    """345: all. 30: of `BITMAPS` those with 2,500 drawings; of `STROKES` those with the most of
    the classes below 1,000, for classes of about equal size."""
    epochs: int
    source: str
    """Folder of the local slice: `BITMAPS` or `STROKES`."""
    arms: tuple[Arm, ...]
    """The first one is what the others are compared with."""
    held_out: float = 0.1
    """Share of every class that is not trained on."""

    @property
    def name(self) -> str:
        """Name in the results and of the folder of its runs: '345-2', '345-2-strokes'."""
        return f"{self.classes}-{self.epochs}" + ("-strokes" if self.source == STROKES else "")

    @property
    def title(self) -> str:
        """Heading on the page."""
        of = "pen strokes" if self.source == STROKES else "bitmaps"
        return f"{self.classes} classes, {self.epochs} epochs, from official {of}"


class Question(NamedTuple):
    """Two arms whose difference says what a setting should be by default."""

    text: str
    arm: str
    base: str
    setting: str


class Run(NamedTuple):
    """One training run."""

    task: Task
    arm: Arm
    seed: int


BITMAPS, STROKES = "numpy_bitmap", "simplified"

AUGMENTATIONS = (
    Arm("off", {"augment.affine": False}),
    Arm("affine", {"augment.affine": True}),
)
INPUTS = (
    Arm("bitmaps", {"augment.affine": False}),
    *(
        Arm(
            f"strokes-{channels}" + ("-affine" if affine else ""),
            {"strokes.channels": channels, "augment.affine": affine},
            "strokes",
        )
        for affine in (False, True)
        for channels in (1, 4)
    ),
)
"""The same drawings: bitmaps are made of their strokes, as the official ones were."""

TASKS = (
    Task(345, 2, BITMAPS, AUGMENTATIONS),
    Task(30, 15, BITMAPS, AUGMENTATIONS, held_out=0.7),
    Task(345, 2, STROKES, INPUTS),
    Task(30, 15, STROKES, INPUTS, held_out=0.3),
)
"""Few epochs over many drawings, as in a run over the whole dataset, and many over few. All see
170,000 to 370,000 drawings: minutes on a core."""

QUESTIONS = (
    Question("affine changes of pixels", "affine", "off", "augment.affine"),
    Question("the same of points, 1 channel", "strokes-1-affine", "strokes-1", "augment.affine"),
    Question("the same of points, 4 channels", "strokes-4-affine", "strokes-4", "augment.affine"),
    Question("strokes in place of bitmaps", "strokes-1", "bitmaps", "shard.content"),
    Question("4 channels in place of 1", "strokes-4", "strokes-1", "strokes.channels"),
    Question(
        "the same with affine changes", "strokes-4-affine", "strokes-1-affine", "strokes.channels"
    ),
)

DEFAULTS = {
    "augment.affine": "a run over the whole dataset has few epochs, in which it costs. Switch it "
    "on where many epochs see few drawings.",
    "shard.content": "there are more sources of bitmaps. Strokes are worth as much to the network, "
    "take less space, and with 1 channel it classifies bitmaps as well.",
    "strokes.channels": "a network of 1 channel also classifies bitmaps, which hold neither order "
    "nor direction, and 4 do not gain in all tasks. Choose 4 for runs of few epochs over many "
    "classes, where all that the network will ever see are strokes.",
}
"""Why the settings of the questions have the default that they have, in words without figures."""

COMMON = {
    "model.width": 16, "train.global_batch": 128, "train.precision": "bf16",
    "train.device": "cpu", "train.compile": "off",
    "optimizer.learning_rate": 3e-3, "optimizer.ema_half_life_drawings": 20_000,
    "train.log_every": 100, "metrics.port": 0, "metrics.report": False,
}  # fmt: skip
"""Settings of every run; none of them was tuned for an arm."""


def plan(tasks: Iterable[Task], arms: Collection[str], seeds: int) -> list[Run]:
    """Return all runs of these arms with seeds 1, 2, ... `seeds`; pure.

    Arms take turns, and every task has a run of every arm before any has a second one: whenever
    the ablation is stopped, what is there compares as much as it can.
    """
    tasks = tuple(tasks)
    return [
        Run(task, arm, seed)
        for seed in range(1, seeds + 1)
        for task in tasks
        for arm in task.arms
        if arm.name in arms
    ]
