"""The page of a run: written at its end and by the job, from a folder or a store."""

from __future__ import annotations

import json
import os
import re
import shutil
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
    assert run.output.splitlines()[-3] == f"report: {run.folder}/report.html"
    assert "The run has not finished." not in page.text("p")
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


def test_goodput_ends_with_the_process(run: Run) -> None:
    """The seconds of the page are charged, too: to evaluation, and before the last record."""
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    start, end = records[0], records[-1]
    assert end["kind"] == "end"
    assert end["time"] >= (run.folder / "report.html").stat().st_mtime
    seconds = end["goodput_seconds"]
    assert sum(seconds.values()) == pytest.approx(end["time"] - start["time"], rel=0.01)
    before = [r for r in records if r["kind"] == "train"][-1]["goodput_seconds"]
    validated = [r for r in records if r["kind"] == "validation"][-1]["time"]
    page_seconds = (run.folder / "report.html").stat().st_mtime - validated
    assert page_seconds > 0.1  # it has pictures
    assert seconds["evaluation"] - before["evaluation"] > page_seconds / 2


def test_written_by_the_job(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same page, from the run's folder alone; only the seconds of the first one are new."""

    def without_seconds(text: str) -> str:
        text = re.sub(r"<dt>(Wall time|Training)</dt><dd>[^<]*", "", text)
        return re.sub(r"<img[^>]*>", "", text)

    page = run.folder / "report.html"
    before = page.read_text()
    page.unlink()
    report.main([str(run.folder)])
    assert capsys.readouterr().out == f"report: {page}\n"
    assert without_seconds(page.read_text()) == without_seconds(before)


def test_hardware_of_every_start(run: Run, tmp_path: Path) -> None:
    """A run whose number of ranks changed shows them all, in order, equal ones once."""
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    starts = [json.loads(lines[0]) | {"ranks": ranks} for ranks in (2, 2, 4, 2)]
    text = "\n".join([*map(json.dumps, starts), *lines[1:]])
    (tmp_path / "metrics.jsonl").write_text(text)
    page = Page(Path(write_run_report(str(tmp_path))))
    assert "2 × cpu, fp32, then 4 × cpu, fp32, then 2 × cpu, fp32" in page.text("td")


def test_killed_during_the_report(run: Run, tmp_path: Path) -> None:
    """The last record is missing, but all epochs are saved; more of them make it unfinished."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    for kept, said in ((lines[:-1], False), ([*lines[:-1], lines[0]], True), (lines[:-4], True)):
        (folder / "metrics.jsonl").write_text("\n".join(kept))
        if kept == lines[:-4]:
            shutil.rmtree(folder / "checkpoints")
        page = Path(write_run_report(str(folder))).read_text()
        assert ("The run has not finished." in page) == said


def test_nothing_to_measure_of_an_earlier_release(run: Run, tmp_path: Path) -> None:
    """It logged an accuracy of 0 over no drawings: not shown."""
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    empty = {"drawings": 0, "top1": 0.0, "loss": 0.0}
    records = [r | empty if r["kind"] == "validation" else r for r in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    text = Path(write_run_report(str(tmp_path))).read_text()
    assert "<dt>Top-1</dt><dd>–" in text
    assert f"{records[-1]['drawings']:,} drawings in 2 epochs." in text


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
    last = done.stdout.splitlines()[-3]
    assert "pip install 'quickdraw-dist[report]'" in last
    assert last.endswith(f"To write it later: python -m jobs.report {output}")
    report.main([str(output)])
    assert 'id="confusion"' in (output / "report.html").read_text()
