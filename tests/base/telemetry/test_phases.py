"""The clock of a process: every second is charged to one cause, and the run point is known."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.telemetry import phases as module
from quickdraw_dist.base.telemetry.metrics import CAUSES, REGISTRY
from quickdraw_dist.base.telemetry.phases import CAUSE_OF, PHASES, Phases, RunPoint


class Clock:
    """Both clocks, moved by a test; whole seconds, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def exported(cause: str) -> float:
    """Goodput seconds of a cause, as Prometheus sees them."""
    return REGISTRY.get_sample_value("quickdraw_goodput_seconds_total", {"cause": cause}) or 0.0


def charged(phases: Phases) -> dict[str, float]:
    """The causes that were charged anything."""
    return {cause: seconds for cause, seconds in phases.now().items() if seconds}


# -- seconds ---------------------------------------------------------------------------------------


def test_starting_is_charged_to_restart_and_what_follows_a_wait_to_training(clock: Clock) -> None:
    phases = Phases()
    clock.now += 7
    with phases("data wait", 0):
        clock.now += 2
    clock.now += 30
    assert charged(phases) == {"restart": 7, "data_wait": 2, "train": 30}


def test_phases_nest(clock: Clock) -> None:
    """A checkpoint inside an evaluation is charged to the checkpoint, the rest to evaluation."""
    phases = Phases()
    with phases("evaluation", 1):
        clock.now += 2
        with phases("checkpoint", 1):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert charged(phases) == {"evaluation": 10, "checkpoint": 4, "restart": 16}


def test_a_phase_ends_with_an_error(clock: Clock) -> None:
    """A failed checkpoint must not charge the rest of the run to checkpoints."""
    phases = Phases()
    with pytest.raises(OSError, match="disk full"), phases("checkpoint", 1):
        clock.now += 2
        raise OSError("disk full")
    clock.now += 4
    assert charged(phases) == {"checkpoint": 2, "restart": 4}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(PHASES), st.booleans())))
def test_causes_add_up_to_the_wall(moves: list[tuple[int, str, bool]]) -> None:
    """In whatever order phases come, no second is lost or charged twice, in the report or in
    Prometheus."""
    clock = Clock()
    before = {cause: exported(cause) for cause in CAUSES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        phases = Phases()
        for seconds, phase, nested in moves:
            clock.now += seconds
            with phases(phase, 0):
                clock.now += seconds
                if nested:
                    with phases("forward", 0):
                        clock.now += seconds
        phases.now()
    assert sum(phases.seconds.values()) == clock.now - 1000
    for cause in CAUSES:
        assert exported(cause) - before[cause] == pytest.approx(phases.seconds[cause])


def test_resume_adds(clock: Clock) -> None:
    """A resumed process continues from the checkpoint's seconds; its own start-up stays, and the
    time between is charged to the restart."""
    phases = Phases()
    with phases("forward", 0):
        clock.now += 100
    saved = phases.state()
    clock.now += 20  # done again later
    before = exported("train")
    clock.now += 300  # nothing runs
    phases = Phases()
    clock.now += 3
    with phases("compile", 0):
        phases.resume(saved)
        clock.now += 5
    assert charged(phases) == {"train": 100, "restart": 323, "compile": 5}
    assert exported("train") - before == 100


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100)), min_size=1)
)
def test_causes_add_up_over_restarts(lives: list[tuple[int, int, int]]) -> None:
    """However often a run dies: the causes are the wall time since its first start. A life is the
    seconds up to its checkpoint, from there to its death, and until the next life begins."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        saved = None
        for saving, dying, lying in lives:
            phases = Phases()
            if saved is not None:
                phases.resume(saved)
            with phases("forward", 0):
                clock.now += saving
            saved = json.loads(json.dumps(phases.state()))
            assert sum(phases.seconds.values()) == clock.now - 1000
            clock.now += dying + lying


def test_a_clock_that_was_set_back_takes_nothing_away(clock: Clock) -> None:
    """Counters never fall."""
    phases = Phases()
    phases.resume({"until": clock.time() + 60, "seconds": {"train": 5.0}})
    assert phases.seconds["restart"] == 0


# -- points ----------------------------------------------------------------------------------------


def test_points_are_in_the_order_of_the_run() -> None:
    """A step begins with what follows the step before it; a later batch is a later point."""
    run = [
        RunPoint(step, PHASES.index(phase), count)
        for step in (7, 8)
        for phase in ("evaluation", "checkpoint", "data wait", "forward", "backward", "optimizer")
        for count in (0, 1)
    ]
    assert run == sorted(run)
    assert str(run[1]) == "evaluation of step 7, batch 1"
    assert str(run[4]) == "data wait of step 7"


def test_the_point_of_the_main_thread() -> None:
    """Where a phase or a tracked item began; a step is done after its optimizer."""
    phases = Phases()
    with phases("forward", 3, 1):
        assert phases.current.point == RunPoint(3, PHASES.index("forward"), 1)
    assert [phases.current.point.count for _ in phases.track("evaluation", 4, "abc")] == [1, 2, 3]
    with phases("optimizer", 4):
        pass
    assert not phases.current.stepped
    phases.enter("data wait", 5)
    assert phases.current.stepped


def test_every_phase_has_a_cause() -> None:
    assert set(CAUSE_OF.values()) == set(CAUSES)
