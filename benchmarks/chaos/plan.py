"""Which fault comes when: a pure function of a seed. And what a fault did."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

TARGETS = ("rank 0", "rank 1", "torchrun", "launcher", "everything")
"""Targets of SIGKILLs; all are equally frequent."""

EXIT_CODES = {
    "rank 0": {1}, "rank 1": {1}, "torchrun": {1}, "launcher": {-9}, "everything": {-9},
    "TERM": {85},
}  # fmt: skip
"""Exit codes that the launcher may return, by target."""

_TERM_RATIO = 0.1
"""SIGTERMs to the launcher per SIGKILL."""

_START_UP_RATIO = 0.35
_MOST_STEPS = 12
_MOST_DELAY_SECONDS = 0.25
_STEPS_IN_DELAY = 12
"""More steps than any machine trains between the fault's step and the fault."""


@dataclass(frozen=True)
class Fault:
    """A signal that ends one start of the run."""

    target: str  # of TARGETS, or TERM
    start_up: float | None  # sent after this fraction of a usual start-up; None: during training
    steps: int  # during training: sent after this many steps of the start
    delay_seconds: float  # and this long after them


@dataclass(frozen=True)
class Outcome:
    """What a fault met and did."""

    began_seconds: float  # beginning of the start, measured from the first start
    target: str
    phase: str  # of the run when the signal was sent
    resumed: int | None  # step that the start resumed from; None: it loaded no checkpoint
    reached: int | None  # last step that the start logged
    lived_seconds: float  # from the beginning of the start to the signal
    exit_code: int
    end_seconds: float  # from the signal until the run's last process had ended
    survivors: int
    half_written: int  # checkpoints without meta.json

    @property
    def expected(self) -> bool:
        """Whether the launcher's exit code is one of those expected."""
        return self.exit_code in EXIT_CODES[self.target]

    def __str__(self) -> str:
        resumed = "new run" if self.reached else "nothing loaded"
        if self.resumed is not None:
            resumed = f"resumed step {self.resumed}"
        signal = "SIGTERM to the launcher" if self.target == "TERM" else f"SIGKILL {self.target}"
        return (
            f"{self.began_seconds:7.1f} s  {resumed}; {signal} after {self.lived_seconds:.2f} s, "
            f"{self.phase}; exit code {self.exit_code}{'' if self.expected else ' (UNEXPECTED)'}, "
            f"all ended in {self.end_seconds:.2f} s"
            + (f", {self.survivors} SURVIVORS" if self.survivors else "")
            + (", a half-written checkpoint" if self.half_written else "")
        )


def plan(seed: int, kills: int) -> list[Fault]:
    """Draw `kills` SIGKILLs and a tenth as many SIGTERMs. Every five SIGKILLs meet every target
    once."""
    rng = random.Random(seed)
    targets: list[str] = []
    while len(targets) < kills:
        targets += rng.sample(TARGETS, len(TARGETS))
    targets = targets[:kills]
    for _ in range(round(kills * _TERM_RATIO)):
        targets.insert(rng.randrange(len(targets) + 1), "TERM")
    return [
        Fault(
            target,
            rng.random() if rng.random() < _START_UP_RATIO else None,
            rng.randint(1, _MOST_STEPS),
            rng.uniform(0, _MOST_DELAY_SECONDS),
        )
        for target in targets
    ]


def epochs_for(faults: Sequence[Fault], steps: int) -> int:
    """Epochs of `steps` steps that a run needs so that it cannot end before the last fault."""
    most = sum(fault.steps + _STEPS_IN_DELAY for fault in faults if fault.start_up is None)
    return most // steps + 2


def repeated_steps(resumed: Sequence[int | None], reached: Sequence[int | None]) -> list[int]:
    """Count for every start its steps that later starts trained again.

    Args:
        resumed: step that each start, the last one included, resumed from; None: it loaded no
            checkpoint.
        reached: last step of each start except the last one; None: it made none.
    """
    repeated, later = [], 0
    for start in reversed(range(len(reached))):
        following = resumed[start + 1]
        later = following if following is not None else later
        repeated.append(max(0, (reached[start] or 0) - later))
    return repeated[::-1]
