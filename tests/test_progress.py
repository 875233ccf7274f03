"""Progress: durations as people read them, and intervals that a restart does not shift."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.progress import Interval, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.6, "1:00:00"),
        (3723, "1:02:03"),
        (90_000, "25:00:00"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """The time left is read at a glance, also where rounding carries into minutes and hours."""
    assert duration(seconds) == text


@settings(deadline=None)
@given(st.integers(0, 10**7))
def test_duration_says_the_seconds(seconds: int) -> None:
    """No duration reads as another one: the text is worth its seconds, two digits a place."""
    text = duration(seconds)
    assert re.fullmatch(r"(\d+:[0-5]\d|\d):[0-5]\d|[1-5]\d:[0-5]\d", text)
    worth = 0
    for place in text.split(":"):
        worth = 60 * worth + int(place)
    assert worth == seconds


@settings(deadline=None)
@given(
    every=st.integers(1, 500),
    batch=st.integers(1, 300),
    steps=st.integers(1, 60),
    data=st.data(),
)
def test_interval_fires_the_same_after_any_restart(
    every: int, batch: int, steps: int, data: st.DataObject
) -> None:
    """A run that was preempted anywhere evaluates and saves after the same steps as one that
    never stopped."""
    restart = data.draw(st.integers(0, steps))

    def fired(first: int, last: int) -> list[int]:
        interval = Interval(every)
        return [s for s in range(first, last) if interval.passed(s * batch, (s + 1) * batch)]

    whole = fired(0, steps)
    assert fired(0, restart) + fired(restart, steps) == whole
    # Exactly those steps fire that bring the count to or past a multiple.
    multiples = range(every, steps * batch + 1, every)
    assert whole == sorted({-(-multiple // batch) - 1 for multiple in multiples})


def test_interval_of_zero_never_fires() -> None:
    """evaluation.every_drawings 0 means only at the end of an epoch."""
    assert not any(Interval(0).passed(n, n + 10) for n in range(0, 100, 10))


def test_interval_includes_its_end() -> None:
    """The step that reaches the multiple fires, and the next one does not fire again."""
    interval = Interval(100)
    assert interval.passed(50, 100)
    assert not interval.passed(100, 150)
    assert not interval.passed(0, 99)
