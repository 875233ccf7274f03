"""Counters of the metrics, as tests compare them."""

from __future__ import annotations

from quickdraw_dist.base.telemetry import metrics


def metric(name: str, **labels: str) -> float:
    """Return a counter with these labels."""
    return metrics.REGISTRY.get_sample_value(f"quickdraw_{name}_total", labels) or 0.0


def sum_of(name: str) -> float:
    """Return a counter summed over all labels."""
    return sum(
        sample.value
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"quickdraw_{name}_total"
    )
