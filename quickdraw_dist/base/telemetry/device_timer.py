"""Time work on the device without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

import torch


class DeviceTimer:
    """Reports the seconds that the body of a `with` takes on the device.

    On CUDA, events are recorded on the current stream around the body, and read in a later body
    once the stream has passed them. On other devices the host's clock is read.
    """

    def __init__(self, device: torch.device, observe: Callable[[float], object]) -> None:
        """`observe` gets the seconds of each body, in order; the last few may never be reported."""
        self._cuda, self._observe = device.type == "cuda", observe
        self._under_way: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._begin: torch.cuda.Event | None = None
        self._started = 0.0

    def __enter__(self) -> None:
        if self._cuda:
            self._begin = mark()
        else:
            self._started = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record the end event and report durations that have completed."""
        if self._begin is None:
            self._observe(time.monotonic() - self._started)
            return
        self._under_way.append((self._begin, mark()))
        while self._under_way and _passed(self._under_way[0][1]):
            begin, end = self._under_way.popleft()
            self._observe(begin.elapsed_time(end) / 1000)


def mark() -> torch.cuda.Event:
    """Record an event on the current stream: the time when it reaches this point."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _passed(event: torch.cuda.Event) -> bool:
    return bool(event.query())  # type: ignore[no-untyped-call]
