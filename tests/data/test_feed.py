"""How a feed follows the settings: cache, memory, and its range of the validation split."""

from __future__ import annotations

from pathlib import Path

import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Strokes
from quickdraw_dist.data.feed import check_dataset
from quickdraw_dist.data.stream.batch import StrokeBatch
from tests.support.data.caching import URL, base, downloads, held, shards_of
from tests.support.data.datasets import Dataset, DatasetMaker, as_bytes
from tests.support.data.delivery import Identity, Shape, deliver, line, pairs
from tests.support.data.feeds import make_settings, open_feed
from tests.support.gcs.local import Store

pytestmark = pytest.mark.usefixtures("no_thread_left")

MANY_LANES = Shape(global_batch=96, lanes=32, window_blocks=2)
"""Four times as many as there are shards."""


def test_more_lanes_than_shards_in_a_cache_that_just_holds_the_shards(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """Lanes that meet in a shard need it once: the cache is used without room for one per lane."""
    limit = len(shards_of(dataset)) * max(shard.bytes for shard in shards_of(dataset))
    feed = open_feed(make_settings(URL, tmp_path, MANY_LANES, cache_bytes=limit))
    for epoch in (0, 1):
        got = deliver(lambda _: feed, feed.order, 1, epoch)
        assert got.in_order() == line(dataset, MANY_LANES, epoch)
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))


def test_a_cache_is_for_the_lanes_of_all_ranks_of_the_node(
    remote: Store, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With room for one rank's lanes only, two ranks would evict each other's shards."""
    shape = Shape(global_batch=96, lanes=8, window_blocks=2)
    limit = 4 * max(shard.bytes for shard in shards_of(dataset))
    settings = make_settings(URL, tmp_path, shape, cache_bytes=limit)
    feeds = [open_feed(settings, rank, 2) for rank in range(2)]
    said = capsys.readouterr().err
    assert f"{limit:,} does not hold the 8 shards" in said and f"({2 * limit:,} bytes)" in said
    got = deliver(feeds.__getitem__, feeds[0].order, 2)
    assert got.in_order() == line(dataset, shape, 0)
    assert held(tmp_path) == {}


def test_memory_that_is_too_little_is_refused_at_once(dataset: Dataset, tmp_path: Path) -> None:
    """Before anything is read or any rank waits; resident mode makes batches, too."""
    for resident in (False, True):
        settings = make_settings(
            dataset.folder, tmp_path, MANY_LANES, memory_bytes=1000, resident=resident
        )
        with pytest.raises(RefusedError) as refused:
            open_feed(settings)
        assert (refused.value.subject, refused.value.value) == ("--stream.memory_bytes", 1000)


def test_a_feed_of_strokes_follows_the_dataset(make_dataset: DatasetMaker, tmp_path: Path) -> None:
    """Nobody sets what the dataset holds; passes that count for nothing have the shape of steps, so
    that a step compiles once."""
    dataset = make_dataset(content="strokes")
    for resident in (False, True):
        feed = open_feed(make_settings(dataset.folder, tmp_path, MANY_LANES, resident=resident))
        noise, batch = feed.noise(), next(feed.epoch(0)).drawings
        assert isinstance(noise, StrokeBatch) and isinstance(batch, StrokeBatch)
        shapes = [[tensor.shape for tensor in of.inputs()] for of in (noise, batch)]
        assert shapes[0] == shapes[1]
    found = [drawing for batch in feed.validation() for drawing in as_bytes(batch.drawings)]
    assert found == dataset.drawings(dataset.stored("val").values())


@pytest.mark.parametrize(
    ("name", "value"), [("channels", 4), ("side", 56), ("unrecognized_weight", 0.0)]
)
def test_settings_that_bitmaps_would_leave_unused(
    either: Dataset, tmp_path: Path, name: str, value: float
) -> None:
    """Refused before anything is read, with what to remove; a dataset of strokes takes them."""
    usual = make_settings(either.folder, tmp_path, MANY_LANES)
    check_dataset(usual, either.manifest, world_size=1)
    changed = usual.model_copy(update={"strokes": Strokes(**{name: value})})  # type: ignore[arg-type]
    if either.source.content == "strokes":
        check_dataset(changed, either.manifest, world_size=1)
        return
    with pytest.raises(RefusedError) as refused:
        check_dataset(changed, either.manifest, world_size=1)
    error = refused.value
    assert (error.subject, error.value) == (f"--strokes.{name}", value)
    assert either.folder in error.problem
    assert error.remedy == "Remove it, or use a dataset made with --shard.content strokes"


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_share_the_validation_split(
    remote: Store, dataset: Dataset, tmp_path: Path, world_size: int
) -> None:
    """Each time from its beginning, in batches of the size set, and from the cache."""
    settings = make_settings(URL, tmp_path, MANY_LANES)
    feeds = [open_feed(settings, rank, world_size) for rank in range(world_size)]
    for _ in range(2):
        found: list[Identity] = []
        for feed in feeds:
            batches = list(feed.validation())
            assert all(len(batch.labels) == 32 for batch in batches[:-1])
            found += [pair for batch in batches for pair in pairs(batch)]
        assert found == list(dataset.stored("val").values())
    names = [base(shard) for shard in dataset.manifest.splits["val"]]
    assert [remote.media_reads(name) for name in names] == [1] * len(names)
