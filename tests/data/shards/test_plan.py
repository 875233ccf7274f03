"""The plan: every drawing in exactly one shard, the same one in every release."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.classes import official
from quickdraw_dist.data.drawings.drawing import Content
from quickdraw_dist.data.shards.plan import SPLITS, Plan, describe

NAMES = tuple(f"class {n}" for n in range(8))
COUNTS = st.lists(st.sampled_from([1, 2, 3]) | st.integers(1, 90), min_size=1, max_size=8)
SHARES = st.sampled_from([0.0, 0.05, 0.1]) | st.floats(0, 0.45)
SEEDS = st.integers(0, 2**63)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Small plans of every shape, classes of one to three drawings among them."""
    counts = tuple(draw(COUNTS))
    most = draw(st.integers(3, 60))
    shard = Shard(
        drawings_per_shard=most,
        block=draw(st.integers(1, most)),
        group_shards=draw(st.integers(1, 4)),
        val_fraction=draw(SHARES),
        test_fraction=draw(SHARES),
        seed=draw(SEEDS),
    )
    return Plan(NAMES[: len(counts)], counts, shard)


def contents(plan: Plan) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """(label, row) of every shard, in order, by split and number."""
    found = {}
    for group in range(plan.groups):
        labels, rows = plan.identities(group)
        for place in plan.shards(group):
            members = plan.members(group, place)
            assert (place.split, place.number) not in found, "two shards of one name"
            found[place.split, place.number] = list(
                zip(labels[members].tolist(), rows[members].tolist(), strict=True)
            )
    return found


@settings(max_examples=150)
@given(plan=plans())
@example(plan=Plan(("a",), (1,), Shard()))
@example(plan=Plan(NAMES, (1,) * 8, Shard(drawings_per_shard=1, block=1, group_shards=1)))
@example(plan=Plan(("a", "b"), (2, 3), Shard(drawings_per_shard=2, block=1, group_shards=1)))
def test_every_drawing_is_in_exactly_one_shard(plan: Plan) -> None:
    """The promise of the whole project: nothing lost, nothing twice, over all groups and splits."""
    everything = [identity for shard in contents(plan).values() for identity in shard]
    whole = {(label, row) for label, count in enumerate(plan.counts) for row in range(count)}
    assert len(everything) == plan.drawings
    assert set(everything) == whole


