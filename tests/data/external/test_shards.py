"""External tars: which are found, and what is refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Strokes
from quickdraw_dist.data.external.shards import find_shards, open_shards
from quickdraw_dist.data.feed import check_dataset, open_dataset
from tests.support.data.datasets import Dataset
from tests.support.data.tars import delivered, make_settings, open_feed, write_shards
from tests.support.gcs.local import Store

pytestmark = pytest.mark.usefixtures("no_thread_left")


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", "a/x-000 a/x-001 a/x-002"),
        ("a/x-{000..001}.tar", "a/x-000 a/x-001"),
        ("a/x-002.tar", "a/x-002"),
        ("a/x-*[12].tar", "a/x-001 a/x-002"),
        ("{a,b}/x-000.tar", "a/x-000 b/x-000"),
        ("a/x-002.tar::ROOT/b", "a/x-002 b/x-000"),
        ("none", ""),
        ("a/y-{000..001}.tar", ""),
    ],
)
@pytest.mark.parametrize("where", ["disk", "store"])
def test_patterns(store: Store, tmp_path: Path, where: str, pattern: str, names: str) -> None:
    """Folders, lists and wildcards name the same shards on a disk and in a store."""
    for name in ("a/x-000", "a/x-001", "a/x-002", "a/._x-000", "b/x-000"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tar").write_bytes(bytes(1024))
    root = str(tmp_path)
    if where == "store":
        root = store.upload(tmp_path, "gs://bucket/tars")
    found = find_shards(f"{root}/{pattern.replace('ROOT', root)}")
    assert [shard.url for shard in found] == [f"{root}/{name}.tar" for name in names.split()]
    assert all(shard.bytes == 1024 for shard in found)


def refusal(call: Callable[[], object]) -> RefusedError:
    """What a refused call raises."""
    with pytest.raises(RefusedError) as refused:
        call()
    return refused.value


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/x-1.TAR", "/x-{0..1}.tar"])
def test_a_suffix_in_capitals_is_found(tmp_path: Path, pattern: str) -> None:
    """A shard was once left out of the dataset without a word."""
    for name in ("x-0.tar", "x-1.TAR"):
        (tmp_path / name).write_bytes(b"x")
    assert str(tmp_path / "x-1.TAR") in [shard.url for shard in find_shards(f"{tmp_path}{pattern}")]


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    """A gap in a list, a folder without tars, a malformed list: each is named."""
    write_shards(tmp_path / "a", [3, 3])
    pattern = f"{tmp_path}/a/x-{{000..003}}.tar"
    error = refusal(lambda: find_shards(pattern))
    assert error.subject == pattern
    assert error.missing == tuple(f"{tmp_path}/a/x-00{number}.tar" for number in (2, 3))
    error = refusal(lambda: open_shards(make_settings(tmp_path / "b")))
    assert (error.subject, error.value) == ("--data", str(tmp_path / "b"))
    malformed = f"{tmp_path}/a/x-{{000..001.tar"
    assert refusal(lambda: open_shards(make_settings(malformed))).subject == malformed
    made = make_settings(tmp_path / "a", validation_data=str(tmp_path / "b"))
    assert refusal(lambda: open_shards(made)).subject == "--stream.validation_data"


def test_splits_by_folder(tmp_path: Path) -> None:
    """train/ and val/ are the splits; without them all is train; both kinds at once is unclear."""
    write_shards(tmp_path / "train", [3, 3])
    write_shards(tmp_path / "val", [3])
    both = open_shards(make_settings(tmp_path))
    assert [len(both.train), len(both.val)] == [2, 1]
    alone = open_shards(make_settings(tmp_path / "train"))
    assert alone.train == both.train and alone.val == ()
    assert open_feed(make_settings(tmp_path / "train", batch=3)).validation() is None
    write_shards(tmp_path, [3])
    error = refusal(lambda: open_shards(make_settings(tmp_path)))
    assert error.subject == "--data" and str(tmp_path / "train") in error.remedy


# -- what is refused before anything is read -------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "batch", "ranks", "setting", "remedy"),
    [
        ({"resident": True}, 8, 1, "--stream.resident", "--stream.resident false"),
        ({}, 8, 4, "--data", "at most 3 ranks, or 4 shards or more"),
        ({}, 2, 3, "--train.global_batch", "--train.global_batch 3 or more"),
        ({"epoch_drawings": 7}, 8, 1, "--stream.epoch_drawings", "--stream.epoch_drawings 8"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, stream: dict[str, Any], batch: int, ranks: int, setting: str, remedy: str
) -> None:
    """With the setting, and what to set instead."""
    write_shards(tmp_path, [5, 5, 5])
    made = make_settings(tmp_path, batch=batch, **stream)
    error = refusal(lambda: check_dataset(made, open_dataset(made), ranks))
    assert error.subject == setting and remedy in error.remedy


def test_settings_of_strokes_are_refused(tmp_path: Path) -> None:
    """External data has bitmaps only."""
    write_shards(tmp_path, [5])
    made = make_settings(tmp_path)
    made = made.model_copy(update={"strokes": Strokes(channels=4)})
    error = refusal(lambda: check_dataset(made, open_dataset(made), 1))
    assert (error.subject, error.value) == ("--strokes.channels", 4)


def test_too_few_drawings_or_too_little_memory(tmp_path: Path) -> None:
    """Known only when the shards are."""
    write_shards(tmp_path, [5, 5])
    error = refusal(lambda: open_feed(make_settings(tmp_path, batch=11)))
    assert (error.subject, error.value) == ("--train.global_batch", 11)
    assert error.remedy == "Use --train.global_batch 10 at most"
    error = refusal(lambda: open_feed(make_settings(tmp_path, memory_bytes=30_000)))
    assert (error.subject, error.needed_bytes) == ("--stream.memory_bytes", 51_520)
    least = open_feed(make_settings(tmp_path, memory_bytes=51_520))
    assert len(set(delivered(least.epoch(0)))) == 10


def test_the_default_reader_tells_of_this_one(tmp_path: Path, own: Dataset) -> None:
    """Where there are tars and no manifest; not where sharding is unfinished. Settings of
    this reader without it are a mistake."""
    write_shards(tmp_path / "tars", [5])
    shards: dict[str, Any] = {"reader": "shards"}
    said = str(refusal(lambda: open_dataset(make_settings(tmp_path / "tars", **shards))))
    assert "make shard DEST=" in said and "--stream.reader webdataset" in said
    begun = Path(own.folder)
    (begun / "manifest.json").unlink()
    assert "webdataset" not in str(refusal(lambda: open_dataset(make_settings(begun, **shards))))
    assert "webdataset" not in str(refusal(lambda: open_dataset(make_settings(tmp_path, **shards))))
    wrong = make_settings(tmp_path, reader="shards", epoch_drawings=100)
    said = str(refusal(lambda: open_dataset(wrong)))
    assert "--stream.epoch_drawings 100" in said and "--stream.reader webdataset" in said
