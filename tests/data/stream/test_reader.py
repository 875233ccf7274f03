"""Blocks as the loader reads them: any compression, damage, and retries."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.data.datasets import Dataset, DatasetMaker
from tests.support.data.delivery import Shape, make_loader, open_local, open_reader
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

COMPRESSIONS = ("gzip", "none")


@pytest.fixture(scope="module")
def compressions(make_dataset: DatasetMaker) -> dict[str, Dataset]:
    """The same 346 drawings in every compression."""
    classes = ("The Eiffel Tower", "zigzag")
    return {name: make_dataset(classes=classes, compression=name) for name in COMPRESSIONS}


def read(
    reader: SplitReader, shard: int, number: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint32]]:
    """Drawings, labels and rows of a block."""
    block = reader.read(shard, number)
    return block.drawings, block.labels, block.rows


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_compression_gives_the_sources_drawings(
    compressions: dict[str, Dataset], compression: str, split: str
) -> None:
    """The same drawings, labels and rows."""
    dataset = compressions[compression]
    reader = open_local(dataset, split)
    parts = [
        read(reader, shard, number)
        for shard, counts in enumerate(reader.block_counts)
        for number in range(len(counts))
    ]
    drawings, labels, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert np.array_equal(drawings, dataset.pixels(labels, rows))
    identities = list(zip(labels.tolist(), rows.tolist(), strict=True))
    assert len(identities) == len(set(identities)) == dataset.manifest.drawings(split)
    assert set(identities) == dataset.identities(split)


def damage(dataset: Dataset, tmp_path: Path) -> tuple[SplitReader, Path]:
    """A copy of a dataset whose first training shard may be written to."""
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    copy = Dataset(str(folder), dataset.manifest, dataset.source)
    return open_local(copy), folder / dataset.manifest.splits["train"][0].name


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_flipped_bit_is_found_or_harmless(
    compressions: dict[str, Dataset], compression: str, tmp_path: Path
) -> None:
    """Wherever a disk flips a bit, the block is an error that names the shard, or (in padding)
    exactly what it was; never other drawings and never an error of some library below."""
    reader, path = damage(compressions[compression], tmp_path)
    entry = reader.shards[0].blocks[1]
    right = read(reader, 0, 1)
    found, stride = 0, entry.size // 300 | 1
    with path.open("r+b", buffering=0) as file:
        for number, offset in enumerate(range(entry.offset, entry.offset + entry.size, stride)):
            file.seek(offset)
            before = file.read(1)
            file.seek(offset)
            file.write(bytes([before[0] ^ 1 << number % 8]))
            try:
                for mine, theirs in zip(read(reader, 0, 1), right, strict=True):
                    assert np.array_equal(mine, theirs)
            except CorruptError as error:
                assert reader.shards[0].name in str(error)
                assert "block 1" in str(error)
                found += 1
            file.seek(offset)
            file.write(before)
    assert found > 50
    for mine, theirs in zip(read(reader, 0, 1), right, strict=True):
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
        read(reader, 0, 0)


def test_every_thread_gets_the_error_of_a_damaged_block(dataset: Dataset, tmp_path: Path) -> None:
    """Every thread gets the error; once the shard is repaired it is read again."""
    reader, path = damage(dataset, tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[: reader.shards[0].blocks[3].offset + 100])

    def read_damaged(_: int) -> None:
        with pytest.raises(CorruptError, match=f"{reader.shards[0].name}: block 3"):
            read(reader, 0, 3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_damaged, range(8)))
    path.write_bytes(good)
    drawings, labels, rows = read(reader, 0, 3)
    assert np.array_equal(drawings, dataset.pixels(labels, rows))


@pytest.mark.parametrize("threads", [1, 4])
def test_an_epoch_decodes_a_block_once_a_lane(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Decoding is most of the loader's work: a block is decoded by each lane that owns some of
    it, and by no other."""
    reader, asked = open_local(dataset), list[tuple[int, int]]()
    plain = reader.read

    def noted(shard: int, number: int, scratch: Scratch | None = None) -> Block:
        asked.append((shard, number))
        return plain(shard, number, scratch)

    monkeypatch.setattr(reader, "read", noted)
    loader = make_loader(reader, Shape(19 * 94, 19, 2).order(reader.block_counts), threads=threads)
    for _ in loader.epoch(0):
        pass
    assert loader.order.dropped_drawings < 19  # so that every lane's last window is needed
    pieces = [piece for lane in range(19) for piece in loader.order.lane_pieces(lane)]
    assert Counter(asked) == Counter((piece.shard, piece.block) for piece in pieces)
    assert max(Counter(asked).values()) == 2


# -- retries ---------------------------------------------------------------------------------

URL = "gs://bucket/data"


@pytest.mark.parametrize("wrong", [1, storage.ATTEMPTS - 1, storage.ATTEMPTS])
def test_a_wrong_range_is_read_again(store: Store, dataset: Dataset, wrong: int) -> None:
    """A range arrives without a checksum: the block's own tells."""
    store.upload(dataset.folder, URL)
    reader = open_reader(URL, dataset.manifest, cache=Path("none"), cache_bytes=0)
    asked: list[str] = []

    def intercept(request: Request) -> Response | None:
        if "Range" not in request.headers or len(asked) == wrong:
            return None
        asked.append(request.headers["Range"])
        reply = store.server.gcs.answer(request)
        body = bytearray(reply.body)
        body[len(body) // 2] ^= 0x10
        return Response(reply.status, reply.headers, bytes(body))

    store.intercept = intercept
    if wrong < storage.ATTEMPTS:
        drawings, labels, rows = read(reader, 1, 2)
        assert np.array_equal(drawings, dataset.pixels(labels, rows))
    else:
        with pytest.raises(CorruptError, match=f"{reader.url(1)}: block 2: "):
            read(reader, 1, 2)
    assert len(asked) == wrong
    assert len(set(asked)) == 1


def test_a_file_is_read_twice(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk or a network file system gives wrong once may be right the second time."""
    reader, path = damage(dataset, tmp_path)
    looks, right = list[str](), storage.read_range_into

    def wrong_at_first(scratch: storage.Scratch, url: str, start: int, length: int) -> memoryview:
        looks.append(url)
        return memoryview(bytes(length)) if len(looks) == 1 else right(scratch, url, start, length)

    monkeypatch.setattr(storage, "read_range_into", wrong_at_first)
    drawings, labels, rows = read(reader, 0, 1)
    assert np.array_equal(drawings, dataset.pixels(labels, rows))
    assert looks == [str(path)] * 2


@pytest.mark.parametrize("cached", [True, False])
def test_a_missing_shard_is_named(
    store: Store, dataset: Dataset, tmp_path: Path, cached: bool
) -> None:
    """With a remedy, with and without a cache, on a disk and in a store."""
    store.upload(dataset.folder, URL)
    gone = dataset.manifest.splits["train"][1].name
    store.server.gcs.store.delete("bucket", f"data/{gone}", {})
    remote = open_reader(
        URL, dataset.manifest, cache=tmp_path / "cache", cache_bytes=10**9 * cached
    )
    local, path = damage(dataset, tmp_path)
    path.unlink()
    for reader, shard in ((remote, 1), (local, 0)):
        with pytest.raises(CorruptError, match="missing, though the manifest names it") as raised:
            read(reader, shard, 0)
        assert raised.value.subject == reader.url(shard)
        assert "make shard" in raised.value.remedy
