"""Proving a dataset: every kind of damage is named, at the depth where it sits.

The damage is real: files are rewritten, and checksums above it are made right again, so that the
check that is meant to find it is the one that does.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import blocks, manifest, verify
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.shards.manifest import BlockEntry, ShardEntry
from quickdraw_dist.data.shards.plan import Plan

if TYPE_CHECKING:
    from tests.support.datasets import Dataset

    PlanOf = Callable[[Dataset], Plan]

LAYOUTS = ("gzip", "none", "per_drawing")
NORMALISATION = "train: pixels have mean "
"""What is said besides when pixels of the training split are others or could not be read."""


def found(made: Dataset, source: Source | None = None) -> list[str]:
    """All problems of the dataset as it lies on the disk now."""
    return list(verify.problems(made.folder, manifest.read(made.folder), source))


def read_blocks(made: Dataset, shard: ShardEntry) -> list[Block]:
    """The blocks of a shard, as arrays that may be written to."""
    data = (Path(made.folder) / shard.name).read_bytes()
    read = [blocks.decode(data[b.offset : b.offset + b.size], b.drawings) for b in shard.blocks]
    return [Block(b.drawings.copy(), b.labels.copy(), b.rows.copy()) for b in read]


def publish(made: Dataset, entries: dict[str, ShardEntry], **changes: object) -> None:
    """The manifest with other entries for some shards, by name, and a digest that fits."""
    stored = manifest.read(made.folder)
    splits = {
        split: tuple(entries.get(shard.name, shard) for shard in shards)
        for split, shards in stored.splits.items()
    }
    fields: dict[str, object] = {
        "splits": splits,
        "digest": manifest.digest(stored.classes, splits),
    }
    changed = stored.model_copy(update=fields | changes)
    storage.publish(storage.join(made.folder, manifest.NAME), manifest.to_json(changed))


def write_blocks(made: Dataset, shard: ShardEntry, contents: Sequence[Block]) -> None:
    """Write a shard with these blocks and make every checksum and offset above them right."""
    number, entries, data = int(Path(shard.name).stem[-6:]), [], b""
    for at, block in enumerate(contents):
        if made.manifest.settings.layout == "per_drawing":
            piece = blocks.encode_per_drawing(block)
        else:
            compression = made.manifest.settings.compression
            piece = blocks.encode(block, f"{number:06d}-{at:04d}", compression)
        entries.append(BlockEntry(len(data), len(piece), len(block.rows), block.crc))
        data += piece
    write_bytes(made, shard, data + blocks.END_OF_TAR, entries)


def write_bytes(
    made: Dataset, shard: ShardEntry, data: bytes, entries: Sequence[BlockEntry] | None = None
) -> None:
    """Write a shard's file and make its length and checksum in the manifest right."""
    (Path(made.folder) / shard.name).write_bytes(data)
    changes: dict[str, object] = {"bytes": len(data), "crc32c": storage.crc32c(data)}
    if entries is not None:
        changes["blocks"] = tuple(entries)
    publish(made, {shard.name: shard.model_copy(update=changes)})


def find(contents: Sequence[Block], wanted: Callable[[int, int], bool]) -> tuple[Block, int]:
    """The first drawing whose label and row are wanted: its block and its place there."""
    for block in contents:
        for at, (label, row) in enumerate(zip(block.labels, block.rows, strict=True)):
            if wanted(int(label), int(row)):
                return block, at
    raise AssertionError("no such drawing in this shard")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_good_dataset_has_no_problems(of_layout: Callable[[str], Dataset], layout: str) -> None:
    """In every layout, with and without its source, every drawing looked at once."""
    made = of_layout(layout)
    for source in (None, made.source):
        looked_at: list[int] = []
        problems = verify.problems(made.folder, made.manifest, source, looked_at.append)
        assert list(problems) == []
        assert sum(looked_at) == sum(made.source.counts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_helpers_of_this_file_do_no_damage(
    of_layout: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset], layout: str
) -> None:
    """A shard rewritten as it was is good: what the tests below find is what they did."""
    made = copy_of(of_layout(layout))
    shard = made.manifest.splits["train"][0]
    before = (Path(made.folder) / shard.name).read_bytes()
    write_blocks(made, shard, read_blocks(made, shard))
    assert (Path(made.folder) / shard.name).read_bytes() == before
    assert manifest.read(made.folder) == made.manifest


