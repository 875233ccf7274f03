"""What a run will need, in words: a line or two per subject."""

from __future__ import annotations

from collections.abc import Iterator

from quickdraw_dist.base.units import counted, duration
from quickdraw_dist.base.units import size_text as _size
from quickdraw_dist.data.capacity.estimate import Capacity
from quickdraw_dist.data.capacity.requests import Requests


def format_capacity(needs: Capacity) -> str:
    """Return the lines that jobs.plan prints."""
    lines = [*_dataset(needs), *_sharding(needs), *_training(needs), *_store(needs)]
    return "\n".join(f"{name:9} {text}" for name, text in lines)


def _dataset(needs: Capacity) -> Iterator[tuple[str, str]]:
    for split, drawings in needs.drawings.items():
        size = _size(needs.shard_bytes[split])
        yield split, f"{drawings:,} drawings in {needs.shards[split]:,} shards, {size}"


def _sharding(needs: Capacity) -> Iterator[tuple[str, str]]:
    sharding, rate = needs.sharding, needs.cluster.shard_drawings_per_second
    idle = sharding.workers - sharding.busy_workers
    yield (
        "sharding",
        f"{duration(sharding.hours * 3600)} with {sharding.workers:,} workers of {rate:,.0f} "
        f"drawings/s and {_size(sharding.worker_bytes)} of memory each; {sharding.groups:,} groups"
        + (f", {idle:,} workers idle" if idle else ""),
    )
    if sharding.source != Requests():
        yield "", f"from the source's bucket: {_requests(sharding.source)}"
    yield "", f"to a bucket as DEST: at most {_requests(sharding.dest)}"


def _training(needs: Capacity) -> Iterator[tuple[str, str]]:
    cluster, epoch, node, rank = needs.cluster, needs.epoch, needs.node, needs.rank
    yield (
        "ranks",
        f"{cluster.world_size:,}, {cluster.ranks_per_node:,} per node; a step is "
        f"{epoch.global_batch:,} drawings, {rank.batch_drawings:,} per rank",
    )
    yield "epoch", f"{epoch.steps:,} steps; {epoch.dropped_drawings:,} drawings are dropped"
    yield (
        "lanes",
        f"{epoch.lanes:,} of {epoch.most_lane_drawings:,} drawings; {rank.lanes:,} per rank",
    )
    yield (
        "memory",
        f"{_size(rank.loader_bytes)} per rank and {_size(node.loader_bytes)} per node for drawings "
        "in the host's memory, in addition to the processes themselves",
    )
    fits = {None: "", True: "; fits", False: "; does not fit"}[needs.resident_fits]
    enough = f"; {counted(needs.resident_gpus, 'GPU')} would do" if needs.resident_gpus else ""
    yield (
        "resident",
        f"{_size(rank.resident_bytes)} per GPU with --stream.resident true, for "
        f"{rank.resident_drawings:,} drawings{fits}{enough}",
    )
    if (rates := needs.rates) is not None:
        yield (
            "rates",
            f"{duration(rates.epoch_seconds)} per epoch at {cluster.drawings_per_second:,.0f} "
            f"drawings/s per rank; a node reads {_size(rates.node_read_bytes_per_second)}/s and "
            f"decodes them to {_size(rates.node_decoded_bytes_per_second)}/s"
            + (" in the first epoch" if needs.resident else ""),
        )


def _store(needs: Capacity) -> Iterator[tuple[str, str]]:
    node, epoch, rates = needs.node, needs.epoch, needs.rates
    if not needs.cluster.remote:
        return
    yield (
        "cache",
        f"{_size(node.cache_bytes)} per node as set; {_size(node.cache_least_bytes)} at least, "
        f"{_size(node.cache_all_bytes)} hold all that it reads",
    )
    speed = f", {_size(rates.store_bytes_per_second)}/s" if rates else ""
    yield "store", f"first epoch: {_requests(epoch.cold)}{speed} over all nodes"
    yield "", f"each later epoch: {_requests(epoch.warm)}"


def _requests(requests: Requests) -> str:
    counts = {kind: getattr(requests, kind) for kind in ("lists", "reads", "writes")}
    named = [f"{count:,} {kind}" for kind, count in counts.items() if count]
    return f"{', '.join(named)}, {_size(requests.bytes)}" if named else "nothing"
