"""The elastic order: for any ranks, threads, stops, memory and source of the drawings, every
position gets the drawing that `Order.locate` names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.feed import ShardFeed
from quickdraw_dist.data.order.digest import OrderDigest
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.distributed.ranks import processor_group
from tests.support.data.datasets import CONTENTS, Dataset, DatasetMaker
from tests.support.data.delivery import (
    SHAPES,
    WORLDS,
    Identity,
    Shape,
    deliver,
    digest_of,
    least_bytes,
    line,
)
from tests.support.data.feeds import make_settings, open_feed
from tests.support.gcs.local import Store, use_store
from tests.support.gcs.server import GcsServer
from tests.support.processes.ranks import run_ranks

COMPRESSIONS = ("gzip", "none")
SOURCES = ("local", "cold cache", "warm cache", "ranges")
STOPS = ("start", "in a window", "last step", "epoch boundary", "second epoch")


@dataclass(frozen=True)
class Cut:
    """One way to run two epochs: a world up to a stop, another from there on."""

    before: int
    after: int
    stop: str
    threads: int = 2
    shape: str = "usual"
    source: str = "local"
    compression: str = "gzip"
    resident: bool = False
    content: str = "bitmaps"
    least: bool = False  # the least memory that is accepted

    def __str__(self) -> str:
        cut = f"{self.before}-{self.after}-{self.shape}-{self.source}-{self.stop}"
        return cut if self.content == "bitmaps" else f"{cut}-{self.content}"

    def position(self, order: Order) -> tuple[int, int]:
        """Epoch and step at which the first world stops."""
        inside = next(step for step in range(1, order.steps) if in_a_window(order, step))
        return {
            "start": (0, 0),
            "in a window": (0, inside),
            "last step": (0, order.steps - 1),
            "epoch boundary": (1, 0),
            "second epoch": (1, order.steps - 1),
        }[self.stop]


def in_a_window(order: Order, step: int) -> bool:
    """Whether every lane is in the middle of a window there."""
    at = step * order.lane_batch
    starts = [{window.start for window in order.windows(0, lane)} for lane in range(order.lanes)]
    return all(at not in of_lane for of_lane in starts)


cuts = st.builds(
    Cut,
    before=st.sampled_from(WORLDS),
    after=st.sampled_from(WORLDS),
    stop=st.sampled_from(STOPS),
    threads=st.integers(1, 8),
    shape=st.sampled_from(sorted(SHAPES)),
    source=st.sampled_from(SOURCES),
    compression=st.sampled_from(COMPRESSIONS),
    resident=st.booleans(),
    content=st.sampled_from(CONTENTS),
    least=st.booleans(),
)


@dataclass(frozen=True)
class Datasets:
    """The small dataset in every content and compression, on disk and in a store, and caches of
    it."""

    of: dict[str, Dataset]
    server: GcsServer
    caches: Path

    def settings(self, cut: Cut, shape: Shape) -> Settings:
        """What a user would set for this cut."""
        name = f"{cut.content}-{cut.compression}"
        remote, cache = f"gs://bucket/{name}", self.caches / name
        if cut.source == "cold cache":
            shutil.rmtree(cache, ignore_errors=True)
        return make_settings(
            self.of[name].folder if cut.source == "local" else remote,
            cache, shape, threads=cut.threads, resident=cut.resident,
            cache_bytes=0 if cut.source == "ranges" else 10**9,
        )  # fmt: skip


@pytest.fixture(scope="module")
def datasets(
    make_dataset: DatasetMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Datasets]:
    made = {
        f"{content}-{compression}": make_dataset(content=content, compression=compression)
        for content in CONTENTS
        for compression in COMPRESSIONS
    }
    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        server.gcs.store.create_bucket("bucket")
        for name, dataset in made.items():
            Store(server).upload(dataset.folder, f"gs://bucket/{name}")
        yield Datasets(made, server, tmp_path_factory.mktemp("caches"))


def open_least(settings: Settings, rank: int, world_size: int, least: bool = True) -> ShardFeed:
    """Open a rank's feed; with the least memory that a refusal names, if `least`."""
    if least and not settings.stream.resident:
        stream = settings.stream.model_copy(update={"memory_bytes": 1})
        with pytest.raises(RefusedError) as refused:
            open_feed(settings.model_copy(update={"stream": stream}), rank, world_size)
        stream = stream.model_copy(update={"memory_bytes": least_bytes(refused.value)})
        settings = settings.model_copy(update={"stream": stream})
    return open_feed(settings, rank, world_size)


def run(
    settings: Settings, order: Order, world_size: int, least: bool, first: tuple[int, int],
    last: tuple[int, int],
) -> tuple[list[Identity], int]:  # fmt: skip
    """What a world delivers from one (epoch, step) to another, and its order digest."""
    feeds = [open_least(settings, rank, world_size, least) for rank in range(world_size)]
    identities, digest = list[Identity](), 0
    for epoch in (0, 1):
        begin = first[1] if epoch == first[0] else 0
        end = last[1] if epoch == last[0] else order.steps
        if first[0] <= epoch <= last[0] and begin < end:
            got = deliver(feeds.__getitem__, order, world_size, epoch, begin, end)
            identities += got.in_order()
            digest += got.digest
    return identities, digest % 2**64


