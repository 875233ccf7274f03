"""What this process does now, and where its seconds went: one clock for goodput, the watchdog and
the profiler.

    with phases("evaluation", step):
        ...

charges the body's seconds to the phase's cause, stores the point of the run that the watchdog
reads, and shows the body under the phase's name in profiles.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.metrics import CAUSES

T = TypeVar("T")

CAUSE_OF = {
    "start": "restart",
    "compile": "compile",
    "evaluation": "evaluation",
    "checkpoint": "checkpoint",
    "data wait": "data_wait",
    "forward": "train",
    "backward": "train",
    "optimizer": "train",
}
"""Every phase, in the order of a step, and the cause that its seconds are charged to."""

PHASES = tuple(CAUSE_OF)


def cause_name(cause: str) -> str:
    """Return a cause as a person reads it, the same on the terminal and on a page."""
    return "starting" if cause == "restart" else cause.replace("_", " ")


@dataclass(frozen=True, order=True)
class RunPoint:
    """A point of the run. Ranks pass the same points in the same order: the least is behind."""

    step: int
    phase: int  # an index into PHASES
    count: int = 0  # micro-batch or evaluation batch within the phase

    def __str__(self) -> str:
        batch = f", batch {self.count}" if self.count else ""
        return f"{PHASES[self.phase]} of step {self.step:,}{batch}"


@dataclass(frozen=True)
class Current:
    """What the main thread was last seen to begin."""

    point: RunPoint
    since: float  # on the monotonic clock
    stepped: bool  # whether this process has done a whole step


class Phases:
    """A stopwatch that always runs for exactly one cause, and the point the main thread is at.

    The seconds of all causes add up to the wall time of this process and, with what `resume`
    brings, of the run since its first start. Other threads may read `current`.
    """

    def __init__(self) -> None:
        self.started = time.time()
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self.cause = CAUSE_OF["start"]
        """What time is charged to now."""
        self.current = Current(RunPoint(0, 0), time.monotonic(), stepped=False)
        self._since = time.monotonic()

    @contextmanager
    def __call__(self, phase: str, step: int, count: int = 0) -> Iterator[None]:
        """Be in a phase for the length of the body, then charge what was charged before: training
        after a wait for data. The run point stays until the next phase is entered."""
        from torch.profiler import record_function  # not above: the clock starts before torch loads

        before = "train" if phase == "data wait" else self.cause
        self.enter(phase, step, count)
        self._switch(CAUSE_OF[phase])
        try:
            with record_function(phase):
                yield
        finally:
            self._switch(before)

    def enter(self, phase: str, step: int, count: int = 0) -> None:
        """Record that the main thread has reached this point; charge nothing."""
        stepped = self.current.stepped or PHASES[self.current.point.phase] == "optimizer"
        point = RunPoint(step, PHASES.index(phase), count)
        self.current = Current(point, time.monotonic(), stepped)

    def track(self, phase: str, step: int, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, recording each as a point of the run."""
        self.enter(phase, step)
        for count, item in enumerate(items, 1):
            self.enter(phase, step, count)
            yield item

    def _switch(self, cause: str) -> None:
        if cause != self.cause:
            self._charge()
            self.cause = cause

    def _charge(self) -> None:
        """Charge the time since the last call to the present cause."""
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        self.seconds[self.cause] += elapsed
        metrics.GOODPUT_SECONDS.labels(self.cause).inc(elapsed)
        if self.cause == "data_wait":
            metrics.DATA_WAIT_SECONDS.inc(elapsed)

    def now(self) -> dict[str, float]:
        """Return the seconds of every cause up to this moment."""
        self._charge()
        return dict(self.seconds)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: every cause's seconds, and the Unix time they end at."""
        return {"until": time.time(), "seconds": self.now()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from an earlier process's state. The time between that state and this process's
        start (nothing ran, or what ran was lost and is done again) is charged to `restart`."""
        past = dict(state["seconds"])
        past["restart"] = past.get("restart", 0.0) + max(0.0, self.started - state["until"])
        for cause in CAUSES:
            self.seconds[cause] += past.get(cause, 0.0)
            metrics.GOODPUT_SECONDS.labels(cause).inc(past.get(cause, 0.0))
