"""A host that dies without a word: the others end within their limit, and name it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.cluster.support.hosts import Host, Network, require
from tests.support import runs

STALL_SECONDS = 6.0

ROOT = Path(__file__).resolve().parents[2]


def test_the_survivor_ends_and_names_the_host_that_is_gone(tmp_path: Path) -> None:
    """The store where the ranks met is on that host: a request to it blocks for 15 minutes."""
    require()
    data = runs.make_dataset(tmp_path / "shards", per_class=400)
    network = Network(tmp_path, {"first": "10.77.0.1", "second": "10.77.0.2"})
    command = [sys.executable, "-m", "quickdraw_dist.train"]
    command += runs.settings(data, tmp_path / "run", "--train.epochs", "1000000")
    command += ["--train.stall_seconds", str(STALL_SECONDS), "--checkpoint.every_drawings", "640"]
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
    environment |= {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT)}
    hosts = [
        Host(
            network,
            name,
            command,
            log=tmp_path / name,
            environment=environment | {"RANK": str(rank)},
        )
        for rank, name in enumerate(network.addresses)
    ]
    try:
        checkpoints = tmp_path / "run" / "checkpoints"
        while not (checkpoints.exists() and any(checkpoints.glob("*/meta.json"))):
            assert hosts[1].process.poll() is None, (tmp_path / "second").read_text()
            time.sleep(0.1)
        hosts[0].die()
        died = time.monotonic()
        code = hosts[1].process.wait()
        said = (tmp_path / "second").read_text()
        assert code == 1, said
        assert "watchdog: rank 0 (which keeps the store" in said
        assert "watchdog: rank 1 waits for it" in said
        # A kernel gives up after 15 minutes; a busy machine gets more than the limit needs.
        assert time.monotonic() - died < 240
    finally:
        for host in hosts:
            host.close()
        network.close()
