"""Compare the recorded runs of two arms, drawing by drawing; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.input_ablation.held_out import Hits, unpack
from benchmarks.measure import Metrics

Runs = Mapping[int, Metrics]
"""The records of one arm by seed."""


class Difference(NamedTuple):
    """Top-1 of an arm minus that of another, over the seeds that both have; shares, not percent."""

    mean: float
    error: float  # standard error of the mean that is due to which drawings were held out
    by_seed: tuple[float, ...]  # its spread is due to training

    def clear(self, noise: float) -> int:
        """Return 1 or -1 where the mean is more than two standard errors above or below 0, else 0.

        Args:
            noise: `training_noise`, which each of the two arms adds per seed.
        """
        error = math.hypot(self.error, noise * math.sqrt(2 / len(self.by_seed)))
        return int(np.sign(self.mean)) if abs(self.mean) > 2 * error else 0


def difference(arm: Sequence[Hits], base: Sequence[Hits]) -> Difference:
    """Compare two arms drawing by drawing.

    Args:
        arm, base: the hits of one run per seed, on the same held-out drawings.
    """
    gains = np.stack(arm).astype(np.float64) - np.stack(base)  # (seeds, N)
    per_drawing = gains.mean(0)
    error = float(per_drawing.std(ddof=1)) / math.sqrt(len(per_drawing))
    return Difference(float(per_drawing.mean()), error, tuple(gains.mean(1).tolist()))


def compare(runs: Runs, base: Runs) -> Difference | None:
    """Compare two arms over the seeds that both have; None if there is no such seed.

    Raises:
        ValueError: the two were scored on different drawings.
    """
    seeds = sorted(runs.keys() & base.keys())
    if not seeds:
        return None
    if len({record["held_out"] for some in (runs, base) for record in some.values()}) > 1:
        raise ValueError("runs of one task were scored on different drawings")
    return difference([hits(runs[seed]) for seed in seeds], [hits(base[seed]) for seed in seeds])


def hits(record: Metrics) -> Hits:
    """Return the hits of a record."""
    return unpack(record["hits"], record["drawings"])


def training_noise(arms: Iterable[Runs]) -> float:
    """Return the standard deviation of top-1 from seed to seed, pooled over arms that have several
    seeds; 0 if none has."""
    several = [[run["top1"] for run in runs.values()] for runs in arms if len(runs) > 1]
    squares = sum(float(np.var(top1)) * len(top1) for top1 in several)
    return math.sqrt(squares / (sum(map(len, several)) - len(several))) if several else 0.0