@pytest.mark.parametrize("layout", ["gzip", "none"])
def test_a_flipped_byte_is_found(
    of_layout: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset], layout: str
) -> None:
    """The rot of a disk: the shard is named, and the block in it, and nothing else is blamed."""
    made = copy_of(of_layout(layout))
    shard = made.manifest.splits["train"][2]
    path = Path(made.folder) / shard.name
    data = bytearray(path.read_bytes())
    data[shard.blocks[1].offset + 512 + 300] ^= 0x10
    path.write_bytes(data)
    problems = found(made)
    assert problems[0] == (
        f"{path}: crc32c {storage.crc32c(bytes(data)):08x}, the manifest says {shard.crc32c:08x}"
    )
    assert problems[1].startswith(f"{path}: block 1: ")
    assert not any("block 0" in line or "block 2" in line for line in problems)
    if layout == "none":
        assert len(problems) == 3
        assert problems[2].startswith(NORMALISATION)
    else:  # a block that cannot be unpacked: its rows are not missing besides
        assert len(problems) == 2


def test_a_flipped_byte_in_a_picture_is_found(
    of_layout: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset]
) -> None:
    """The same of a per-drawing dataset: a line about the shard, not a traceback."""
    made = copy_of(of_layout("per_drawing"))
    path = Path(made.folder) / made.manifest.splits["train"][2].name
    data = bytearray(path.read_bytes())
    data[512 + 3] ^= 0x10  # in the first png's signature
    path.write_bytes(data)
    problems = found(made)
    assert problems[0].startswith(f"{path}: crc32c ")
    assert problems[1].startswith(f"{path}: block 0: ")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_shard_is_found(own: Dataset, split: str) -> None:
    """By name, and that is all: a hundred lines about its rows would hide the next bad shard."""
    shard = own.manifest.splits[split][1]
    (Path(own.folder) / shard.name).unlink()
    assert found(own) == [f"{own.folder}/{shard.name}: missing"]


@pytest.mark.parametrize("cut", [1, 1024, 5000])
def test_a_truncated_shard_is_found(own: Dataset, cut: int) -> None:
    """Even if only the end of the tar is gone: a reader by range would not notice."""
    shard = own.manifest.splits["test"][0]
    path = Path(own.folder) / shard.name
    path.write_bytes(path.read_bytes()[:-cut])
    assert found(own) == [f"{path}: {shard.bytes - cut:,} bytes, the manifest says {shard.bytes:,}"]


def test_a_damaged_block_below_right_checksums_is_found(own: Dataset) -> None:
    """A shard that was written wrongly has the checksum of its wrong bytes."""
    shard = own.manifest.splits["train"][0]
    data = bytearray((Path(own.folder) / shard.name).read_bytes())
    at = shard.blocks[2].offset
    data[at + 600 : at + 620] = bytes(20)
    write_bytes(own, shard, bytes(data))
    (problem,) = found(own)
    where = f"{own.folder}/{shard.name}: block 2: "
    assert problem.startswith(f"{where}not a block of {shard.blocks[2].drawings} drawings")


def test_contents_that_are_not_the_manifests_are_found(own: Dataset) -> None:
    """Another pixel in a whole block: its content's checksum is the dataset's identity."""
    shard = own.manifest.splits["train"][0]
    contents = read_blocks(own, shard)
    contents[1].drawings[3, 5, 5] ^= 255
    expected = [entry.crc32c for entry in shard.blocks]
    write_blocks(own, shard, contents)
    rewritten = manifest.read(own.folder).splits["train"][0]
    kept = tuple(b._replace(crc32c=c) for b, c in zip(rewritten.blocks, expected, strict=True))
    publish(own, {shard.name: rewritten.model_copy(update={"blocks": kept})})
    problem, normalisation = found(own)
    assert problem == (
        f"{own.folder}/{shard.name}: block 1: contents crc32c {contents[1].crc:08x}, "
        f"not {expected[1]:08x}"
    )
    assert normalisation.startswith(NORMALISATION)


def test_a_digest_that_does_not_fit_is_found(own: Dataset) -> None:
    """Checkpoints name their dataset by it."""
    publish(own, {}, digest="0" * 64)
    assert found(own) == [f"{own.folder}: the manifest's digest is not that of its blocks"]


def test_a_changed_pixel_is_found_with_the_source(own: Dataset) -> None:
    """A dataset that is right in itself, of drawings that are not the source's."""
    shard = own.manifest.splits["val"][0]
    contents = read_blocks(own, shard)
    contents[0].drawings[7, 13, 14] ^= 1
    name = own.manifest.classes[contents[0].labels[7]]
    write_blocks(own, shard, contents)
    assert found(own) == []
    assert found(own, own.source) == [
        f"{own.folder}/{shard.name}: block 0: pixels of class {name!r} row "
        f"{contents[0].rows[7]:,} are not the source's (1 such drawings)"
    ]


