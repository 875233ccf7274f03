"""Windows are decoded into coming batches in the order of need, as far ahead as there is room, and
no further: a batch in use stays what it is."""

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
from quickdraw_dist.data.order.memory import HELD, least_batches
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import Need, schedule
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.datasets import Dataset
from tests.support.delivery import InTurn, Shape, identities_of, line, make_loader, pairs
from tests.support.orders import Numbered, orders, place_of


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdraw_dist.data.stream.loader.ThreadPoolExecutor", InTurn)


class Recording(Numbered):
    """Notes which blocks were asked for; one of them may be damaged."""

    def __init__(self, order: Order, damaged: tuple[int, int] | None = None) -> None:
        super().__init__(order)
        self.asked: list[tuple[int, int]] = []
        self.damaged = damaged

    def read(self, shard: int, number: int, scratch: Scratch | None = None) -> Block:
        self.asked.append((shard, number))
        if (shard, number) == self.damaged:
            raise CorruptError(f"shard {shard}: block {number}")
        return super().read(shard, number)


def blocks_of(needs: list[Need]) -> list[tuple[int, int]]:
    return [(piece.shard, piece.block) for need in needs for piece in need.window.pieces]


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize(
    ("more_batches", "windows"),
    [(0, [2, 4, 4, 6, 6, 8, 8, 8]), (1, [4, 4, 6, 6, 8, 8, 8, 8]), (2, [4, 6, 6, 8, 8, 8, 8, 8])],
)
def test_as_far_ahead_as_there_is_room(more_batches: int, windows: list[int]) -> None:
    """Two lanes' windows of two steps each, by hand: one is begun when its last batch lies where
    nothing is in use any more; before that it would destroy what the device reads."""
    order = Order(((4,) * 8,) * 2, global_batch=8, lanes=2, window_blocks=2, seed=1)
    needs, reader = schedule(order, 0, 0, 0, 8), Recording(order)
    assert least_batches(order) == 4
    for batch in make_loader(reader, order, more_batches=more_batches).epoch(0):
        assert reader.asked == blocks_of(needs[: windows[batch.step]])


@pytest.mark.usefixtures("in_turn")
@settings(max_examples=50)
@given(orders(), st.sampled_from([0, 1, None]), st.data())
def test_batches_in_use_stay_as_they_are(
    order: Order, more_batches: int | None, data: st.DataObject
) -> None:
    """The step still reads one while the next is on its way to the device."""
    first_step = data.draw(st.integers(0, order.steps))
    loader, in_use = make_loader(Numbered(order), order, more_batches=more_batches), list[Batch]()
    for batch in loader.epoch(1, first_step):
        in_use = [*in_use, batch][-HELD:]
        for held in in_use:
            first = held.step * order.global_batch
            want = [order.locate(1, first + at) for at in range(order.global_batch)]
            assert [place_of(*pair) for pair in pairs(held)] == want
            assert held.drawings[:, 3, 4].tolist() == [place[2] for place in want]


class Copy:
    """Stands for the event of a copy to the device, which ends when it is waited for."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.was = batch, batch.drawings.clone()

    def synchronize(self) -> None:
        assert torch.equal(self.batch.drawings, self.was), "written while the device reads it"


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize("taken", [1, 2, 5, 8])
def test_no_batch_is_written_before_its_copy_is_done(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by the next epoch, also where this one is left early."""
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
    """What comes before it is trained on; its own window never is, nor what would follow."""
    order = Order(((4,) * 8,), global_batch=2, lanes=1, window_blocks=2, seed=1)
    needs = schedule(order, 0, 0, 0, 2)
    bad = blocks_of(needs)[damaged]
    batches = make_loader(Recording(order, bad), order).epoch(0)
    for step in range(needs[damaged // 2].first_step):
        want = [order.locate(0, 2 * step), order.locate(0, 2 * step + 1)]
        assert [place_of(*pair) for pair in pairs(next(batches))] == want
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
    """Blocks that come out of order must not come out as each other: rank 0 of 2 shares a lane
    whose steps are longer than windows, and passes over those of rank 1."""
    reader = Reluctant(dataset.folder, dataset.manifest, "train", Stream())
    shape = Shape(global_batch=900, lanes=3, window_blocks=1)
    order = shape.order(reader.block_counts)
    loader = make_loader(reader, order, rank=0, world_size=2, threads=4, more_batches=20)
    needs = schedule(order, 0, 0, *loader.part)
    blocks = [(piece.shard, piece.block) for need in needs for piece in need.window.pieces]
    reader.held, reader.until, reader.released = blocks[held], blocks[until], threading.Event()
    want, half = line(dataset, shape, 0), loader.part[1]
    assert identities_of(loader) == want[:half] + want[900 : 900 + half]
