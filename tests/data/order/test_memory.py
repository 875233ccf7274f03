"""A loader holds what `stream.memory_bytes` allows: by arithmetic, and as the kernel counts it."""

from __future__ import annotations

import gc
import re
import threading
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, Shard
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.feed import ShardFeed
from quickdraw_dist.data.order import memory
from quickdraw_dist.data.order.content_bytes import (
    BitmapBytes,
    ContentBytes,
    StrokeBytes,
    content_bytes,
)
from quickdraw_dist.data.order.memory import (
    LoaderMemory,
    default_threads,
    least_batches,
    plan_memory,
    resident_drawings,
)
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import steps_per_window
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.distributed.ranks import World
from tests.support.data.datasets import Dataset, DatasetMaker, shard
from tests.support.data.delivery import least_bytes
from tests.support.data.orders import orders
from tests.support.data.strokes import RandomStrokes
from tests.support.gcs.local import Store, use_store

CONTENTS = (BitmapBytes(), StrokeBytes(TilesPerDrawing(2.87, 1.41)))

# -- by arithmetic ---------------------------------------------------------------------------------


@given(
    orders(), st.data(), st.integers(1, 20), st.sampled_from([0, 1, 5_000, 300_000, 10**8]),
    st.booleans(), st.sampled_from(CONTENTS),
)  # fmt: skip
def test_what_is_granted_stays_within_the_setting(
    order: Order, data: st.DataObject, threads: int, shard_bytes: int, pin: bool,
    content: ContentBytes,
) -> None:  # fmt: skip
    """For any share, threads and shards: never more than allowed, never less than the loader needs
    to make progress; and what a refusal calls enough is, to the byte."""
    world_size = data.draw(st.integers(1, min(8, order.global_batch)))
    share = order.share(data.draw(st.integers(0, world_size - 1)), world_size)
    allowed = data.draw(st.integers(1, 10**6) | st.integers(1, 10**10))

    def plan(memory_bytes: int) -> LoaderMemory:
        return plan_memory(
            order, share, content, memory_bytes=memory_bytes, threads=threads,
            shard_bytes=shard_bytes, pin=pin,
        )  # fmt: skip

    least, most = least_batches(order), least_batches(order) + steps_per_window(order)
    try:
        granted = plan(allowed)
    except RefusedError as error:
        assert (error.subject, error.value) == ("--stream.memory_bytes", allowed)
        for way_out in ("--stream.window_blocks", "more ranks"):
            assert way_out in error.remedy
        needed = least_bytes(error)
        assert needed > allowed
        granted, allowed = plan(needed), needed
        assert (granted.batches, granted.threads, granted.bytes) == (least, 1, needed)
        with pytest.raises(RefusedError):
            plan(needed - 1)
    assert granted.bytes <= allowed
    assert least <= granted.batches <= most
    assert 1 <= granted.threads <= threads
    assert (granted.fetchers > 0) == (shard_bytes > 0)
    ring = content.ring(order, share, granted.batches, pin)
    blocks = granted.threads * order.longest_block * content.decoded
    assert ring + granted.fetchers * shard_bytes + blocks < granted.bytes
    if granted.batches < most:  # as many as fit
        one_more = content.ring(order, share, granted.batches + 1, pin)
        assert granted.bytes - ring + one_more > allowed


def test_memory_goes_to_threads_batches_and_shards_in_flight() -> None:
    """More memory than is useful is not taken; half of what is left goes to shards in flight. A
    window of 4 blocks of 1,024 is spread over 65 batches of 64 drawings per lane."""
    order = Order(((1024,) * 60,) * 64, global_batch=4096, lanes=64, window_blocks=4, seed=1)

    def plan(memory_bytes: float, shard_bytes: int = 0) -> LoaderMemory:
        return plan_memory(
            order, order.share(0, 1), BitmapBytes(), memory_bytes=int(memory_bytes), threads=8,
            shard_bytes=shard_bytes, pin=False,
        )  # fmt: skip

    plenty = plan(1e12)
    assert (plenty.batches, plenty.threads, plenty.fetchers) == (2 * 65 + 1, 8, 0)
    assert plenty.bytes < 500e6
    assert plan(1e12, 50_000_000).fetchers == 8
    tight = plan(400e6, 50_000_000)
    assert tight.threads == 8
    assert tight.fetchers < 4 and 66 < tight.batches < 2 * 65 + 1


@pytest.mark.parametrize("content", CONTENTS)
def test_what_a_refusal_suggests_needs_less(content: ContentBytes) -> None:
    """More ranks and smaller windows are the two remedies: both must work."""
    order = Order(((1024,) * 60,) * 64, global_batch=4096, lanes=64, window_blocks=4, seed=1)
    other = Order(order.shards, 4096, lanes=64, window_blocks=2, seed=1)
    needs = []
    for of, share in (
        (order, order.share(0, 1)),
        (other, other.share(0, 1)),
        (order, order.share(1, 8)),
    ):
        with pytest.raises(RefusedError) as refused:
            plan_memory(of, share, content, memory_bytes=1000, threads=4, shard_bytes=0, pin=False)
        needs.append(least_bytes(refused.value))
    assert needs[1] < 0.6 * needs[0]
    assert needs[2] < 0.2 * needs[0]