def check(datasets: Datasets, cut: Cut) -> None:
    shape, dataset = SHAPES[cut.shape], datasets.of["bitmaps-gzip"]
    order = shape.order(dataset.manifest.block_counts("train"))
    chosen = datasets.settings(cut, shape)
    want = line(dataset, shape, 0), line(dataset, shape, 1)
    stop = cut.position(order)
    before, digest = run(chosen, order, cut.before, cut.least, (0, 0), stop)
    after, rest = run(chosen, order, cut.after, cut.least, stop, (1, order.steps))
    assert before + after == want[0] + want[1]
    assert len(before) == (stop[0] * order.steps + stop[1]) * order.global_batch
    expected = digest_of(want[0], 0) + digest_of(want[1], 1)
    assert (digest + rest) % 2**64 == expected % 2**64


CORNERS = [
    Cut(1, 8, "in a window", threads=1),
    Cut(8, 1, "last step", threads=8, shape="uneven", source="cold cache"),
    Cut(7, 3, "epoch boundary", 5, "uneven", "ranges", "none", least=True),
    Cut(3, 7, "in a window", 3, "long", "cold cache", "none", least=True),
    Cut(4, 2, "second epoch", 7, "long", "warm cache", "none"),
    Cut(2, 4, "start", 4, "usual", "ranges", "gzip"),
    Cut(1, 3, "in a window", 6, "uneven", "cold cache", "none", resident=True),
    Cut(8, 7, "last step", 2, "long", "ranges", "gzip", resident=True),
    Cut(2, 1, "epoch boundary", 1, "usual", "local", "gzip", resident=True),
    Cut(7, 3, "in a window", 3, "uneven", "cold cache", "gzip", content="strokes", least=True),
    Cut(2, 4, "last step", 2, "long", "ranges", "none", content="strokes"),
    Cut(1, 3, "second epoch", 2, "uneven", "local", "gzip", True, content="strokes"),
]


@pytest.mark.parametrize("cut", CORNERS, ids=str)
def test_corners(datasets: Datasets, cut: Cut) -> None:
    """Every world size, stop, source and compression at least once, in hard combinations."""
    check(datasets, cut)


@settings(max_examples=30)
@given(cuts)
def test_any_cut_is_the_same_run(datasets: Datasets, cut: Cut) -> None:
    """World size, threads, stops, compression, memory and cache do not change the order."""
    check(datasets, cut)


# -- real processes --------------------------------------------------------------------------------


def stream_one_rank(
    rank: int, world_size: int, store: str, chosen: Settings, first: tuple[int, int],
    last: tuple[int, int],
) -> int:  # fmt: skip
    """A rank as in training: its own process, its own reader, digests added up over gloo."""
    use_store(store)
    feed = open_least(chosen, rank, world_size)
    digest = OrderDigest(processor_group(60))
    for epoch in range(first[0], last[0] + 1):
        begin = first[1] if epoch == first[0] else 0
        for batch in feed.epoch(epoch, begin):
            if (epoch, batch.step) == last:
                break
            digest.add(epoch, feed.share.position(batch.step), batch.labels, batch.rows)
    return int(digest.total()(), 16)


@pytest.mark.parametrize(
    "cut",
    [
        Cut(1, 4, "in a window", 2, "usual", "local", "none"),
        Cut(2, 3, "last step", 2, "uneven", "cold cache", "gzip"),
        Cut(3, 2, "epoch boundary", 1, "long", "ranges", "gzip", resident=True),
        Cut(2, 3, "in a window", 2, "uneven", "cold cache", "gzip", content="strokes"),
    ],
    ids=str,
)
def test_real_processes_agree_on_the_digest(
    datasets: Datasets, processes: ForkServerContext, tmp_path: Path, cut: Cut
) -> None:
    """Ranks that are processes, with a process group and one cache, stopped and resumed in another
    number."""
    shape, dataset = SHAPES[cut.shape], datasets.of["bitmaps-gzip"]
    order = shape.order(dataset.manifest.block_counts("train"))
    chosen, stop, digest = datasets.settings(cut, shape), cut.position(order), 0
    legs = (cut.before, (0, 0), stop), (cut.after, stop, (1, order.steps))
    for number, (world_size, first, last) in enumerate(legs):
        task = stream_one_rank, datasets.server.url, chosen, first, last
        (of_leg,) = set(run_ranks(processes, world_size, tmp_path / str(number), *task))
        digest += of_leg
    expected = sum(digest_of(line(dataset, shape, epoch), epoch) for epoch in (0, 1))
    assert digest % 2**64 == expected % 2**64
