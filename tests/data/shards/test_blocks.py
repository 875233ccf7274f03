"""The bytes of a block never change, anyone can read them, and no damage passes."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.hashing import random64
from quickdraw_dist.data.drawings.drawing import Content
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.shards import blocks
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.shards.members import END_OF_TAR, write_array
from tests.support.data.strokes import drawings, random_strokes

CONTENTS: tuple[Content, ...] = ("bitmaps", "strokes")
COMPRESSIONS = ("gzip", "none")
NAMES = {
    "bitmaps": ("drawings", "labels", "rows"),
    "strokes": ("dxdy", "points", "strokes", "labels", "rows"),
}
KEY = "000123-0004"


both = pytest.mark.parametrize("content", CONTENTS)


def some(count: int, seed: int = 1, content: Content = "bitmaps") -> Block:
    """A block of made-up drawings, bitmaps with white ink on a fifth of the pixels."""
    values = random64(seed, count * 784).reshape(count, 28, 28)
    ink = np.where(values % 5 == 0, values >> np.uint64(8) & np.uint64(255), 0)
    labels = random64(seed + 1, count) % 345
    rows = random64(seed + 2, count) % 340_029
    stored = ink.astype(np.uint8) if content == "bitmaps" else random_strokes(count, seed)
    return Block(stored, labels.astype(np.uint16), rows.astype(np.uint32))


def encoded(block: Block, compression: str) -> bytes:
    """The block's bytes."""
    return blocks.encode(block, KEY, compression)