@pytest.mark.parametrize(
    ("count", "pinned"), [(1, 1024 + 8 + 4), (100, 2**17 + 1024 + 400), (1024, 2**20 + 8192 + 4096)]
)
def test_pinned_memory_is_rounded_up(count: int, pinned: int) -> None:
    """By torch, array by array, to a power of two: up to twice as much."""
    assert BitmapBytes().batch(count, pin=True) == pinned
    assert BitmapBytes().batch(count, pin=False) == count * (784 + 8 + 4)


def test_threads_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks with one thread per processor each would be eight times too many."""
    for processors, ranks, threads in ((16, 1, 8), (16, 4, 4), (2, 1, 2), (2, 8, 1), (96, 8, 8)):
        monkeypatch.setattr(memory, "processors", lambda processors=processors: processors)
        assert default_threads(ranks) == threads


# -- as the kernel counts it -----------------------------------------------------------------------

STATUS = Path("/proc/self/status")

DRAWINGS, ALLOWED = 60_000, 12_000_000
"""Drawings of a dataset of 47 MB, and the bytes a loader may hold."""

SLACK = {"local": 4_000_000, "ranges": 4_000_000, "cache": 8_000_000, "resident": 14_000_000}
"""What Python and its allocator take in addition: stacks, plans of epochs, and per thread memory
of responses and decoded blocks that is not returned to the system at once."""


def anonymous_bytes() -> int:
    """Memory of this process without pages of mapped files, which the kernel can drop."""
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def stream_and_watch(store: str, chosen: Settings, results: str) -> None:
    """Stream three epochs; write the peak of memory beyond what the process had before."""
    use_store(store)
    dataset = manifest.read(chosen.data)
    over = threading.Event()
    gc.collect()
    before = peak = anonymous_bytes()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.0005):
            peak = max(peak, anonymous_bytes())

    threading.Thread(target=watch, daemon=True).start()
    world = World(0, 1, 0, 1, torch.device("cpu"))
    feed = ShardFeed(chosen, dataset, world, chosen.stream.lanes)
    delivered = sum(len(batch.labels) for epoch in range(3) for batch in feed.epoch(epoch))
    over.set()
    assert delivered == 3 * feed.steps * feed.order.global_batch
    Path(results).write_text(str(peak - before))


@pytest.fixture(scope="module", params=["bitmaps", "strokes"])
def large(
    request: pytest.FixtureRequest, make_dataset: DatasetMaker,
    tmp_path_factory: pytest.TempPathFactory,
) -> Dataset:  # fmt: skip
    """60,000 drawings of noise, uncompressed, in shards of 2,048 and blocks of 128."""
    folder = tmp_path_factory.mktemp("noise")
    sizes = {"block": 128, "drawings_per_shard": 2048, "compression": "none"}
    if request.param == "strokes":
        source = RandomStrokes(("cat", "dog"), (DRAWINGS // 2,) * 2)
        return shard(source, str(folder), Shard.model_validate(sizes | {"content": "strokes"}))
    noise = np.random.default_rng(1).integers(0, 256, (DRAWINGS // 2, 784), np.uint8)
    for name in ("cat", "dog"):
        np.save(folder / f"{name}.npy", noise)
    return make_dataset(source=str(folder), **sizes)


@pytest.mark.skipif(not STATUS.exists(), reason="no /proc/self/status here to count memory with")
@pytest.mark.parametrize("source", ["local", "ranges", "cache", "resident"])
def test_peak_memory_is_within_the_setting(
    large: Dataset, store: Store, processes: ForkServerContext, tmp_path: Path, source: str
) -> None:
    """A dataset several times as large as the memory granted streams through it; a cluster's
    limit kills a process that takes more. (Resident: the whole dataset, and its stated bytes.)"""
    remote = source in ("ranges", "cache")
    if remote:
        store.upload(large.folder, "gs://bucket/large")
    chosen = Settings.model_validate(
        {
            "data": "gs://bucket/large" if remote else large.folder,
            "train": {"global_batch": 1024, "device": "cpu"},
            "stream": {
                "lanes": 8,
                "window_blocks": 6,
                "threads": 4,
                "memory_bytes": ALLOWED,
                "resident": source == "resident",
                "cache_folder": str(tmp_path / "cache"),
                "cache_bytes": 0 if source == "ranges" else 10**9,
            },
        }
    )
    process = processes.Process(
        target=stream_and_watch, args=(store.server.url, chosen, str(tmp_path / "peak"))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    peak = int((tmp_path / "peak").read_text())
    held = allowed = ALLOWED
    if source == "resident":
        order = Order(large.manifest.block_counts("train"), 1024, 8, 6, 1)
        assert resident_drawings(order, order.share(0, 1)) == order.drawings
        held = content_bytes(large.manifest.tiles_per_drawing).resident(DRAWINGS)
        allowed = ALLOWED + held
    assert 0.7 * held < peak < allowed + SLACK[source]
