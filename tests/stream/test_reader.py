"""Blocks as the loader gets them: any layout, pieces of blocks, damage, and decoding only once."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quickdraw_dist.config import Stream
from quickdraw_dist.errors import CorruptError
from quickdraw_dist.shards.blocks import Block, decode
from quickdraw_dist.stream import reader as reader_module
from quickdraw_dist.stream.loader import TrainLoader
from quickdraw_dist.stream.order import Order, Piece
from quickdraw_dist.stream.reader import SplitReader
from tests.conftest import Dataset, DatasetMaker

LAYOUTS = {
    "gzip": {"compression": "gzip"},
    "none": {"compression": "none"},
    "per_drawing": {"layout": "per_drawing"},
}


@pytest.fixture(scope="module")
def layouts(make_dataset: DatasetMaker) -> dict[str, Dataset]:
    """The same 346 drawings in every layout and compression."""
    classes = ("The Eiffel Tower", "zigzag")
    return {name: make_dataset(classes=classes, **how) for name, how in LAYOUTS.items()}


def open_reader(dataset: Dataset, split: str = "train") -> SplitReader:
    return SplitReader(dataset.folder, dataset.manifest, split, Stream())


def read(
    reader: SplitReader, piece: Piece
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint32]]:
    count = len(piece)
    drawings = np.zeros((count, 28, 28), np.uint8)
    labels, rows = np.zeros(count, np.uint16), np.zeros(count, np.uint32)
    reader.read(piece, drawings, labels, rows)
    return drawings, labels, rows


def whole_blocks(reader: SplitReader) -> list[Piece]:
    return [
        Piece(shard, block, 0, count)
        for shard, blocks in enumerate(reader.block_counts)
        for block, count in enumerate(blocks)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_layout_gives_the_sources_drawings(
    layouts: dict[str, Dataset], layout: str, split: str
) -> None:
    """Shards for other readers are this trainer's too: same drawings, labels and rows."""
    dataset = layouts[layout]
    reader = open_reader(dataset, split)
    parts = [read(reader, piece) for piece in whole_blocks(reader)]
    drawings, labels, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert np.array_equal(drawings, dataset.pixels(labels, rows))
    identities = list(zip(labels.tolist(), rows.tolist(), strict=True))
    assert len(identities) == len(set(identities)) == dataset.manifest.drawings(split)
    assert set(identities) == dataset.identities(split)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_of_a_block_make_up_the_block(layouts: dict[str, Dataset], layout: str) -> None:
    """Lanes begin and end inside blocks: the cut must fall on the right drawing."""
    reader = open_reader(layouts[layout])
    for whole in whole_blocks(reader)[:3]:
        expected = read(reader, whole)
        cuts = [0, 1, 7, len(whole) - 1, len(whole)]
        parts = [
            read(reader, Piece(whole.shard, whole.block, start, stop))
            for start, stop in pairwise(cuts)
        ]
        for mine, theirs in zip(expected, zip(*parts, strict=True), strict=True):
            assert np.array_equal(mine, np.concatenate(theirs))


def test_layouts_are_the_same_dataset(layouts: dict[str, Dataset]) -> None:
    """The digest is over contents, so that a recompressed copy can resume a run."""
    assert len({dataset.manifest.digest for dataset in layouts.values()}) == 1
    assert len({dataset.manifest.splits["train"][0].crc32c for dataset in layouts.values()}) == 3


class Counting:
    """The real `decode`, counted by the bytes of the block."""

    def __init__(self) -> None:
        self.counts: Counter[bytes] = Counter()
        self.lock = threading.Lock()

    def __call__(self, data: bytes, *args: Any) -> Block:
        with self.lock:
            self.counts[bytes(data)] += 1
        return decode(data, *args)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(reader_module, "decode", counting)
    return counting


def test_threads_that_meet_in_a_block_decode_it_once(dataset: Dataset, decoded: Counting) -> None:
    """Lanes meet in blocks, and begin them at the same time: one must decode, all must get it."""
    reader = open_reader(dataset)
    together = threading.Barrier(8)

    def read_part(at: int) -> tuple[NDArray[np.uint8], ...]:
        together.wait()
        return read(reader, Piece(1, 2, at * 4, at * 4 + 4))

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(read_part, range(8)))
    assert sum(decoded.counts.values()) == 1
    labels = np.concatenate([part[1] for part in parts])
    rows = np.concatenate([part[2] for part in parts])
    assert np.array_equal(np.concatenate([part[0] for part in parts]), dataset.pixels(labels, rows))


