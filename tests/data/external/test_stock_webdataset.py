"""The stock webdataset package reads our shards without any of our code."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import webdataset
from PIL import Image

from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from tests.support.data.datasets import equal

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset

    OfLayout = Callable[..., Dataset]


def urls(made: Dataset, *splits: str) -> list[str]:
    """The addresses of the shards of some splits."""
    return [
        str(Path(made.folder) / shard.name)
        for split in splits
        for shard in made.manifest.splits[split]
    ]


@pytest.mark.parametrize(("layout", "suffix"), [("gzip", ".npy.gz"), ("none", ".npy")])
@pytest.mark.parametrize("split", ["train", "val"])
def test_blocks(of_layout: OfLayout, layout: str, suffix: str, split: str) -> None:
    """`WebDataset(urls).decode()` gives arrays, equal to the rows of the source."""
    made = of_layout(layout)
    samples = list(webdataset.WebDataset(urls(made, split), shardshuffle=False).decode())
    keys = [
        f"{number:06d}-{block:04d}"
        for number, shard in enumerate(made.manifest.splits[split])
        for block in range(len(shard.blocks))
    ]
    assert [sample["__key__"] for sample in samples] == keys
    for sample in samples:
        assert sample[f"drawings{suffix}"].dtype == np.uint8
        assert sample[f"labels{suffix}"].dtype == np.uint16
        assert sample[f"rows{suffix}"].dtype == np.uint32
    drawings, labels, rows = (
        np.concatenate([sample[f"{name}{suffix}"] for sample in samples])
        for name in ("drawings", "labels", "rows")
    )
    assert np.array_equal(drawings, made.pixels(labels, rows))
    assert set(zip(labels.tolist(), rows.tolist(), strict=True)) == made.identities(split)
    assert len(rows) == made.manifest.drawings(split)


@pytest.mark.parametrize(("layout", "suffix"), [("gzip", ".npy.gz"), ("none", ".npy")])
def test_blocks_of_strokes(of_layout: OfLayout, layout: str, suffix: str) -> None:
    """Sums of differences and of counts are all that one needs to get at the points."""
    made = of_layout(layout, "strokes")
    found = {}
    for sample in webdataset.WebDataset(urls(made, "train"), shardshuffle=False).decode():
        x, y = np.cumsum(sample[f"dxdy{suffix}"], axis=1, dtype=np.uint8)
        low, high = sample[f"points{suffix}"].astype(int)
        cuts = np.cumsum(low + 256 * high)[:-1]
        strokes = list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))
        low, high, recognized = sample[f"strokes{suffix}"].astype(int)
        labels, rows = sample[f"labels{suffix}"], sample[f"rows{suffix}"]
        each = labels.tolist(), rows.tolist(), low + 256 * high, recognized.tolist()
        first = 0
        for label, row, count, flag in zip(*each, strict=True):
            found[label, row] = strokes[first : first + count], flag
            first += count
        assert first == len(strokes)
    assert found.keys() == made.identities("train")
    labels, rows = np.array(list(found)).T
    drawings, flags = zip(*found.values(), strict=True)
    assert equal(made.select(labels, rows), Strokes.from_lists(drawings, flags))


def test_all_splits_at_once(of_layout: OfLayout) -> None:
    """Shards of one number have blocks of one key in every split: they must not be joined."""
    made = of_layout("gzip")
    everything = urls(made, "val", "test", "train")
    samples = list(webdataset.WebDataset(everything, shardshuffle=False).decode())
    assert sum(len(sample["rows.npy.gz"]) for sample in samples) == sum(made.source.counts)


def test_per_drawing(of_layout: OfLayout) -> None:
    """The layout for third parties: pictures as bytes or arrays, the class as a number."""
    made = of_layout("per_drawing")
    dataset = webdataset.WebDataset(urls(made, "val"), shardshuffle=False)
    samples = list(dataset.decode())
    labels = np.array([sample["cls"] for sample in samples])
    assert [f"{label:05d}" for label in labels] == [s["__key__"].split("-")[0] for s in samples]
    rows = np.array([int(sample["__key__"].split("-")[1]) for sample in samples])
    expected = made.pixels(labels, rows)
    pictures = [np.asarray(Image.open(io.BytesIO(sample["png"]))) for sample in samples]
    assert np.array_equal(np.stack(pictures), expected)
    assert set(zip(labels.tolist(), rows.tolist(), strict=True)) == made.identities("val")
    arrays = (
        webdataset.WebDataset(urls(made, "val"), shardshuffle=False).decode("l8").to_tuple("png")
    )
    assert np.array_equal(np.stack([picture for (picture,) in arrays]), expected)
