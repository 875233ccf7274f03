"""A real Prometheus server scrapes a two-rank run, before and after it is stopped and resumed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from jobs import shard
from tests.cluster.support.metric_units import UNITS
from tests.cluster.support.scraping import Prometheus, Run, free_ports, needs_prometheus

pytestmark = needs_prometheus


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


@pytest.fixture
def server(tmp_path: Path, ports: list[int]) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path, ports)
    yield prometheus
    prometheus.close()


def test_scraped_before_and_after_a_restart(
    tmp_path: Path, server: Prometheus, ports: list[int]
) -> None:
    """Prometheus knows help, type and unit of every metric, and promtool finds no fault. Counters
    of the run continue after a resume; those of the process start at zero."""
    data, output = tmp_path / "shards", tmp_path / "run"
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", str(data), "--shard.block", "64"])
    run = Run(str(data), str(output), ports[0])
    try:
        server.wait('quickdraw_evaluation_accuracy_ratio{split="val", metric="top1"}', run)
        check_metadata(server)
        for port in ports[:2]:
            check_with_promtool(port)
        assert "stopped by a signal and saved" in run.stop()
        meta = json.loads((max((output / "checkpoints").iterdir()) / "meta.json").read_text())
        at_rest = time.time()

        run = Run(str(data), str(output), ports[0])
        assert set(server.wait("quickdraw_restarts_total == 1", run)) == {
            f"127.0.0.1:{port}" for port in ports[:2]
        }
        steps = server.wait(f"quickdraw_steps_total > {meta['step']}", run)
        drawings = server.wait(f"quickdraw_drawings_total > {meta['drawings']}", run)
        begun = server.wait("quickdraw_step_seconds_count > 0", run)
        for instance, count in steps.items():
            assert drawings[instance] >= count * run.BATCH
            assert begun[instance] < drawings[instance] / run.BATCH
        assert set(server.wait("quickdraw_skipped_steps_total", run).values()) == {0.0}
        past = meta["goodput"]["seconds"]
        for cause in ("train", "evaluation", "checkpoint", "data_wait"):
            going_on = server.wait(f'quickdraw_goodput_seconds_total{{cause="{cause}"}}', run)
            assert min(going_on.values()) >= past[cause]
        lost = server.wait('quickdraw_goodput_seconds_total{cause="restart"}', run)
        assert min(lost.values()) >= past["restart"] + at_rest - meta["goodput"]["until"]
    finally:
        run.kill()


def check_metadata(server: Prometheus) -> None:
    """Check help and unit, which Prometheus and Grafana show for a metric."""
    metadata = server.ask("metadata")
    for name, unit in UNITS.items():
        (facts,) = metadata[f"quickdraw_{name}"]
        assert facts["unit"] == unit, name
        assert facts["help"].endswith("."), name
        series = {"counter": f"{name}_total", "histogram": f"{name}_bucket"}
        assert server.samples(f"quickdraw_{series.get(facts['type'], name)}"), name


def check_with_promtool(port: int) -> None:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
