"""Metrics: what Prometheus scrapes, and that every second is charged to one cause."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.base.telemetry.metrics import CAUSES, REGISTRY, Goodput
from tests.cluster.support.metric_units import UNITS


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
    monkeypatch.setattr(telemetry, "time", clock)
    return clock


def exported(cause: str) -> float:
    """Goodput seconds of a cause, as Prometheus sees them."""
    return REGISTRY.get_sample_value("quickdraw_goodput_seconds_total", {"cause": cause}) or 0.0


# -- exposition ------------------------------------------------------------------------------------


def families() -> dict[str, Metric]:
    """What Prometheus asks for and gets: OpenMetrics, which has the units."""
    text = openmetrics.generate_latest(REGISTRY).decode()
    return {f.name.removeprefix("quickdraw_"): f for f in text_string_to_metric_families(text)}


def test_every_metric_has_a_help_and_a_unit() -> None:
    """By the conventions: prefix, a sentence of help, base units that the name ends in."""
    found = families()
    assert UNITS.items() <= {name: family.unit for name, family in found.items()}.items()
    for name, family in found.items():
        assert family.name.startswith("quickdraw_")
        assert family.documentation.endswith("."), f"{name} has no sentence of help"
        assert name.endswith(family.unit)
        if not family.unit:
            assert not name.endswith(("seconds", "bytes", "ratio", "_ms", "_mb", "percent"))
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_labelled_counters_begin_at_zero() -> None:
    """`increase()` does not see the event that a series begins with, and the first lost request is
    the one to be told of."""
    begin = (
        "from prometheus_client import generate_latest; "
        "from quickdraw_dist.base.telemetry import metrics; "
        "print(generate_latest(metrics.REGISTRY).decode())"
    )
    text = subprocess.check_output([sys.executable, "-c", begin], text=True)
    for sample in (
        'store_requests_total{operation="read"}',
        'store_retries_total{kind="503"}',
        'store_errors_total{kind="checksum"}',
        'goodput_seconds_total{cause="restart"}',
    ):
        assert f"quickdraw_{sample} 0.0\n" in text


def test_step_histogram_covers_fast_and_slow_steps() -> None:
    """A step takes 2 ms on a GPU and seconds on a laptop; both must fall between buckets."""
    samples = families()["step_seconds"].samples
    bounds = [float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")]
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
        patch.setattr(telemetry, "time", clock)
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
    """Goodput is of the whole run: a resumed process goes on from the checkpoint's seconds, what
    it spent on starting so far stays, and what lies between is lost to the restart."""
    goodput = Goodput()
    goodput.switch("train")
    clock.now += 100
    saved = goodput.state()
    clock.now += 20  # done again later
    before = exported("train")
    clock.now += 300  # nobody runs
    goodput = Goodput()
    clock.now += 3
    goodput.switch("compile")
    goodput.resume(saved)
    clock.now += 5
    goodput.switch("train")
    assert goodput.seconds == dict.fromkeys(CAUSES, 0) | {
        "train": 100,
        "restart": 323,
        "compile": 5,
    }
    assert exported("train") - before == 100


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100)), min_size=1)
)
def test_causes_add_up_over_restarts(lives: list[tuple[int, int, int]]) -> None:
    """However often a run dies and how long it lies there: the causes are the wall time since its
    first start. A life is seconds up to its checkpoint, from there to its death, and until the
    next one begins."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "time", clock)
        saved = None
        for saving, dying, lying in lives:
            goodput = Goodput()
            if saved is not None:
                goodput.resume(saved)
            goodput.switch("train")
            clock.now += saving
            saved = json.loads(json.dumps(goodput.state()))
            assert sum(goodput.seconds.values()) == clock.now - 1000
            clock.now += dying + lying


def test_a_clock_that_was_set_back_takes_nothing_away(clock: Clock) -> None:
    """Counters never fall."""
    goodput = Goodput()
    goodput.resume({"until": clock.time() + 60, "seconds": {"train": 5.0}})
    assert goodput.seconds["restart"] == 0


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
    """A real HTTP scrape returns what this process counts, with units for who asks as Prometheus
    does."""
    telemetry.STEPS.inc(3)
    kind = "application/openmetrics-text;version=1.0.0"
    with urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": kind})) as reply:
        text = reply.read().decode()
    scraped = {family.name: family for family in text_string_to_metric_families(text)}
    (total,) = scraped["quickdraw_steps"].samples
    assert total.value == REGISTRY.get_sample_value("quickdraw_steps_total") >= 3
    assert scraped["quickdraw_goodput_seconds"].unit == "seconds"


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