@pytest.mark.parametrize("threads", [1, 4])
def test_an_epoch_decodes_no_block_twice(dataset: Dataset, decoded: Counting, threads: int) -> None:
    """Decoding is most of the loader's work: 19 lanes that meet in 18 blocks must not add to it."""
    reader = open_reader(dataset)
    order = Order(reader.block_counts, global_batch=19 * 8, lanes=19, window_blocks=2, seed=3)
    loader = TrainLoader(
        reader, order, rank=0, world_size=1, threads=threads, prefetch=2, pin=False
    )
    for _ in loader.epoch(0):
        pass
    assert len(decoded.counts) > 50
    assert max(decoded.counts.values()) == 1


def damage(dataset: Dataset, tmp_path: Path) -> tuple[SplitReader, Path]:
    """A copy of a dataset whose first training shard may be written to."""
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    copy = Dataset(str(folder), dataset.manifest, dataset.source)
    return open_reader(copy), folder / dataset.manifest.splits["train"][0].name


@pytest.mark.parametrize(
    "layout",
    [
        "gzip",
        "none",
        "per_drawing",
    ],
)
def test_a_flipped_bit_is_found_or_harmless(
    layouts: dict[str, Dataset], layout: str, tmp_path: Path
) -> None:
    """Wherever a disk flips a bit, the block is an error that names the shard, or (in padding)
    exactly what it was; never other drawings and never an error of some library below."""
    reader, path = damage(layouts[layout], tmp_path)
    entry = reader.shards[0].blocks[1]
    piece = Piece(0, 1, 0, entry.drawings)
    right = read(reader, piece)
    found, stride = 0, entry.size // 300 | 1
    with path.open("r+b", buffering=0) as file:
        for number, offset in enumerate(range(entry.offset, entry.offset + entry.size, stride)):
            file.seek(offset)
            before = file.read(1)
            file.seek(offset)
            file.write(bytes([before[0] ^ 1 << number % 8]))
            try:
                for mine, theirs in zip(read(reader, piece), right, strict=True):
                    assert np.array_equal(mine, theirs)
            except CorruptError as error:
                assert reader.shards[0].name in str(error)
                assert "block 1" in str(error)
                found += 1
            file.seek(offset)
            file.write(before)
    assert found > 50
    for mine, theirs in zip(read(reader, piece), right, strict=True):
        assert np.array_equal(mine, theirs)


def test_swapped_blocks_are_found(dataset: Dataset, tmp_path: Path) -> None:
    """Whole and valid, but another block: only the checksum of the contents tells."""
    reader, path = damage(dataset, tmp_path)
    first, second = reader.shards[0].blocks[0], reader.shards[0].blocks[1]
    data = bytearray(path.read_bytes())
    other = data[second.offset : second.offset + second.size]
    if len(other) > first.size:
        pytest.fail("the fixture's blocks changed: the second one has to fit into the first")
    data[first.offset : first.offset + len(other)] = other
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=reader.shards[0].name):
        read(reader, Piece(0, 0, 0, first.drawings))


def test_all_who_wait_for_a_damaged_block_hear_of_it(dataset: Dataset, tmp_path: Path) -> None:
    """Only one thread decodes a shared block; if it fails, none may wait forever, and once the
    shard is repaired it must be read again."""
    reader, path = damage(dataset, tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[: reader.shards[0].blocks[3].offset + 100])
    together = threading.Barrier(4)

    def read_part(at: int) -> None:
        together.wait()
        with pytest.raises(CorruptError, match=reader.shards[0].name):
            read(reader, Piece(0, 3, at, at + 4))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_part, range(4)))
    path.write_bytes(good)
    drawings, labels, rows = read(reader, Piece(0, 3, 0, 4))
    assert np.array_equal(drawings, dataset.pixels(labels, rows))
