"""What an epoch is said to ask of a store is what the real readers ask of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.capacity import outline
from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.capacity.requests import Requests
from quickdraw_dist.data.capacity.traffic import epoch_requests, node_reads
from quickdraw_dist.data.feed import ShardFeed, make_order
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.distributed.ranks import World
from tests.support.datasets import Dataset
from tests.support.gcs.local import Store

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
    assert reads.by_block == {"train": Requests(0, 6, 2000), "val": Requests(0, 1, 1000)}
    assert reads.by_shard == {"train": Requests(0, 2, 2000), "val": Requests(0, 1, 1000)}
    assert reads.decoded_bytes == 20 * 790
    assert reads.cache_bytes == 3000


def test_a_node_reads_its_lanes_and_what_they_cut() -> None:
    """Two lanes are a shard each. Four are 5 drawings each: a block of 4 and one of the next 4."""
    half = node_reads(by_hand(), order(by_hand(), 2), range(1), 2)
    assert half.by_block["train"] == Requests(0, 3, 1000)
    assert half.by_shard["train"] == Requests(0, 1, 1000)
    assert half.by_block["val"] == Requests(0, 1, 1000)  # half of a block is all of it
    quarter = node_reads(by_hand(), order(by_hand(), 4), range(1), 4)
    assert quarter.by_block["train"] == Requests(0, 2, 800)
    assert quarter.by_shard["train"] == Requests(0, 1, 1000)
    assert quarter.decoded_bytes == 8 * 790
    both = node_reads(by_hand(), order(by_hand(), 4), range(2), 4)
    assert both.by_block["train"] == Requests(0, 4, 1400)  # the block in the middle twice
    assert both.by_shard["train"] == Requests(0, 1, 1000)  # but its shard once


def test_what_a_cache_saves() -> None:
    reads = node_reads(by_hand(), order(by_hand(), 1), range(1), 1)

    def asked(cache_bytes: int, resident: bool = False) -> tuple[Requests, Requests]:
        return epoch_requests(reads, cache_bytes, validations=3, resident=resident)

    assert asked(3000) == (Requests(0, 3, 3000), Requests())
    assert asked(2999) == (Requests(0, 2 + 3, 2000 + 3000),) * 2
    assert asked(0) == (Requests(0, 6 + 3, 2000 + 3000),) * 2
    assert asked(0, resident=True) == (Requests(0, 6 + 3, 5000), Requests(0, 3, 3000))
    assert asked(3000, resident=True) == (Requests(0, 3, 3000), Requests())


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
            assert delivered == feed.steps * (feed.part[1] - feed.part[0])
            validated = sum(len(batch.labels) for batch in feed.validation() or ())
            assert validated == 50
        asked = store.media_reads(".tar")
        # An epoch leaves out at most a drawing of a lane; that may be a block of its own.
        spared = order.lanes if order.left_out and not cache_bytes else 0
        assert requests.class_b - spared <= asked <= requests.class_b
