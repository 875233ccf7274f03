"""How training should scale over GPUs: arithmetic from a step and an all-reduce, no result."""

from __future__ import annotations

from dataclasses import dataclass

EPOCH_DRAWINGS = 45_383_639
"""Nine tenths of the official drawings."""

_BACKWARD_SHARE = 2 / 3
"""Of a step: as much again for the weights and for the inputs as forward takes."""


@dataclass(frozen=True)
class Links:
    """What joins the GPUs."""

    gpus_per_node: int = 8
    node_bytes_per_second: float = 400e9
    """Of a GPU to its neighbour in the node, each way: NVLink 4's 450 GB/s, less protocol."""
    network_bytes_per_second: float = 50e9
    """Of a GPU to another node, each way: a 400 Gb/s port each."""
    hop_seconds: float = 10e-6
    """Of a message that carries nothing."""


@dataclass(frozen=True)
class Step:
    """A step of one GPU by itself takes `fixed_seconds + drawings / drawings_per_second`."""

    fixed_seconds: float
    drawings_per_second: float

    def seconds(self, drawings: float) -> float:
        """Of a step on so many drawings."""
        return self.fixed_seconds + drawings / self.drawings_per_second


def fit(small: tuple[int, float], large: tuple[int, float]) -> Step:
    """The step behind two measurements, each (drawings, seconds)."""
    (few, short), (many, long) = small, large
    per_drawing = (long - short) / (many - few)
    return Step(max(0.0, short - few * per_drawing), 1 / per_drawing)


def all_reduce_seconds(size: float, gpus: int, links: Links) -> float:
    """Rings in two levels: within a node reduce-scatter and all-gather, between the nodes an
    all-reduce of each GPU's share.

    Args:
        size: bytes of gradients.
        gpus: all of them; nodes are full.
        links: what joins them.
    """
    local = min(gpus, links.gpus_per_node)
    nodes = -(-gpus // links.gpus_per_node)
    inside = 2 * (local - 1) * (size / local / links.node_bytes_per_second + links.hop_seconds)
    share = size / local / nodes
    between = 2 * (nodes - 1) * (share / links.network_bytes_per_second + links.hop_seconds)
    return inside + between


def efficiency(step_seconds: float, communication_seconds: float) -> tuple[float, float]:
    """Share of linear scaling: with nothing hidden, and with all that fits hidden behind the
    backward pass. The truth lies between them."""
    exposed = max(0.0, communication_seconds - _BACKWARD_SHARE * step_seconds)
    return (
        step_seconds / (step_seconds + communication_seconds),
        step_seconds / (step_seconds + exposed),
    )
