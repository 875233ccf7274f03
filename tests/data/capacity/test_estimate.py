"""Capacity by hand, by invariants over any dataset, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.capacity import outline
from quickdraw_dist.data.capacity.estimate import Capacity, Cluster, capacity
from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.capacity.requests import Requests
from quickdraw_dist.data.capacity.text import format_capacity
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.order.content_bytes import BitmapBytes, StrokeBytes
from quickdraw_dist.data.order.memory import plan_memory
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.data.datasets import Dataset
from tests.support.gcs.local import Store

RESIDENT_BYTES = BitmapBytes().resident(1)

FOUR = (4, 4, 2)


def by_hand() -> Outline:
    """Four shards of three blocks in train and one of a block in val, 100 bytes a drawing."""
    blocks = {"train": (FOUR,) * 4, "val": ((10,),), "test": ()}
    sizes = {split: tuple(100 * sum(shard) for shard in shards) for split, shards in blocks.items()}
    return Outline(Plan(("a",), (50,), Settings().shard), "gs://bucket/source", blocks, sizes)


def settings(global_batch: int = 6, lanes: int = 2, **stream: Any) -> Settings:
    """Of a run on `by_hand`."""
    train = {"global_batch": global_batch}
    return Settings.model_validate({"train": train, "stream": {"lanes": lanes, **stream}})


def test_by_hand() -> None:
    """Two lanes of two shards each, one for each of two nodes."""
    needs = capacity(by_hand(), Cluster(2, 2, drawings_per_second=9.0), settings())
    assert needs.drawings == {"train": 40, "val": 10, "test": 0}
    assert needs.shards == {"train": 4, "val": 1, "test": 0}
    assert needs.shard_bytes == {"train": 4000, "val": 1000, "test": 0}
    epoch, node, rank = needs.epoch, needs.node, needs.rank
    assert (epoch.steps, epoch.dropped_drawings, epoch.validations) == (6, 4, 1)
    assert (epoch.lanes, epoch.least_lane_drawings, epoch.most_lane_drawings) == (2, 20, 20)
    assert (rank.batch_drawings, rank.lanes) == (3, 1)
    assert (rank.resident_drawings, rank.resident_bytes) == (20, 20 * RESIDENT_BYTES)
    assert (node.cache_least_bytes, node.cache_all_bytes) == (1000, 2000 + 1000)
    assert (node.read_bytes, node.decoded_bytes) == (2000, 20 * 790)
    assert node.cold == Requests(reads=2 + 1, bytes=3000)  # both nodes need the one shard of val
    assert (epoch.cold, epoch.warm) == (Requests(reads=6, bytes=6000), Requests())
    assert needs.rates is not None
    assert needs.rates.epoch_seconds == 6 * 3 / 9
    assert needs.rates.store_bytes_per_second == 3000
    assert needs.rates.node_read_bytes_per_second == 1000
    assert needs.rates.node_decoded_bytes_per_second == 20 * 790 / 2


def test_the_largest_rank_and_node_count() -> None:
    """Two ranks share three lanes, of 13, 13 and 14 drawings; the second one has more to read: in
    each of its lanes five blocks, the one that they meet in twice."""
    needs = capacity(by_hand(), Cluster(2, 2), settings(lanes=3))
    assert needs.rank.lanes == 2
    assert needs.rank.resident_drawings == 13 + 14
    assert needs.node.decoded_bytes == (18 + 16) * 790
    assert needs.node.read_bytes == (18 + 16) * 100
    assert needs.node.cache_least_bytes == 2000
    assert needs.node.cache_all_bytes == 3000 + 1000
    third = capacity(by_hand(), Cluster(3, 3), settings(global_batch=4, lanes=4))
    assert third.rank.lanes == 2  # of 1, 1 and 2
    assert third.node.cache_least_bytes == 2000
    uneven = capacity(by_hand(), Cluster(4, drawings_per_second=1.0), settings(lanes=6))
    assert uneven.rank.batch_drawings == 2  # of 1, 2, 1 and 2
    assert uneven.rates is not None
    assert uneven.rates.epoch_seconds == 6 * 2


def test_memory_is_that_of_the_loader() -> None:
    order = Order(by_hand().blocks["train"], 6, 2, 4, seed=1)
    for remote, threads, cache_bytes, shard_bytes in [
        (True, 3, 5000, 1000), (True, 0, 0, 0), (False, 2, 5000, 0)
    ]:  # fmt: skip
        needs = capacity(
            by_hand(),
            Cluster(2, remote=remote),
            settings(threads=threads, cache_bytes=cache_bytes, memory_bytes=10**8),
        )
        loaders = [
            plan_memory(
                order,
                order.share(rank, 2),
                BitmapBytes(),
                memory_bytes=10**8,
                threads=threads or 8,
                shard_bytes=shard_bytes,
                pin=False,
            ).bytes
            for rank in range(2)
        ]
        assert needs.rank.loader_bytes == max(loaders)
        assert needs.node.loader_bytes == sum(loaders)
        assert needs.node.cache_bytes == (cache_bytes if remote else 0)


def test_caches_validations_and_local_datasets() -> None:
    def of(remote: bool = True, every: int = 0, **stream: Any) -> Capacity:
        evaluation = {"every_drawings": every}
        made = settings(**stream).model_copy(
            update={"evaluation": Settings(evaluation=evaluation).evaluation}
        )
        return capacity(by_hand(), Cluster(1, remote=remote), made)

    assert of().epoch.cold == Requests(reads=5, bytes=5000)
    evicts_what_comes_next = of(cache_bytes=4999)
    assert evicts_what_comes_next.epoch.warm == Requests(reads=5, bytes=5000)
    assert of(cache_bytes=0).epoch.warm == Requests(reads=12 + 1, bytes=5000)
    # Six steps of six drawings: validations after 15 and 30, and at the end.
    assert of(every=15).epoch.validations == 3
    assert of(every=36).epoch.validations == 1
    assert of(every=15, cache_bytes=0).epoch.cold == Requests(reads=12 + 3, bytes=4000 + 3000)
    assert of(resident=True, cache_bytes=0).epoch.warm == Requests(reads=1, bytes=1000)
    assert of(remote=False, cache_bytes=1).epoch.cold == Requests()


def test_resident() -> None:
    exact = -(-20 * RESIDENT_BYTES * 10 // 8)
    tight = Cluster(2, gpu_bytes=exact)
    needs = capacity(by_hand(), tight, settings(resident=True))
    assert needs.resident_fits is True
    assert needs.rank.loader_bytes == 20 * (RESIDENT_BYTES - 784)  # pixels are in the GPU
    less = replace(tight, gpu_bytes=exact - 10)
    assert capacity(by_hand(), less, settings()).resident_fits is False  # not set, so not refused
    with pytest.raises(RefusedError, match="20 drawings") as refused:
        capacity(by_hand(), less, settings(resident=True))
    assert (refused.value.subject, refused.value.value) == ("--stream.resident", True)
    assert refused.value.needed_bytes == 20 * RESIDENT_BYTES
    assert refused.value.ranks == 3
    assert capacity(by_hand(), Cluster(2), settings(resident=True)).resident_fits is None


def test_strokes_by_hand() -> None:
    """Three tiles of 64 bytes per drawing: a fifth as much to decode to, a quarter to hold."""
    sizes = TilesPerDrawing(3.0, 0.0)
    outline, order = replace(by_hand(), per_drawing=sizes), Order((FOUR,) * 4, 6, 2, 4, seed=1)
    needs = capacity(outline, Cluster(2, 2, gpu_bytes=10**6), settings())
    assert needs.node.decoded_bytes == 20 * (3 * 64 + 19)
    tiles = 64 * 64  # 60 of 20 drawings, rounded up
    assert needs.rank.resident_bytes == tiles + 20 * (13 + 10 + 16)
    assert StrokeBytes(sizes).resident_on_host(20) == 20 * (10 + 16)
    batch = 64 * 64 + 3 * (13 + 8 + 4) + 8  # 9 tiles, rounded up; where the last drawing ends
    ring = StrokeBytes(sizes).ring(order, order.share(0, 2), 5, pin=False)
    assert ring == 128 * 64 + (3 + 6) * 3 * 19 + 2 * batch  # 81 tiles, rounded up
    assert needs.rank.loader_bytes < 10**6


@pytest.mark.parametrize(
    ("cluster", "changed", "refused"),
    [
        (Cluster(8), {}, ("--train.global_batch", 6)),
        (Cluster(4), {}, ("--stream.lanes", 2)),
        (Cluster(1), {"lanes": 4}, ("--stream.lanes", 4)),
        (Cluster(1), {"global_batch": 50}, ("--train.global_batch", 50)),
        (Cluster(1), {"memory_bytes": 9000}, ("--stream.memory_bytes", 9000)),
        (Cluster(1), {"memory_bytes": 9000, "resident": True}, ("--stream.memory_bytes", 9000)),
        (Cluster(1), {"cache_bytes": 1999}, ("--stream.cache_bytes", 1999)),
    ],
)
def test_what_cannot_work_is_refused(
    cluster: Cluster, changed: dict[str, Any], refused: tuple[str, int]
) -> None:
    with pytest.raises(RefusedError) as error:
        capacity(by_hand(), cluster, settings(**changed))
    assert (error.value.subject, error.value.value) == refused
    if "cache_bytes" in changed:
        assert error.value.needed_bytes == 2000


def test_nodes_have_equal_numbers_of_ranks() -> None:
    with pytest.raises(RefusedError) as error:
        Cluster(7, 3)
    assert (error.value.subject, error.value.value) == ("--world-size", 7)
    assert error.value.world_size == 9


def test_the_least_cache_is_what_the_reader_accepts(dataset: Dataset, store: Store) -> None:
    """One byte less, and the loader would read block by block instead."""
    shards = outline.of_manifest(dataset.manifest)
    small = settings(global_batch=4, lanes=4)
    least = capacity(shards, Cluster(2), small).node.cache_least_bytes
    for cache_bytes in (least, least - 1):
        stream = small.stream.model_copy(update={"cache_bytes": cache_bytes})
        reader = SplitReader("gs://bucket/data", dataset.manifest, "train", stream, 4)
        assert (reader.cache is not None) == (cache_bytes >= least)


def test_in_words() -> None:
    cluster = Cluster(2, 2, gpu_bytes=10**6, drawings_per_second=9.0, shard_workers=3)
    text = format_capacity(capacity(by_hand(), cluster, settings(cache_bytes=2500)))
    for words in (
        "40 drawings in 4 shards, 4 kB",
        "3 workers of 200,000 drawings/s",
        "2 workers idle",
        "6 steps; 4 drawings are dropped",
        "2 of 20 drawings; 1 per rank",
        "for 20 drawings; fits",
        "0:02 per epoch at 9 drawings/s per rank; a node reads 1 kB/s",
        "2.5 kB per node as set; 1 kB at least, 3 kB hold all",
        "first epoch: 6 reads, 6 kB, 3 kB/s",
        "each later epoch: 6 reads, 6 kB",
    ):
        assert words in text
    plain = format_capacity(capacity(by_hand(), Cluster(remote=False), settings()))
    assert "rates" not in plain
    assert "cache" not in plain
    assert "nothing" in format_capacity(capacity(by_hand(), Cluster(), settings()))
    assert "does not fit" in format_capacity(capacity(by_hand(), Cluster(gpu_bytes=9), settings()))


Blocks = tuple[tuple[int, ...], ...]


@st.composite
def datasets(draw: st.DrawFn) -> Outline:
    """Any shards of any blocks."""
    shard = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)
    train: Blocks = draw(st.lists(shard, min_size=1, max_size=9).map(tuple))
    val: Blocks = draw(st.lists(shard, max_size=3).map(tuple))
    blocks = {"train": train, "val": val, "test": ()}
    sizes = {
        split: tuple(draw(st.integers(sum(s), 900 * sum(s))) for s in shards)
        for split, shards in blocks.items()
    }
    drawings = sum(sum(map(sum, shards)) for shards in blocks.values())
    return Outline(Plan(("a",), (drawings,), Settings().shard), "gs://b/s", blocks, sizes)


@given(
    dataset=datasets(),
    lanes=st.integers(1, 12),
    nodes=st.integers(1, 3),
    ranks=st.integers(1, 3),
    more=st.integers(2, 3),
    cached=st.booleans(),
)
def test_more_ranks_never_need_more_each(
    dataset: Outline, lanes: int, nodes: int, ranks: int, more: int, cached: bool
) -> None:
    world = nodes * ranks
    assume(world * more <= lanes <= sum(map(sum, dataset.blocks["train"])))
    run = settings(lanes, lanes, cache_bytes=10**9 if cached else 0)
    few, on_nodes, on_more_nodes = (
        capacity(dataset, cluster, run)
        for cluster in (
            Cluster(world, nodes),
            Cluster(world * more, nodes),
            Cluster(world * more, nodes * more),
        )
    )
    for many in (on_nodes, on_more_nodes):
        assert many.epoch.steps == few.epoch.steps
        for name, most in asdict(few.rank).items():
            assert asdict(many.rank)[name] <= most, name
    if cached:
        assert on_nodes.epoch.cold == few.epoch.cold
    for name in ("loader_bytes", "cache_all_bytes", "read_bytes", "decoded_bytes"):
        assert getattr(on_more_nodes.node, name) <= getattr(few.node, name), name
    # All nodes together read all of it, and what two of them share twice.
    assert few.epoch.cold.bytes <= on_more_nodes.epoch.cold.bytes
    assert few.epoch.cold.reads <= on_more_nodes.epoch.cold.reads


@given(
    dataset=datasets(), lanes=st.integers(1, 12), batch=st.integers(1, 4), world=st.integers(1, 9)
)
def test_an_epoch_is_all_there_is(dataset: Outline, lanes: int, batch: int, world: int) -> None:
    train = sum(map(sum, dataset.blocks["train"]))
    assume(world <= lanes and lanes * batch <= train)
    needs = capacity(dataset, Cluster(world), settings(lanes * batch, lanes, cache_bytes=10**9))
    epoch = needs.epoch
    assert epoch.steps * epoch.global_batch + epoch.dropped_drawings == train
    assert epoch.least_lane_drawings <= train / lanes <= epoch.most_lane_drawings
    assert needs.node.decoded_bytes >= train * 790
    shards, sizes = needs.shards, needs.shard_bytes
    assert epoch.cold == Requests(
        reads=shards["train"] + shards["val"], bytes=sizes["train"] + sizes["val"]
    )
    assert needs.node.cache_all_bytes == max(epoch.cold.bytes, needs.node.cache_least_bytes)
    assert epoch.warm == Requests()
    assert world * needs.rank.resident_drawings >= train
    assert json.loads(json.dumps(asdict(needs)))["epoch"]["steps"] == epoch.steps
