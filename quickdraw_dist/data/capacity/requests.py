"""What sharding asks of its workers and of a store: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from quickdraw_dist.base import storage
from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.shards.plan import SPLITS

LIST_PAGE = 1000
"""Objects that one request for a listing names."""


@dataclass(frozen=True, order=True)
class Requests:
    """What a store is asked for. Cloud Storage bills writes and lists as class A, reads as B."""

    class_a: int = 0
    class_b: int = 0
    bytes: int = 0  # that move

    def __add__(self, other: Requests) -> Requests:
        """Both together."""
        moved = self.bytes + other.bytes
        return Requests(self.class_a + other.class_a, self.class_b + other.class_b, moved)


@dataclass(frozen=True)
class Sharding:
    """Turning a source into a dataset."""

    groups: int
    workers: int
    busy_workers: int  # that have a group to build
    worker_bytes: int  # of memory
    hours: float
    source: Requests  # none where it is not in a bucket
    dest: Requests  # if it is in a bucket; with what workers ask to see what is done: at most


def sharding(dataset: Outline, workers: int, drawings_per_second: float) -> Sharding:
    """What it takes.

    Args:
        dataset: to be made.
        workers: processes that build groups, each a command of its own (`--worker I --of N`).
        drawings_per_second: of one of them.
    """
    plan, labels = dataset.plan, range(len(dataset.plan.classes))
    ranges = [
        [stop - start for start, stop in (plan.rows(group, label) for label in labels)]
        for group in range(plan.groups)
    ]
    of_workers = [sum(map(sum, ranges[worker::workers])) for worker in range(workers)]
    reads = sum(1 for group in ranges for count in group if count)
    # Every worker lists the classes and reads each header twice, as a range has no checksum; who
    # merges asks for two checksums of each file.
    reads += (2 * workers + 2) * len(labels)
    source = Requests(workers * _pages(len(labels)), reads, plan.drawings * PIXELS)
    # Every worker looks what is done, before its work and after it: lists the shards and the
    # parts, and reads the parts.
    shards, looks = [len(dataset.blocks[split]) for split in SPLITS], 2 * workers
    lists = looks * sum(_pages(objects) for objects in (*shards, plan.groups))
    dest = Requests(
        sum(shards) + plan.groups + 1 + lists,
        looks * plan.groups,
        sum(sum(dataset.shard_bytes[split]) for split in SPLITS),
    )
    return Sharding(
        groups=plan.groups,
        workers=workers,
        busy_workers=min(workers, plan.groups),
        worker_bytes=plan.worker_bytes,
        hours=max(of_workers) / drawings_per_second / 3600,
        source=source if storage.is_remote(dataset.source) else Requests(),
        dest=dest,
    )


def _pages(objects: int) -> int:
    """Requests for a listing."""
    return max(1, -(-objects // LIST_PAGE))
