"""Samples of external tars that cannot be trained on are named, never skipped."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.data.external.samples import read_samples
from tests.support.data.datasets import Dataset
from tests.support.data.tars import (
    SAVED,
    delivered,
    make_settings,
    open_feed,
    write_shards,
    write_tar,
)

pytestmark = pytest.mark.usefixtures("no_thread_left")


def npy(array: NDArray[Any], pickled: bool = False) -> bytes:
    """The bytes of an .npy file."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=pickled)
    return data.getvalue()


GOOD = np.zeros((28, 28), np.uint8)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ({"png": np.zeros((28, 28, 3), np.uint8), "cls": 1}, [".png", "28 x 28", "mode RGB"]),
        ({"png": np.zeros((32, 30), np.uint8), "cls": 1}, [".png", "30 x 32 pixels of mode L"]),
        ({"png": b"no picture", "cls": 1}, [".png", "cannot identify"]),
        ({"npy": np.zeros((32, 32), np.uint8), "cls": 1}, [".npy", "uint8 of shape (32, 32)"]),
        (
            {"npy": np.zeros((28, 28), np.float32), "cls": 1},
            [".npy", "float32", "uint8"],
        ),
        ({"npy": npy(np.array([{}], object), pickled=True), "cls": 1}, [".npy", "not an npy"]),
        ({"npy": b"", "cls": 1}, [".npy", "not an npy array"]),
        ({"npy": GOOD, "cls": 5}, ["", "label 5", "5 classes (0 to 4)"]),
        ({"npy": GOOD, "cls": -1}, ["", "label -1"]),
        ({"npy": GOOD, "cls": b"cat"}, [".cls", "b'cat'"]),
        ({"npy": GOOD}, ["", "has .npy, not .png or .npy with .cls"]),
        ({"jpg": b"...", "cls": 1}, ["", "has .cls, .jpg, not "]),
        ({"drawings.npy": GOOD[None], "labels.npy": np.array([0.5])}, [".labels.npy", "float64"]),
        (
            {"drawings.npy": GOOD[None], "labels.npy": np.array([1, 2])},
            [".drawings.npy", "(2, 28"],
        ),
        ({"drawings.npy": GOOD[None], "labels.npy": np.array([9])}, ["", "label 9"]),
        (
            {"drawings.npy.gz": b"\x1f\x8b", "labels.npy.gz": b"\x1f\x8b"},
            [".labels.npy.gz", "not an"],
        ),
        (
            {"drawings.npy": GOOD[None], "labels.npy": np.array([1]), "rows.npy": np.zeros(2, int)},
            [".rows.npy", "int64 of shape (2,)", "(1,)"],
        ),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, sample: dict[str, Any], told: list[str]) -> None:
    """Shard, key and member, and what is wrong with it; it is never skipped."""
    good = {"npy": GOOD, "cls": 1}
    url = write_tar(tmp_path / "x.tar", [good, good, good, sample])
    made = make_settings(tmp_path, batch=4, class_names=tuple("abcde"), epoch_drawings=4)
    with pytest.raises(CorruptError) as refused:
        list(open_feed(made, saved=SAVED).epoch(0))
    member, *problem = told
    assert refused.value.subject == f"{url}: x/00003{member}"
    assert all(words in refused.value.problem for words in problem)


def test_a_bad_label_is_found_while_counting(tmp_path: Path) -> None:
    """Not hours later; with the setting that is most likely wrong."""
    write_tar(tmp_path / "x.tar", [{"npy": GOOD, "cls": 345}])
    with pytest.raises(CorruptError) as caught:
        open_feed(make_settings(tmp_path, batch=1))
    assert caught.value.problem == "label 345, but there are 345 classes (0 to 344)"
    assert "--stream.class_names" in caught.value.remedy


def test_other_members_and_files_do_not_matter(tmp_path: Path) -> None:
    """Text beside the drawings, and files without a key."""
    path = tmp_path / "x.tar"
    write_tar(path, [{"npy": GOOD, "cls": 1, "json": {"by": "someone"}, "txt": "a line"}])
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("README"))
    assert len(delivered(open_feed(make_settings(tmp_path, batch=1)).epoch(0))) == 1


def test_strokes_are_refused_with_the_reader_that_reads_them(
    of_content: Callable[[str], Dataset],
) -> None:
    """Their pictures are made in the training step, from a dataset with a manifest."""
    folder = Path(of_content("strokes").folder) / "train"
    for more in ({}, {"epoch_drawings": 100}):
        with pytest.raises(RefusedError) as caught:
            open_feed(make_settings(folder, **more))
        assert (caught.value.subject, caught.value.value) == ("--stream.reader", "webdataset")
        assert "strokes" in caught.value.problem
        assert "--stream.reader shards" in caught.value.remedy


DAMAGES = ("cut at a header", "cut in a header", "cut in a payload", "damaged header")
NOT_TARS = ("no end", "empty", "no tar", "compressed")


@pytest.mark.parametrize("damage", DAMAGES + NOT_TARS)
def test_a_damaged_tar_is_named(tmp_path: Path, damage: str) -> None:
    """webdataset and tarfile take most of these for the end of the tar, and the rest of it would be
    lost unnoticed."""
    write_shards(tmp_path, [4, 4])
    path = tmp_path / "x-001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    header, payload = members[4].offset, members[4].offset_data
    end = members[-1].offset_data + 512
    path.write_bytes(
        {
            "cut at a header": whole[:header],
            "cut in a header": whole[: header + 100],
            "cut in a payload": whole[: payload + 100],
            "damaged header": whole[:header] + b"#" + whole[header + 1 :],
            "no end": whole[:end],
            "empty": b"",
            "no tar": b"something else" * 1000,
            "compressed": gzip.compress(whole),
        }[damage]
    )
    with pytest.raises(CorruptError) as caught:
        list(read_samples([str(tmp_path / "x-000.tar"), str(path)]))
    assert caught.value.subject == str(path)


def test_a_tar_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """Between the listing and its turn."""
    write_shards(tmp_path, [8, 8])
    feed = open_feed(make_settings(tmp_path))
    (tmp_path / "x-001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"x-001\.tar"):
        list(feed.epoch(0))
