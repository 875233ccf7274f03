"""A manifest that agrees with itself, but not with its shards or its plan, is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quickdraw_dist.data.shards import manifest
from tests.support.data.damage import found, publish
from tests.support.data.datasets import Dataset, of_both_contents


@of_both_contents
def test_a_shard_of_another_group_is_found(own: Dataset) -> None:
    """Its drawings may be right, the plan has it elsewhere."""
    shard = own.manifest.splits["test"][0]
    publish(own, {shard.name: shard.model_copy(update={"group": 1})})
    assert f"{own.folder}/{shard.name}: the plan has no such shard in group 1" in found(own)


@of_both_contents
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


@pytest.mark.parametrize("name", ["strokes", "points", "tiles", "tile_squares"])
def test_wrong_totals_of_strokes_are_found(
    of_content: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset], name: str
) -> None:
    """Plausible ones: only the shard tells."""
    made = copy_of(of_content("strokes"))
    shard = made.manifest.splits["train"][1]
    publish(made, {shard.name: shard.model_copy(update={name: getattr(shard, name) + 1})})
    assert manifest.read(made.folder) != made.manifest
    (problem,) = found(made)
    assert problem.startswith(f"{made.folder}/{shard.name}: holds {shard.strokes:,} strokes, ")
