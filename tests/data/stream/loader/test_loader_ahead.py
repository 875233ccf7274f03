"""Windows are decoded in order of need, as far ahead as the ring has free slots and no further: a
batch in use does not change."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.settings import Stream
from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.order.memory import BATCHES_IN_USE, least_batches
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import ScheduledWindow, schedule
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.data.datasets import CONTENTS, Dataset
from tests.support.data.delivery import InTurn, Shape, identities_of, line, make_loader, pairs
from tests.support.data.orders import Numbered, location_of, numbers_in, orders


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdraw_dist.data.stream.prefetch.ThreadPoolExecutor", InTurn)


class Recording(Numbered):
    """Records which blocks are read; one of them may be damaged."""

    def __init__(self, order: Order, damaged: tuple[int, int] | None = None) -> None:
        super().__init__(order)
        self.requested: list[tuple[int, int]] = []
        self.damaged = damaged

    def read(self, shard: int, number: int, scratch: Scratch | None = None) -> Block:
        self.requested.append((shard, number))
        if (shard, number) == self.damaged:
            raise CorruptError(f"shard {shard}: block {number}")
        return super().read(shard, number)


def blocks_of(scheduled: list[ScheduledWindow]) -> list[tuple[int, int]]:
    return [(piece.shard, piece.block) for it in scheduled for piece in it.window.pieces]


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize(
    ("more_batches", "windows"),
    [(0, [2, 4, 4, 6, 6, 8, 8, 8]), (1, [4, 4, 6, 6, 8, 8, 8, 8]), (2, [4, 6, 6, 8, 8, 8, 8, 8])],
)
def test_windows_are_decoded_as_far_ahead_as_slots_are_free(
    more_batches: int, windows: list[int]
) -> None:
    """Two lanes' windows of two steps each, by hand: one is begun when the slot of its last
    batch has been released; before that it would overwrite what the device reads."""
    order = Order(((4,) * 8,) * 2, global_batch=8, lanes=2, window_blocks=2, seed=1)
    scheduled, reader = schedule(order, order.share(0, 1), 0, 0), Recording(order)
    assert least_batches(order) == 4
    for batch in make_loader(reader, order, more_batches=more_batches).epoch(0):
        assert reader.requested == blocks_of(scheduled[: windows[batch.step]])


@pytest.mark.usefixtures("in_turn")
@settings(max_examples=50)
@given(orders(), st.sampled_from([0, 1, None]), st.sampled_from(CONTENTS), st.data())
def test_batches_in_use_stay_as_they_are(
    order: Order, more_batches: int | None, content: str, data: st.DataObject
) -> None:
    """The step still reads one while the next is copied to the device."""
    first_step = data.draw(st.integers(0, order.steps))
    loader, in_use = (
        make_loader(Numbered(order, content), order, more_batches=more_batches),
        list[Batch](),
    )
    for batch in loader.epoch(1, first_step):
        in_use = [*in_use, batch][-BATCHES_IN_USE:]
        for held in in_use:
            first = held.step * order.global_batch
            want = [order.locate(1, first + at) for at in range(order.global_batch)]
            assert [location_of(*pair) for pair in pairs(held)] == want
            assert numbers_in(held.drawings) == [location[2] for location in want]


class Copy:
    """Stands in for the event of a copy to the device, which completes when it is waited for."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.was = batch, batch.drawings.clone()

    def synchronize(self) -> None:
        assert torch.equal(self.batch.drawings, self.was), "written while the device reads it"


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize("taken", [1, 2, 5, 8])
def test_no_batch_is_written_before_its_copy_is_done(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by the next epoch, also where this one is abandoned."""
    order = Order(((4,) * 8,) * 2, global_batch=8, lanes=2, window_blocks=2, seed=1)
    done, synchronize = list[int](), Copy.synchronize

    def noted(self: Copy) -> None:
        synchronize(self)
        done.append(self.batch.step)

    monkeypatch.setattr(Copy, "synchronize", noted)
    loader = make_loader(Numbered(order), order, more_batches=0)
    for epoch in range(3):
        batches = loader.epoch(epoch)
        for _ in range(taken):
            batch = next(batches)
            batch.copied = cast(torch.cuda.Event, Copy(batch))
        batches.close()
    next(loader.epoch(3))
    assert done == list(range(taken)) * 3


@pytest.mark.parametrize("damaged", range(8))
def test_a_damaged_block_is_an_error_of_its_window_alone(damaged: int) -> None:
    """Batches before it are delivered; its own window never is, nor any that follow."""
    order = Order(((4,) * 8,), global_batch=2, lanes=1, window_blocks=2, seed=1)
    scheduled = schedule(order, order.share(0, 1), 0, 0)
    bad = blocks_of(scheduled)[damaged]
    batches = make_loader(Recording(order, bad), order).epoch(0)
    for step in range(scheduled[damaged // 2].first_step):
        want = [order.locate(0, 2 * step), order.locate(0, 2 * step + 1)]
        assert [location_of(*pair) for pair in pairs(next(batches))] == want
    with pytest.raises(CorruptError, match=f"shard 0: block {bad[1]}"):
        next(batches)
    assert next(batches, None) is None


class Reluctant(SplitReader):
    """A reader in which one block takes long: until another one has been read, at most a second.

    The second is no limit on the test: a loader that waits for the first block before it asks for
    the other one lets it pass, and is right.
    """

    held: tuple[int, int]
    until: tuple[int, int]
    released: threading.Event

    def read(self, shard: int, number: int, scratch: Scratch | None = None) -> Block:
        if (shard, number) == self.held:
            self.released.wait(1.0)
        block = super().read(shard, number)
        if (shard, number) == self.until:
            self.released.set()
        return block


@pytest.mark.parametrize(("held", "until"), [(0, 1), (0, 7), (3, 4), (5, 11), (20, 27)])
def test_a_slow_block_is_waited_for(dataset: Dataset, held: int, until: int) -> None:
    """Blocks that arrive out of order must not be confused: rank 0 of 2 shares a lane whose steps
    are longer than windows, and skips windows of rank 1."""
    reader = Reluctant(dataset.folder, dataset.manifest, "train", Stream())
    shape = Shape(global_batch=900, lanes=3, window_blocks=1)
    order = shape.order(reader.block_counts)
    loader = make_loader(reader, order, rank=0, world_size=2, threads=4, more_batches=20)
    scheduled = schedule(order, loader.share, 0, 0)
    blocks = [(piece.shard, piece.block) for it in scheduled for piece in it.window.pieces]
    reader.held, reader.until, reader.released = blocks[held], blocks[until], threading.Event()
    want, half = line(dataset, shape, 0), loader.share.stop
    assert identities_of(loader) == want[:half] + want[900 : 900 + half]
