"""A manifest that contradicts itself is refused on reading, with what differs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import manifest
from tests.support.data import datasets

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset, DatasetMaker

Tree = dict[str, Any]


def _move_drawing(tree: Tree) -> None:
    """One test drawing of the first class becomes one of validation."""
    tree["per_class"]["val"][0] += 1
    tree["per_class"]["test"][0] -= 1


def _swap(names: list[Any]) -> None:
    names[0], names[1] = names[1], names[0]


def _grow(tree: Tree) -> None:
    tree["splits"]["train"][1]["drawings"] += 5
    tree["splits"]["train"][0]["drawings"] -= 5


CHANGES: dict[str, tuple[Callable[[Tree], object], str]] = {
    "class taken out": (lambda t: t["classes"].pop(1), "classes has "),
    "last class taken out": (lambda t: t["classes"].pop(), "classes has nothing as label 4"),
    "no classes": (lambda t: t.update(classes=[]), "classes has nothing as label 0"),
    "classes swapped": (lambda t: _swap(t["classes"]), "classes has 'dog' as label 0"),
    "class and file renamed": (
        lambda t: (t["classes"].__setitem__(0, "cow"), t["source_files"][0].update(name="cow")),
        "digest ",
    ),
    "classes and files swapped": (
        lambda t: (_swap(t["classes"]), _swap(t["source_files"])),
        "per_class.train: ",
    ),
    "setting classes": (lambda t: t["settings"].update(classes=["dog"]), "classes has 'cat' as"),
    "shard dropped": (lambda t: t["splits"]["train"].pop(2), "splits.train: train/quickdraw-train"),
    "last shard dropped": (lambda t: t["splits"]["val"].pop(), "per_class.val: "),
    "all shards dropped": (lambda t: t["splits"].update(test=[]), "per_class.test: "),
    "shard doubled": (
        lambda t: t["splits"]["val"].append(copy.deepcopy(t["splits"]["val"][0])),
        "per_class.val: ",
    ),
    "shards swapped": (lambda t: _swap(t["splits"]["train"]), "splits.train: "),
    "block dropped": (lambda t: t["splits"]["train"][0]["blocks"].pop(0), "train/quickdraw-train"),
    "block's crc": (lambda t: t["splits"]["train"][0]["blocks"][0].__setitem__(3, 7), "digest "),
    "block's offset": (lambda t: t["splits"]["train"][0]["blocks"][1].__setitem__(0, 7), "train/"),
    "shard's bytes": (lambda t: t["splits"]["test"][0].update(bytes=1), "test/quickdraw-test"),
    "shard's drawings": (_grow, "train/quickdraw-train-000000.tar: "),
    "count of a class": (
        lambda t: t["per_class"]["val"].__setitem__(0, 31),
        "per_class.val: 31 of 'cat', its source file makes 30",
    ),
    "counts moved between splits": (_move_drawing, "per_class.val: "),
    "counts too few": (
        lambda t: t["per_class"]["train"].pop(),
        "per_class.train: None of 'zigzag'",
    ),
    "counts too many": (lambda t: t["per_class"]["test"].append(0), "per_class.test: 0 of nothing"),
    "count of the source": (lambda t: t["source_files"][0].update(drawings=700), "per_class."),
    "bytes of the source": (lambda t: t["source_files"][0].update(bytes=4_807), "source_files: "),
    "no drawings": (lambda t: t["source_files"][1].update(drawings=0), "class 'dog'"),
    "fraction": (lambda t: t["settings"].update(val_fraction=0.2), "per_class.train: "),
    "fractions": (lambda t: t["settings"].update(val_fraction=0.99), "--shard.val_fraction 0.99"),
    "std 0": (lambda t: t.update(pixel_std=0), "pixel_mean "),
    "std too large": (lambda t: t.update(pixel_std=0.9), "pixel_mean "),
    "std negative": (lambda t: t.update(pixel_mean=-0.2), "pixel_mean "),
    "mean of bytes": (lambda t: t.update(pixel_mean=36.0), "pixel_mean 36 "),
    "digest": (lambda t: t.update(digest="0" * 64), "digest 0000000000000000, but"),
    "version of strokes": (lambda t: t.update(format_version=2), "format_version 2, settings.cont"),
    "points of bitmaps": (lambda t: t["splits"]["val"][0].update(points=9), "val/quickdraw-val"),
}

TOTALS: dict[str, Callable[[dict[str, int]], int]] = {
    "strokes": lambda shard: shard["points"] // 2 + 1,
    "points": lambda shard: shard["tiles"] * 16 + shard["strokes"] + 1,
    "tiles": lambda shard: shard["points"] // 16 + shard["drawings"] + 1,
    "tile_squares": lambda shard: shard["tiles"] ** 2 // shard["drawings"] - 1,
}
"""For each total of a shard of strokes, a value that does not go with the others."""


@pytest.mark.parametrize("name", TOTALS)
def test_totals_that_no_strokes_have_are_refused(
    of_content: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset], name: str
) -> None:
    """The size of a batch follows from them."""
    made = copy_of(of_content("strokes"))
    file = Path(made.folder) / "manifest.json"
    tree = json.loads(file.read_text())
    shard = tree["splits"]["train"][1]
    shard[name] = TOTALS[name](shard)
    file.write_text(json.dumps(tree))
    with pytest.raises(CorruptError) as caught:
        manifest.read(made.folder)
    assert [line.partition(":")[0] for line in caught.value.contradictions] == [shard["name"]]


def test_strokes_have_a_version_of_their_own(
    of_content: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset]
) -> None:
    """By it a release that knows only bitmaps refuses them."""
    made = copy_of(of_content("strokes"))
    assert made.manifest.format_version == 2
    file = Path(made.folder) / "manifest.json"
    file.write_text(file.read_text().replace('"format_version":2', '"format_version":1'))
    with pytest.raises(CorruptError) as caught:
        manifest.read(made.folder)
    assert caught.value.contradictions == ["format_version 1, settings.content strokes"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_that_contradicts_itself_is_refused(own: Dataset, change: str) -> None:
    """Training would end in an IndexError, or carry wrong names into a checkpoint."""
    file = Path(own.folder) / "manifest.json"
    tree = json.loads(file.read_text())
    alter, line = CHANGES[change]
    alter(tree)
    file.write_text(json.dumps(tree))
    for read in (manifest.read, manifest.read_trainable):
        with pytest.raises(CorruptError) as caught:
            read(own.folder)
        assert caught.value.subject == str(file)
        assert any(found.startswith(line) for found in caught.value.contradictions)
        assert caught.value.problem.startswith("contradicts itself: ")
        assert f"make shard SOURCE={own.source.url} DEST={own.folder}" in caught.value.remedy


def test_few_contradictions_are_shown(own: Dataset) -> None:
    """A manifest of another dataset contradicts every line."""
    file = Path(own.folder) / "manifest.json"
    tree = json.loads(file.read_text())
    for counts in tree["per_class"].values():
        counts.pop()
    _grow(tree)
    tree["digest"] = ""
    file.write_text(json.dumps(tree))
    with pytest.raises(CorruptError, match=r"; and \d+ more\. Restore the manifest") as caught:
        manifest.read(own.folder)
    assert str(caught.value).count("; ") == 3


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_drawings_contradict_nothing(make_dataset: DatasetMaker, count: int) -> None:
    """Rounding, and the one drawing at least, leave some splits of small classes empty."""
    made = make_dataset(source=f"synthetic:?classes=3&per_class={count}&seed=7")
    assert manifest.read(made.folder) == made.manifest


def test_drawings_of_one_colour_are_no_dataset(tmp_path: Path) -> None:
    """Pixels are divided by their deviation: 0 would end every training."""
    datasets.write_bitmaps(tmp_path / "source", {"cat": 5})
    file = tmp_path / "source" / "cat.npy"
    file.write_bytes(file.read_bytes()[:128] + bytes([255]) * 5 * 784)
    with pytest.raises(RefusedError) as caught:
        datasets.shard(open_source(str(file.parent)), str(tmp_path / "dest"), Shard())
    assert "all of one colour" in caught.value.problem
