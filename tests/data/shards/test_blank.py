"""Blank drawings, as an unfinished download leaves them, are counted; too many are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.drawing import Content
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import manifest, writer
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.verify import find_problems
from tests.support.data import datasets
from tests.support.data.datasets import Dataset
from tests.support.data.stroke_files import as_lists, some_drawings, to_bin, write_strokes

SIZES = {"block": 32, "drawings_per_shard": 64, "group_shards": 2}


def _source(folder: Path, blank: int, content: Content = "bitmaps") -> Path:
    """300 cats, the last of them blank, and 300 dogs."""
    if content == "strokes":
        write_strokes(folder, {"cat": 300, "dog": 300})
        cats = as_lists(some_drawings("cat", 300 - blank)) + [[] for _ in range(blank)]
        (folder / "cat.bin").write_bytes(to_bin(cats, [1] * 300))
        return folder
    datasets.write_bitmaps(folder, {"cat": 300, "dog": 300})
    cats = np.load(folder / "cat.npy")
    cats[300 - blank :] = 0
    np.save(folder / "cat.npy", cats)
    return folder


def _shard(folder: Path, dest: Path, **settings: object) -> Dataset:
    shard = Shard.model_validate(SIZES | settings)
    return datasets.shard(open_source(str(folder), (), shard.content), str(dest), shard)


@pytest.mark.parametrize("blank", [0, 15])
@pytest.mark.parametrize("content", ["bitmaps", "strokes"])
def test_blank_drawings_are_counted(tmp_path: Path, blank: int, content: Content) -> None:
    """In the manifest and by verify, also where an older manifest has no count."""
    source = _source(tmp_path / "source", blank, content)
    made = _shard(source, tmp_path / "made", content=content)
    assert [file.blank for file in made.manifest.source_files] == [blank, 0]
    stored = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert [file.pop("blank", 0) for file in stored["source_files"]] == [blank, 0]
    assert "max_blank" not in stored["settings"]
    (tmp_path / "made" / "manifest.json").write_text(json.dumps(stored))
    older = manifest.read(made.folder)
    assert older.digest == made.manifest.digest
    counted: Counter[str] = Counter()
    assert list(find_problems(made.folder, older, blank=counted)) == []
    assert counted == ({"cat": blank} if blank else {})


@pytest.mark.parametrize(("content", "processes"), [("bitmaps", 1), ("bitmaps", 2), ("strokes", 1)])
def test_too_many_blank_drawings_are_refused(
    tmp_path: Path, content: Content, processes: int
) -> None:
    """200 of 300: it was sharded, verified and trained on without a word."""
    source = open_source(str(_source(tmp_path / "source", 200, content)), (), content)
    plan = Plan(source.classes, source.counts, Shard.model_validate(SIZES | {"content": content}))
    groups = list(range(plan.groups))
    with pytest.raises(RefusedError) as caught:
        writer.build(plan, groups, source, str(tmp_path / "made"), processes, lambda _: None)
    assert caught.value.subject == f"{source.url}: class 'cat'"
    assert 15 < caught.value.blank <= 200
    assert "--shard.max_blank" in caught.value.remedy
    made = _shard(tmp_path / "source", tmp_path / "made", max_blank=1, content=content)
    assert made.manifest.source_files[0].blank == 200


def test_the_merge_refuses_what_each_worker_allows(tmp_path: Path) -> None:
    """Every worker sees its own groups only; then the file is mended and merged."""
    source = open_source(str(_source(tmp_path / "source", 20)))
    plan = Plan(source.classes, source.counts, Shard.model_validate(SIZES))
    dest = str(tmp_path / "made")
    _shard(tmp_path / "source", Path(dest), max_blank=1)
    (tmp_path / "made" / "manifest.json").unlink()
    with pytest.raises(RefusedError, match="20 of its 300 drawings are blank"):
        writer.merge_if_complete(plan, source, dest)
    assert not (tmp_path / "made" / "manifest.json").exists()
    (tmp_path / "source" / "cat.npy").unlink()
    datasets.write_bitmaps(tmp_path / "whole", {"cat": 300})
    (tmp_path / "whole" / "cat.npy").rename(tmp_path / "source" / "cat.npy")
    merged = writer.merge_if_complete(plan, open_source(source.url), dest)
    assert merged is not None and merged.source_files[0].blank == 0
