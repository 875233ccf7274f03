"""A folder of stroke files as a source: strokes or bitmaps by row, faults named, indices kept."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import gcsfs
import google_crc32c
import numpy as np
import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.data.drawings import raster, stroke_files
from quickdraw_dist.data.drawings.sources import open_source
from tests.support.data import stroke_files as support
from tests.support.gcs.server import Request, Response

if TYPE_CHECKING:
    from tests.support.gcs.local import Store

COUNTS = {"cat": 301, "dog": 77}
SUFFIXES = (".bin", ".ndjson")


@pytest.fixture(params=SUFFIXES)
def suffix(request: pytest.FixtureRequest) -> str:
    """Both forms of strokes."""
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, suffix: str) -> Path:
    """A few cats and dogs."""
    support.write_strokes(tmp_path / "strokes", COUNTS, suffix)
    return tmp_path / "strokes"


@pytest.mark.parametrize("content", ["strokes", "bitmaps"])
def test_rows_are_those_of_the_file(folder: Path, suffix: str, content: str) -> None:
    """Strokes, or the official pixels of them; bytes and checksum are those of the file."""
    source = pickle.loads(pickle.dumps(open_source(str(folder), content=content)))
    assert (source.classes, source.counts) == (("cat", "dog"), (301, 77))
    assert (source.url, source.content, source.header(1)) == (str(folder), content, b"")
    assert source.file_url(1) == str(folder / f"dog{suffix}")
    whole = (folder / f"dog{suffix}").read_bytes()
    assert source.checksum(1) == google_crc32c.value(whole)
    dogs, end = support.some_drawings("dog", 77), 0
    for start, stop in ((0, 0), (0, 30), (30, 31), (31, 77)):
        rows, (first, after) = source.read(1, start, stop), source.span(1, start, stop)
        assert first == end
        end = after
        assert rows.crc32c == google_crc32c.value(whole[first:after])
        expected = dogs.slice(start, stop)
        if content == "strokes":
            assert support.equal(rows.drawings, expected)
        else:
            assert rows.drawings.shape == (stop - start, 28, 28)
            assert np.array_equal(rows.drawings, raster.official(expected))
    assert end == len(whole)
    with pytest.raises(IndexError):
        source.read(1, 70, 78)


def test_indices_are_kept_and_used_while_the_file_is_the_same(
    folder: Path, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarts and other workers make no pass of their own; a changed file is read again."""
    kept = str(tmp_path / "parts")
    made: list[str] = []
    make_index = stroke_files.make_index
    monkeypatch.setattr(
        stroke_files, "make_index", lambda url, *more: made.append(url) or make_index(url, *more)
    )
    first = open_source(str(folder), content="strokes", records=kept)
    assert sorted(made) == [str(folder / f"{name}{suffix}") for name in COUNTS]
    assert sorted(path.name for path in Path(kept).iterdir()) == [
        f"cat{suffix}.records",
        f"dog{suffix}.records",
    ]
    again = open_source(str(folder), content="strokes", records=kept)
    assert len(made) == 2
    assert support.equal(again.read(0, 5, 300).drawings, first.read(0, 5, 300).drawings)
    cats = folder / f"cat{suffix}"
    cats.write_bytes(cats.read_bytes() + cats.read_bytes())
    assert open_source(str(folder), content="strokes", records=kept).counts == (602, 77)
    assert made[2:] == [str(cats)]
    Path(kept, f"dog{suffix}.records").write_bytes(b"damaged")
    assert open_source(str(folder), content="strokes", records=kept).counts == (602, 77)
    assert made[3:] == [str(folder / f"dog{suffix}")]


def test_a_folder_that_takes_no_index_costs_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone else's finished dataset, which can only be read."""
    (tmp_path / "parts").write_text("a file where the folder would be")
    source = open_source(str(folder), content="strokes", records=str(tmp_path / "parts"))
    assert source.counts == (301, 77)
    assert capsys.readouterr().err.count("an index of records is not kept") == 2


def test_a_bad_record_is_named_with_file_row_and_byte(folder: Path, suffix: str) -> None:
    """As a bad .npy file is; the rows around it can be read."""
    path = folder / f"dog{suffix}"
    source = open_source(str(folder), content="strokes")
    first, _ = source.span(1, 40, 41)
    data = bytearray(path.read_bytes())
    data[first + (10 if suffix == ".bin" else 0)] = 99
    path.write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        source.read(1, 30, 50)
    error = caught.value
    assert (error.subject, error.row, error.byte) == (str(path), 40, first)
    assert error.problem.startswith(f"row 40, byte {first:,}: ")
    assert len(source.read(1, 41, 77).drawings) == 36


def test_a_file_that_shrinks_after_opening_is_corrupt(folder: Path, suffix: str) -> None:
    """A read that comes back short must never be parsed as if it were whole."""
    source = open_source(str(folder), content="strokes")
    path = folder / f"cat{suffix}"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptError) as caught:
        source.read(0, 290, 301)
    assert (caught.value.subject, caught.value.stop) == (str(path), 301)


