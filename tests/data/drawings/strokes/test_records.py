"""The index of a file's records: made in one pass, of bytes that are the file's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings.strokes import binary, ndjson, records
from quickdraw_dist.data.drawings.strokes.records import RecordIndex, load_index, make_index
from tests.support.data import stroke_files as support
from tests.support.gcs.server import Request, Response

if TYPE_CHECKING:
    from tests.support.gcs.local import Store


@given(lengths=st.lists(st.integers(1, 70_000), max_size=1200), data=st.data())
def test_any_row_is_found(lengths: list[int], data: st.DataObject) -> None:
    """By the sums of all lengths before it; a group's range may begin with any row."""
    index = RecordIndex.of(np.array(lengths, np.int64))
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    start = data.draw(st.integers(0, len(lengths)))
    stop = data.draw(st.integers(start, len(lengths)))
    assert index.edges(start, stop).tolist() == starts[start : stop + 1].tolist()
    assert index.span(start, stop) == (starts[start], starts[stop])
    with pytest.raises(IndexError):
        index.span(start, len(lengths) + 1)


@given(lengths=st.lists(st.integers(1, 70_000), min_size=1), damaged=st.integers(0, 10**6))
def test_a_kept_index_is_that_of_its_file_or_none(lengths: list[int], damaged: int) -> None:
    """Never that of a file that was replaced, and never a damaged one."""
    data = RecordIndex.of(np.array(lengths)).to_bytes("7 bytes, generation 5")
    kept = RecordIndex.from_bytes(data, "7 bytes, generation 5")
    assert kept is not None
    assert kept.lengths.tolist() == lengths
    assert RecordIndex.from_bytes(data, "7 bytes, generation 6") is None
    assert RecordIndex.from_bytes(data[: damaged % len(data)], "7 bytes, generation 5") is None
    at = damaged % len(data)
    flipped = data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
    read = RecordIndex.from_bytes(flipped, "7 bytes, generation 5")
    assert read is None or read.lengths.tolist() == lengths


FORMATS = {
    ".bin": (
        binary.find_ends,
        lambda made: support.to_bin(support.as_lists(made), made.recognized),
    ),
    ".ndjson": (
        ndjson.find_ends,
        lambda made: support.to_ndjson(support.as_lists(made), made.recognized, "cat", "\r\n \t\n"),
    ),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("read_bytes", [1, 7, 1000, 1 << 23])
def test_a_pass_in_pieces_finds_what_one_piece_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, read_bytes: int
) -> None:
    """24 GB are read a few megabytes at a time."""
    find_ends, write = FORMATS[suffix]
    path = tmp_path / f"cat{suffix}"
    path.write_bytes(data := write(support.some_drawings("cat", 40)))
    monkeypatch.setattr(records, "READ_BYTES", read_bytes)
    read: list[int] = []
    index = make_index(str(path), len(data), find_ends, read.append)
    assert index.edges(0, 40)[1:].tolist() == find_ends(data, True).tolist()
    assert sum(read) == len(data)
    assert index.lengths.itemsize <= 2, "full sources have 50 million records"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("read_bytes", [100, 1 << 23])
def test_a_cut_file_is_named_with_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, read_bytes: int
) -> None:
    """Half a download, before hours of sharding begin; the byte is the file's."""
    find_ends, write = FORMATS[suffix]
    data = write(support.some_drawings("cat", 40))
    ends = find_ends(data, True)
    path = tmp_path / f"cat{suffix}"
    path.write_bytes(data[: ends[30] + 5])
    monkeypatch.setattr(records, "READ_BYTES", read_bytes)
    with pytest.raises(CorruptError) as caught:
        make_index(str(path), path.stat().st_size, find_ends)
    error = caught.value
    assert (error.subject, error.row, error.byte) == (str(path), 31, ends[30])
    assert "row 31, byte" in error.problem
    assert "the file ends within this record" in error.problem
    assert error.remedy == "Fetch it again, or correct this row if you made the file"
    with pytest.raises(CorruptError, match="the file ends here, it was"):
        make_index(str(path), len(data), lambda data, _: find_ends(data, False))
    path.write_bytes(b"")
    with pytest.raises(CorruptError, match="is empty"):
        make_index(str(path), 0, find_ends)


def test_a_record_without_an_end_takes_no_memory_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JSON array of all drawings, in one line of gigabytes."""
    monkeypatch.setattr(records, "READ_BYTES", 100)
    monkeypatch.setattr(records, "_MOST_RECORD_BYTES", 1000)
    path = tmp_path / "cat.ndjson"
    path.write_bytes(b"[" + b"1," * 10_000 + b"1]")
    with pytest.raises(CorruptError, match="the record does not end within"):
        make_index(str(path), path.stat().st_size, ndjson.find_ends)


@pytest.mark.parametrize("last_wrong", [0, 3, 100])
def test_an_index_is_made_of_the_objects_own_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch, last_wrong: int
) -> None:
    """A bit that flips on the way would shift every later row."""
    monkeypatch.setattr(records, "READ_BYTES", 1 << 12)
    data = FORMATS[".bin"][1](support.some_drawings("cat", 300))
    url = "gs://bucket/binary/cat.bin"
    storage.publish(url, data)
    tries = iter(range(1000))

    def flip(request: Request) -> Response | None:
        if "Range" not in request.headers:
            return None
        reply = store.server.gcs.answer(request)
        at = next(tries)
        if at < last_wrong:
            body = bytearray(reply.body)
            body[at * 37 % len(body)] ^= 1 << at % 8
            reply.body = bytes(body)
        return reply

    store.intercept = flip
    if last_wrong == 100:
        with pytest.raises(CorruptError, match=r"cat\.bin"):
            make_index(url, len(data), binary.find_ends)
    else:
        index = make_index(url, len(data), binary.find_ends)
        assert index.edges(0, 300)[1:].tolist() == binary.find_ends(data, True).tolist()


def test_no_index_is_none(tmp_path: Path) -> None:
    """The first start."""
    assert load_index(str(tmp_path / "parts" / "cat.bin.records"), "") is None
