"""Cases of the data path that run our code: python -m benchmarks.data_path.cases CASE ARGUMENTS."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from torch import Tensor

from benchmarks.measure import call_case, peak_rss_bytes, report
from quickdraw_dist.base import storage
from quickdraw_dist.base.settings import Settings, Shard, Stream, Train
from quickdraw_dist.data.capacity import outline
from quickdraw_dist.data.drawings.drawing import SIDE, Content
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.feed import ShardFeed
from quickdraw_dist.data.order.digest import OrderDigest
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import schedule
from quickdraw_dist.data.shards import manifest, writer
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.verify import find_problems
from quickdraw_dist.distributed import ranks

BATCH = 4_096


def read(folder: str, epochs: int, **stream: object) -> None:
    """Read epochs with the training loader, after a warm-up epoch."""
    feed = _feed(folder, Stream.model_validate(stream))
    for _ in feed.epoch(0):
        pass
    gc.freeze()  # like the trainer
    started, drawings, digest = time.perf_counter(), 0, OrderDigest()
    for epoch in range(1, epochs + 1):
        for batch in feed.epoch(epoch):
            if isinstance(batch.drawings, Tensor):
                assert batch.drawings.is_contiguous(), "a batch is one array"
            digest.add(epoch, batch.step * BATCH, batch.labels, batch.rows)  # like the trainer
            drawings += len(batch.labels)
    seconds = time.perf_counter() - started
    stored = sum(shard.bytes for shard in manifest.read(folder).splits["train"])
    report(drawings, seconds, bytes_per_drawing=round(stored / feed.drawings))


def resident(folder: str, epochs: int) -> None:
    """Read epochs from memory; the warm-up epoch fills it."""
    read(folder, epochs, resident=True)


def cold(folder: str, cache: str) -> None:
    """Read one epoch from a store with an empty cache and the eight lanes of one rank of eight."""
    feed = _feed(folder, Stream(lanes=8, cache_folder=cache))
    started = time.perf_counter()
    drawings = sum(len(batch.labels) for batch in feed.epoch(0))
    report(drawings, time.perf_counter() - started)


def cached(folder: str, cache: str) -> None:
    """Read the next epoch, with all shards in the cache."""
    cold(folder, cache)


def bare(folder: str) -> None:
    """Download all shards of the training split into memory with gcsfs alone, in parallel."""
    import gcsfs

    files = gcsfs.GCSFileSystem(token="anon", endpoint_url=os.environ["STORAGE_EMULATOR_HOST"])
    dataset = manifest.read(folder)
    paths = [storage.join(folder, shard.name) for shard in dataset.splits["train"]]
    started = time.perf_counter()
    fetched = files.cat(paths)
    seconds = time.perf_counter() - started
    assert sum(map(len, fetched.values())) == sum(s.bytes for s in dataset.splits["train"])
    report(dataset.drawings("train"), seconds)


def shard(
    source: str,
    dest: str,
    compression: str,
    shard_drawings: int = 65_536,
    content: Content = "bitmaps",
) -> None:
    """Shard drawings in one process; the final merge is not timed."""
    opened = open_source(source, content=content)
    settings = Shard.model_validate(
        {"compression": compression, "drawings_per_shard": shard_drawings, "content": content}
    )
    plan = Plan(opened.classes, opened.counts, settings, opened.identity)
    assert plan.split_sizes.sum() == plan.drawings  # every worker computes all splits first
    started, before = time.perf_counter(), time.process_time()
    writer.build(plan, list(range(plan.groups)), opened, dest, 1, lambda _: None)
    seconds = time.perf_counter() - started
    busy = time.process_time() - before
    writer.merge_if_complete(plan, opened, dest)
    stored = sum(path.stat().st_size for path in Path(dest).rglob("*.tar"))
    size = round(stored / plan.drawings, 2)
    report(plan.drawings, seconds, per_core=round(plan.drawings / busy), bytes_per_drawing=size)


def verify(folder: str) -> None:
    """Verify like jobs.verify without a source; exit at the first problem."""
    dataset = manifest.read(folder)
    started = time.perf_counter()
    for problem in find_problems(folder, dataset):
        sys.exit(problem)
    total = sum(file.drawings for file in dataset.source_files)
    report(total, time.perf_counter() - started)


def official_plan() -> None:
    """Plan the official drawings: the split of every row, and every shard."""
    imports, started = peak_rss_bytes(), time.perf_counter()
    plan = outline.official_plan(Shard())
    shards = sum(len(plan.shards(group)) for group in range(plan.groups))
    report(plan.drawings, time.perf_counter() - started, imports_bytes=imports, shards=shards)


def official_order() -> None:
    """Compute an epoch's order of the official drawings: all windows of one rank with 64 lanes."""
    blocks = outline.of_plan(outline.official_plan(Shard()), "official").blocks["train"]
    started = time.perf_counter()
    order = Order(blocks, BATCH, 64, Stream().window_blocks, seed=1)
    needs = schedule(order, order.share(0, 1), 0, 0)
    drawings = sum(need.window.count for need in needs)
    report(drawings, time.perf_counter() - started, windows=len(needs))


def upload(folder: str, dest: str) -> None:
    """Copy a dataset into a new bucket of a store."""
    storage_url = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b?project=bench"
    bucket = dest.removeprefix("gs://").split("/")[0]
    urlopen(Request(storage_url, json.dumps({"name": bucket}).encode())).close()
    files = [path for path in Path(folder).rglob("*") if path.is_file()]

    def copy(path: Path) -> None:
        name = path.relative_to(folder).as_posix()
        storage.publish(storage.join(dest, name), path.read_bytes())

    started = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(copy, files))
    report(manifest.read(folder).drawings("train"), time.perf_counter() - started)


def in_memory(folder: str, workers: int, count: int) -> None:
    """Read from one array through a map-style Dataset and a DataLoader, as small projects do."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    pixels, labels = load_array(Path(folder), count)

    class InMemory(Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.from_numpy(pixels[index]), int(labels[index])

    loader = DataLoader(InMemory(), batch_size=256, shuffle=True, num_workers=workers)
    started = time.perf_counter()
    drawings = sum(len(batch) for _, batch in loader)
    report(drawings, time.perf_counter() - started, bytes_per_drawing=SIDE * SIDE)


def load_array(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Load about `count` bitmaps, equally many per .npy file of a folder, as (n, 28, 28) uint8, and
    their labels, (n,) int64."""
    files = sorted(folder.glob("*.npy"))
    each = -(-count // len(files))
    classes = [np.load(file, mmap_mode="r")[:each].reshape(-1, SIDE, SIDE) for file in files]
    labels = np.repeat(np.arange(len(files)), [len(drawings) for drawings in classes])
    return np.concatenate(classes), labels


def _feed(folder: str, stream: Stream) -> ShardFeed:
    settings = Settings(data=folder, stream=stream, train=Train(global_batch=BATCH, device="cpu"))
    world = ranks.World.from_environment(settings.train)
    return ShardFeed(settings, manifest.read(folder), world, stream.lanes)


if __name__ == "__main__":
    call_case(globals())
