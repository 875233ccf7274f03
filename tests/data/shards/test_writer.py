"""A dataset holds what its plan and source say, the same bytes from any number of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.hashing import random64
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.totals import Totals
from quickdraw_dist.data.shards import blocks, manifest, writer
from quickdraw_dist.data.shards.plan import SPLITS, Plan
from quickdraw_dist.data.shards.schema import Manifest
from tests.support.data import datasets
from tests.support.data.datasets import equal, of_both_contents, take
from tests.support.data.stroke_files import write_strokes

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset

    PlanOf = Callable[[Dataset], Plan]
    Tree = Callable[[str | Path], dict[str, bytes]]
    GoOn = Callable[..., tuple[list[int], Manifest]]


@of_both_contents
def test_shards_hold_the_drawings_of_the_plan(dataset: Dataset, plan_of: PlanOf) -> None:
    """Block by block: the identities that the plan deals out, as the source has them."""
    plan = plan_of(dataset)
    assert plan.groups > 2
    for split in SPLITS:
        numbers = []
        for shard in dataset.manifest.splits[split]:
            data = (Path(dataset.folder) / shard.name).read_bytes()
            place = next(p for p in plan.shards(shard.group) if p.name == shard.name)
            numbers.append(place.number)
            labels, rows = plan.identities(shard.group)
            members = plan.members(shard.group, place)
            read = [
                blocks.decode(data[b.offset : b.offset + b.size], b.drawings) for b in shard.blocks
            ]
            assert [len(block.rows) for block in read[:-1]] == [32] * (len(read) - 1)
            assert np.array_equal(np.concatenate([b.labels for b in read]), labels[members])
            assert np.array_equal(np.concatenate([b.rows for b in read]), rows[members])
            expected = dataset.select(labels[members], rows[members])
            for at, block in zip(range(0, len(members), 32), read, strict=True):
                own = np.arange(at, at + len(block.rows))
                assert equal(block.drawings, take(expected, own))
        assert numbers == list(range(len(numbers)))


def test_pixel_mean_and_deviation_are_those_of_the_training_split(
    dataset: Dataset, plan_of: PlanOf
) -> None:
    """Statistics of held-out drawings would leak into training."""
    plan = plan_of(dataset)
    train = np.concatenate(
        [
            dataset.source.read(label, 0, count).drawings[plan.split_of_rows[label] == 0]
            for label, count in enumerate(dataset.source.counts)
        ]
    )
    assert len(train) == dataset.manifest.drawings("train") < sum(dataset.source.counts)
    assert dataset.manifest.pixel_mean == pytest.approx((train / 255.0).mean(), rel=1e-12)
    assert dataset.manifest.pixel_std == pytest.approx((train / 255.0).std(), rel=1e-9)


def test_pixel_statistics_of_strokes_are_those_of_every_16th_drawing(
    of_content: Callable[[str], Dataset],
) -> None:
    """As many of each training block, so that no worker or group makes a difference."""
    made, pixels = of_content("strokes"), []
    for shard in made.manifest.splits["train"]:
        data = (Path(made.folder) / shard.name).read_bytes()
        for entry in shard.blocks:
            block = blocks.decode(data[entry.offset :][: entry.size], entry.drawings)
            pixels.append(raster.plain(block.strokes)[::16] / 255.0)
    assert made.manifest.pixel_mean == pytest.approx(np.concatenate(pixels).mean(), rel=1e-12)
    assert made.manifest.pixel_std == pytest.approx(np.concatenate(pixels).std(), rel=1e-9)


@of_both_contents
def test_a_manifest_says_how_many_strokes_a_split_holds(dataset: Dataset) -> None:
    """What batches and memory follow from; nothing of bitmaps."""
    for split in SPLITS:
        labels, rows = np.array(sorted(dataset.identities(split))).T
        held = dataset.select(labels, rows)
        expected = Totals.of(held) if isinstance(held, Strokes) else Totals()
        assert dataset.manifest.totals(split) == expected


@of_both_contents
def test_the_source_is_remembered(dataset: Dataset) -> None:
    """The checksum of every whole file follows from the ranges that the groups read."""
    for label, file in enumerate(dataset.manifest.source_files):
        data = Path(dataset.source.file_url(label)).read_bytes()
        assert (file.bytes, file.crc32c) == (len(data), google_crc32c.value(data))
    assert dataset.manifest.source == dataset.source.url
    assert tuple(f.drawings for f in dataset.manifest.source_files) == dataset.source.counts


def test_a_dataset_is_frozen(tmp_path: Path) -> None:
    """The plan, the blocks and the digest together: another release must write these bytes."""
    for name, count in (("cat", 61), ("The Eiffel Tower", 3), ("zigzag", 35)):
        values = random64(count, count * 784).reshape(count, 784) % 256
        np.save(tmp_path / f"{name}.npy", values.astype(np.uint8))
    source = open_source(str(tmp_path))
    settings = Shard(drawings_per_shard=20, block=8, group_shards=2, compression="none")
    plan = Plan(source.classes, source.counts, settings)
    dest = str(tmp_path / "dataset")
    writer.build(plan, list(range(plan.groups)), source, dest, 1, lambda _: None)
    merged = writer.merge_if_complete(plan, source, dest)
    assert merged is not None
    assert merged.digest == "46c554036faaf1607ea0238532f4d801db8fe5bcbddf15a3cfb847661788fa3c"
    checksums = [shard.crc32c for split in SPLITS for shard in merged.splits[split]]
    assert google_crc32c.value(repr(checksums).encode()) == 100066544


def test_a_dataset_of_strokes_is_frozen(tmp_path: Path) -> None:
    """Format version 2: the sample and the raster of its pixel statistics, too."""
    write_strokes(tmp_path / "source", {"cat": 61, "The Eiffel Tower": 3, "zigzag": 35})
    settings = Shard(
        drawings_per_shard=20, block=8, group_shards=2, compression="none", content="strokes"
    )
    source = open_source(str(tmp_path / "source"), content="strokes")
    made = datasets.shard(source, str(tmp_path / "dataset"), settings).manifest
    assert made.digest == "3c30b67e25a66b34e204cdeec1ee037775fb90dddf3eda640001e223a4d5c782"
    checksums = [entry.crc32c for split in SPLITS for entry in made.splits[split]]
    assert google_crc32c.value(repr(checksums).encode()) == 798794711
    assert (made.pixel_mean, made.pixel_std) == pytest.approx(
        (0.2174624016273176, 0.36647782848677835), rel=1e-12
    )
    assert made.totals("train") == Totals(strokes=242, points=1449, tiles=120, tile_squares=192)


def test_more_groups_than_drawings_of_a_class(tmp_path: Path) -> None:
    """Groups without a drawing of some class, or of any, are built and merged like others."""
    for name, count in (("cat", 1), ("dog", 1), ("sun", 2), ("zigzag", 5)):
        np.save(tmp_path / f"{name}.npy", np.full((count, 784), count, np.uint8))
    source = open_source(str(tmp_path))
    settings = Shard(drawings_per_shard=1, block=1, group_shards=1)
    plan = Plan(source.classes, source.counts, settings)
    assert plan.groups == 9
    dest = str(tmp_path / "dataset")
    writer.build(plan, list(range(plan.groups)), source, dest, 1, lambda _: None)
    merged = writer.merge_if_complete(plan, source, dest)
    assert merged is not None
    assert [merged.drawings(split) for split in SPLITS] == [7, 1, 1]
    for file in merged.source_files:
        assert file.crc32c == google_crc32c.value((tmp_path / f"{file.name}.npy").read_bytes())


@of_both_contents
def test_any_order_of_any_workers_writes_the_same_bytes(
    dataset: Dataset, tmp_path: Path, plan_of: PlanOf, tree: Tree, go_on: GoOn
) -> None:
    """Three workers that share nothing, the last one first; any of them can merge."""
    plan, dest = plan_of(dataset), str(tmp_path / "dataset")
    for worker in (2, 0, 1):
        mine = list(range(worker, plan.groups, 3))[::-1]
        writer.build(plan, mine, dataset.source, dest, 1, lambda _: None)
        with pytest.raises(RefusedError, match="not finished"):
            manifest.read(dest)
        if worker != 1:
            assert writer.merge_if_complete(plan, dataset.source, dest) is None
    assert go_on(dataset, dest)[0] == []
    assert tree(dest) == tree(dataset.folder)


@of_both_contents
def test_a_pool_of_processes_writes_the_same_bytes(
    dataset: Dataset, tmp_path: Path, plan_of: PlanOf, tree: Tree, go_on: GoOn
) -> None:
    """Real processes, and every drawing is reported once."""
    plan, dest = plan_of(dataset), str(tmp_path / "dataset")
    reported: list[int] = []
    writer.build(plan, list(range(plan.groups)), dataset.source, dest, 2, reported.append)
    assert sum(reported) == plan.drawings
    assert go_on(dataset, dest)[0] == []
    assert tree(dest) == tree(dataset.folder)


@pytest.mark.parametrize(
    ("content", "layouts"),
    [("bitmaps", ("gzip", "none", "per_drawing")), ("strokes", ("gzip", "none"))],
)
def test_compression_does_not_change_the_dataset(
    of_layout: Callable[[str, str], Dataset], content: str, layouts: tuple[str, ...]
) -> None:
    """The digest is over contents, so a run can resume with a recompressed or converted copy."""
    made = {layout: of_layout(layout, content).manifest for layout in layouts}
    assert len({found.digest for found in made.values()}) == 1
    assert len({(found.pixel_mean, found.pixel_std) for found in made.values()}) == 1
    assert len({found.splits["train"][0].crc32c for found in made.values()}) == len(layouts)
