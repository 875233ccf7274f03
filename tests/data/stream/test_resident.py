"""Resident drawings are delivered in the streamed order, read once, and refused if too many."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.order.content_bytes import BATCHES_IN_USE, BitmapBytes
from quickdraw_dist.data.order.memory import (
    LoaderMemory,
    least_batches,
    resident_drawings,
)
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream import prefetch
from quickdraw_dist.data.stream.batch import Batch, StrokeBatch
from quickdraw_dist.data.stream.device import on_device
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.data.stream.resident import drawings as resident
from quickdraw_dist.data.stream.resident.drawings import ResidentDrawings
from quickdraw_dist.data.stream.resident.loaders import DeviceLoader, HostLoader, resident_loader
from tests.support.data.datasets import Dataset, DatasetMaker, as_bytes
from tests.support.data.delivery import (
    SHAPES,
    USUAL,
    InTurn,
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

pytestmark = pytest.mark.usefixtures("no_thread_left")

WAYS = ["host", "device", pytest.param("cuda", marks=pytest.mark.cuda)]
"""How batches are made. The device's way is also tested with the processor as the device."""


def hold(
    reader: SplitReader, order: Order, rank: int = 0, world_size: int = 1, device: str = "cpu",
    memory_bytes: int = 0, local_size: int = 1,
) -> ResidentDrawings:  # fmt: skip
    return ResidentDrawings(
        reader, order, order.share(rank, world_size),
        LoaderMemory(least_batches(order), 3, fetchers=0, bytes=memory_bytes),
        local_world_size=local_size, device=torch.device(device),
    )  # fmt: skip


