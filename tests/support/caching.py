"""What the tests of the node cache share: a dataset in a store, and what is fetched and held."""

from __future__ import annotations

from pathlib import Path

from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.data.shards.manifest import ShardEntry
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.datasets import Dataset
from tests.support.delivery import Identity, open_reader, pairs
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
    """Its name without the folder."""
    return Path(shard.name).name


def downloads(store: Store, dataset: Dataset) -> list[int]:
    """Requests for bytes of every training shard."""
    return [store.media_reads(base(shard)) for shard in shards_of(dataset)]


def held(cache: Path) -> dict[str, int]:
    """Every byte below a cache folder: names of shards (or of what else lies there) and sizes."""
    files = (path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.name: path.stat().st_size for path in files}


def metric(name: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"quickdraw_{name}") or 0.0
