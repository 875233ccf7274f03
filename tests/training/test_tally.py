"""Metrics of steps: every step is read once, and a skipped step is in no mean."""

from __future__ import annotations

from math import inf, isfinite, isnan, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.run.position import TrainingMetrics
from quickdraw_dist.training.tally import StepMetrics, Tally

NUMBERS = st.one_of(st.floats(0, 1e6, width=32), st.sampled_from([nan, inf]))


@given(st.lists(st.tuples(NUMBERS, st.integers(0, 100), NUMBERS), max_size=30), st.data())
def test_every_step_is_read_once(
    steps: list[tuple[float, int, float]], data: st.DataObject
) -> None:
    """Each read returns the metrics of the steps since the last one, in order."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(steps)), max_size=4)))
    tally, seen = Tally(), StepMetrics([], [], [], [])
    for start, stop in zip([0, *cuts], [*cuts, len(steps)], strict=True):
        for step in steps[start:stop]:
            tally.add(*(torch.tensor(float(value)) for value in step))
        read = tally.read()
        for name in ("losses", "own_losses", "correct", "norms"):
            getattr(seen, name).extend(getattr(read, name))
    expected = [list(column) for column in zip(*steps, strict=True)] or [[], [], []]
    for found, wanted in zip((seen.losses, seen.correct, seen.norms), expected, strict=True):
        assert found == pytest.approx(wanted, nan_ok=True)
    assert seen.own_losses == pytest.approx(seen.losses, nan_ok=True)  # a single rank
    assert seen.skipped() == [at for at, (_, _, norm) in enumerate(steps) if not isfinite(norm)]


def test_means_skip_nan_and_inf() -> None:
    """Two good steps of 4 drawings around a bad one: the mean is over 8 drawings."""
    metrics = StepMetrics([8.0, nan, 4.0], [8.0, nan, 4.0], [1.0, 0.0, 3.0], [2.0, 1.0, nan])
    assert metrics.summary(4, 0.1) == TrainingMetrics(1.5, 0.5, 1.0, 0.1)
    assert StepMetrics([1.0], [1.0], [1.0], [inf]).skipped() == [0]


def test_only_bad_steps_have_no_mean() -> None:
    """NaN, not 0, which would be a perfect loss."""
    counts = StepMetrics([inf], [inf], [0.0], [nan]).summary(4, 0.1)
    assert isnan(counts.loss) and isnan(counts.accuracy) and isnan(counts.gradient_norm)
