"""A stand-in for CUDA's streams, events and memory, with a device that does everything as late as
it may: what is queued is done when something waits for it, and free memory is reused at once.

Code that forgets an event, a wait or `record_stream` reads wrong bytes here every time, on a real
device perhaps once in a million steps.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch


class Stream:
    """Work in the order it was queued."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._queue: list[Callable[[], object]] = []
        self.done = 0

    def submit(self, work: Callable[[], object]) -> None:
        """Queue work."""
        self._queue.append(work)

    def run(self, until: int | None = None) -> None:
        """Do the work that was queued first, all of it by default."""
        while self.done < (len(self._queue) if until is None else until):
            self._queue[self.done]()
            self.done += 1

    def record_event(self) -> Event:
        """Return an event that is reached when all work queued so far is done."""
        return Event().record(self)

    def wait_event(self, event: Event) -> None:
        """Let later work wait for an event."""
        self.submit(event.synchronize)

    def __len__(self) -> int:
        """Return how much work was ever queued."""
        return len(self._queue)


class Event:
    """A point of a stream."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._stream, self._count = Stream(), 0

    def record(self, stream: Stream | None = None) -> Event:
        """Be the point that the stream has reached when all work queued so far is done."""
        self._stream = stream or torch.cuda.current_stream()
        self._count = len(self._stream)
        return self

    def synchronize(self) -> None:
        """Have the stream's work done up to this point."""
        self._stream.run(self._count)

    def query(self) -> bool:
        """Whether the stream is past this point."""
        return self._stream.done >= self._count

    def elapsed_time(self, end: Event) -> float:
        """Return milliseconds."""
        return 1.0


class LateDevice:
    """Stands in for torch.cuda and for copies to a CUDA device, for the length of a test."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.main = Stream()
        """The stream that steps run on."""
        self.waits = 0
        """Copies that the host waited for."""
        self._current = self.main
        self._free: dict[tuple[torch.Size, torch.dtype], list[np.ndarray]] = defaultdict(list)
        for name in ("Stream", "Event"):
            patch.setattr(torch.cuda, name, globals()[name])
        patch.setattr(torch.cuda, "stream", self._stream)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self._current)
        patch.setattr(
            torch.Tensor, "to", lambda tensor, *how, **more: self._copy(tensor, *how, **more)
        )
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self._record(tensor))

    @contextlib.contextmanager
    def _stream(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        yield
        self._current = before

    def _copy(
        self, host: torch.Tensor, device: torch.device, non_blocking: bool = False
    ) -> torch.Tensor:
        """Queue a copy into the memory that became free last, if there is any; its contents are
        `memory` of the tensor that is returned, which work may hold without keeping the tensor."""
        free = self._free[host.shape, host.dtype]
        memory = free.pop() if free else np.full_like(host.numpy(), 3)
        there = torch.from_numpy(memory)
        there.memory, there.freed = memory, weakref.finalize(there, free.append, memory)
        self._current.submit(lambda: np.copyto(memory, host.numpy()))
        if not non_blocking:
            self.waits += 1
            self._current.run()
        return there

    def _record(self, tensor: torch.Tensor) -> None:
        """Keep the memory of a tensor from being reused: its work is never known to be done."""
        tensor.freed.detach()
