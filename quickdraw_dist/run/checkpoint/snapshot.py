"""A copy of the training state that does not change while training continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


class Snapshot:
    """Copies of tensors: taken on the GPU, and moved to the host later by another thread.

    Their memory is allocated once and reused: the size of the state, on the GPU and pinned on its
    host. There is one copy at a time: call `take` again only after `on_host` has returned and its
    result is no longer needed.
    """

    def __init__(self) -> None:
        self._state: Any = None  # the containers as they were, with the copies in them
        self._copies: list[torch.Tensor] = []
        self._hosts: list[torch.Tensor] = []
        self._taken: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None

    @torch.no_grad()
    def take(self, state: Any) -> None:
        """Copy the tensors in dicts, lists and tuples; other values are kept as they are.

        On a GPU this only queues the copies on the current stream and does not wait for them.
        """
        sources: list[torch.Tensor] = []
        _replace(state, sources.append)
        if not _fits(sources, self._copies):
            self._copies, self._hosts = [], []  # frees the old memory first
            self._copies = [_allocate(source) for source in sources]
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
        """Return the copied state with its tensors in host memory; waits until they are there."""
        if self._taken is None or self._stream is None:
            return self._state
        if not self._hosts:
            self._hosts = [_pinned(copy) if copy.is_cuda else copy for copy in self._copies]
        # A separate stream: the copies run beside the training steps, not between them.
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._taken)
            for host, copy in zip(self._hosts, self._copies, strict=True):
                if copy.is_cuda:
                    host.copy_(copy, non_blocking=True)
            self._stream.synchronize()
        hosts = iter(self._hosts)
        return _replace(self._state, lambda _: next(hosts))


def _allocate(source: torch.Tensor) -> torch.Tensor:
    """Allocate memory for a copy: on the GPU if the tensor is there, otherwise on the host."""
    if not source.is_cuda:
        return torch.empty_like(source, device="cpu")
    try:
        return torch.empty_like(source)
    except torch.OutOfMemoryError:  # a longer pause: the copy crosses the bus at once
        return _pinned(source)


def _pinned(source: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(source, device="cpu", pin_memory=True)


def _fits(sources: list[torch.Tensor], copies: list[torch.Tensor]) -> bool:
    """Whether the memory of earlier copies fits these tensors."""
    wanted = [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in sources]
    return wanted == [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in copies]


def _replace(state: Any, leaf: Callable[[torch.Tensor], Any]) -> Any:
    """Return the same containers with every tensor replaced, always in the same order."""
    if isinstance(state, torch.Tensor):
        return leaf(state)
    if isinstance(state, Mapping):
        return {key: _replace(value, leaf) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([_replace(value, leaf) for value in state])
    return state
