"""A manifest that does not fit its shards or its plan is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from quickdraw_dist.data.shards import manifest
from tests.support.data.damage import found, publish
from tests.support.data.datasets import Dataset


def test_a_digest_that_does_not_fit_is_found(own: Dataset) -> None:
    """Checkpoints name their dataset by it."""
    publish(own, {}, digest="0" * 64)
    assert found(own) == [f"{own.folder}: the manifest's digest is not that of its blocks"]


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


def test_a_shard_under_another_name_is_found(own: Dataset) -> None:
    """A name that the plan does not have: its drawings may be right, its name is not."""
    shard = own.manifest.splits["test"][0]
    other = shard.name.replace("000000", "000099")
    (Path(own.folder) / shard.name).rename(Path(own.folder) / other)
    publish(own, {shard.name: shard.model_copy(update={"name": other})})
    assert found(own) == [f"{own.folder}/{other}: the plan has no such shard in group 0"]


def test_a_wrong_count_of_a_shard_is_found(own: Dataset) -> None:
    """The order of training is computed from it."""
    one, other = own.manifest.splits["train"][:2]
    changes = {one: one.drawings + 5, other: other.drawings - 5}
    publish(own, {s.name: s.model_copy(update={"drawings": n}) for s, n in changes.items()})
    assert len(found(own)) == 2


@pytest.mark.parametrize("change", [{"pixel_mean": 0.5}, {"pixel_std": 0.5}], ids=str)
def test_a_wrong_normalisation_is_found(own: Dataset, change: dict[str, float]) -> None:
    """Every model is trained and served with these two numbers."""
    publish(own, {}, **change)
    assert len(found(own)) == 1


def test_a_shard_too_many_is_found(own: Dataset) -> None:
    """Stock readers take `train/*.tar`: a left-over shard gives them its drawings twice."""
    folder = Path(own.folder)
    last = own.manifest.splits["train"][-1].name
    extra = last.replace(last[-10:-4], "000999")
    (folder / extra).write_bytes((folder / last).read_bytes())
    assert found(own) == [f"{folder / extra}: not in the manifest"]