def same(one: Block, other: Block) -> bool:
    """Whether two blocks hold the same drawings with the same identities in the same order."""
    pairs = [(one.labels, other.labels), (one.rows, other.rows)]
    if isinstance(one.drawings, Strokes) and isinstance(other.drawings, Strokes):
        names = ("x", "y", "points", "strokes", "recognized")
        pairs += [(getattr(one.drawings, n), getattr(other.drawings, n)) for n in names]
    else:
        pairs.append((one.pixels, other.pixels))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def any_bitmaps(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Up to five bitmaps, black and white ones among them."""
    fill = draw(st.sampled_from([None, 0, 255]))
    pixels = some(draw(st.integers(1, 5)), draw(st.integers(0, 99))).pixels
    return pixels if fill is None else np.full_like(pixels, fill)


def any_strokes(draw: st.DrawFn) -> Strokes:
    """Up to five drawings as strokes, blank ones among them."""
    lists = draw(drawings())
    return Strokes.from_lists(
        lists, draw(st.lists(st.integers(0, 2), min_size=len(lists), max_size=len(lists)))
    )


@st.composite
def any_block(draw: st.DrawFn) -> Block:
    """Blocks of any identities, the largest that their types hold among them."""
    stored = draw(st.sampled_from([any_bitmaps, any_strokes]))(draw)
    count = len(stored)
    labels = draw(st.lists(st.integers(0, 2**16 - 1), min_size=count, max_size=count))
    rows = draw(st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count))
    return Block(stored, np.array(labels, np.uint16), np.array(rows, np.uint32))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(max_examples=60)
@given(block=any_block())
@example(block=some(300))
@example(block=some(300, content="strokes"))
def test_what_is_written_is_read(compression: str, block: Block) -> None:
    """Drawings, labels and rows come back bit for bit."""
    data = encoded(block, compression)
    count = len(block.labels)
    read = blocks.decode(data, count)
    assert same(read, block)
    assert read.crc == block.crc


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_how_an_array_lies_in_memory_does_not_matter(compression: str) -> None:
    """Views, Fortran order and wider integers become the same bytes."""
    block = some(6)
    odd = Block(
        np.asfortranarray(block.pixels),
        np.repeat(block.labels, 2)[::2],
        block.rows.astype(">u4"),  # type: ignore[arg-type]
    )
    assert encoded(odd, compression) == encoded(block, compression)
    assert odd.crc == block.crc


@both
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_same_drawings_are_the_same_bytes(compression: str, content: Content) -> None:
    """A rebuilt shard must have the checksum that the manifest remembers: no clock, no user."""
    assert encoded(some(9, content=content), compression) == encoded(
        some(9, content=content), compression
    )
    with tarfile.open(
        fileobj=io.BytesIO(encoded(some(9, content=content), compression) + END_OF_TAR)
    ) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert (member.uname, member.gname) == ("", "")
            assert member.pax_headers == {}, "a pax header costs 1,024 bytes a member"


def test_the_bytes_of_a_block_are_frozen() -> None:
    """Format version 1. Compressed bytes follow isal's version, so only these are pinned."""
    data = encoded(some(9), "none")
    assert len(data) == 512 + 7_680 + 512 + 512 + 512 + 512
    assert (
        hashlib.sha256(data).hexdigest()
        == "4746221b02765fda36f95672653e4b36a984426be123583bd96bfda9b4dbb19b"
    )
    assert some(9).crc == 1306754537


def test_the_bytes_of_a_block_of_strokes_are_frozen() -> None:
    """Format version 2, and the layout: differences modulo 256 over the whole block."""
    lists = [[([3, 1], [4, 9]), ([7], [250])], [], [([255, 0, 2], [0, 0, 0])]]
    strokes = Strokes.from_lists(lists, [1, 0, 2])
    block = Block(strokes, np.array([1, 2, 3], np.uint16), np.array([4, 5, 6], np.uint32))
    stored = {name: (array.tolist(), array.dtype.str) for name, array in block.stored()}
    assert stored == {
        "dxdy": ([[3, 254, 6, 0, 248, 1, 2], [4, 5, 241, 0, 6, 0, 0]], "|u1"),
        "points": ([[2, 2, 3], [0, 0, 0]], "|u1"),
        "strokes": ([[2, 0, 1], [0, 0, 0], [1, 0, 2]], "|u1"),
        "labels": ([1, 2, 3], "<u2"),
        "rows": ([4, 5, 6], "<u4"),
    }
    data = encoded(block, "none")
    assert len(data) == 5 * (512 + 512)
    assert (
        hashlib.sha256(data).hexdigest()
        == "ef2704afb971a2bdb8b584a16137a09452bfbabaabc4141b2a0de46454d4e444"
    )
    assert block.crc == 2720504129


def test_the_checksum_sees_order_pixels_labels_and_rows() -> None:
    """It stands for the contents in the manifest and in the dataset's digest."""
    block = some(4)
    pixels, labels, rows = block.pixels.copy(), block.labels.copy(), block.rows.copy()
    pixels[3, 27, 27] ^= 1
    labels[0] ^= 1
    rows[2] ^= 1 << 20
    turned = Block(block.pixels[::-1], block.labels[::-1], block.rows[::-1])
    others = [
        Block(pixels, block.labels, block.rows),
        Block(block.drawings, labels, block.rows),
        Block(block.drawings, block.labels, rows),
        turned,
    ]
    assert len({block.crc, *(other.crc for other in others)}) == 5


def test_the_checksum_sees_every_point_and_how_they_are_joined() -> None:
    """Strokes of the same points may be others; so may drawings of the same strokes."""
    lists: list[list[list[tuple[list[int], list[int]]]]] = [
        [[([1, 2], [3, 4]), ([5, 6], [7, 8])]],
        [[([1, 2], [3, 4]), ([5, 6], [7, 9])]],
        [[([1, 2], [3, 4]), ([4, 6], [7, 8])]],
        [[([1, 2, 5, 6], [3, 4, 7, 8])]],
    ]
    several = [(drawing, [1]) for drawing in lists] + [(lists[0], [0])]
    label, row = np.array([1], np.uint16), np.array([2], np.uint32)
    blocks_ = [Block(Strokes.from_lists(*one), label, row) for one in several]
    assert len({block.crc for block in blocks_}) == 5


@both
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_tools_read_a_shard(compression: str, content: Content) -> None:
    """tarfile, gzip and numpy are enough to get at the drawings, in this century and the next."""
    parts = {
        f"000007-{number:04d}": some(3 + number, number, content=content) for number in range(3)
    }
    shard = b"".join(blocks.encode(part, key, compression) for key, part in parts.items())
    with tarfile.open(fileobj=io.BytesIO(shard + END_OF_TAR)) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    suffix = "npy.gz" if compression == "gzip" else "npy"
    assert list(files) == [f"{key}.{name}.{suffix}" for key in parts for name in NAMES[content]]
    for key, part in parts.items():
        for name, array in part.stored():
            data = files[f"{key}.{name}.{suffix}"]
            if compression == "gzip":
                assert data[4:8] == bytes(4), "gzip's own mtime is 0, too"
                data = gzip.decompress(data)
            read = np.load(io.BytesIO(data))
            assert read.dtype == array.dtype
            assert np.array_equal(read, array)


def test_plain_tools_read_the_per_drawing_layout() -> None:
    """A png and a cls a drawing, named by its identity."""
    block = some(3)
    with tarfile.open(fileobj=io.BytesIO(blocks.encode_per_drawing(block) + END_OF_TAR)) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert len(files) == 6
    for pixels, label, row in zip(block.pixels, block.labels, block.rows, strict=True):
        image = Image.open(io.BytesIO(files[f"{label:05d}-{row:010d}.png"]))
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), pixels)
        assert files[f"{label:05d}-{row:010d}.cls"] == str(label).encode()


@both
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("count", [0, 1, 3, 5, 1024])
def test_another_count_is_refused(compression: str, count: int, content: Content) -> None:
    """The manifest promises 4: a block of another number is another block."""
    with pytest.raises(CorruptError, match=f"not a block of {count:,} drawings"):
        blocks.decode(encoded(some(4, content=content), compression), count)


