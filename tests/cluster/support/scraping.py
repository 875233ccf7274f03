"""A real Prometheus server, and an endless two-rank run for it to scrape."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

PATIENCE_SECONDS = 300
"""Timeout for another process's work; a run that fails ends the wait at once."""


def free_ports(count: int) -> list[int]:
    """Return consecutive ports that no process listens on now."""
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


class Run:
    """Two ranks that train until they are stopped."""

    BATCH = 64

    def __init__(self, data: str, output: str, port: int, *settings: str) -> None:
        """Start the ranks; their endpoints are at `port` and the next one."""
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["-m", "quickdraw_dist.train", "--data", data, "--output", output]
        command += ["--train.epochs", "100000", "--train.global_batch", str(self.BATCH)]
        command += ["--train.log_every", "1", "--model.width", "4", "--train.device", "cpu"]
        command += ["--metrics.port", str(port), *settings]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def signal(self, number: int) -> None:
        """Send the ranks and torchrun a signal."""
        os.killpg(self.process.pid, number)

    def stop(self) -> str:
        """Stop the run by TERM; returns its output."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate()
        return said

    def kill(self) -> None:
        """Kill the run."""
        self.signal(signal.SIGKILL)
        self.process.communicate()


class Prometheus:
    """A server that scrapes twice a second, under the job `quickdraw`."""

    def __init__(self, folder: Path, ports: list[int], rules: Path | None = None) -> None:
        """Start a server that listens on the last of the ports and scrapes the others."""
        *scraped, own = ports
        targets = [f"127.0.0.1:{port}" for port in scraped]
        config = {
            "global": {
                "scrape_interval": "500ms",
                "scrape_timeout": "500ms",
                "evaluation_interval": "500ms",
            },
            "scrape_configs": [{"job_name": "quickdraw", "static_configs": [{"targets": targets}]}],
            "rule_files": [] if rules is None else [str(rules)],
        }
        file = folder / "prometheus.yml"
        file.write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{own}"
        command = ["prometheus", f"--config.file={file}", f"--web.listen-address=127.0.0.1:{own}"]
        self._process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={folder / 'tsdb'}"], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "ready to receive web requests" in line:
                return
        raise AssertionError("prometheus ended")

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.communicate()

    def ask(self, path: str, **query: str) -> Any:
        """Return the data of a reply of the server's API."""
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(query)}") as reply:
            return json.load(reply)["data"]

    def samples(self, expression: str, label: str = "instance") -> dict[str, float]:
        """Return the values of an expression by a label."""
        found = self.ask("query", query=expression)["result"]
        return {sample["metric"].get(label, ""): float(sample["value"][1]) for sample in found}

    def wait(
        self, expression: str, run: Run, label: str = "instance", count: int = 2
    ) -> dict[str, float]:
        """Return the samples of an expression as soon as there are two, one per rank."""
        end = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.samples(expression, label)) < count:
            assert run.process.poll() is None, run.process.communicate()
            assert time.monotonic() < end, f"no {expression}, only {found}"
            time.sleep(0.2)
        return found


needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is not installed (Debian: apt-get install prometheus)",
)
