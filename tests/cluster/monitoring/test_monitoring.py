"""Alerts and dashboard, checked by promtool and by a real Prometheus over runs with faults."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from jobs import shard
from monitoring.dashboard import FILE, text
from monitoring.panels import PANELS, expression
from tests.cluster.support.manifests import ROOT
from tests.cluster.support.scraping import Prometheus, Run, free_ports, needs_prometheus
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

pytestmark = needs_prometheus

ALERTS = ROOT / "monitoring" / "alerts.yaml"
TESTS = ROOT / "monitoring" / "alerts.test.yaml"

SPEED = ("QuickdrawGoodputLow", "QuickdrawDataWait")
"""A run of seconds that always saves and evaluates deserves these."""


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_by_promtool() -> None:
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", TESTS)
    promtool("check", "config", ROOT / "monitoring" / "prometheus.yaml")


def test_every_alert_has_both_tests() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    names = {rule["alert"] for rule in group["rules"]}
    cases = [
        case for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]  # fmt: skip
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_the_dashboard_is_up_to_date() -> None:
    assert FILE.read_text() == text(), "python -m monitoring.dashboard writes it"


def faster(rules: str) -> str:
    """Return the alerts with seconds instead of minutes."""
    rules = rules.replace("1h", "60s").replace("10 * 60", "10")
    return re.sub(r"\b(\d+)m\b", r"\1s", rules)


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


@pytest.fixture
def server(tmp_path: Path, ports: list[int]) -> Iterator[Prometheus]:
    rules = tmp_path / "alerts.yaml"
    rules.write_text(faster(ALERTS.read_text()))
    prometheus = Prometheus(tmp_path, ports, rules)
    yield prometheus
    prometheus.close()


def firing(server: Prometheus) -> set[str]:
    return set(server.samples('ALERTS{alertstate="firing"}', "alertname")) - set(SPEED)


def fires(server: Prometheus, run: Run, alert: str) -> None:
    """Wait until an alert fires."""
    server.wait(f'ALERTS{{alertstate="firing", alertname="{alert}"}}', run, "alertname", 1)


def make_shards(dest: str) -> None:
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", dest, "--shard.block", "64"])


def every_other(wanted: Callable[[Request], bool], reply: Response) -> Callable[..., object]:
    """Return a hook that answers wanted requests with `reply`, but lets repeated ones through."""
    refused: set[str] = set()

    def intercept(request: Request) -> Response | None:
        key = f"{request.method} {request.path} {request.headers.get('Range')}"
        if not wanted(request) or key in refused:
            refused.discard(key)
            return None
        refused.add(key)
        return reply

    return intercept


def test_a_run_from_a_store(store: Store, server: Prometheus, ports: list[int]) -> None:
    """Every panel of the dashboard has data. Without faults no alert fires; then each fault fires
    its own."""
    make_shards("gs://bucket/shards")
    run = Run("gs://bucket/shards", "gs://bucket/run", ports[0], "--stream.cache_bytes", "0")
    try:
        server.wait("quickdraw_evaluation_accuracy_ratio", run)
        server.wait("quickdraw_last_step_timestamp_seconds > 0", run)
        for panel in PANELS:
            for query in panel.queries.values():
                asked = expression(query).replace("$job", "quickdraw")
                asked = asked.replace("$__rate_interval", "5s")
                server.wait(f"({asked}) > -Inf < Inf", run, "instance", 1)  # 0/0 is no data
        server.wait("count_over_time(quickdraw_steps_total[15s]) >= 25", run)
        assert firing(server) == set()

        busy = Response(503)
        store.intercept = every_other(lambda request: request.method == "GET", busy)
        fires(server, run, "QuickdrawStoreRetries")
        store.intercept = None
        # On this clock the seconds that it waited for answers are minutes: it may count as stalled.
        assert firing(server) <= {"QuickdrawStoreRetries", "QuickdrawStalled"}

        store.intercept = lambda r: Response(403) if "upload" in r.path else None
        fires(server, run, "QuickdrawCheckpointFailing")
        store.intercept = None

        run.signal(signal.SIGSTOP)
        fires(server, run, "QuickdrawStalled")
    finally:
        run.kill()


def test_steps_that_are_not_finite(tmp_path: Path, server: Prometheus, ports: list[int]) -> None:
    """A learning rate that no network survives."""
    make_shards(str(tmp_path / "shards"))
    wild = ["--optimizer.learning_rate", "1e30", "--optimizer.warmup_drawings", "0"]
    wild += ["--optimizer.clip_norm", "0", "--train.max_skipped", "1000000"]
    run = Run(str(tmp_path / "shards"), str(tmp_path / "run"), ports[0], *wild)
    try:
        fires(server, run, "QuickdrawNonFiniteSteps")
    finally:
        run.kill()
