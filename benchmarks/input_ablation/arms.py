"""What is compared, as data: tasks, arms, and the order of their runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Task:
    """A number of classes and a length of training."""

    classes: int
    """345: all. 30: those with 2,500 drawings in the local slice."""
    epochs: int
    held_out: float = 0.1
    """Share of every class that is not trained on."""

    @property
    def name(self) -> str:
        """Name in the results and of the folder of its runs: '345-2'."""
        return f"{self.classes}-{self.epochs}"


@dataclass(frozen=True)
class Arm:
    """Settings of the training command that differ from arm to arm."""

    name: str
    settings: dict[str, object] = field(default_factory=dict)


class Run(NamedTuple):
    """One training run."""

    task: Task
    arm: Arm
    seed: int


TASKS = (Task(345, 2), Task(30, 15, held_out=0.7))
"""Few epochs over many drawings, as in a run over the whole dataset, and many over few. Both see
about 350,000 drawings: minutes on a core."""

ARMS = (
    Arm("off", {"augment.affine": False}),
    Arm("affine", {"augment.affine": True}),
)
"""The first one is what the others are compared with."""

COMMON = {
    "model.width": 16, "train.global_batch": 128, "train.precision": "bf16",
    "optimizer.learning_rate": 3e-3, "optimizer.ema_half_life_drawings": 20_000,
    "train.log_every": 100, "metrics.port": 0, "metrics.report": False,
}  # fmt: skip
"""Settings of every run; none of them was tuned for an arm."""


def plan(tasks: Iterable[Task], arms: Iterable[Arm], seeds: int) -> list[Run]:
    """Return all runs with seeds 1, 2, ... `seeds`; pure.

    Arms take turns, and every task has a run of every arm before any has a second one: whenever
    the ablation is stopped, what is there compares as much as it can.
    """
    tasks, arms = tuple(tasks), tuple(arms)
    return [Run(task, arm, seed) for seed in range(1, seeds + 1) for task in tasks for arm in arms]
