"""Which steps fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu.plan import STEPS, Step, allot

seconds = st.integers(0, 1_000)
steps = st.lists(st.tuples(seconds, seconds), max_size=6).map(
    lambda pairs: [Step(str(i), least, least + more) for i, (least, more) in enumerate(pairs)]
)


@given(left=st.integers(-10, 3_000), steps=steps)
def test_limits_fit_the_time_and_the_steps(left: int, steps: list[Step]) -> None:
    limits = allot(left, steps)
    assert sum(limits.values()) <= max(0, left)
    assert list(limits) == [step.name for step in steps if step.name in limits]
    for step in steps:
        if step.name in limits:
            assert step.least <= limits[step.name] <= step.most


@given(left=st.integers(1, 3_000), steps=steps)
def test_a_step_is_skipped_only_for_worthier_ones(left: int, steps: list[Step]) -> None:
    limits = allot(left, steps)
    for index, step in enumerate(steps):
        worthier = sum(other.least for other in steps[:index] if other.name in limits)
        assert (step.name in limits) == (worthier < left and worthier + step.least <= left)


@given(left=st.integers(1, 3_000), steps=steps)
def test_no_time_is_left_that_a_step_could_use(left: int, steps: list[Step]) -> None:
    limits = allot(left, steps)
    spare = left - sum(limits.values())
    assert spare == 0 or all(limits[s.name] == s.most for s in steps if s.name in limits)


@given(left=st.integers(1, 3_000), more=st.integers(0, 1_000), steps=steps)
def test_more_time_never_skips_the_first_step(left: int, more: int, steps: list[Step]) -> None:
    for step in steps[:1]:
        before, after = (step.name in allot(time, steps) for time in (left, left + more))
        assert after or not before


def test_eight_minutes() -> None:
    """Everything fits but the second rehearsal; with less time, what needs much is skipped."""
    assert list(allot(600, STEPS)) == [step.name for step in STEPS]
    assert list(allot(472, STEPS)) == [step.name for step in STEPS if step.name != "strokes"]
    assert list(allot(200, STEPS)) == ["facts", "smoke", "tests", "slow-tests"]
    assert list(allot(10, STEPS)) == []
