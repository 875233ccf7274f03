"""Batches on the device: CUDA copies run on a stream of their own, one batch ahead of the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.device_timer import DeviceTimer
from quickdraw_dist.data.stream.batch import Batch, StrokeBatch


@dataclass
class DeviceBatch:
    """A batch with its tensors on the device."""

    host: Batch
    drawings: torch.Tensor | StrokeBatch  # of bitmaps (n, 28, 28) uint8
    labels: torch.Tensor  # (n,) int64


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """Yield every batch on the device, ready for the current stream.

    On CUDA the next batch is requested and its copy started before a batch is yielded, which is one
    of the two batches in use that Ownership in `stream/ring` allows. Copies run beside the step
    only from pinned memory; from other memory they are right, too, but the host waits for each.
    """
    timer = DeviceTimer(device, metrics.HOST_TO_DEVICE_SECONDS.inc)
    if device.type != "cuda":
        for batch in batches:
            with timer:
                moved = DeviceBatch(batch, batch.drawings.to(device), batch.labels.to(device))
            yield moved
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    previous: DeviceBatch | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            with timer:
                copying = DeviceBatch(
                    batch,
                    batch.drawings.to(device, non_blocking=True),
                    batch.labels.to(device, non_blocking=True),
                )
            batch.copied = copies.record_event()
        if previous is not None:
            yield _arrived(previous)
        previous = copying
    if previous is not None:
        yield _arrived(previous)


def _arrived(batch: DeviceBatch) -> DeviceBatch:
    """Make the current stream wait for the copy."""
    assert batch.host.copied is not None, "on_device records the event with every copy"
    current = torch.cuda.current_stream(batch.labels.device)
    current.wait_event(batch.host.copied)
    # The allocator must not reuse this memory while the step still reads it.
    batch.drawings.record_stream(current)
    batch.labels.record_stream(current)
    return batch