@settings(max_examples=100)
@given(plan=plans())
def test_slices_tile_every_file(plan: Plan) -> None:
    """Groups read ranges that meet without gap or overlap, so the file's checksum follows."""
    for label, count in enumerate(plan.counts):
        ranges = [plan.rows(group, label) for group in range(plan.groups)]
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        assert ranges[-1][1] == count
        assert max(stop - start for start, stop in ranges) <= -(-count // plan.groups)


@settings(max_examples=100)
@given(plan=plans())
def test_splits_hold_exactly_their_share_of_every_class(plan: Plan) -> None:
    """Metrics per class need its drawings in val and test, exactly as many as promised."""
    found = dict.fromkeys(SPLITS, 0)
    counted = np.zeros((len(SPLITS), len(plan.counts)), int)
    for (split, _), shard in contents(plan).items():
        for label, _ in shard:
            counted[SPLITS.index(split), label] += 1
        found[split] += len(shard)
    for label, count in enumerate(plan.counts):
        for split, share in (
            ("val", plan.settings.val_fraction),
            ("test", plan.settings.test_fraction),
        ):
            expected = round(share * count)
            if share > 0 and count >= 3:
                expected = max(expected, 1)
            assert counted[SPLITS.index(split), label] == expected, (split, count, share)
            assert plan.held_out(label)[split] == expected
        assert counted[:, label].sum() == count
    assert plan.split_sizes.sum(axis=0).tolist() == [found[split] for split in SPLITS]


@pytest.mark.parametrize(
    ("count", "val", "test"),
    [(1, 0, 0), (2, 0, 0), (3, 1, 1), (9, 1, 1), (29, 1, 1), (31, 2, 2), (131, 7, 7)],
)
def test_held_out_counts(count: int, val: int, test: int) -> None:
    """The same rule as plain numbers, at the default of 0.05 each."""
    assert Plan(("a",), (count,), Shard()).held_out(0) == {"val": val, "test": test}


def test_large_fractions_still_give_every_split_its_drawing() -> None:
    """0.9 and 0.05 of 3 drawings: round() gives all 3 to val, 'at least one' a fourth to test."""
    plan = Plan(("a",), (3,), Shard(val_fraction=0.9, test_fraction=0.05))
    assert sum(plan.held_out(0).values()) <= 3
    assert plan.split_sizes[:, 1:].sum(axis=0).tolist() == list(plan.held_out(0).values())


@settings(max_examples=150)
@given(plan=plans())
def test_shards_are_even_never_too_large_and_numbered_without_gaps(plan: Plan) -> None:
    """A reader may expand {000000..N}; a shard over the limit would break memory promises."""
    numbers: dict[str, list[int]] = {split: [] for split in SPLITS}
    for group in range(plan.groups):
        sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
        for place in plan.shards(group):
            numbers[place.split].append(place.number)
            sizes[place.split].append(len(plan.members(group, place)))
            assert place.name == (f"{place.split}/quickdraw-{place.split}-{place.number:06d}.tar")
        for split, of_split in sizes.items():
            drawings = int(plan.split_sizes[group, SPLITS.index(split)])
            most = plan.settings.drawings_per_shard
            assert sum(of_split) == drawings
            assert len(of_split) == -(-drawings // most), "as few shards as can be"
            if of_split:
                assert min(of_split) > 0
                assert max(of_split) - min(of_split) <= 1
                assert max(of_split) <= most
    for split, found in numbers.items():
        assert found == list(range(len(found))), split


@settings(max_examples=60)
@given(counts=COUNTS, seed=SEEDS, data=st.data())
def test_a_class_is_split_alike_whichever_others_are_there(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    """A model trained on 30 classes can be measured on the test drawings of the 345."""
    named = list(zip(NAMES, counts, strict=False))
    some = data.draw(st.permutations(named))[: data.draw(st.integers(1, len(named)))]
    few = {"drawings_per_shard": 30, "block": 10}
    whole = Plan(tuple(n for n, _ in named), tuple(c for _, c in named), Shard(seed=seed, **few))
    part = Plan(
        tuple(n for n, _ in some), tuple(c for _, c in some), Shard(seed=seed, group_shards=1)
    )
    for label, (name, _) in enumerate(some):
        assert np.array_equal(
            part.split_of_rows[label], whole.split_of_rows[whole.classes.index(name)]
        )


@settings(max_examples=60)
@given(one=SEEDS, other=SEEDS)
def test_another_seed_is_another_plan(one: int, other: int) -> None:
    """Splits and order both follow the seed."""
    assume(one != other)
    first, second = (Plan(("a",), (300,), Shard(seed=seed)) for seed in (one, other))
    assert not np.array_equal(first.split_of_rows[0], second.split_of_rows[0])
    assert contents(first) != contents(second)
    assert first.fingerprint != second.fingerprint


def test_classes_do_not_share_their_split() -> None:
    """Two classes of one size get rows of their own for the test split."""
    plan = Plan(("a", "b"), (300, 300), Shard())
    assert not np.array_equal(*plan.split_of_rows)


def test_shards_are_mixed() -> None:
    """Class-sorted shards cannot be repaired by a reader: 19 of 345 classes in a batch."""
    plan = Plan(NAMES, (500,) * 8, Shard(drawings_per_shard=1000, block=100))
    for (split, _), shard in contents(plan).items():
        if split == "train":
            assert {label for label, _ in shard[:60]} == set(range(8))
            rows = [row for label, row in shard if label == 0]
            assert rows != sorted(rows)


def test_a_small_plan_is_frozen() -> None:
    """A dataset half built by one release is finished by the next."""
    shard = Shard(drawings_per_shard=20, block=8, group_shards=2, seed=3)
    plan = Plan(("cat", "dog", "The Eiffel Tower"), (61, 35, 3), shard)
    found = contents(plan)
    assert {split: sum(key[0] == split for key in found) for split in SPLITS} == {
        "train": 6,
        "val": 2,
        "test": 3,
    }
    assert found["val", 0] == [(1, 0), (0, 10)]
    text = repr(sorted(found.items()))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "a1e856783ef9778eb36259dcff61bd53bd5d86f4bc72f5a125821c1d4a8a6651"
    )
    assert plan.fingerprint == "ebd471d9af0cc779"


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ("dog", "cat")},
        {"classes": ("cat", "cow")},
        {"counts": (61, 36)},
        {"settings": Shard(seed=2)},
        {"settings": Shard(block=512)},
        {"settings": Shard(compression="none")},
        {"settings": Shard(layout="per_drawing")},
        {"settings": Shard(val_fraction=0.06)},
        {"settings": Shard(drawings_per_shard=32_768)},
        {"settings": Shard(group_shards=4)},
    ],
    ids=str,
)
def test_the_fingerprint_tells_plans_apart(change: dict[str, object]) -> None:
    """Parts of two plans in one folder would merge into a dataset that is neither."""
    kept: dict[str, object] = {"classes": ("cat", "dog"), "counts": (61, 35), "settings": Shard()}
    assert Plan(**kept).fingerprint != Plan(**(kept | change)).fingerprint  # type: ignore[arg-type]