@pytest.mark.parametrize("kinds", [(".npy", ".bin"), (".bin", ".ndjson"), (".ndjson", ".npy")])
def test_several_kinds_in_a_folder_are_refused(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """Which of two cats would be meant?"""
    for kind in kinds:
        (tmp_path / f"cat{kind}").write_bytes(b"")
    for classes in ((), ("cat",)):
        with pytest.raises(RefusedError) as caught:
            open_source(str(tmp_path), classes)
        assert caught.value.problem == f"holds {' and '.join(sorted(kinds))} files"


@pytest.mark.parametrize("name", ["Dog", "cat."])
def test_a_stray_class_is_refused(folder: Path, suffix: str, name: str) -> None:
    """As for bitmaps; `--shard.classes` takes one's own."""
    (folder / f"{name}{suffix}").write_bytes(b"")
    with pytest.raises(RefusedError) as caught:
        open_source(str(folder), content="strokes")
    assert caught.value.subject == str(folder / f"{name}{suffix}")
    assert open_source(str(folder), ["dog"], "strokes").counts == (77,)


def test_a_folder_in_place_of_a_file_is_refused(folder: Path, suffix: str) -> None:
    """A folder called sun.bin is the user's mistake: refused, not corrupt."""
    (folder / f"sun{suffix}").mkdir()
    with pytest.raises(RefusedError) as caught:
        open_source(str(folder), content="strokes")
    assert caught.value.subject == str(folder / f"sun{suffix}")
    assert not isinstance(caught.value, CorruptError)


def test_bitmaps_hold_no_strokes(tmp_path: Path) -> None:
    """The remedy says where strokes are."""
    np.save(tmp_path / "cat.npy", np.ones((3, 784), np.uint8))
    with pytest.raises(RefusedError) as caught:
        open_source(str(tmp_path), content="strokes")
    error = caught.value
    assert (error.value, error.problem) == (str(tmp_path), "bitmaps hold no strokes")
    assert "gs://quickdraw_dataset/full/binary" in error.remedy


def test_googles_bucket_must_have_googles_counts(store: Store) -> None:
    """The official counts are those of all four kinds of files."""
    gcsfs.GCSFileSystem().mkdir("quickdraw_dataset")
    url = "gs://quickdraw_dataset/full/binary"
    storage.publish(f"{url}/cat.bin", support.to_bin([[([1, 2], [3, 4])]], [1]))
    with pytest.raises(CorruptError, match=r"cat\.bin: 1 drawings, the official file has 123,202"):
        open_source(url, content="strokes")


@pytest.mark.parametrize("flips", [1, 5, 1000])
def test_a_bad_record_is_believed_when_two_readings_agree(
    folder: Path, suffix: str, store: Store, flips: int
) -> None:
    """A bit that flips in transit must not end a sharding; a damaged file must."""
    store.upload(folder, "gs://bucket/strokes")
    source = open_source("gs://bucket/strokes", content="strokes")
    tries = iter(range(1000))

    def damage(request: Request) -> Response | None:
        if "Range" not in request.headers:
            return None
        reply = store.server.gcs.answer(request)
        if (at := next(tries)) < flips:
            body = bytearray(reply.body)
            body[10 if suffix == ".bin" else 0] = 200 + min(at, 10)
            reply.body = bytes(body)
        return reply

    store.intercept = damage
    if flips == 1000:
        with pytest.raises(CorruptError, match="row 20, byte"):
            source.read(0, 20, 40)
        return
    rows = source.read(0, 20, 40)
    assert support.equal(rows.drawings, support.some_drawings("cat", 301).slice(20, 40))


def test_official_strokes_by_row(real_data: Path) -> None:
    """All 182,532 lines at hand are counted; rows of some classes are as json has them."""
    source = open_source(str(real_data / "simplified"), content="strokes")
    assert (len(source.classes), sum(source.counts)) == (345, 182_532)
    for label in range(0, 345, 43):
        lines = Path(source.file_url(label)).read_text("utf-8").splitlines()[10:200]
        rows = source.read(label, 10, 10 + len(lines)).drawings
        known = [json.loads(line) for line in lines]
        assert [[list(map(list, s)) for s in drawing] for drawing in support.as_lists(rows)] == [
            record["drawing"] for record in known
        ]
        flags = [{True: 1, False: 0, None: 2}[record.get("recognized")] for record in known]
        assert rows.recognized.tolist() == flags


def test_official_strokes_become_the_official_bitmaps(real_data: Path) -> None:
    """The first 25 lines with all fields are the first 25 rows of the bitmap file."""
    classes = ("airplane", "cat", "The Mona Lisa", "zebra")
    drawn = open_source(str(real_data / "simplified"), classes)
    stored = open_source(str(real_data / "numpy_bitmap"), classes)
    for label in range(len(classes)):
        lines = Path(drawn.file_url(label)).read_text("utf-8").splitlines()
        rows = [row for row, line in enumerate(lines) if "timestamp" in json.loads(line)][:25]
        pixels = drawn.read(label, 0, rows[-1] + 1).drawings[rows]
        assert np.array_equal(pixels, stored.read(label, 0, 25).drawings), classes[label]
