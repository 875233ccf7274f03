"""Where this process is in its run: its main thread says it, watchdog and profiles read it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch.profiler import record_function

T = TypeVar("T")

PHASES = ("start", "compile", "evaluation", "checkpoint", "data wait", "forward", "backward",
          "optimizer")  # fmt: skip
"""In their order within a step, which begins with what follows the step before it."""


@dataclass(frozen=True, order=True)
class Place:
    """A point of the run. Ranks pass the same points in the same order, so the least is behind."""

    step: int
    phase: int  # an index of PHASES
    count: int = 0  # forward pass or batch within the phase

    def __str__(self) -> str:
        """As a person reads it."""
        return f"{PHASES[self.phase]} of step {self.step:,}" + f", part {self.count}" * bool(
            self.count
        )


@dataclass(frozen=True)
class Here:
    """Where the main thread is."""

    place: Place
    since: float  # on the monotonic clock
    stepped: bool  # whether it has done a whole step in this process


_here = Here(Place(0, 0), time.monotonic(), stepped=False)


def at(phase: str, step: int, count: int = 0) -> None:
    """The main thread comes to this place."""
    global _here
    stepped = _here.stepped or _here.place.phase == PHASES.index("optimizer")
    _here = Here(Place(step, PHASES.index(phase), count), time.monotonic(), stepped)


def here() -> Here:
    """Where the main thread is now; from any thread."""
    return _here


@contextmanager
def phase(name: str, step: int, count: int = 0) -> Iterator[None]:
    """A piece of work at this place, which profiles show under its name."""
    at(name, step, count)
    with record_function(name):
        yield


def passing(name: str, step: int, items: Iterable[T]) -> Iterator[T]:
    """The items, each a place."""
    at(name, step)
    for count, item in enumerate(items, 1):
        at(name, step, count)
        yield item
