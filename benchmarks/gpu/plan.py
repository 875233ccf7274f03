"""Which steps still fit, and how long each may take: pure, as a function of the seconds left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Step:
    """A step of the benchmark, and its share of the time on a GPU."""

    name: str
    least: float
    """Seconds below which it is not worth starting."""
    most: float = inf
    """Seconds after which it hangs, whatever time is left."""


STEPS = (
    Step("facts", 15, 60),
    Step("smoke", 60, 150),
    Step("tests", 45, 120),
    Step("speed", 90, 400),
    Step("full-size", 180),
    Step("strokes", 120),
    Step("slow-tests", 60),
)
"""All steps, in order of worth."""


def allot(seconds_left: float, steps: Sequence[Step]) -> Mapping[str, float]:
    """Return the limit in seconds of each step that fits, by name, in the order given.

    Every step in turn gets its least if that is left; what remains goes to the first that can use
    it. Ask again before each step: time that one did not use is then the next one's.

    Args:
        seconds_left: until everything must be over.
        steps: those not run yet, in order of worth.
    """
    limits: dict[str, float] = {}
    for step in steps:
        if seconds_left > 0 and step.least <= seconds_left:
            limits[step.name] = step.least
            seconds_left -= step.least
    for step in steps:
        if step.name in limits:
            more = min(seconds_left, step.most - step.least)
            limits[step.name] += more
            seconds_left -= more
    return limits
