"""Metrics: what Prometheus scrapes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.metrics import REGISTRY
from tests.cluster.support.metric_units import UNITS

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


# -- the endpoint ----------------------------------------------------------------------------------


def serve_somewhere(host: str) -> int:
    """Serve on a free port; another process may take one between our look and its use."""
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if metrics.serve(host, port):
            return port


@pytest.fixture(scope="module")
def port() -> int:
    return serve_somewhere("127.0.0.1")


def test_scrape(port: int) -> None:
    """A real HTTP scrape returns what this process counts, with units for who asks as Prometheus
    does."""
    metrics.STEPS.inc(3)
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
    assert metrics.serve("127.0.0.1", taken) is False
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert f"127.0.0.1:{taken}" in line
    assert "--metrics.port" in line
    assert output.out == ""


def test_address_of_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong metrics.host is no reason not to train either."""
    assert metrics.serve("192.0.2.1", 9400) is False  # RFC 5737: nobody's address
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_listens_only_where_it_is_told(port: int) -> None:
    """Metrics are for this machine unless metrics.host opens them."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port)).close()
    everywhere = serve_somewhere("0.0.0.0")
    socket.create_connection(("127.0.0.2", everywhere)).close()
