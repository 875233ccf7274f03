"""A copy of training state that stands still while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


class Snapshot:
    """Copies of tensors: on a GPU taken there, and brought to the host later by another thread.

    Room for them is taken once and kept for the next copy: as much again as the state itself, on
    the GPU and pinned on its host. One copy at a time: `take` may be called again when `on_host`
    has returned and what it gave is not needed any more.
    """

    def __init__(self) -> None:
        """Nothing is copied, no room taken."""
        self._state: Any = None  # the containers as they were, with the copies in them
        self._copies: list[torch.Tensor] = []
        self._hosts: list[torch.Tensor] = []
        self._taken: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None

    @torch.no_grad()
    def take(self, state: Any) -> None:
        """Copy the tensors in dicts, lists and tuples; other leaves are kept as they are.

        On a GPU this only queues the copies, between what the current stream was given before and
        what it is given next: nobody waits for them here.
        """
        sources: list[torch.Tensor] = []
        _replace(state, sources.append)
        if not _alike(sources, self._copies):
            self._copies, self._hosts = [], []  # gives the old room back first
            self._copies = [_room(source) for source in sources]
        for copy, source in zip(self._copies, sources, strict=True):
            copy.copy_(source, non_blocking=source.is_cuda)
        copies = iter(self._copies)
        self._state = _replace(state, lambda _: next(copies))
        self._taken = None
        device = next((source.device for source in sources if source.is_cuda), None)
        if device is not None:
            if self._stream is None:
                self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._taken = torch.cuda.current_stream(device).record_event()

    def on_host(self) -> Any:
        """What was taken, its tensors in host memory; waits until they are there."""
        if self._taken is None or self._stream is None:
            return self._state
        if not self._hosts:
            self._hosts = [_pinned(copy) if copy.is_cuda else copy for copy in self._copies]
        # A stream of its own: beside training, not between its steps.
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._taken)
            for host, copy in zip(self._hosts, self._copies, strict=True):
                if copy.is_cuda:
                    host.copy_(copy, non_blocking=True)
            self._stream.synchronize()
        hosts = iter(self._hosts)
        return _replace(self._state, lambda _: next(hosts))


def _room(source: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory for a copy: on the GPU for what is there, otherwise on the host."""
    if not source.is_cuda:
        return torch.empty_like(source, device="cpu")
    try:
        return torch.empty_like(source)
    except torch.OutOfMemoryError:  # a longer pause, as the copy crosses the bus in it
        return _pinned(source)


def _pinned(source: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(source, device="cpu", pin_memory=True)


def _alike(sources: list[torch.Tensor], copies: list[torch.Tensor]) -> bool:
    """Whether the room there is fits."""
    wanted = [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in sources]
    return wanted == [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in copies]


def _replace(state: Any, leaf: Callable[[torch.Tensor], Any]) -> Any:
    """The same containers with every tensor replaced, always in the same order."""
    if isinstance(state, torch.Tensor):
        return leaf(state)
    if isinstance(state, Mapping):
        return {key: _replace(value, leaf) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([_replace(value, leaf) for value in state])
    return state
