"""Requests as planned are those that jobs.shard and the real readers make."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from jobs.shard import main
from quickdraw_dist.base.settings import Settings, Shard
from quickdraw_dist.data.capacity import outline
from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.capacity.requests import (
    Requests,
    Sharding,
    epoch_requests,
    node_reads,
    sharding,
)
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.feed import ShardFeed, make_order
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.distributed.ranks import World
from tests.support.data import stroke_files
from tests.support.data.datasets import Dataset
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request

# -- sharding --------------------------------------------------------------------------------------

SMALL = Shard(block=10, drawings_per_shard=20, group_shards=1, val_fraction=0.2, test_fraction=0.2)
"""50 drawings are 3 groups; a group is 12 in train, 4 or 5 in the others, one shard of each."""


def needs(
    source: str, workers: int = 1, rate: float = 1.0, counts: tuple[int, ...] = (30, 20),
    shard: Shard = SMALL,
) -> Sharding:  # fmt: skip
    plan = Plan(tuple("abcdefgh"[: len(counts)]), counts, shard)
    return sharding(outline.of_plan(plan, source), workers, rate)


def test_by_hand() -> None:
    needed = needs("gs://bucket/source")
    assert needed.groups == 3
    assert needed.busy_workers == 1
    # The class list; a range a class and group, two readings of a header and two checksums a class.
    assert needed.source == Requests(lists=1, reads=3 * 2 + 2 * 2 + 2 * 2, bytes=50 * 784)
    # 9 shards, 3 parts, the manifest; 3 splits and the parts listed before and after.
    assert needed.dest == Requests(2 * 4, 2 * 3, writes=9 + 3 + 1, bytes=50 * 290)
    assert needs("synthetic:").source == Requests()
    assert needs("some/folder").source == Requests()


def test_strokes_by_hand() -> None:
    """They have no headers, but a pass that finds the records, whose lengths are kept."""
    shard = SMALL.model_copy(update={"content": "strokes", "drawings_per_shard": 2_000_000})
    needed = needs("gs://bucket/source", workers=2, counts=(100_000, 3), shard=shard)
    assert needed.groups == 1
    # A range per class, two checksums for the merge and one for the pass, two looks for changes;
    # 11.7 MB are read in two pieces.
    reads = 2 + 2 * 2 + 2 + 2 * 2 + (2 + 1)
    assert needed.source == Requests(lists=2, reads=reads, bytes=2 * 100_003 * 117)
    # Three shards, the part, the manifest and two indices, for which every worker looks twice.
    moved = 100_003 * 93 + 2 * 100_003 * 2
    assert needed.dest == Requests(4 * 4, 4 * 1 + 4 * 2, writes=3 + 1 + 1 + 2, bytes=moved)


def test_hours_are_those_of_the_worker_with_most() -> None:
    whole = needs("synthetic:", rate=5.0).hours * 3600
    assert whole == pytest.approx(10.0)
    two = needs("synthetic:", workers=2, rate=5.0)
    assert two.hours * 3600 == pytest.approx((16 + 17) / 5)  # of groups of 16, 17 and 17
    many = needs("synthetic:", workers=9, rate=5.0)
    assert many.hours * 3600 == pytest.approx(17 / 5)
    assert (many.busy_workers, many.workers) == (3, 9)


def test_a_class_smaller_than_the_groups_is_not_read_by_all() -> None:
    needed = needs("gs://bucket/source", counts=(57, 2))
    assert needed.groups == 3
    assert needed.source.reads == 3 + 2 + 2 * 2 + 2 * 2


def test_jobs_shard_asks_for_that(dataset: Dataset, store: Store) -> None:
    """Twice for a checksum only where Google's MD5 of an official file is known, too; and a worker
    finds no parts but those that are done."""
    source, dest = store.upload(dataset.source.url, "gs://bucket/source"), "gs://bucket/dest"
    shard = Shard(block=32, drawings_per_shard=320, group_shards=2)
    opened = open_source(source)
    plan = Plan(opened.classes, opened.counts, shard)
    needed = sharding(outline.of_plan(plan, source), 2, 1.0)
    asked: list[tuple[str, str]] = []  # kind of call, and what it is about

    def note(request: Request) -> None:
        listing = request.path.endswith("/o") and request.method == "GET"
        kind = "list" if listing else request.method
        asked.append((kind, request.params.get("prefix", "") if listing else unquote(request.path)))

    store.intercept = note
    flags = [f"--shard.{name}={getattr(shard, name)}" for name in shard.model_fields_set]
    for worker in ("0", "1"):
        share = ["--worker", worker, "--of", "2", "--processes", "1"]
        main(["--source", source, "--dest", dest, *share, *flags])

    def count(kind: str, about: str = "") -> int:
        return sum(k == kind and about in text for k, text in asked)

    assert count("list", "source") == needed.source.lists
    assert count("GET", "/source/") == needed.source.reads - len(plan.classes)
    assert count("list", "dest") == needed.dest.lists
    written = plan.groups + 1 + sum(len(plan.shards(group)) for group in range(plan.groups))
    assert count("POST") == written == needed.dest.writes
    done = (plan.groups + 1) // 2  # by the first worker, which finds none before
    assert count("GET", "/parts/") == done + done + plan.groups <= needed.dest.reads
    assert count("list") + count("GET") + count("POST") == len(asked)


def test_jobs_shard_asks_for_that_of_strokes(tmp_path: Path, store: Store) -> None:
    """The second worker finds the indices of the first."""
    stroke_files.write_strokes(tmp_path / "cats", {"cat": 301, "dog": 77}, ".bin")
    source, dest = store.upload(tmp_path / "cats", "gs://bucket/source"), "gs://bucket/dest"
    shard = Shard(block=32, drawings_per_shard=64, group_shards=2, content="strokes")
    plan = Plan(("cat", "dog"), (301, 77), shard)
    needed = sharding(outline.of_plan(plan, source), 2, 1.0)
    asked: list[tuple[str, str]] = []

    def note(request: Request) -> None:
        name = request.params.get("name", "") or unquote(request.path)
        asked.append((request.method, name))

    store.intercept = note
    flags = [f"--shard.{name}={getattr(shard, name)}" for name in shard.model_fields_set]
    for worker in ("0", "1"):
        share = ["--worker", worker, "--of", "2", "--processes", "1"]
        main(["--source", source, "--dest", dest, *share, *flags])

    def count(kind: str, about: str) -> int:
        return sum(k == kind and about in text for k, text in asked)

    # Google's MD5 is looked up for official files only.
    assert count("GET", "source/") == needed.source.reads - len(plan.classes)
    assert count("POST", "") == needed.dest.writes
    looks = count("GET", ".records")
    assert looks == len(plan.classes) * 3 <= 2 * 2 * len(plan.classes)


# -- training --------------------------------------------------------------------------------------

FOUR, TEN = (4, 4, 2), (10,)


def by_hand(val: tuple[tuple[int, ...], ...] = (TEN,)) -> Outline:
    """Two shards of three blocks in train, 100 bytes a drawing."""
    blocks = {"train": (FOUR, FOUR), "val": val, "test": ()}
    sizes = {split: tuple(100 * sum(shard) for shard in shards) for split, shards in blocks.items()}
    return Outline(Plan(("a",), (30,), Settings().shard), "gs://bucket/source", blocks, sizes)


def order(dataset: Outline, lanes: int) -> Order:
    return Order(dataset.blocks["train"], 4, lanes, 2, seed=1)


def test_one_rank_reads_everything_once() -> None:
    reads = node_reads(by_hand(), order(by_hand(), 1), range(1), 1)
    assert reads.by_block == {
        "train": Requests(reads=6, bytes=2000),
        "val": Requests(reads=1, bytes=1000),
    }
    assert reads.by_shard == {
        "train": Requests(reads=2, bytes=2000),
        "val": Requests(reads=1, bytes=1000),
    }
    assert reads.decoded_bytes == 20 * 790
    assert reads.cache_bytes == 3000


def test_a_node_reads_its_lanes_and_what_they_cut() -> None:
    """Two lanes are a shard each. Four are 5 drawings each: a block of 4 and one of the next 4."""
    half = node_reads(by_hand(), order(by_hand(), 2), range(1), 2)
    assert half.by_block["train"] == Requests(reads=3, bytes=1000)
    assert half.by_shard["train"] == Requests(reads=1, bytes=1000)
    assert half.by_block["val"] == Requests(reads=1, bytes=1000)  # half of a block is all of it
    quarter = node_reads(by_hand(), order(by_hand(), 4), range(1), 4)
    assert quarter.by_block["train"] == Requests(reads=2, bytes=800)
    assert quarter.by_shard["train"] == Requests(reads=1, bytes=1000)
    assert quarter.decoded_bytes == 8 * 790
    both = node_reads(by_hand(), order(by_hand(), 4), range(2), 4)
    assert both.by_block["train"] == Requests(reads=4, bytes=1400)  # the block in the middle twice
    assert both.by_shard["train"] == Requests(reads=1, bytes=1000)  # but its shard once


def test_what_a_cache_saves() -> None:
    reads = node_reads(by_hand(), order(by_hand(), 1), range(1), 1)

    def asked(cache_bytes: int, resident: bool = False) -> tuple[Requests, Requests]:
        return epoch_requests(reads, cache_bytes, validations=3, resident=resident)

    assert asked(3000) == (Requests(reads=3, bytes=3000), Requests())
    assert asked(2999) == (Requests(reads=2 + 3, bytes=2000 + 3000),) * 2
    assert asked(0) == (Requests(reads=6 + 3, bytes=2000 + 3000),) * 2
    assert asked(0, resident=True) == (
        Requests(reads=6 + 3, bytes=5000),
        Requests(reads=3, bytes=3000),
    )
    assert asked(3000, resident=True) == (Requests(reads=3, bytes=3000), Requests())


def test_no_validation_split() -> None:
    reads = node_reads(by_hand(val=()), order(by_hand(), 1), range(1), 1)
    assert reads.by_block["val"] == reads.by_shard["val"] == Requests()


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
@pytest.mark.parametrize(("lanes", "ranks"), [(8, range(2)), (8, range(1, 2)), (19, range(1))])
def test_real_ranks_ask_for_that(
    dataset: Dataset, store: Store, tmp_path: Path, cache_bytes: int, lanes: int, ranks: range
) -> None:
    """The ranks of one node, one after the other in this process, for two epochs."""
    settings = Settings.model_validate(
        {
            "data": store.upload(dataset.folder, "gs://bucket/data"),
            "train": {"global_batch": 2 * lanes},
            "stream": {"cache_folder": str(tmp_path), "cache_bytes": cache_bytes},
        }
    )
    worlds = [World(rank, 2, rank - ranks[0], len(ranks), torch.device("cpu")) for rank in ranks]
    feeds = [ShardFeed(settings, dataset.manifest, world, lanes) for world in worlds]
    order = make_order(settings, dataset.manifest, lanes, 2)
    reads = node_reads(outline.of_manifest(dataset.manifest), order, ranks, 2)
    expected = epoch_requests(reads, cache_bytes, validations=1, resident=False)
    for epoch, requests in enumerate(expected):
        store.requests.clear()
        for feed in feeds:
            delivered = sum(len(batch.labels) for batch in feed.epoch(epoch))
            assert delivered == feed.steps * feed.share.drawings
            validated = sum(len(batch.labels) for batch in feed.validation() or ())
            assert validated == 50
        asked = store.media_reads(".tar")
        # An epoch drops at most one drawing per lane; that may be a block of its own.
        spared = order.lanes if order.dropped_drawings and not cache_bytes else 0
        assert requests.reads - spared <= asked <= requests.reads
