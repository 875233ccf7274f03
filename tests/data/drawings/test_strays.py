"""What systems, editors and sync tools leave in a source is passed over; a class never is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.sources import open_source

if TYPE_CHECKING:
    from tests.support.gcs.local import Store


def _bitmaps(count: int) -> bytes:
    """A class's file of that many drawings."""
    file = io.BytesIO()
    np.save(file, np.full((count, 784), 7, np.uint8))
    return file.getvalue()


def refusal(folder: str | Path, *classes: str) -> RefusedError:
    """Why a source cannot be opened."""
    with pytest.raises(RefusedError) as caught:
        open_source(str(folder), classes)
    return caught.value


SOURCES = ("a local folder", "gs://")


@pytest.fixture(params=SOURCES)
def folder(request: pytest.FixtureRequest, tmp_path: Path, store: Store) -> str:
    """An empty folder of every kind of source."""
    return str(tmp_path) if request.param == SOURCES[0] else "gs://bucket/bitmaps"


STRAYS = (
    "._cat.npy",  # macOS, on disks of other systems
    ".DS_Store",
    ".#cat.npy",  # Emacs
    ".cat.npy.swp",
    "cat.npy~",
    ".cat.npy.Xy12aB",  # rsync
    "cat.sync-conflict-20240101-120000-ABCDEFG.npy",  # Syncthing
    "cat (Ann's conflicted copy 2024-01-01).npy",  # Dropbox
    "cat (conflicted copy 2024-01-01 120000).npy",  # Nextcloud
    "~$cat.npy",
    "cat.npy.part",
    "desktop.ini",
    "Thumbs.db",
)


def test_strays_in_a_source_are_passed_over(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole folder was once refused for one file that a system had left in it."""
    storage.publish(storage.join(folder, "cat.npy"), _bitmaps(5))
    for name in STRAYS:
        storage.publish(storage.join(folder, name), b"left by a system")
    source = open_source(folder)
    assert (source.classes, source.counts) == (("cat",), (5,))
    assert capsys.readouterr().err.count(" is passed over\n") == 4


def test_only_strays_are_no_source(folder: str) -> None:
    """A folder of copies has no class."""
    storage.publish(storage.join(folder, "~$cat.npy"), b"left by a program")
    assert refusal(folder).problem == "no .npy, .bin or .ndjson file in it"


@pytest.mark.parametrize(("name", "rename"), [("dog.NPY", "dog"), ("Dog.npy", "dog")])
def test_a_name_in_another_case_is_told(folder: str, name: str, rename: str) -> None:
    """Its class was once left out of the dataset without a word."""
    for file in ("cat.npy", name):
        storage.publish(storage.join(folder, file), _bitmaps(5))
    error = refusal(folder)
    assert error.subject == storage.join(folder, name)
    assert repr(rename) in error.problem or error.remedy == f"Rename it to {rename}.npy"
    assert refusal(folder, "dog").remedy == f"Rename {name} to {rename}.npy"
    assert open_source(folder, ("cat",)).classes == ("cat",)


@pytest.mark.parametrize("target", ["moved away.npy", "dog.npy"], ids=["dangling", "a circle"])
def test_a_broken_link_among_good_files_is_told(tmp_path: Path, target: str) -> None:
    """'No such folder', it once said of a folder full of classes."""
    (tmp_path / "cat.npy").write_bytes(_bitmaps(1))
    (tmp_path / "dog.npy").symlink_to(tmp_path / target)
    error = refusal(tmp_path)
    assert error.subject == str(tmp_path / "dog.npy")
    assert error.problem.startswith(f"a link to {tmp_path / target} that leads nowhere")


def test_a_link_to_a_class_is_followed(tmp_path: Path) -> None:
    """A folder of links chooses classes without copying them."""
    (tmp_path / "source").mkdir()
    (tmp_path / "other.npy").write_bytes(_bitmaps(2))
    (tmp_path / "source" / "cat.npy").symlink_to(tmp_path / "other.npy")
    assert open_source(str(tmp_path / "source")).counts == (2,)
