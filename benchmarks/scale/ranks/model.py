"""How training should scale over GPUs: arithmetic from a step and an all-reduce, not a result."""

from __future__ import annotations

from dataclasses import dataclass

EPOCH_DRAWINGS = 45_383_639
"""The training split: nine tenths of the official drawings."""

_BACKWARD_SHARE = 2 / 3
"""Share of the backward pass in a step: gradients of weights and of inputs each cost a forward."""


@dataclass(frozen=True)
class Links:
    """Bandwidth and latency between the GPUs."""

    gpus_per_node: int = 8
    node_bytes_per_second: float = 400e9
    """From a GPU to its neighbour in the node, per direction: NVLink 4's 450 GB/s less protocol."""
    network_bytes_per_second: float = 50e9
    """From a GPU to another node, per direction: a 400 Gb/s port per GPU."""
    hop_seconds: float = 10e-6
    """Latency of an empty message."""


@dataclass(frozen=True)
class Step:
    """A step of one GPU alone, which takes `fixed_seconds + drawings / drawings_per_second`."""

    fixed_seconds: float
    drawings_per_second: float

    def seconds(self, drawings: float) -> float:
        """Seconds of a step with this many drawings."""
        return self.fixed_seconds + drawings / self.drawings_per_second


def fit(small: tuple[int, float], large: tuple[int, float]) -> Step:
    """Fit a step to two measurements, each (drawings, seconds)."""
    (few, short), (many, long) = small, large
    per_drawing = (long - short) / (many - few)
    return Step(max(0.0, short - few * per_drawing), 1 / per_drawing)


def all_reduce_seconds(size: float, gpus: int, links: Links) -> float:
    """Seconds of an all-reduce in two levels of rings: reduce-scatter and all-gather within a node,
    an all-reduce of each GPU's slice between nodes.

    Args:
        size: bytes of gradients.
        gpus: GPUs in total; nodes are full.
        links: bandwidth and latency between them.
    """
    local = min(gpus, links.gpus_per_node)
    nodes = -(-gpus // links.gpus_per_node)
    inside = 2 * (local - 1) * (size / local / links.node_bytes_per_second + links.hop_seconds)
    chunk = size / local / nodes
    between = 2 * (nodes - 1) * (chunk / links.network_bytes_per_second + links.hop_seconds)
    return inside + between


def efficiency(step_seconds: float, communication_seconds: float) -> tuple[float, float]:
    """Bounds of the share of linear scaling: with no communication hidden, and with as much as fits
    hidden behind the backward pass."""
    exposed = max(0.0, communication_seconds - _BACKWARD_SHARE * step_seconds)
    return (
        step_seconds / (step_seconds + communication_seconds),
        step_seconds / (step_seconds + exposed),
    )
