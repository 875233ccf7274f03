"""The manifest: read whole or refused with a remedy, and a digest of contents only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.feed import open_dataset
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.schema import FORMAT_VERSIONS, BlockEntry, ShardEntry, digest
from tests.support.data.datasets import of_both_contents

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset


@of_both_contents
def test_a_manifest_comes_back_as_it_was_written(own: Dataset) -> None:
    """Every count and checksum of it, blocks included."""
    again = manifest.read(own.folder)
    assert again == own.manifest
    assert manifest.to_json(again) == (Path(own.folder) / "manifest.json").read_bytes()
    assert isinstance(again.splits["train"][0].blocks[0], BlockEntry)
    assert digest(again.classes, again.splits) == again.digest


@of_both_contents
def test_a_manifest_says_what_the_shards_hold(own: Dataset) -> None:
    """Readers plan their requests from these numbers alone."""
    found = own.manifest
    assert found.format_version == FORMAT_VERSIONS[found.settings.content]
    for split, shards in found.splits.items():
        assert found.drawings(split) == sum(found.per_class[split])
        for number, shard in enumerate(shards):
            data = (Path(own.folder) / shard.name).read_bytes()
            assert shard.name == f"{split}/quickdraw-{split}-{number:06d}.tar"
            assert shard.bytes == len(data)
            assert shard.crc32c == google_crc32c.value(data)
            assert shard.drawings == sum(block.drawings for block in shard.blocks)
            assert max(block.drawings for block in shard.blocks) <= found.settings.block
            at = 0
            for block in shard.blocks:
                assert block.offset == at, "blocks follow each other without gaps"
                at += block.size
            assert data[at:] == bytes(1024), "and the end of the tar follows the last"


def test_no_folder_and_no_dataset_are_refused_with_the_command(tmp_path: Path) -> None:
    """The first thing a newcomer sees who starts to train before sharding."""
    file = tmp_path / "file"
    file.write_text("x")
    for folder in (tmp_path / "nowhere", tmp_path, file):
        with pytest.raises(RefusedError) as caught:
            manifest.read(str(folder))
        assert str(caught.value) == (
            f"{folder}: no dataset there (no manifest.json). "
            f"Make one with: make shard DEST={folder}"
        )


def test_an_unfinished_dataset_is_told_apart(own: Dataset) -> None:
    """Part files without a manifest, whichever groups are done: the same command continues."""
    (Path(own.folder) / "manifest.json").unlink()
    (Path(own.folder) / "parts" / "group-000000.json").unlink()
    with pytest.raises(RefusedError) as caught:
        manifest.read(own.folder)
    assert caught.value.problem.startswith("sharding has not finished")
    assert "make shard DEST=" in caught.value.remedy


def test_the_export_for_other_readers_is_not_for_training(
    of_layout: Callable[[str], Dataset],
) -> None:
    """The refusal has the flags that do train on it."""
    folder = of_layout("per_drawing").folder
    assert manifest.read(folder).settings.layout == "per_drawing"
    settings = Settings(data=folder)
    for refused in (lambda: manifest.read_trainable(folder), lambda: open_dataset(settings)):
        with pytest.raises(RefusedError) as caught:
            refused()
        assert (caught.value.subject, caught.value.value) == ("--data", folder)
        flags = "--stream.reader webdataset --stream.class_names cat dog sun 'The Eiffel Tower'"
        assert flags in caught.value.remedy
    assert manifest.read_trainable(of_layout("none").folder).settings.layout == "blocks"


def test_a_newer_version_is_refused_by_number(own: Dataset) -> None:
    """Even if everything else in it looks new: the version is read first."""
    path = Path(own.folder) / "manifest.json"
    for version in (3, 99, 0, "1.5"):
        path.write_text(json.dumps({"format_version": version, "novelty": []}))
        with pytest.raises(RefusedError) as caught:
            manifest.read(own.folder)
        assert (caught.value.subject, caught.value.version) == (str(path), version)
        assert "Update quickdraw-dist" in caught.value.remedy


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"\xff\xfe" + text,
        lambda text: text.replace(b'"digest"', b'"digest'),
        lambda text: b"[1, 2]",
        lambda text: b"1",
        lambda text: b"{}",
        lambda text: b"null",
    ],
    ids=["cut off", "empty", "not text", "a quote lost", "a list", "a number", "{}", "null"],
)
def test_a_damaged_manifest_is_refused(own: Dataset, damage: Any) -> None:
    """Whatever the damage, the user reads which file it is."""
    path = Path(own.folder) / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RefusedError) as caught:
        manifest.read(own.folder)
    assert caught.value.subject == str(path)
    assert caught.value.problem.startswith("not a manifest: ")


def _change(tree: dict[str, Any], path: str, value: object) -> None:
    *above, last = path.split(".")
    for name in above:
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    if value is KeyError:
        del tree[last]
    else:
        tree[last] = value


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("novelty", 1, "novelty"),
        ("splits.train.0.novelty", 1, "novelty"),
        ("settings.novelty", 1, "novelty"),
        ("digest", KeyError, "digest"),
        ("splits.val", KeyError, "splits"),
        ("per_class.test", KeyError, "per_class"),
        ("classes", "cat", "classes"),
        ("pixel_mean", "grey", "pixel_mean"),
        ("splits.train.0.bytes", -1, "bytes"),
        ("splits.train.0.blocks", [[0, 1, 2]], "blocks"),
        ("splits.train.0.blocks", [[0, 1, -2, 3]], "blocks"),
        ("per_class.val", ["many"], "per_class"),
    ],
)
def test_unknown_missing_and_wrong_fields_are_refused(
    own: Dataset, path: str, value: object, named: str
) -> None:
    """A field that this release does not know may change what the others mean."""
    file = Path(own.folder) / "manifest.json"
    stored = json.loads(file.read_text())
    _change(stored, path, value)
    file.write_text(json.dumps(stored))
    with pytest.raises(RefusedError, match=f"not a manifest: (?s:.*){named}"):
        manifest.read(own.folder)


def _entry(*blocks: BlockEntry, **fields: object) -> ShardEntry:
    base: dict[str, object] = {"name": "a", "group": 0, "drawings": 3, "bytes": 9, "crc32c": 1}
    return ShardEntry.model_validate(base | fields | {"blocks": blocks})


def _digest(train: tuple[ShardEntry, ...], classes: tuple[str, ...] = ("cat", "dog")) -> str:
    return digest(classes, {"train": train, "val": (), "test": ()})


def test_the_digest_names_contents_only() -> None:
    """A recompressed or renamed copy is the same dataset: a run can resume with it."""
    one = _digest((_entry(BlockEntry(0, 100, 2, 11), BlockEntry(100, 50, 1, 12)),))
    other = _entry(
        BlockEntry(0, 7, 2, 11), BlockEntry(7, 8, 1, 12), name="b", bytes=77, crc32c=5, group=3
    )
    assert one == _digest((other,))


def test_the_digest_sees_classes_blocks_and_their_order() -> None:
    """Whatever changes a label, a drawing, a block or the order changes the digest."""
    a, b = BlockEntry(0, 9, 2, 11), BlockEntry(9, 9, 1, 12)
    digests = [
        _digest((_entry(a, b),)),
        _digest((_entry(b, a),)),
        _digest((_entry(a),)),
        _digest((_entry(a), _entry(b))),
        _digest((_entry(a, b._replace(crc32c=13)),)),
        _digest((_entry(a._replace(drawings=1), b._replace(drawings=2)),)),
        _digest((_entry(a, b),), ("dog", "cat")),
        _digest((_entry(a, b),), ("cat",)),
        digest(("cat", "dog"), {"val": (_entry(a, b),), "train": (), "test": ()}),
    ]
    assert len(set(digests)) == len(digests)
