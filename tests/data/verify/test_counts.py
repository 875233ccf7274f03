"""A manifest that agrees with itself, but not with its shards or its plan, is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.data.damage import found, publish
from tests.support.data.datasets import Dataset


def test_a_shard_of_another_group_is_found(own: Dataset) -> None:
    """Its drawings may be right, the plan has it elsewhere."""
    shard = own.manifest.splits["test"][0]
    publish(own, {shard.name: shard.model_copy(update={"group": 1})})
    assert f"{own.folder}/{shard.name}: the plan has no such shard in group 1" in found(own)


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
