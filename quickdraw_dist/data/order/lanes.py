"""The number of lanes of a run, from the batch and the world size it starts with."""

from __future__ import annotations

import math

from quickdraw_dist.base.errors import RefusedError, flag

AUTO_LANES = 64
"""Lanes of a run on up to this many ranks, where the batch is a multiple of it."""

MANY_RANKS_LANES = 512
"""The same beyond `AUTO_LANES` ranks; beyond 512 ranks the next power of two."""


def resolve_lanes(lanes: int | str, global_batch: int, world_size: int) -> int:
    """Return the number of lanes L that a new run starts with; its checkpoints store L.

    L divides the global batch and is at least the world size. More lanes than ranks let the run
    resume on more ranks later.

    Args:
        lanes: `stream.lanes`. 'auto' takes gcd(global batch, 64), or beyond 64 ranks
            gcd(global batch, 512), or beyond 512 ranks gcd(global batch, next power of two).
        global_batch: drawings per step, over all ranks.

    Raises:
        RefusedError: batch, lanes and ranks do not fit together; fact `global_batch` is one that
            fits with `stream.lanes auto`.
    """
    most = AUTO_LANES
    if world_size > AUTO_LANES:
        most = max(MANY_RANKS_LANES, 1 << (world_size - 1).bit_length())
    auto = math.gcd(global_batch, most)
    fitting = global_batch if auto >= world_size else -(-global_batch // most) * most

    def refused(setting: str, value: object, problem: str) -> RefusedError:
        remedy = f"Use {flag('stream.lanes', 'auto')} with {flag('train.global_batch', fitting)}"
        return RefusedError(flag(setting), value, problem, remedy, global_batch=fitting)

    if global_batch < world_size:
        problem = f"smaller than the world size {world_size}, so some ranks would have no drawing"
        raise refused("train.global_batch", global_batch, problem)
    if lanes == "auto":
        if auto < world_size:
            problem = f"gives gcd({global_batch}, {most}) = {auto} lanes for {world_size} ranks"
            raise refused("train.global_batch", global_batch, problem)
        return auto
    lanes = int(lanes)
    if global_batch % lanes:
        problem = f"does not divide {flag('train.global_batch', global_batch)}"
        raise refused("stream.lanes", lanes, problem)
    if lanes < world_size:
        raise refused("stream.lanes", lanes, f"fewer than the {world_size} ranks")
    return lanes