@pytest.mark.parametrize("row", [0, 351, 352])
def test_a_source_that_changed_is_found(own_source: Dataset, row: int) -> None:
    """The other side of it: one byte of one class file, first and last row included."""
    path = Path(own_source.source.url) / "dog.npy"
    data = bytearray(path.read_bytes())
    data[128 + 784 * row + 783] ^= 1
    path.write_bytes(data)
    assert found(own_source) == []
    problems = found(own_source, own_source.source)
    assert len(problems) == 1
    assert problems[0].endswith(
        f"pixels of class 'dog' row {row} are not the source's (1 such drawings)"
    )


def test_swapped_pixels_are_found_with_the_source(own: Dataset) -> None:
    """Two drawings under each other's identities: all counts and rows are right."""
    shard = own.manifest.splits["train"][1]
    contents = read_blocks(own, shard)
    contents[0].drawings[[0, 1]] = contents[0].drawings[[1, 0]]
    write_blocks(own, shard, contents)
    assert found(own) == []
    (problem,) = found(own, own.source)
    assert "are not the source's (2 such drawings)" in problem


def test_labels_swapped_between_equal_rows_are_found_with_the_source(own: Dataset) -> None:
    """The one swap of labels that leaves every (class, row) there once: only pixels tell."""
    shard = own.manifest.splits["train"][0]
    contents = read_blocks(own, shard)
    identities = [
        (int(label), int(row), block, at)
        for block in contents
        for at, (label, row) in enumerate(zip(block.labels, block.rows, strict=True))
    ]
    first, second = next(
        (one, other)
        for one in identities
        for other in identities
        if one[0] < other[0] and one[1] == other[1]
    )
    first[2].labels[first[3]], second[2].labels[second[3]] = second[0], first[0]
    write_blocks(own, shard, contents)
    assert found(own) == []
    problems = found(own, own.source)
    assert sum(int(line.split("(")[1].split(" such")[0]) for line in problems) == 2


def test_a_swapped_label_is_found(own: Dataset, plan_of: PlanOf) -> None:
    """A cat that says dog: one row of cats missing, one of dogs twice, without any source."""
    plan, shard = plan_of(own), own.manifest.splits["train"][0]
    cat, dog = (own.manifest.classes.index(name) for name in ("cat", "dog"))
    stop = plan.rows(0, dog)[1]
    contents = read_blocks(own, shard)
    block, at = find(
        contents,
        lambda label, row: label == cat and row < stop and plan.split_of_rows[dog][row] == 0,
    )
    row = int(block.rows[at])
    block.labels[at] = dog
    write_blocks(own, shard, contents)
    assert found(own) == [
        f"class 'cat': row {row:,} is missing (1 such rows)",
        f"class 'dog': row {row:,} is there more than once (1 such rows)",
        "train: the manifest's counts per class are not those of the shards",
    ]


def test_a_duplicate_row_is_found(own: Dataset) -> None:
    """A drawing seen twice and another never: what an inexact sharder does first."""
    shard = own.manifest.splits["train"][1]
    contents = read_blocks(own, shard)
    block = contents[2]
    lost, kept = ((int(block.labels[at]), int(block.rows[at])) for at in (4, 9))
    assert lost != kept
    block.drawings[4], block.labels[4], block.rows[4] = block.drawings[9], *kept
    write_blocks(own, shard, contents)
    problems = found(own, own.source)
    names = own.manifest.classes
    assert f"class {names[lost[0]]!r}: row {lost[1]:,} is missing (1 such rows)" in problems
    twice = f"class {names[kept[0]]!r}: row {kept[1]:,} is there more than once (1 such rows)"
    assert twice in problems
    assert not any("pixels of class" in line for line in problems)


def test_a_row_in_another_split_is_found(own: Dataset) -> None:
    """A test drawing in the training split: the figures of every model would be too good."""
    train = own.manifest.splits["train"][0]
    test = next(s for s in own.manifest.splits["test"] if s.group == train.group)
    in_train, in_test = read_blocks(own, train), read_blocks(own, test)
    label = int(in_test[0].labels[0])
    block, at = find(in_train, lambda other, _: other == label)
    one, other = block, in_test[0]
    for name in ("drawings", "rows"):
        a, b = getattr(one, name), getattr(other, name)
        a[at], b[0] = b[0].copy(), a[at].copy()
    write_blocks(own, train, in_train)
    write_blocks(own, test, in_test)
    *problems, normalisation = found(own, own.source)
    assert normalisation.startswith(NORMALISATION)
    assert len(problems) == 2
    for shard, line in zip((train, test), problems, strict=True):
        assert line.startswith(f"{own.folder}/{shard.name}: block ")
        name = own.manifest.classes[label]
        assert line.endswith(f": holds rows of class {name!r} of another split")


