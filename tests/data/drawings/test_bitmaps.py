"""Official bitmaps: every header seen in the wild is read, everything else is refused clearly."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gcsfs
import numpy as np
import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, DeniedError, RefusedError, StorageError
from quickdraw_dist.data.drawings import bitmaps
from quickdraw_dist.data.drawings.sources import open_source
from tests.support.gcs.server import Request, Response

if TYPE_CHECKING:
    from tests.support.gcs.local import Store

FIELDS = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }"


def npy(fields: str, data: bytes, header_bytes: int = 80) -> bytes:
    """A version 1 file by hand: Google's have 80 bytes of header, numpy's 128."""
    text = fields.ljust(header_bytes - 11).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def pixels(count: int) -> np.ndarray:
    """Drawings that differ in every row, (count, 784) uint8."""
    return (np.arange(count * 784) * 7 % 251).astype(np.uint8).reshape(count, 784)


def _version_2(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array(file, pixels(5), version=(2, 0))


@pytest.mark.parametrize(
    ("header_bytes", "write"),
    [
        (80, lambda path: path.write_bytes(npy(FIELDS % "5, 784", pixels(5).tobytes()))),
        (128, lambda path: np.save(path, pixels(5))),
        (128, lambda path: np.save(path, pixels(5).reshape(5, 28, 28))),
        (128, _version_2),
        (512, lambda path: path.write_bytes(npy(FIELDS % "5, 784", pixels(5).tobytes(), 512))),
    ],
    ids=["official, 80 bytes", "numpy, 128 bytes", "(N, 28, 28)", "version 2", "512 bytes"],
)
def test_rows_are_those_of_the_file(
    tmp_path: Path, header_bytes: int, write: Callable[[Path], object]
) -> None:
    """An assumed header length would shift every pixel of every drawing."""
    path = tmp_path / "cat.npy"
    write(path)
    source = open_source(str(tmp_path))
    assert (source.classes, source.counts) == (("cat",), (5,))
    assert source.header(0) == path.read_bytes()[:header_bytes]
    expected = pixels(5).reshape(5, 28, 28)
    for start, stop in ((0, 5), (0, 1), (2, 4), (4, 5)):
        rows = source.read(0, start, stop).drawings
        assert rows.dtype == np.uint8
        assert np.array_equal(rows, expected[start:stop])


def test_classes_come_in_official_order(tmp_path: Path) -> None:
    """sorted() and glob put 'The Eiffel Tower' first; the official list does not."""
    for name in ("zigzag", "The Eiffel Tower", "cat", "airplane"):
        np.save(tmp_path / f"{name}.npy", pixels(1))
    (tmp_path / "notes.txt").write_text("not a class")
    source = open_source(str(tmp_path))
    assert source.classes == ("airplane", "cat", "The Eiffel Tower", "zigzag")


def test_chosen_classes_come_in_the_order_given(tmp_path: Path) -> None:
    """--shard.classes is the label list, classes of one's own included."""
    for number, name in enumerate(("cat", "my own", "sun")):
        np.save(tmp_path / f"{name}.npy", pixels(number + 1))
    source = open_source(str(tmp_path), ("my own", "cat"))
    assert (source.classes, source.counts) == (("my own", "cat"), (2, 1))
    assert np.array_equal(source.read(0, 1, 2).drawings, pixels(2)[1:].reshape(1, 28, 28))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda path: path.write_bytes(npy(FIELDS % "5, 784", pixels(5).tobytes()[:-1])),
        "3,999 bytes, but its header promises 5 drawings = 4,000 bytes; truncated",
    ),
    "other bytes at the end": (
        lambda path: path.write_bytes(npy(FIELDS % "5, 784", pixels(5).tobytes() + b"tail")),
        "4,004 bytes, but its header promises 5 drawings = 4,000 bytes; other bytes follow",
    ),
    "wrong shape": (lambda path: np.save(path, pixels(5)[:, :783]), "holds shape (5, 783), uint8"),
    "one dimension": (lambda path: np.save(path, pixels(1)[0]), "holds shape (784,), uint8"),
    "rows of another shape": (
        lambda path: np.save(path, pixels(5).reshape(5, 56, 14)),
        "holds shape (5, 56, 14), uint8",
    ),
    "wrong dtype": (
        lambda path: np.save(path, pixels(5).astype(np.float32)),
        "holds shape (5, 784), float32, C order",
    ),
    "Fortran order": (
        lambda path: np.save(path, np.asfortranarray(pixels(5))),
        "holds shape (5, 784), uint8, Fortran order",
    ),
    "a web page": (lambda path: path.write_text("<html>404</html>"), "not a .npy file"),
    "empty": (lambda path: path.write_bytes(b""), "not a .npy file"),
    "header cut off": (
        lambda path: path.write_bytes(npy(FIELDS % "5, 784", b"")[:40]),
        "not a .npy file",
    ),
    "unknown version": (
        lambda path: path.write_bytes(b"\x93NUMPY\x09\x00" + bytes(200)),
        "not a .npy file",
    ),
}


BAD_HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 784), ",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 784, }",
    "{[]: 1}",
)
for fields in BAD_HEADERS:
    BAD_FILES[fields] = partial(Path.write_bytes, data=npy(fields, b"")), "not a .npy file"


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """Hours of sharding must not start on a file that is not what it should be."""
    write, problem = BAD_FILES[case]
    np.save(tmp_path / "cat.npy", pixels(2))
    write(tmp_path / "sun.npy")
    with pytest.raises(CorruptError) as caught:
        open_source(str(tmp_path))
    assert caught.value.subject == str(tmp_path / "sun.npy")
    assert caught.value.problem.startswith(problem)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    """A folder called cat.npy is the user's mistake: refused, not corrupt."""
    (tmp_path / "cat.npy").mkdir()
    assert refusal(tmp_path).subject == str(tmp_path / "cat.npy")


