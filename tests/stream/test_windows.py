"""Windows are decoded in the order of need, as far ahead as there is room, and no further."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from quickdraw_dist.errors import CorruptError
from quickdraw_dist.stream.arena import Arena
from quickdraw_dist.stream.order import Order
from quickdraw_dist.stream.schedule import Need, schedule
from quickdraw_dist.stream.windows import Windows
from tests.stream.orders import Numbered, lane_places, orders, place_of


class Recording(Numbered):
    """Notes which blocks were asked for; one of them may be damaged."""

    def __init__(self, order: Order, damaged: tuple[int, int] | None = None) -> None:
        super().__init__(order)
        self.asked: list[tuple[int, int]] = []
        self.damaged = damaged

    def read(
        self, shard: int, number: int, drawings: NDArray[np.uint8], labels: NDArray[np.uint16],
        rows: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        self.asked.append((shard, number))
        if (shard, number) == self.damaged:
            raise CorruptError(f"shard {shard}: block {number}")
        super().read(shard, number, drawings, labels, rows)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as opened:
        yield opened


def blocks_of(needs: list[Need]) -> list[tuple[int, int]]:
    return [(piece.shard, piece.block) for need in needs for piece in need.window.pieces]


def settle(pool: ThreadPoolExecutor) -> None:
    """Until the one thread has done all that it was given."""
    pool.submit(int).result()


def test_as_far_ahead_as_there_is_room(pool: ThreadPoolExecutor) -> None:
    """Seven buffers hold three windows of two blocks; a window used up makes room for the next."""
    order = Order(((4,) * 8,) * 2, global_batch=8, lanes=2, window_blocks=2, seed=1)
    needs, reader = schedule(order, 0, 0, 0, 8), Recording(order)
    windows = Windows(reader, Arena(7, 4), pool, needs)
    settle(pool)
    assert reader.asked == blocks_of(needs[:3])
    windows.at(0, 7)  # the last drawing of the first window
    settle(pool)
    assert reader.asked == blocks_of(needs[:3])
    windows.at(0, 8)
    settle(pool)
    assert reader.asked == blocks_of(needs[:4])
    windows.at(1, 8)
    settle(pool)
    assert reader.asked == blocks_of(needs[:5])


def places(windows: Windows, lane: int, count: int) -> Iterator[NDArray[np.int64]]:
    """A lane from end to end, in steps of at most 7."""
    at = 0
    while at < count:
        window = windows.at(lane, at)
        stop = min(at + 7, window.stop)
        yield window.places(at, stop)
        at = stop


@given(orders())
def test_a_window_delivers_its_lanes_part_of_blocks(order: Order) -> None:
    """A lane that begins and ends inside a block decodes it whole; what is another lane's must
    not come."""
    arena = Arena(order.window_blocks, order.longest_block)
    for lane in range(order.lanes):
        needs = [Need(0, False, lane, window) for window in order.windows(1, lane)]
        want = lane_places(order, 1, lane)
        arena.clear()
        with ThreadPoolExecutor(2) as pool:
            windows, got = Windows(Numbered(order), arena, pool, needs), []
            for index in places(windows, lane, len(want)):
                drawings = np.empty((len(index), 28, 28), np.uint8)
                labels, rows = np.empty(len(index), np.uint16), np.empty(len(index), np.uint32)
                arena.gather(index, drawings, labels, rows)
                got += map(place_of, labels.tolist(), rows.tolist())
        assert got == want


@pytest.mark.parametrize("damaged", range(8))
def test_a_damaged_block_is_an_error_of_its_window_alone(damaged: int) -> None:
    """Windows before it are trained on; its own never is, however often one looks."""
    order = Order(((4,) * 8,), global_batch=8, lanes=1, window_blocks=2, seed=1)
    needs = schedule(order, 0, 0, 0, 8)
    bad = blocks_of(needs)[damaged]
    with ThreadPoolExecutor(2) as pool:
        windows = Windows(Recording(order, bad), Arena(8, 4), pool, needs)
        for number, need in enumerate(needs):
            window = windows.at(0, need.window.start)
            if number == damaged // 2:
                for _ in range(2):
                    with pytest.raises(CorruptError, match=f"shard 0: block {bad[1]}"):
                        window.places(need.window.start, need.window.start + 1)
            else:
                assert len(window.places(window.start, window.stop)) == need.window.count