def test_a_row_of_another_group_is_found(own: Dataset, plan_of: PlanOf) -> None:
    """A group's memory is its contiguous slice: a row outside of it was never read there."""
    shard = own.manifest.splits["train"][0]
    contents = read_blocks(own, shard)
    contents[0].rows[0] = plan_of(own).rows(1, int(contents[0].labels[0]))[0]
    write_blocks(own, shard, contents)
    for source in (None, own.source):
        assert found(own, source) == [
            f"{own.folder}/{shard.name}: block 0: holds rows of another group"
        ]


@pytest.mark.parametrize("label", [5, 345, 65_535])
def test_a_label_that_is_no_class_is_found(own: Dataset, label: int) -> None:
    """It would end the training in an index error on the device."""
    shard = own.manifest.splits["train"][0]
    contents = read_blocks(own, shard)
    contents[0].labels[3] = label
    write_blocks(own, shard, contents)
    where = f"{own.folder}/{shard.name}: block 0"
    assert found(own, own.source) == [f"{where}: label {label}, there are 5 classes"]


def test_wrong_counts_per_class_are_found(own: Dataset) -> None:
    """The loss may be weighted by them."""
    counts = dict(own.manifest.per_class)
    counts["test"] = (counts["test"][0] + 1, counts["test"][1] - 1, *counts["test"][2:])
    publish(own, {}, per_class=counts)
    assert found(own) == ["test: the manifest's counts per class are not those of the shards"]


def test_a_shard_that_the_manifest_forgot_is_found(own: Dataset) -> None:
    """A manifest that is right about less than the whole source."""
    stored = own.manifest
    splits = dict(stored.splits) | {"val": stored.splits["val"][:-1]}
    publish(own, {}, splits=splits, digest=manifest.digest(stored.classes, splits))
    problems = found(own)
    assert any("is missing" in line for line in problems)
    assert problems[-1].startswith("val: the manifest's counts per class")


def test_another_source_is_told_at_once(own: Dataset, tmp_path: Path) -> None:
    """One class file with more drawings: no use to compare 39.5 GB of pixels."""
    for name in own.manifest.classes:
        count = own.source.counts[own.manifest.classes.index(name)] + (name == "sun")
        np.save(tmp_path / f"{name}.npy", np.zeros((count, 784), np.uint8))
    other = open_source(str(tmp_path), own.manifest.classes)
    assert found(own, other) == [
        f"{own.folder}: {tmp_path} has other classes or counts than it was made from"
    ]


def test_a_shard_under_another_name_is_found(own: Dataset) -> None:
    """A name that the plan does not have: its drawings may be right, its place is not."""
    shard = own.manifest.splits["test"][0]
    other = shard.name.replace("000000", "000099")
    (Path(own.folder) / shard.name).rename(Path(own.folder) / other)
    publish(own, {shard.name: shard.model_copy(update={"name": other})})
    assert found(own) == [f"{own.folder}/{other}: the plan has no such shard in group 0"]


def test_a_wrong_count_of_a_shard_is_found(own: Dataset) -> None:
    """The order of training is a function of it: lanes would end in the middle of nowhere."""
    one, other = own.manifest.splits["train"][:2]
    publish(
        own,
        {
            one.name: one.model_copy(update={"drawings": one.drawings + 5}),
            other.name: other.model_copy(update={"drawings": other.drawings - 5}),
        },
    )
    assert found(own) != []


@pytest.mark.parametrize("change", [{"pixel_mean": 0.5}, {"pixel_std": 0.5}], ids=str)
def test_a_wrong_normalisation_is_found(own: Dataset, change: dict[str, float]) -> None:
    """Every model is trained and served with these two numbers."""
    publish(own, {}, **change)
    assert found(own) != []


def test_a_wrong_cls_is_found(
    of_layout: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset]
) -> None:
    """Readers of the per-drawing layout take the label from the .cls file."""
    made = copy_of(of_layout("per_drawing"))
    shard = made.manifest.splits["train"][0]
    path = Path(made.folder) / shard.name
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = next(m.offset_data for m in tar if m.name.endswith(".cls"))
    data[at] = ord("0") + (data[at] - ord("0") + 1) % 5
    write_bytes(made, shard, bytes(data))
    assert found(made) != []


def test_a_shard_too_many_is_found(own: Dataset) -> None:
    """Stock readers take `train/*.tar`: a left-over shard gives them its drawings twice."""
    folder = Path(own.folder)
    last = own.manifest.splits["train"][-1].name
    extra = last.replace(last[-10:-4], "000999")
    (folder / extra).write_bytes((folder / last).read_bytes())
    assert found(own) != []


def test_problems_of_several_shards_are_all_told(own: Dataset) -> None:
    """One run of the proof names everything there is to repair."""
    for split in ("train", "val", "test"):
        shard = own.manifest.splits[split][-1]
        (Path(own.folder) / shard.name).unlink()
    assert [line.rpartition(": ")[2] for line in found(own)] == ["missing"] * 3