def test_a_file_that_shrinks_after_opening_is_corrupt(tmp_path: Path) -> None:
    """A read that comes back short must never be padded or passed on."""
    path = tmp_path / "cat.npy"
    np.save(path, pixels(5))
    source = open_source(str(tmp_path))
    path.write_bytes(path.read_bytes()[:-784])
    assert len(source.read(0, 0, 4).drawings) == 4
    with pytest.raises(CorruptError) as caught:
        source.read(0, 3, 5)
    error = caught.value
    assert (error.subject, error.start, error.stop) == (str(path), 3, 5)
    assert error.read_bytes == 784


def test_a_folder_without_bitmaps_is_refused(tmp_path: Path) -> None:
    """The newcomer's first mistake: the message says what to type instead."""
    np.save(tmp_path / "cat.npy", pixels(1))
    (tmp_path / "empty").mkdir()
    for name, problem in (
        ("nowhere", "no such folder"),
        ("cat.npy", "no such folder"),
        ("empty", "no .npy, .bin or .ndjson file in it"),
    ):
        error = refusal(tmp_path / name)
        assert (error.value, error.problem) == (str(tmp_path / name), problem)
        for remedy in ("gs://quickdraw_dataset/full/numpy_bitmap", "synthetic:?"):
            assert remedy in error.remedy


def refusal(folder: Path, *classes: str) -> RefusedError:
    """Why a source cannot be opened."""
    with pytest.raises(RefusedError) as caught:
        open_source(str(folder), classes)
    return caught.value


def test_an_unknown_class_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """A stray or misspelled file would silently become a 346th class."""
    np.save(tmp_path / "The Eifel Tower.npy", pixels(1))
    error = refusal(tmp_path)
    assert error.subject == str(tmp_path / "The Eifel Tower.npy")
    assert "Did you mean 'The Eiffel Tower'" in error.problem
    assert "--shard.classes" in error.remedy


def test_wrong_classes_are_refused(tmp_path: Path) -> None:
    """A misspelled name on the command line; one typed twice would get drawings of two labels."""
    np.save(tmp_path / "airplane.npy", pixels(1))
    assert str(refusal(tmp_path, "airplaine")) == (
        f"class 'airplaine': there is no airplaine.npy in {tmp_path}. Did you mean 'airplane'?"
    )
    error = refusal(tmp_path, "airplane", "airplane")
    assert (error.subject, error.value) == ("--shard.classes", "airplane")


def test_googles_bucket_must_have_googles_counts(store: Store) -> None:
    """A well-formed file with fewer drawings under Google's own address is not Google's file."""
    gcsfs.GCSFileSystem().mkdir("quickdraw_dataset")
    url = "gs://quickdraw_dataset/full/numpy_bitmap"
    storage.publish(f"{url}/cat.npy", npy(FIELDS % "5, 784", pixels(5).tobytes()))
    with pytest.raises(CorruptError, match=r"cat\.npy: 5 drawings, the official file has 123,202"):
        open_source(url)


def test_a_bucket_is_read_by_range(store: Store) -> None:
    """39.5 GB: opening reads headers only, and a group reads its rows only."""
    url = "gs://bucket/bitmaps"
    storage.publish(f"{url}/cat.npy", npy(FIELDS % "50, 784", pixels(50).tobytes()))
    source = open_source(url)
    assert isinstance(source, bitmaps.Bitmaps)
    assert source.counts == (50,)
    assert np.array_equal(source.read(0, 7, 9).drawings, pixels(50)[7:9].reshape(2, 28, 28))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(503, StorageError), (401, DeniedError), (403, DeniedError)],
)
def test_a_store_in_trouble_is_not_a_wrong_source(
    store: Store, status: int, kind: type[Exception]
) -> None:
    """A scheduler tries again what ends with 1, and never what was refused: an outage is no reason
    to give a sharding up, a missing login is."""
    store.intercept = lambda request: Response(status)
    with pytest.raises(StorageError) as caught:
        open_source("gs://bucket/bitmaps")
    assert caught.type is kind
    assert "gs://bucket/bitmaps" in str(caught.value)
    assert ("gcloud auth application-default login" in str(caught.value)) == (kind is DeniedError)


def test_a_header_that_never_comes_twice_alike_is_corrupt(store: Store) -> None:
    """A bit that flips on the way to a header would shift every pixel, or end a long run late."""
    url = "gs://bucket/bitmaps"
    storage.publish(f"{url}/cat.npy", npy(FIELDS % "50, 784", pixels(50).tobytes()))
    tries = iter(range(100))

    def flip(request: Request) -> Response | None:
        if "Range" not in request.headers:
            return None
        reply = store.server.gcs.answer(request)
        body = bytearray(reply.body)
        at = next(tries)
        if at != last_good - 3 and at != last_good:
            body[at] ^= 1
        reply.body = bytes(body)
        return reply

    last_good = 11
    store.intercept = flip
    assert open_source(url).header(0) == npy(FIELDS % "50, 784", b"")
    tries, last_good = iter(range(100)), 12
    with pytest.raises(CorruptError, match=r"cat\.npy: no two readings of its first 512 bytes"):
        open_source(url)
