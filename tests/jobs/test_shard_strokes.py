"""jobs.shard and jobs.verify on files of strokes, kept as strokes or drawn as bitmaps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import gcsfs
import google_crc32c
import numpy as np
import pytest

from jobs import plan, shard, verify
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings import classes, raster, stroke_files
from quickdraw_dist.data.drawings.classes import OfficialFile
from quickdraw_dist.data.shards import manifest
from tests.support.data import stroke_files as support

if TYPE_CHECKING:
    from tests.support.gcs.local import Store

COUNTS = {"cat": 301, "dog": 77}
SMALL = [
    "--processes=1", "--shard.block=32", "--shard.drawings_per_shard=64", "--shard.group_shards=2",
]  # fmt: skip
BOTH = pytest.mark.parametrize("content", ["strokes", "bitmaps"])


@pytest.fixture(params=[".bin", ".ndjson"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A few cats and dogs, in both forms."""
    support.write_strokes(tmp_path / "strokes", COUNTS, request.param)
    return tmp_path / "strokes"


def make(source: str | Path, dest: Path, *arguments: str) -> manifest.Manifest:
    """Shard a source; returns the manifest."""
    shard.main(["--source", str(source), "--dest", str(dest), *SMALL, *arguments])
    return manifest.read(str(dest))


@BOTH
def test_files_of_strokes_are_sharded_and_verified(
    folder: Path, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checksums are of the files' own bytes; the proof compares every drawing, without a pass."""
    dest = tmp_path / "dest"
    dataset = make(folder, dest, f"--shard.content={content}")
    assert dataset.settings.content == content
    for file in dataset.source_files:
        data = next(folder.glob(f"{file.name}.*")).read_bytes()
        assert (file.drawings, file.bytes) == (COUNTS[file.name], len(data))
        assert (file.crc32c, file.checked) == (google_crc32c.value(data), ("crc32c",))

    def no_pass(*_: object) -> None:
        raise AssertionError("the indices are beside the parts")

    monkeypatch.setattr(stroke_files, "make_index", no_pass)
    verify.main([str(dest), "--source", str(folder)])


def test_verify_writes_nothing_into_the_dataset(folder: Path, tmp_path: Path) -> None:
    """An index that it has to make stays in memory."""
    dest = tmp_path / "dest"
    make(folder, dest, "--shard.content=strokes")
    for path in (dest / "parts").glob("*.records"):
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in dest.rglob("*")}
    verify.main([str(dest), "--source", str(folder)])
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*")} == before


def test_bitmaps_of_strokes_are_those_of_bitmap_files(folder: Path, tmp_path: Path) -> None:
    """Equal pixels make equal shards, wherever they come from."""
    (tmp_path / "bitmaps").mkdir()
    for name, count in COUNTS.items():
        pixels = raster.official(support.some_drawings(name, count))
        np.save(tmp_path / "bitmaps" / f"{name}.npy", pixels.reshape(-1, 784))
    drawn = make(folder, tmp_path / "drawn")
    assert drawn.splits == make(tmp_path / "bitmaps", tmp_path / "stored").splits


@BOTH
def test_an_official_file_of_strokes_is_checked(
    folder: Path, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By size and MD5, as the official bitmaps are; another file of that size is refused."""
    (path,) = folder.glob("cat.*")
    kind = "bin" if path.suffix == ".bin" else "simplified"
    data = path.read_bytes()

    def cat(md5: str) -> None:
        file = OfficialFile(len(data), md5)
        table = tuple(
            replace(entry, **{kind: file}) if entry.name == "cat" else entry for entry in official
        )
        monkeypatch.setattr(classes, "official", lambda: table)

    official = classes.official()
    cat(hashlib.md5(data, usedforsecurity=False).hexdigest())
    made = make(folder, tmp_path / "dest", f"--shard.content={content}")
    checked = {file.name: file.checked for file in made.source_files}
    assert checked == {"cat": ("crc32c", "official size", "official md5"), "dog": ("crc32c",)}
    cat("0" * 32)
    with pytest.raises(CorruptError, match=f"cat{path.suffix}: MD5 .* the official file's is 000"):
        make(folder, tmp_path / "other", f"--shard.content={content}")


def test_synthetic_strokes_are_sharded_and_verified(tmp_path: Path) -> None:
    """A trial of the whole path without any data."""
    source = "synthetic:?classes=2&per_class=200"
    dataset = make(source, tmp_path, "--shard.content=strokes")
    assert [(file.drawings, file.checked) for file in dataset.source_files] == [(200, ())] * 2
    verify.main([str(tmp_path), "--source", source])


def test_a_dry_run_leaves_nothing_behind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It finds the drawings in a pass, and keeps none of it; the bar says so."""
    arguments = ["--source", str(folder), "--dest", str(tmp_path / "dest"), "--dry-run", *SMALL]
    shard.main(arguments)
    assert not (tmp_path / "dest").exists()
    shown = capsys.readouterr()
    assert "drawings  378 " in shown.out
    assert "reading the source whole for its records: 100%" in shown.err


def test_a_dry_run_uses_the_records_that_are_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the first worker has read the source, a plan costs no pass."""
    make(folder, tmp_path / "dest")
    capsys.readouterr()
    shard.main(["--source", str(folder), "--dest", str(tmp_path / "dest"), "--dry-run", *SMALL])
    shown = capsys.readouterr()
    assert "drawings  378 " in shown.out
    assert "for its records" not in shown.err


@pytest.mark.parametrize("command", ["plan", "dry run"])
def test_googles_own_files_are_planned_without_a_look_into_them(
    folder: Path, store: Store, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """195 GB of raw drawings are not read to print how many they are."""
    gcsfs.GCSFileSystem().mkdir("quickdraw_dataset")
    source = store.upload(folder, "gs://quickdraw_dataset/full/raw")
    store.requests.clear()
    if command == "plan":
        plan.main(["--source", source, "--shard.content=strokes"])
        assert "2 classes, planned from gs://quickdraw_dataset/full/raw" in capsys.readouterr().out
    else:
        shard.main(["--source", source, "--dest", "gs://bucket/dest", "--dry-run"])
        assert f"drawings  {123_202 + 152_159:,} " in capsys.readouterr().out
    assert store.media_reads("") == 0
