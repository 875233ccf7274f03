"""Prometheus finds the ranks of a Slurm job by the file that the job writes."""

from __future__ import annotations

import time
from pathlib import Path

from tests.cluster.support.hosts import require
from tests.cluster.support.manifests import ROOT
from tests.cluster.support.slurm import Slurm

LISTEN = "localhost:9090"


def test_ranks_register_while_they_run(slurm: Slurm, sharded: Path, tmp_path: Path) -> None:
    require("prometheus", "promtool")
    targets = tmp_path / "targets"
    targets.mkdir()
    for name in ("alerts.yaml", "prometheus.yaml"):
        text = (ROOT / "monitoring" / name).read_text()
        text = text.replace("/shared/quickdraw/targets", str(targets)).replace(": 15s", ": 1s")
        (tmp_path / name).write_text(text)
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yaml"]
    command += [f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address={LISTEN}"]
    server = slurm.login.start(*command, log=tmp_path / "log")
    settings = ["--train.global_batch", "96", "--train.epochs", "100000", "--model.width", "4"]
    job = slurm.submit(
        *("--nodes=2", "slurm/train.sh", *settings),
        DEVICE="cpu",
        OMP_NUM_THREADS="1",
        OUTPUT="runs/metrics",
        TARGETS=str(targets),
    )
    query = f'count(quickdraw_steps_total{{job="quickdraw-{job}"}} > 0)'
    ask = f"promtool query instant http://{LISTEN} '{query}' 2>&1 || true"  # not up yet, perhaps
    while "=> 2 @" not in slurm.run("bash", "-c", ask):
        assert slurm.show(job)["JobState"] in ("PENDING", "RUNNING"), slurm.said(job)
        time.sleep(0.5)
    slurm.run("scancel", job)
    assert slurm.wait(job)["JobState"] == "CANCELLED"
    assert list(targets.iterdir()) == []
    server.kill()
    server.wait()
    slurm.login.signal("KILL", "prometheus --config")