def make_resident(
    reader: SplitReader, order: Order, rank: int = 0, world_size: int = 1, way: str = "host"
) -> HostLoader | DeviceLoader:
    held = hold(reader, order, rank, world_size, "cuda" if way == "cuda" else "cpu")
    return resident_loader(held) if way == "host" else DeviceLoader(held)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world_size", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_order_is_the_streamed_one(
    either: Dataset, shape: Shape, world_size: int, way: str
) -> None:
    """Epoch after epoch, from any step on, pixels included: resident mode keeps the order."""
    reader = open_local(either)
    order = shape.order(reader.block_counts)
    loaders = [make_resident(reader, order, rank, world_size, way) for rank in range(world_size)]
    for epoch, first in ((0, 0), (1, 0), (3, order.steps // 2), (2, order.steps - 1)):
        got = deliver(loaders.__getitem__, order, world_size, epoch, first)
        want = line(either, shape, epoch)[first * shape.global_batch :]
        assert got.in_order() == want
        assert got.digest == digest_of(want, epoch, first * shape.global_batch)
        assert got.drawings_in_order() == either.drawings(want)


@pytest.mark.parametrize("way", ["host", "device"])
@pytest.mark.parametrize("world_size", [1, 5])
def test_drawings_are_read_once(either: Dataset, tmp_path: Path, world_size: int, way: str) -> None:
    """After the first epoch the either may be deleted."""
    folder = tmp_path / "copy"
    shutil.copytree(either.folder, folder)
    reader = open_local(Dataset(str(folder), either.manifest, either.source))
    order = USUAL.order(reader.block_counts)
    requested: list[tuple[int, int]] = []
    plain = reader.read

    def recorded(shard: int, number: int, scratch: Scratch | None = None) -> Block:
        requested.append((shard, number))
        return plain(shard, number, scratch)

    reader.read = recorded  # type: ignore[method-assign]
    loaders = [make_resident(reader, order, rank, world_size, way) for rank in range(world_size)]
    assert requested == []
    deliver(loaders.__getitem__, order, world_size)
    pieces: list[tuple[int, int]] = []
    for made in loaders:
        for lane in made.share.lanes:
            pieces += ((piece.shard, piece.block) for piece in order.lane_pieces(lane))
    assert Counter(requested) == Counter(pieces)
    shutil.rmtree(folder)
    assert deliver(loaders.__getitem__, order, world_size, 1).in_order() == line(either, USUAL, 1)
    assert len(requested) == len(pieces)


@pytest.mark.parametrize("way", ["host", "device"])
def test_batches_in_use_stay_as_they_are(
    either: Dataset, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The next batch is made while a step still reads this one."""
    monkeypatch.setattr(prefetch, "ThreadPoolExecutor", InTurn)
    reader = open_local(either)
    in_use: list[Batch] = []
    for batch in make_resident(reader, USUAL.order(reader.block_counts), way=way).epoch(0):
        in_use = [*in_use, batch][-BATCHES_IN_USE:]
        for held in in_use:
            assert as_bytes(held.drawings) == either.drawings(pairs(held))


def test_a_failed_fill_is_repeated(either: Dataset, tmp_path: Path) -> None:
    """After an error some drawings are missing: they must never be delivered."""
    folder = tmp_path / "copy"
    shutil.copytree(either.folder, folder)
    path = folder / either.manifest.splits["train"][3].name
    good = path.read_bytes()
    flip_a_byte(path)
    reader = open_local(Dataset(str(folder), either.manifest, either.source))
    made = make_resident(reader, USUAL.order(reader.block_counts))
    for _ in range(2):
        with pytest.raises(CorruptError, match=path.name):
            next(made.epoch(0))
    path.write_bytes(good)
    assert identities_of(made) == line(either, USUAL, 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_longer_strokes_than_the_manifest_says_are_not_cut(
    make_dataset: DatasetMaker, way: str, mean: float
) -> None:
    """Those of one rank may be longer than the rest: the memory for all of them, and that of every
    batch, is too small at first."""
    dataset = make_dataset(content="strokes")
    reader = open_local(dataset)
    reader.per_drawing = TilesPerDrawing(mean, 0.0)
    order = USUAL.order(reader.block_counts)
    loaders = [make_resident(reader, order, rank, 2, way) for rank in range(2)]
    streamed = [make_loader(reader, order, rank, 2) for rank in range(2)]
    for made in (loaders, streamed):
        got = deliver(made.__getitem__, order, 2)
        assert got.drawings_in_order() == dataset.drawings(line(dataset, USUAL, 0))


def test_owners_of_tiles_are_found_once(
    make_dataset: DatasetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gather needs them first; the step on the whole batch takes the same."""
    searches = []
    search = torch.searchsorted

    def recorded(*given: Any, **named: Any) -> torch.Tensor:
        searches.append(given)
        return search(*given, **named)

    monkeypatch.setattr(torch, "searchsorted", recorded)
    dataset = make_dataset(content="strokes")
    reader = open_local(dataset)
    made = make_resident(reader, USUAL.order(reader.block_counts), way="device")
    cpu = torch.device("cpu")
    for steps, batch in enumerate(on_device(made.epoch(0), cpu), 1):
        (whole,) = batch.drawings.tensor_split(1)
        assert isinstance(whole, StrokeBatch)
        whole.inputs()
        assert len(searches) == steps


@pytest.mark.parametrize("local_size", [1, 3])
@pytest.mark.parametrize("limited", [False, True], ids=["machine", "container"])
def test_what_does_not_fit_is_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_size: int,
    limited: bool,
) -> None:  # fmt: skip
    """With the arithmetic, before a drawing is read; the ranks of a node divide its memory."""
    reader = open_local(dataset)
    order = USUAL.order(reader.block_counts)
    count = resident_drawings(order, order.share(0, 1))
    assert count == 1800
    enough = -(-BitmapBytes().resident(count) * local_size * 10 // 8) + 8
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(resident, "Path", lambda _: limit)

    def room(total: int) -> None:
        pages = 10**12 if limited else total
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": pages}.get)
        limit.write_text(f"{total}\n" if limited else "max\n")

    def make(memory_bytes: int = 0) -> ResidentDrawings:
        return hold(reader, order, memory_bytes=memory_bytes, local_size=local_size)

    room(enough)
    make()
    with pytest.raises(RefusedError, match=r"10,000,000 for batches \(--stream\.memory_bytes\)"):
        make(memory_bytes=10**7)
    room(enough * 99 // 100)
    with pytest.raises(RefusedError) as refused:
        make()
    assert (refused.value.subject, refused.value.value) == ("--stream.resident", True)
    assert (refused.value.needed_bytes, refused.value.ranks) == (BitmapBytes().resident(count), 2)
    assert "80%" in refused.value.problem


def test_more_ranks_hold_less() -> None:
    """As the refusal suggests: a rank holds only the lanes that it reads from."""
    order = Order(((40,) * 10,), global_batch=40, lanes=8, window_blocks=2, seed=1)
    assert resident_drawings(order, order.share(0, 1)) == 400
    assert resident_drawings(order, order.share(0, 8)) == 50
    cut = Share(4, 11, global_batch=40, lane_batch=5)  # the end of one, all of the next, and some
    assert resident_drawings(order, cut) == 150
    assert sum(resident_drawings(order, order.share(rank, 4)) for rank in range(4)) == 400
