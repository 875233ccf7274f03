"""The loader delivers what the order says, from real shards, with real threads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.order.order import Order
from tests.support.data.datasets import CONTENTS, Dataset, DatasetMaker
from tests.support.data.delivery import (
    SHAPES,
    UNEVEN,
    USUAL,
    WORLDS,
    Delivered,
    Shape,
    deliver,
    digest_of,
    flip_a_byte,
    identities_of,
    line,
    make_loader,
    open_local,
    pairs,
)
from tests.support.data.orders import Numbered, location_of, numbers_in, orders


def run(
    dataset: Dataset, shape: Shape, world_size: int, epoch: int = 0, **sizes: int
) -> Delivered:  # fmt: skip
    """All ranks of a world over an epoch of the small dataset."""
    reader = open_local(dataset)
    order = shape.order(reader.block_counts)
    return deliver(
        lambda rank: make_loader(reader, order, rank, world_size, **sizes), order, world_size, epoch
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("world_size", WORLDS)
def test_every_world_delivers_what_locate_says(
    either: Dataset, world_size: int, shape: Shape
) -> None:
    """The promise of the design: the same drawings at the same steps, for any number of ranks."""
    for epoch in (0, 1):
        want = line(either, shape, epoch)
        got = run(either, shape, world_size, epoch, threads=1 + world_size % 3)
        assert got.in_order() == want
        assert got.digest == digest_of(want, epoch)
        assert len(set(want)) == len(want)


def test_drawings_are_the_sources(either: Dataset) -> None:
    """A drawing that arrives under another's label or row would be trained on unnoticed."""
    for world_size, shape in ((1, USUAL), (3, SHAPES["long"]), (7, UNEVEN)):
        got = run(either, shape, world_size, epoch=2)
        assert got.drawings_in_order() == either.drawings(got.in_order())


@settings(max_examples=60)
@given(orders(), st.integers(0, 3), st.sampled_from(CONTENTS), st.data())
def test_the_least_memory_delivers_the_same(
    order: Order, epoch: int, content: str, data: st.DataObject
) -> None:
    """The batches of one window, also where a lane's slice of a batch is longer than a whole
    window, and with more ranks than divide the lanes: never a drawing of another block, or step."""
    world_size = data.draw(st.integers(1, min(8, order.global_batch)))
    rank = data.draw(st.integers(0, world_size - 1))
    first_step = data.draw(st.integers(0, order.steps))
    share = order.share(rank, world_size)
    want = [
        order.locate(epoch, share.position(step) + at)
        for step in range(first_step, order.steps)
        for at in range(share.drawings)
    ]
    for more_batches in (0, 1, None):
        loader = make_loader(
            Numbered(order, content), order, rank, world_size, more_batches=more_batches,
            threads=data.draw(st.integers(1, 4)),
        )  # fmt: skip
        got = []
        for batch in loader.epoch(epoch, first_step):
            assert numbers_in(batch.drawings) == [row & 255 for row in batch.rows.tolist()]
            got += [location_of(*pair) for pair in pairs(batch)]
        assert got == want


def test_one_loader_serves_epoch_after_epoch(either: Dataset) -> None:
    """The trainer keeps one loader, and its ring, for the whole run."""
    reader = open_local(either)
    loader = make_loader(reader, USUAL.order(reader.block_counts))
    for epoch, first in ((0, 0), (1, 0), (1, 7), (0, 3), (0, 18)):
        want = line(either, USUAL, epoch)[first * 96 :]
        assert identities_of(loader, epoch, first) == want


# -- the end of an epoch -----------------------------------------------------------------------


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("taken", [0, 1, 5, 18])
@pytest.mark.parametrize("how", ["close", "drop", "throw"])
def test_an_epoch_left_early_leaves_no_thread(either: Dataset, taken: int, how: str) -> None:
    """A signal ends an epoch at any step; the process must be able to exit."""
    reader = open_local(either)
    loader = make_loader(reader, USUAL.order(reader.block_counts), threads=4)
    batches = loader.epoch(0)
    for _ in range(taken):
        next(batches)
    if how == "close":
        batches.close()
    elif how == "throw":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt())
    del batches


@pytest.mark.usefixtures("no_thread_left")
def test_an_epoch_can_start_again_after_one_left_early(either: Dataset) -> None:
    """The ring is kept from epoch to epoch: nothing of an abandoned one may show."""
    reader = open_local(either)
    loader = make_loader(reader, UNEVEN.order(reader.block_counts), threads=4)
    for taken in (1, 2, 3, 8):
        batches = loader.epoch(1)
        for _ in range(taken):
            next(batches)
        batches.close()
    assert identities_of(loader, 2) == line(either, UNEVEN, 2)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {"flipped": flip_a_byte, "truncated": truncate, "emptied": empty, "deleted": Path.unlink}


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_an_error_that_names_it(
    either: Dataset, tmp_path: Path, damage: Callable[[Path], None], threads: int,
    world_size: int,
) -> None:  # fmt: skip
    """Never trained on, never skipped unnoticed, and never a hang."""
    folder = tmp_path / "copy"
    shutil.copytree(either.folder, folder)
    entry = either.manifest.splits["train"][2]
    damage(folder / entry.name)
    copy = Dataset(str(folder), either.manifest, either.source)
    want = line(either, USUAL, 0)
    failed = 0
    for rank in range(world_size):
        reader = open_local(copy)
        order = USUAL.order(reader.block_counts)
        loader = make_loader(reader, order, rank, world_size, threads=threads)
        try:
            for batch in loader.epoch(0):
                first = loader.share.position(batch.step)
                assert pairs(batch) == want[first : first + loader.share.drawings]
        except CorruptError as raised:
            assert entry.name in str(raised)
            failed += 1
    assert failed >= 1


# -- the rest --------------------------------------------------------------------------------


def test_real_drawings_arrive_as_they_are(make_dataset: DatasetMaker, real_data: Path) -> None:
    """The official files have other headers, sizes and names than ours: the pixels must survive."""
    classes = ("The Eiffel Tower", "ambulance", "aircraft carrier")
    dataset = make_dataset(
        source=str(real_data / "numpy_bitmap"), classes=classes, drawings_per_shard=256
    )
    reader = open_local(dataset)
    loader = make_loader(reader, Shape(64, 16, 2).order(reader.block_counts))
    files = [np.load(real_data / "numpy_bitmap" / f"{name}.npy") for name in classes]
    seen = set()
    for batch in loader.epoch(0):
        for drawing, label, row in zip(batch.drawings, batch.labels, batch.rows, strict=True):
            assert np.array_equal(drawing.numpy().ravel(), files[int(label)][int(row)])
            seen.add((int(label), int(row)))
    assert len(seen) == loader.order.steps * 64
    assert seen <= dataset.identities("train")
