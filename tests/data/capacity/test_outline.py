"""The outline of a dataset that is planned is that of the dataset that sharding makes of it."""

from __future__ import annotations

import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.capacity import outline
from quickdraw_dist.data.drawings.classes import official_names
from quickdraw_dist.data.shards.plan import Plan
from tests.support.data.datasets import Dataset, DatasetMaker


def planned(dataset: Dataset) -> outline.Outline:
    plan = Plan(dataset.manifest.classes, dataset.source.counts, dataset.manifest.settings)
    return outline.of_plan(plan, dataset.source.url)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block": 100, "drawings_per_shard": 250, "group_shards": 3},
        {"val_fraction": 0, "test_fraction": 0.3},
        {"block": 64, "drawings_per_shard": 64, "compression": "none"},
    ],
)
def test_shards_and_blocks_are_those_of_the_finished_dataset(
    make_dataset: DatasetMaker, settings: dict[str, object]
) -> None:
    dataset = make_dataset(**settings)
    before, after = planned(dataset), outline.of_manifest(dataset.manifest)
    assert before.blocks == after.blocks
    assert before.plan == after.plan
    assert before.source == after.source == dataset.source.url


def test_bytes_are_the_files_or_about_what_official_drawings_take(
    make_dataset: DatasetMaker,
) -> None:
    dataset = make_dataset(compression="none", block=1024, drawings_per_shard=1024)
    after = outline.of_manifest(dataset.manifest)
    train = dataset.manifest.splits["train"]
    assert after.shard_bytes["train"] == tuple(shard.bytes for shard in train)
    before = planned(dataset)
    assert sum(map(sum, before.shard_bytes.values())) == before.plan.estimated_bytes
    for ahead, there in zip(before.shard_bytes["train"], after.shard_bytes["train"], strict=True):
        assert there == pytest.approx(ahead, rel=0.03)
    whole = sum(after.blocks["train"][1])
    assert after.bytes_of("train", 1, whole) == train[1].bytes
    assert after.bytes_of("train", 1, 1) == train[1].bytes // whole


def test_the_official_drawings_need_no_look_at_them() -> None:
    plan = outline.official_plan(Shard())
    assert plan.drawings == 50_426_266
    assert plan.classes == official_names()
    some = outline.official_plan(Shard(classes=("zigzag", "The Eiffel Tower")))
    assert some.classes == ("zigzag", "The Eiffel Tower")
    assert some.counts == (plan.counts[-1], plan.counts[official_names().index("The Eiffel Tower")])
    with pytest.raises(RefusedError, match=r"--shard.classes 'zigzack'.* Did you mean 'zigzag'"):
        outline.official_plan(Shard(classes=("zigzack",)))
