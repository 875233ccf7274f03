"""A dataset in a store behind a node cache: what was fetched, and what the cache holds."""

from __future__ import annotations

from pathlib import Path

from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.data.shards.schema import ShardEntry
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.data.datasets import Dataset
from tests.support.data.delivery import Identity, open_reader, pairs
from tests.support.gcs.local import Store

URL = "gs://bucket/data"
LARGE = 10**9


def open_cached(dataset: Dataset, cache: Path, limit: int = LARGE) -> SplitReader:
    """The training split at `URL`, through a cache in that folder."""
    return open_reader(URL, dataset.manifest, cache=cache, cache_bytes=limit)


def read_all(reader: SplitReader, threads: int = 2) -> list[Identity]:
    """The identities of the whole split in its order."""
    found: list[Identity] = []
    for batch in evaluation_batches(reader, rank=0, world_size=1, batch=512, threads=threads):
        found += pairs(batch)
    return found


def all_of(dataset: Dataset) -> list[Identity]:
    return list(dataset.stored("train").values())


def shards_of(dataset: Dataset) -> tuple[ShardEntry, ...]:
    return dataset.manifest.splits["train"]


def base(shard: ShardEntry) -> str:
    """A shard's name without its folder."""
    return Path(shard.name).name


def downloads(store: Store, dataset: Dataset) -> list[int]:
    """For every training shard, the requests for its bytes."""
    return [store.media_reads(base(shard)) for shard in shards_of(dataset)]


def held(cache: Path) -> dict[str, int]:
    """Names and sizes of all files below a cache folder but locks."""
    files = (path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.name: path.stat().st_size for path in files}


def metric(name: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"quickdraw_{name}") or 0.0