@both
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_truncated_block_is_refused(compression: str, content: Content) -> None:
    """At every single length: what is read is whole, or CorruptError, and nothing else."""
    block = some(1, content=content)
    data = encoded(block, compression)
    whole = 0
    for length in range(len(data)):
        try:
            read = blocks.decode(data[:length], 1)
        except CorruptError:
            continue
        assert same(read, block), f"garbage from the first {length} bytes"
        whole += 1
    assert whole < 512, "only the padding of the last member may be missed"


@both
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_flipped_bits_are_refused(compression: str, content: Content) -> None:
    """Every byte in turn: gzip sees it itself; of a plain block the content's checksum changes."""
    block = some(1, content=content)
    data = bytearray(encoded(block, compression))
    must_refuse = set()
    with tarfile.open(fileobj=io.BytesIO(data + END_OF_TAR)) as tar:
        for member in tar.getmembers():
            end = member.offset_data + member.size
            must_refuse |= set(range(end - 8, end)) if compression == "gzip" else set()
    for at in range(len(data)):
        data[at] ^= 1 << at % 8
        try:
            read = blocks.decode(bytes(data), 1)
        except CorruptError:
            pass
        else:
            assert at not in must_refuse, f"a flip in byte {at} was not noticed"
            assert same(read, block) == (read.crc == block.crc)
            assert compression == "none" or same(read, block), f"garbage from a flip in byte {at}"
        data[at] ^= 1 << at % 8


@both
@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(max_examples=80)
@given(data=st.data())
def test_any_other_damage_is_refused(
    compression: str, data: st.DataObject, content: Content
) -> None:
    """Ranges lost, doubled, zeroed or overwritten: CorruptError, or the checksum tells."""
    block = some(2, content=content)
    whole = encoded(block, compression)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    put = data.draw(
        st.sampled_from([b"", bytes(512), whole[start:stop] * 2, bytes(stop - start)])
        | st.binary(max_size=600)
    )
    try:
        read = blocks.decode(whole[:start] + put + whole[stop:], 2)
    except CorruptError:
        return
    assert same(read, block) or read.crc != block.crc


@both
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("data", [b"", bytes(512), bytes(4096), b"<html>" * 200, b"\x1f\x8b" * 600])
def test_other_bytes_are_refused(compression: str, data: bytes, content: Content) -> None:
    """Zeros of a sparse file, an error page of a proxy: never a block."""
    whole = encoded(some(2, content=content), compression)
    for other in (data, whole + data.ljust(512, b"x")):
        if other.strip(b"\0") != whole.strip(b"\0"):
            with pytest.raises(CorruptError):
                blocks.decode(other, 2)


def test_a_per_drawing_shard_is_no_block() -> None:
    """It is an export: `data.verify` and the webdataset reader read it."""
    with pytest.raises(CorruptError, match="not a block of 2 drawings"):
        blocks.decode(blocks.encode_per_drawing(some(2)), 2)


def with_array(block: Block, name: str, values: list[Any]) -> bytes:
    """The bytes of a block in which one array has other values, its type kept."""
    return b"".join(
        write_array(f"{KEY}.{kind}", np.array(values, a.dtype) if kind == name else a, "gzip")
        for kind, a in block.stored()
    )


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("strokes", [[2, 1], [0, 0], [0, 1]], "points does not decompress"),
        ("strokes", [[1, 0], [0, 0], [0, 1]], "points does not decompress"),
        ("strokes", [[1, 1], [0, 1], [0, 1]], "points does not decompress"),
        ("strokes", [[1, 1], [0, 0], [0, 3]], "strokes has a recognized of 3, not 0, 1 or 2"),
        ("strokes", [[1, 1], [0, 0]], "strokes does not decompress"),
        ("points", [[3, 3], [0, 0]], "dxdy does not decompress"),
        ("points", [[4, 1], [0, 0]], "points has a stroke of 1, not two or more"),
        ("points", [[5, 0], [0, 0]], "points has a stroke of 0, not two or more"),
        ("dxdy", [[0] * 5], "dxdy does not decompress"),
        ("labels", [1], "labels does not decompress"),
    ],
)
def test_counts_that_do_not_fit_are_refused(name: str, values: list[Any], problem: str) -> None:
    """A whole file of each array, but no drawings together."""
    strokes = Strokes.from_lists([[([1, 2], [3, 4])], [([1, 2, 3], [3, 4, 5])]], [0, 1])
    block = Block(strokes, np.array([1, 2], np.uint16), np.array([3, 4], np.uint32))
    assert same(blocks.decode(with_array(block, "labels", [1, 2]), 2), block)
    with pytest.raises(CorruptError) as caught:
        blocks.decode(with_array(block, name, values), 2)
    assert problem in caught.value.problem


def test_members_of_both_contents_are_no_block() -> None:
    """Nor is a block that lacks an array."""
    whole = encoded(some(2, content="strokes"), "none")
    for data in (whole + encoded(some(2), "none"), whole[: -2 * 1024]):
        with pytest.raises(CorruptError, match="has members dxdy"):
            blocks.decode(data, 2)
