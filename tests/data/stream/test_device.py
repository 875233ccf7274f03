"""Batches on the device are the loader's, on the processor and through CUDA's copy stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.stream.batch import Batch, StrokeBatch
from quickdraw_dist.data.stream.device import DeviceBatch, on_device
from quickdraw_dist.data.stream.loader import TrainLoader
from tests.support.data.datasets import Dataset, as_bytes
from tests.support.data.delivery import Identity, make_loader, open_local
from tests.support.streams import LateDevice

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def open_loader(dataset: Dataset, device: str, more_batches: int = 9) -> TrainLoader:
    reader = open_local(dataset)
    order = Order(reader.block_counts, global_batch=64, lanes=8, window_blocks=2, seed=1)
    return make_loader(reader, order, more_batches=more_batches, pin=device == "cuda")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("more_batches", [0, 9])
def test_batches_arrive_whole_and_in_order(either: Dataset, device: str, more_batches: int) -> None:
    """The next batch must not be written over one that is still being copied."""
    loader = open_loader(either, device, more_batches)
    for epoch in (0, 1):
        steps = []
        for batch in on_device(loader.epoch(epoch), torch.device(device)):
            whole = batch.drawings
            for tensor in (whole,) if isinstance(whole, torch.Tensor) else whole.inputs():
                assert tensor.device.type == device
            assert batch.labels.device.type == device
            assert batch.labels.dtype == torch.int64
            labels = batch.labels.tolist()
            want = either.drawings(zip(labels, batch.host.rows.tolist(), strict=True))
            assert as_bytes(batch.drawings) == want
            steps.append(batch.host.step)
        assert steps == list(range(loader.order.steps))


@pytest.mark.parametrize("device", DEVICES)
def test_an_error_of_the_loader_comes_through(dataset: Dataset, device: str) -> None:
    """An error must not look like the end of an epoch to the trainer."""
    loader = open_loader(dataset, device)

    def failing() -> Iterator[Batch]:
        with contextlib.closing(loader.epoch(0)) as batches:
            yield next(batches)
            yield next(batches)
        raise RuntimeError("the shard is gone")

    with pytest.raises(RuntimeError, match="the shard is gone"):
        list(on_device(failing(), torch.device(device)))


def memory_of(drawings: torch.Tensor | StrokeBatch) -> Callable[[], torch.Tensor | StrokeBatch]:
    """What the memory of a `LateDevice` holds of a batch when it is called, without keeping it."""
    if isinstance(drawings, torch.Tensor):
        memory = drawings.memory
        return lambda: torch.from_numpy(memory)
    memories = [it.memory for it in (drawings.tiles, drawings.counts, drawings.recognized)]
    rest = drawings.first, drawings.per_drawing
    return lambda: StrokeBatch(*map(torch.from_numpy, memories), *rest)


@pytest.mark.parametrize("more_batches", [0, 9])
def test_a_late_device_reads_what_was_delivered(
    either: Dataset, monkeypatch: pytest.MonkeyPatch, more_batches: int
) -> None:
    """Copies and steps that run as late as they may: the ring's slot waits for the copy, the step
    waits for it, too, and the step's memory is not reused under it; the host waits for nothing."""
    device = LateDevice(monkeypatch)
    loader = open_loader(either, "cpu", more_batches)
    seen: list[tuple[list[Identity], list[bytes]]] = []

    def step(batch: DeviceBatch) -> Callable[[], None]:
        rows, labels = batch.host.rows.tolist(), batch.labels.memory
        drawings = memory_of(batch.drawings)

        def read() -> None:
            identities = list(zip(labels.tolist(), rows, strict=True))
            seen.append((identities, as_bytes(drawings())))

        return read

    for epoch in (0, 1):
        for batch in on_device(loader.epoch(epoch), torch.device("cuda")):
            device.main.submit(step(batch))
            del batch  # as the trainer does
    device.main.run()
    assert len(seen) == 2 * loader.order.steps
    for identities, drawings in seen:
        assert drawings == either.drawings(identities)
    assert device.waits == 0


@pytest.mark.cuda
def test_copies_are_one_batch_ahead(either: Dataset) -> None:
    """Otherwise the device would wait for every copy."""
    loader = open_loader(either, "cuda")
    requested = []

    def watched() -> Iterator[Batch]:
        for batch in loader.epoch(0):
            requested.append(batch.step)
            yield batch

    batches = on_device(watched(), torch.device("cuda"))
    assert next(batches).host.step == 0
    assert requested == [0, 1]
    batches.close()  # type: ignore[attr-defined]
