"""Metrics: what Prometheus scrapes, and that every second is charged to one cause."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from quickdraw_dist import telemetry
from quickdraw_dist.telemetry import CAUSES, REGISTRY, Goodput


class Clock:
    """A monotonic clock that a test moves; whole seconds, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def exported(cause: str) -> float:
    """Goodput seconds of a cause, as Prometheus sees them."""
    return REGISTRY.get_sample_value("quickdraw_goodput_seconds_total", {"cause": cause}) or 0.0


# -- exposition ------------------------------------------------------------------------------------


def test_exposition_follows_the_conventions() -> None:
    """Dashboards and alerts are written against these names: prefix, help, _total, base units."""
    telemetry.STORE_REQUESTS.labels("read").inc()
    telemetry.GOODPUT_SECONDS.labels("train").inc()
    families = list(text_string_to_metric_families(generate_latest(REGISTRY).decode()))
    assert len({family.name for family in families}) == len(families) > 20
    for family in families:
        assert family.name.startswith("quickdraw_")
        assert family.documentation.endswith("."), f"{family.name} has no sentence of help"
        if family.type == "counter":
            assert all(s.name.endswith(("_total", "_created")) for s in family.samples)
        assert not family.name.endswith(("_ms", "_milliseconds", "_mb", "_percent"))


def test_step_histogram_covers_fast_and_slow_steps() -> None:
    """A step takes 2 ms on a GPU and seconds on a laptop; both must fall between buckets."""
    families = text_string_to_metric_families(generate_latest(REGISTRY).decode())
    (histogram,) = (f for f in families if f.name == "quickdraw_step_seconds")
    bounds = [float(s.labels["le"]) for s in histogram.samples if s.name.endswith("_bucket")]
    assert bounds == sorted(bounds)
    assert bounds[0] <= 0.002
    assert bounds[-2] >= 10


# -- goodput ---------------------------------------------------------------------------------------


def test_starting_is_charged_to_restart(clock: Clock) -> None:
    """Everything before the first step is lost to starting."""
    goodput = Goodput()
    clock.now += 7
    assert goodput.switch("train") == 7
    assert goodput.seconds["restart"] == 7


def test_during_nests(clock: Clock) -> None:
    """A checkpoint inside an evaluation is charged to the checkpoint, the rest to evaluation."""
    goodput = Goodput()
    goodput.switch("train")
    clock.now += 1
    with goodput.during("evaluation"):
        clock.now += 2
        with goodput.during("checkpoint"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    goodput.switch("data_wait")
    assert goodput.seconds == dict.fromkeys(CAUSES, 0) | {
        "train": 17,
        "evaluation": 10,
        "checkpoint": 4,
    }


def test_during_ends_with_an_error(clock: Clock) -> None:
    """A failed checkpoint must not charge the rest of the run to checkpoints."""
    goodput = Goodput()
    goodput.switch("train")
    with pytest.raises(OSError, match="disk full"), goodput.during("checkpoint"):
        clock.now += 2
        raise OSError("disk full")
    clock.now += 4
    goodput.switch("train")
    assert (goodput.seconds["checkpoint"], goodput.seconds["train"]) == (2, 4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(CAUSES), st.booleans())))
def test_causes_add_up_to_the_wall(moves: list[tuple[int, str, bool]]) -> None:
    """Whatever happens in whatever order, no second is lost or charged twice, in the report or
    in Prometheus."""
    clock = Clock()
    before = {cause: exported(cause) for cause in CAUSES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "time", SimpleNamespace(monotonic=clock.monotonic))
        goodput = Goodput()
        for seconds, cause, nested in moves:
            clock.now += seconds
            if nested:
                with goodput.during(cause):
                    clock.now += seconds
            else:
                goodput.switch(cause)
        goodput.switch("train")
    assert sum(goodput.seconds.values()) == clock.now - 1000
    for cause in CAUSES:
        assert exported(cause) - before[cause] == pytest.approx(goodput.seconds[cause])


def test_resume_adds(clock: Clock) -> None:
    """Goodput is of the whole run: a resumed process goes on from the checkpoint's seconds, and
    what it spent on starting so far stays."""
    before = exported("train")
    goodput = Goodput()
    clock.now += 3
    goodput.switch("compile")
    goodput.resume({"train": 100.0, "restart": 10.0})
    clock.now += 5
    goodput.switch("train")
    assert goodput.seconds == dict.fromkeys(CAUSES, 0) | {
        "train": 100,
        "restart": 13,
        "compile": 5,
    }
    assert exported("train") - before == 100


# -- the endpoint ----------------------------------------------------------------------------------


def serve_somewhere(host: str) -> int:
    """Serve on a free port; another process may take one between our look and its use."""
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if telemetry.serve(host, port):
            return port


@pytest.fixture(scope="module")
def port() -> int:
    return serve_somewhere("127.0.0.1")


def test_scrape(port: int) -> None:
    """A real HTTP scrape returns what this process counts."""
    telemetry.STEPS.inc(3)
    with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (total,) = (s for s in families["quickdraw_steps"].samples if s.name.endswith("_total"))
    assert total.value == REGISTRY.get_sample_value("quickdraw_steps_total") >= 3


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_taken_port(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A second job on the node trains without an endpoint, and says once why and what to do."""
    assert telemetry.serve("127.0.0.1", taken) is False
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert f"127.0.0.1:{taken}" in line
    assert "--metrics.port" in line
    assert output.out == ""


def test_address_of_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong metrics.host is no reason not to train either."""
    assert telemetry.serve("192.0.2.1", 9400) is False  # RFC 5737: nobody's address
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_listens_only_where_it_is_told(port: int) -> None:
    """Metrics are for this machine unless metrics.host opens them."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port)).close()
    everywhere = serve_somewhere("0.0.0.0")
    socket.create_connection(("127.0.0.2", everywhere)).close()
