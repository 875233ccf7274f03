"""A real Prometheus server scrapes a two-rank run, before and after it is stopped and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from jobs import shard
from tests.test_telemetry import OF_THE_DESIGN

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is not installed (Debian: apt-get install prometheus)",
)

BATCH = 64
PATIENCE_SECONDS = 300
"""For what another process is to do; a run that fails ends the wait at once."""


def free_ports(count: int) -> list[int]:
    """Consecutive ones that nobody listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return list(range(first, first + count))


@dataclass
class Prometheus:
    """A server, and the run whose metrics are waited for."""

    url: str
    run: subprocess.Popen[str]

    def ask(self, path: str, **query: str) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(query)}") as reply:
            return json.load(reply)["data"]

    def samples(self, expression: str) -> dict[str, float]:
        """Values by instance."""
        found = self.ask("query", query=expression)["result"]
        return {sample["metric"]["instance"]: float(sample["value"][1]) for sample in found}

    def wait(self, expression: str) -> dict[str, float]:
        """The samples of an expression as soon as both ranks have one."""
        end = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.samples(expression)) < 2:
            assert self.run.poll() is None, self.run.communicate()
            assert time.monotonic() < end, f"no {expression}; of the run's: {found}"
            time.sleep(0.2)
        return found


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


@pytest.fixture
def prometheus(tmp_path: Path, ports: list[int]) -> Iterator[str]:
    """The server's address; it scrapes the first two ports."""
    config = tmp_path / "prometheus.yml"
    targets = [f"127.0.0.1:{port}" for port in ports[:2]]
    jobs = [{"job_name": "quickdraw", "static_configs": [{"targets": targets}]}]
    intervals = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    config.write_text(json.dumps({"global": intervals, "scrape_configs": jobs}))
    listen = f"127.0.0.1:{ports[2]}"
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={listen}"]
    server = subprocess.Popen(
        [*command, f"--storage.tsdb.path={tmp_path / 'tsdb'}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    for line in server.stderr:
        if "ready to receive web requests" in line:
            break
    else:
        raise AssertionError("prometheus ended")
    yield f"http://{listen}"
    server.kill()
    server.communicate()


def start(data: Path, output: Path, port: int) -> subprocess.Popen[str]:
    """An endless two-rank run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "quickdraw_dist.train", "--data", str(data), "--output", str(output)]
    command += ["--train.epochs", "100000", "--train.global_batch", str(BATCH)]
    command += ["--train.log_every", "1", "--model.width", "4", "--train.device", "cpu"]
    command += ["--metrics.port", str(port)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def stop(run: subprocess.Popen[str]) -> str:
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate()
    return said


def test_scraped_before_and_after_a_restart(
    tmp_path: Path, prometheus: str, ports: list[int]
) -> None:
    """Every metric has help, type and unit in Prometheus; promtool has nothing to say; the
    counters of the run go on after a resume, the process's own begin anew."""
    data, output = tmp_path / "shards", tmp_path / "run"
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", str(data), "--shard.block", "64"])
    run = start(data, output, ports[0])
    try:
        server = Prometheus(prometheus, run)
        server.wait('quickdraw_evaluation_accuracy_ratio{split="val", metric="top1"}')
        check_metadata(server)
        for port in ports[:2]:
            check_with_promtool(port)
        assert "stopped by a signal; saved" in stop(run)
        meta = json.loads((max((output / "checkpoints").iterdir()) / "meta.json").read_text())
        at_rest = time.time()

        server.run = run = start(data, output, ports[0])
        assert set(server.wait("quickdraw_restarts_total == 1")) == {
            f"127.0.0.1:{port}" for port in ports[:2]
        }
        steps = server.wait(f"quickdraw_steps_total > {meta['step']}")
        drawings = server.wait(f"quickdraw_drawings_total > {meta['drawings']}")
        begun = server.wait("quickdraw_step_seconds_count > 0")
        for instance, count in steps.items():
            assert drawings[instance] >= count * BATCH
            assert begun[instance] < drawings[instance] / BATCH
        assert set(server.wait("quickdraw_skipped_steps_total").values()) == {0.0}
        past = meta["goodput"]["seconds"]
        for cause in ("train", "evaluation", "checkpoint", "data_wait"):
            going_on = server.wait(f'quickdraw_goodput_seconds_total{{cause="{cause}"}}')
            assert min(going_on.values()) >= past[cause]
        lost = server.wait('quickdraw_goodput_seconds_total{cause="restart"}')
        assert min(lost.values()) >= past["restart"] + at_rest - meta["goodput"]["until"]
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def check_metadata(server: Prometheus) -> None:
    """What a person sees who hovers over a metric in Prometheus or Grafana."""
    metadata = server.ask("metadata")
    for name, unit in OF_THE_DESIGN.items():
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
