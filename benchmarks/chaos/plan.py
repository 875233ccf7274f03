"""Which blow falls when: pure, from a seed. And what one did."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

TARGETS = ("rank 0", "rank 1", "torchrun", "launcher", "everything")
"""What gets a SIGKILL: each as often as the others."""

EXIT_CODES = {
    "rank 0": {1}, "rank 1": {1}, "torchrun": {1}, "launcher": {-9}, "everything": {-9},
    "TERM": {85},
}  # fmt: skip
"""What the launcher may return, by target."""

_TERM_SHARE = 0.1
"""SIGTERMs to the launcher for every SIGKILL."""

_START_UP_SHARE = 0.35
_MOST_STEPS = 12
_MOST_DELAY_SECONDS = 0.25
_STEPS_IN_DELAY = 12
"""More than a start trains beyond its blow's step, on any machine."""


@dataclass(frozen=True)
class Blow:
    """One start's end."""

    target: str  # of TARGETS, or TERM
    start_up: float | None  # falls after this share of a usual start-up; None: in training
    steps: int  # in training: after so many steps of this start
    delay_seconds: float  # and so long after them


@dataclass(frozen=True)
class Report:
    """What a blow met and did."""

    began_seconds: float  # the start, since the first one
    target: str
    phase: str  # where the run was when it fell
    resumed: int | None  # step that this start resumed from; None: it did not get so far
    reached: int | None  # last step that it told of
    lived_seconds: float  # from the start to the blow
    exit_code: int
    gone_seconds: float  # from the blow until the run's last process had ended
    survivors: int
    half_written: int  # checkpoints without their meta.json, left behind

    @property
    def expected(self) -> bool:
        """Whether the launcher returned what it should."""
        return self.exit_code in EXIT_CODES[self.target]

    def __str__(self) -> str:
        resumed = "began anew" if self.reached else "nothing loaded"
        if self.resumed is not None:
            resumed = f"resumed step {self.resumed}"
        signal = "SIGTERM to the launcher" if self.target == "TERM" else f"SIGKILL {self.target}"
        return (
            f"{self.began_seconds:7.1f} s  {resumed}; {signal} after {self.lived_seconds:.2f} s, "
            f"{self.phase}; exit code {self.exit_code}{'' if self.expected else ' (UNEXPECTED)'}, "
            f"all gone in {self.gone_seconds:.2f} s"
            + (f", {self.survivors} SURVIVORS" if self.survivors else "")
            + (", a half-written checkpoint" if self.half_written else "")
        )


def plan(seed: int, kills: int) -> list[Blow]:
    """So many SIGKILLs and some SIGTERMs. Every five kills meet every target once."""
    rng = random.Random(seed)
    targets: list[str] = []
    while len(targets) < kills:
        targets += rng.sample(TARGETS, len(TARGETS))
    targets = targets[:kills]
    for _ in range(round(kills * _TERM_SHARE)):
        targets.insert(rng.randrange(len(targets) + 1), "TERM")
    return [
        Blow(
            target,
            rng.random() if rng.random() < _START_UP_SHARE else None,
            rng.randint(1, _MOST_STEPS),
            rng.uniform(0, _MOST_DELAY_SECONDS),
        )
        for target in targets
    ]


def epochs_for(blows: Sequence[Blow], steps: int) -> int:
    """Epochs of so many steps that outlast all blows: a start trains only so far."""
    most = sum(blow.steps + _STEPS_IN_DELAY for blow in blows if blow.start_up is None)
    return most // steps + 2


def repeated_steps(resumed: Sequence[int | None], reached: Sequence[int | None]) -> list[int]:
    """Steps of every start that were done again after it.

    Args:
        resumed: where each start, the last one included, went on; None: it did not get so far.
        reached: the last step of each start but the last one; None: it made none.
    """
    repeated, later = [], 0
    for at in reversed(range(len(reached))):
        following = resumed[at + 1]
        later = following if following is not None else later
        repeated.append(max(0, (reached[at] or 0) - later))
    return repeated[::-1]
