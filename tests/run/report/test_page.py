"""The page of a run: written at its end and by the job, from a folder or a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs import report, shard
from quickdraw_dist.base import storage
from quickdraw_dist.run.report.page import write_run_report
from tests.support.gcs.local import Store
from tests.support.pages import Page

CURVES = {"loss", "accuracy", "learning_rate", "speed", "goodput"}


@dataclass(frozen=True)
class Run:
    folder: Path
    output: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of two epochs, one process, with its page."""
    root = tmp_path_factory.mktemp("report")
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", str(root / "shards"), "--shard.block", "64"])
    command = [sys.executable, "-m", "quickdraw_dist.train", "--data", str(root / "shards")]
    command += ["--output", str(root / "run"), "--train.epochs", "2", "--metrics.port", "0"]
    command += ["--train.global_batch", "64", "--train.log_every", "1", "--model.width", "4"]
    output = subprocess.check_output(
        [*command, "--train.device", "cpu", "--metrics.report", "true"], text=True
    )
    return Run(root / "run", output)


def test_made_at_the_end_of_a_run(run: Run) -> None:
    """Every curve, the metrics of the last validation as metrics.jsonl has them, and the settings,
    in one file that loads nothing."""
    page = Page(run.folder / "report.html")
    assert run.output.splitlines()[-1] == f"report: {run.folder}/report.html"
    ids = [attributes.get("id") for _, attributes in page.tags]
    assert CURVES | {"confusion", "classes", "table"} <= set(ids)
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    top1 = [r["top1"] for r in records if r["kind"] == "validation"][-1]
    tiles = page.texts["dd"]
    assert tiles.count(f"{100 * top1:.2f}%") >= 2  # of the run, and of its validation
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) >= len(CURVES) + 2
    assert all((a["src"] or "").startswith("data:image/png;base64,") for a in pictures)
    assert any("global_batch: 64" in text for text in page.texts["pre"])
    assert any("sketchcnn" in text for text in page.texts["bdi"])


def test_written_by_the_job(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same page, from the run's folder alone."""
    page = run.folder / "report.html"
    before = page.read_bytes()
    page.unlink()
    report.main([str(run.folder)])
    assert capsys.readouterr().out == f"report: {page}\n"
    assert page.read_bytes() == before


def test_an_unfinished_run_in_a_store(run: Run, store: Store) -> None:
    """A page without an end, a validation and a checkpoint."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    text = "".join(lines[:4] + [line.replace('"step": 0', '"step": 3') for line in lines[:1]])
    storage.publish("gs://bucket/run/metrics.jsonl", text.encode())
    assert write_run_report("gs://bucket/run") == "gs://bucket/run/report.html"
    page = storage.read("gs://bucket/run/report.html").decode()
    assert "The run has not finished." in page
    assert 'id="loss"' in page and 'id="confusion"' not in page
    assert "<dt>Restarts</dt><dd>1</dd>" in page


def test_a_run_ends_well_without_the_extra(run: Run, tmp_path: Path) -> None:
    """It prints what to install and how to write the page later, and stores what that needs."""
    blocked = tmp_path / "blocked"
    for package in ("jinja2", "matplotlib"):
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text(
            f"raise ModuleNotFoundError('No module named {package}', name='{package}')"
        )
    output = tmp_path / "run"
    command = [sys.executable, "-m", "quickdraw_dist.train", "--output", str(output)]
    command += ["--data", str(run.folder.parent / "shards"), "--train.epochs", "1"]
    command += ["--train.global_batch", "64", "--model.width", "4", "--metrics.port", "0"]
    environment = os.environ | {"PYTHONPATH": f"{blocked}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, "--train.device", "cpu", "--metrics.report", "true"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert "pip install 'quickdraw-dist[report]'" in last
    assert last.endswith(f"To write it later: python -m jobs.report {output}")
    report.main([str(output)])
    assert 'id="confusion"' in (output / "report.html").read_text()
