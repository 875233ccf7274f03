"""Batches on the device: CUDA copies run on a stream of their own, one batch ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.base.telemetry.device_timer import DeviceTimer
from quickdraw_dist.data.stream.batch import Batch


@dataclass
class DeviceBatch:
    """A batch with its tensors on the device."""

    host: Batch
    drawings: torch.Tensor  # (n, 28, 28) uint8
    labels: torch.Tensor  # (n,) int64


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """Move every batch; the current stream may use it when it is yielded."""
    timer = DeviceTimer(device, telemetry.HOST_TO_DEVICE_SECONDS.inc)
    if device.type != "cuda":
        for batch in batches:
            with timer:
                there = DeviceBatch(batch, batch.drawings.to(device), batch.labels.to(device))
            yield there
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: DeviceBatch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            with timer:
                ahead = DeviceBatch(
                    batch,
                    batch.drawings.to(device, non_blocking=True),
                    batch.labels.to(device, non_blocking=True),
                )
            batch.copied = copies.record_event()  # until then the loader leaves its buffer alone
        if waiting is not None:
            yield _arrived(waiting)
        waiting = ahead
    if waiting is not None:
        yield _arrived(waiting)


def _arrived(batch: DeviceBatch) -> DeviceBatch:
    assert batch.host.copied is not None, "on_device records the event before it hands out"
    current = torch.cuda.current_stream()
    current.wait_event(batch.host.copied)
    # The allocator must not hand this memory out again while the step still reads it.
    batch.drawings.record_stream(current)
    batch.labels.record_stream(current)
    return batch