def test_naming_all_classes_is_the_same_plan() -> None:
    """--shard.classes in official order and no --shard.classes are one dataset."""
    one = Plan(("cat", "dog"), (61, 35), Shard())
    other = Plan(("cat", "dog"), (61, 35), Shard(classes=("cat", "dog")))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("change", "counts", "subject", "remedy"),
    [
        ({"val_fraction": 0.9, "test_fraction": 0.5}, (9,),
         "--shard.val_fraction 0.9 --shard.test_fraction 0.5", "below 1; the default is 0.05 each"),
        ({"block": 9, "drawings_per_shard": 8}, (9,), "--shard.block", "Use --shard.block 8"),
        ({}, (9, 0), "class 'class 1'", "--shard.classes"),
        ({"content": "strokes", "layout": "per_drawing"}, (9,),
         "--shard.content strokes --shard.layout per_drawing", "Leave out --shard.layout"),
    ],
)  # fmt: skip
def test_what_cannot_become_a_dataset_is_refused(
    change: dict[str, float], counts: tuple[int, ...], subject: str, remedy: str
) -> None:
    """Before any work, naming the setting and what to set instead."""
    with pytest.raises(RefusedError) as caught:
        Plan(NAMES[: len(counts)], counts, Shard.model_validate(change))
    assert caught.value.subject == subject
    assert remedy in caught.value.remedy


@cache
def _full(content: Content = "bitmaps") -> Plan:
    return Plan(
        tuple(entry.name for entry in official()),
        tuple(entry.drawings for entry in official()),
        Shard(content=content),
    )


def test_the_full_official_plan() -> None:
    """All 345 classes at the sizes that the project exists for, with the published totals."""
    plan = _full()
    assert plan.drawings == int(plan.split_sizes.sum()) == 50_426_266
    assert plan.split_sizes.sum(axis=0).tolist() == [45_383_650, 2_521_308, 2_521_308]
    for label, entry in enumerate(official()):
        held_out = round(0.05 * entry.drawings)
        expected = [entry.drawings - 2 * held_out, held_out, held_out]
        assert np.bincount(plan.split_of_rows[label]).tolist() == expected, entry.name
    assert plan.groups == 97
    places = [place for group in range(plan.groups) for place in plan.shards(group)]
    for split, shards in (("train", 776), ("val", 97), ("test", 97)):
        assert [p.number for p in places if p.split == split] == list(range(shards))
    assert plan.split_sizes[:, 0].max() <= 8 * 65_536
    reads = plan.split_sizes.sum(axis=1)
    assert reads.max() - reads.min() <= 345, "groups of one size: memory is bounded"


@pytest.mark.parametrize("group", [0, 42, 96])
def test_a_group_of_the_full_plan(group: int) -> None:
    """Some groups of 97, drawing by drawing: each in one shard, all classes in every block."""
    plan = _full()
    labels, rows = plan.identities(group)
    assert (labels.dtype, rows.dtype) == (np.uint16, np.uint32)
    for label in range(345):
        assert np.array_equal(rows[labels == label], np.arange(*plan.rows(group, label)))
    members = {place: plan.members(group, place) for place in plan.shards(group)}
    assert np.array_equal(np.sort(np.concatenate(list(members.values()))), np.arange(len(labels)))
    for place, of_shard in members.items():
        split = SPLITS.index(place.split)
        assert len(of_shard) <= 65_536
        assert len(np.unique(labels[of_shard[:1024]])) > 280
        for label in range(345):
            own = rows[of_shard[labels[of_shard] == label]]
            assert (plan.split_of_rows[label][own] == split).all()


def test_contents_are_planned_alike() -> None:
    """One split of one dataset, so that networks trained on either are compared on equal terms;
    but part files of one are not the other's."""
    bitmaps, strokes = _full(), _full("strokes")
    assert bitmaps.fingerprint != strokes.fingerprint
    shard = strokes.shards(42)[3]
    assert np.array_equal(bitmaps.members(42, shard), strokes.members(42, shard))


def test_the_description_of_strokes() -> None:
    """Sizes of official strokes: nothing in it is of pixels."""
    text = describe(_full("strokes"), processes=16)
    for part in (
        "drawings  50,426,266 (about 5.29 GB of strokes)",
        "train     45,383,650 drawings in 776 shards",
        "memory    about 460 MB per process, 7.37 GB for 16",
        "writes    about 4.69 GB, if they are as official ones",
    ):
        assert part in text


def test_the_description() -> None:
    """--dry-run is read before 39.5 GB are moved: its numbers must be the plan's."""
    text = describe(_full(), processes=16)
    for part in (
        "classes   345",
        "drawings  50,426,266 (39.5 GB of pixels)",
        "train     45,383,650 drawings in 776 shards",
        "val       2,521,308 drawings in 97 shards",
        "groups    97 of about 519,858 drawings",
        "memory    about 658 MB per process, 10.5 GB for 16",
        "writes    about 14.6 GB, if they compress as official ones",
        "33,465 range reads, 1,068 writes",
    ):
        assert part in text
