"""Drawings, labels and rows that are not the source's or not the plan's are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards.plan import Plan
from tests.support.data.damage import alter, exact, find, found, put, read_blocks, write_blocks
from tests.support.data.datasets import Dataset, of_both_contents, take

PlanOf = Callable[[Dataset], Plan]
WHAT = {"bitmaps": "pixels", "strokes": "strokes"}


@of_both_contents
def test_a_changed_drawing_is_found_with_the_source(own: Dataset) -> None:
    """A dataset that is right in itself, of drawings that are not the source's."""
    shard = own.manifest.splits["val"][0]
    contents = read_blocks(own, shard)
    alter(contents[0], 7)
    name = own.manifest.classes[contents[0].labels[7]]
    write_blocks(own, shard, contents)
    assert found(own) == []
    assert found(own, own.source) == [
        f"{own.folder}/{shard.name}: block 0: {WHAT[own.source.content]} of class {name!r} row "
        f"{contents[0].rows[7]:,} are not the source's (1 such drawings)"
    ]


@of_both_contents
@pytest.mark.parametrize("row", [0, 351, 352])
def test_a_source_that_changed_is_found(own_source: Dataset, row: int) -> None:
    """The other side of it: one byte of one class file, first and last row included."""
    label = own_source.source.classes.index("dog")
    path = Path(own_source.source.file_url(label))
    data = bytearray(path.read_bytes())
    data[own_source.source.span(label, row, row + 1)[1] - 1] ^= 1
    path.write_bytes(data)
    assert found(own_source) == []
    (problem,) = found(own_source, own_source.source)
    assert problem.endswith(f"class 'dog' row {row} are not the source's (1 such drawings)")


@of_both_contents
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


@of_both_contents
def test_a_swapped_label_is_found(own: Dataset, plan_of: PlanOf) -> None:
    """A cat that says dog: one row of cats missing, one of dogs twice, without any source."""
    plan, shard = plan_of(own), own.manifest.splits["train"][0]
    cat, dog = (own.manifest.classes.index(name) for name in ("cat", "dog"))
    stop = plan.rows(0, dog)[1]
    contents = read_blocks(own, shard)
    number, at = find(
        contents,
        lambda label, row: label == cat and row < stop and plan.split_of_rows[dog][row] == 0,
    )
    row = int(contents[number].rows[at])
    contents[number].labels[at] = dog
    write_blocks(own, shard, contents)
    assert found(own) == [
        f"class 'cat': row {row:,} is missing (1 such rows)",
        f"class 'dog': row {row:,} is there more than once (1 such rows)",
    ]


@of_both_contents
def test_a_duplicate_row_is_found(own: Dataset) -> None:
    """A drawing seen twice and another never: what an inexact sharder does first."""
    shard = own.manifest.splits["train"][1]
    contents = read_blocks(own, shard)
    block = contents[2]
    lost, kept = ((int(block.labels[at]), int(block.rows[at])) for at in (4, 9))
    assert lost != kept
    block.labels[4], block.rows[4] = kept
    put(contents, 2, 4, block.slice(9, 10).drawings)
    write_blocks(own, shard, contents)
    problems = found(own, own.source)
    names = own.manifest.classes
    assert f"class {names[lost[0]]!r}: row {lost[1]:,} is missing (1 such rows)" in problems
    twice = f"class {names[kept[0]]!r}: row {kept[1]:,} is there more than once (1 such rows)"
    assert twice in problems
    assert not any("of class" in line for line in problems)


@of_both_contents
def test_a_row_in_another_split_is_found(own: Dataset) -> None:
    """A test drawing in the training split: the accuracy of every model would be too high."""
    train = own.manifest.splits["train"][0]
    test = next(s for s in own.manifest.splits["test"] if s.group == train.group)
    in_train, in_test = read_blocks(own, train), read_blocks(own, test)
    label = int(in_test[0].labels[0])
    number, at = find(in_train, lambda other, _: other == label)
    one, other = in_train[number], in_test[0]
    one.rows[at], other.rows[0] = other.rows[0], one.rows[at]
    ours, theirs = (take(b.drawings, np.array([i])) for b, i in ((one, at), (other, 0)))
    put(in_train, number, at, theirs)
    put(in_test, 0, 0, ours)
    write_blocks(own, train, in_train)
    write_blocks(own, test, in_test)
    problems = exact(found(own, own.source))
    assert len(problems) == 2
    for shard, line in zip((train, test), problems, strict=True):
        assert line.startswith(f"{own.folder}/{shard.name}: block ")
        name = own.manifest.classes[label]
        assert line.endswith(f": holds rows of class {name!r} of another split")


@of_both_contents
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


@of_both_contents
@pytest.mark.parametrize("label", [5, 345, 65_535])
def test_a_label_that_is_no_class_is_found(own: Dataset, label: int) -> None:
    """It would end the training in an index error on the device."""
    shard = own.manifest.splits["train"][0]
    contents = read_blocks(own, shard)
    contents[0].labels[3] = label
    write_blocks(own, shard, contents)
    where = f"{own.folder}/{shard.name}: block 0"
    assert found(own, own.source) == [f"{where}: label {label}, there are 5 classes"]


def test_another_source_is_told_at_once(own: Dataset, tmp_path: Path) -> None:
    """One class file with more drawings: no use to compare 39.5 GB of pixels."""
    for name in own.manifest.classes:
        count = own.source.counts[own.manifest.classes.index(name)] + (name == "sun")
        np.save(tmp_path / f"{name}.npy", np.zeros((count, 784), np.uint8))
    other = open_source(str(tmp_path), own.manifest.classes)
    assert found(own, other) == [
        f"{own.folder}: {tmp_path} has other classes or counts than it was made from"
    ]
