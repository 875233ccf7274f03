"""The training command as users see it: errors, progress lines, files, metrics endpoint."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs import evaluate, shard
from quickdraw_dist import train
from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.distributed import exits
from tests.support import runs
from tests.support.gcs.local import Store


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 synthetic drawings of 4 classes."""
    folder = tmp_path_factory.mktemp("train") / "shards"
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", str(folder), "--shard.block", "64"])
    return folder


def free_port() -> int:
    """Return a port that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A finished run, what it printed, and its metrics as scraped in the middle of it."""
    output, port = tmp_path_factory.mktemp("run"), free_port()
    command = [sys.executable, "-m", "quickdraw_dist.train", "--data", str(dataset)]
    command += ["--output", str(output), "--train.epochs", "2", "--train.global_batch", "64"]
    command += ["--train.log_every", "2", "--model.width", "4", "--metrics.port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines, scraped = [], ""
    for line in process.stdout:
        lines.append(line)
        if line.startswith("validation") and not scraped:
            url = f"http://127.0.0.1:{port}/metrics"
            scraped = urllib.request.urlopen(url).read().decode()
    assert process.wait() == 0, lines
    return output, "".join(lines), scraped


def test_progress_lines_are_complete(run: tuple[Path, str, str]) -> None:
    """A line has epoch, speed, loss, accuracy, data wait and time left."""
    output, said, _ = run
    line = next(line for line in said.splitlines() if line.startswith("epoch"))
    for word in ("epoch 1/2", "step 2/5", "drawings/s", "loss", "accuracy", "data wait", "left"):
        assert word in line
    assert "drops 40, other ones in every epoch" in said
    assert not (output / "profile").exists() and not (output / "skipped").exists()
    assert str(output) in said


def test_metrics_file_has_every_log_interval_and_validation(run: tuple[Path, str, str]) -> None:
    """One JSON object per line, in order of steps."""
    records = runs.records(run[0])
    assert [r["step"] for r in records] == sorted(r["step"] for r in records)
    assert [r["kind"] for r in records].count("validation") == 2
    last = [r for r in records if r["kind"] == "train"][-1]
    assert (last["step"], last["drawings"], last["epoch"]) == (10, 640, 2.0)
    assert last["loss"] < 2 and 0 <= last["data_wait_share"] <= 1


def test_prometheus_endpoint_has_the_metrics_of_the_run(run: tuple[Path, str, str]) -> None:
    """Counters and gauges have the values of the run."""
    figures = dict(line.rsplit(" ", 1) for line in run[2].splitlines() if line[0] != "#")
    assert float(figures["quickdraw_drawings_total"]) == 320
    assert float(figures["quickdraw_steps_total"]) == 5
    assert float(figures["quickdraw_step_seconds_count"]) == 5
    assert 0 < float(figures["quickdraw_loss"]) < 5
    assert 'quickdraw_goodput_seconds_total{cause="train"}' in figures


def test_meta_json_is_enough_without_the_dataset(run: tuple[Path, str, str], dataset: Path) -> None:
    """A checkpoint has all that export and serving need."""
    newest = max((run[0] / "checkpoints").iterdir())
    meta = json.loads((newest / "meta.json").read_text())
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert meta["classes"] == manifest["classes"]
    assert meta["dataset_digest"] == manifest["digest"]
    assert meta["normalisation"]["mean"] == manifest["pixel_mean"]
    assert meta["validation"]["drawings"] == sum(manifest["per_class"]["val"])
    assert meta["drawings"] == 640 and meta["config"]["model"]["width"] == 4


def test_evaluate_writes_a_report(
    run: tuple[Path, str, str], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's folder names its best checkpoint; the metrics are the last line, as JSON."""
    evaluate.main(["--checkpoint", str(run[0]), "--data", str(dataset), "--split", "val"])
    *_, said, figures = capsys.readouterr().out.strip().splitlines()
    meta = json.loads((max((run[0] / "checkpoints").iterdir()) / "meta.json").read_text())
    measured = json.loads(figures)
    best = max(
        json.loads((folder / "meta.json").read_text())["validation"]["top1"]
        for folder in (run[0] / "checkpoints").iterdir()
    )
    assert measured["top1"] == pytest.approx(best)
    assert measured["drawings"] == meta["validation"]["drawings"]
    assert (run[0] / "report-val" / "index.html").stat().st_size > 10_000
    assert "index.html" in said


def test_evaluate_writes_a_report_into_a_store(
    run: tuple[Path, str, str],
    dataset: Path,
    store: Store,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The report of a run in gs:// is written next to its checkpoints."""
    store.upload(run[0], "gs://bucket/run")
    evaluate.main(["--checkpoint", "gs://bucket/run", "--data", str(dataset), "--split", "val"])
    *_, said, figures = capsys.readouterr().out.strip().splitlines()
    assert said == "report: gs://bucket/run/report-val/index.html"
    assert storage.size("gs://bucket/run/report-val/index.html") > 10_000
    kept = json.loads(storage.read("gs://bucket/run/report-val/evaluation.json"))
    assert kept["drawings"] == json.loads(figures)["drawings"]


def test_a_run_that_explodes_ends_and_keeps_its_checkpoint(dataset: Path, tmp_path: Path) -> None:
    """A learning rate of 1e30 makes losses infinite: steps are skipped, recorded and reported, then
    the run ends with advice. The weights saved before are finite."""
    command = [sys.executable, "-m", "quickdraw_dist.train", "--data", str(dataset)]
    command += ["--output", str(tmp_path), "--train.epochs", "9", "--train.global_batch", "64"]
    command += ["--model.width", "4", "--metrics.port", "0", "--train.log_every", "2"]
    command += runs.NO_PAGE
    command += ["--optimizer.learning_rate", "1e30", "--train.max_skipped", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "7 steps in a row were skipped" in done.stderr or "8 steps in a row" in done.stderr
    assert "--optimizer.learning_rate" in done.stderr and "Traceback" not in done.stderr
    assert " SKIPPED: " in done.stdout
    files = sorted((tmp_path / "skipped").iterdir())
    assert len(files) >= 7
    (part,) = json.loads(files[0].read_text())["ranks"]
    assert sum(len(rows) for rows in part["rows_by_class"].values()) == 64
    newest = max((tmp_path / "checkpoints").iterdir())
    assert json.loads((newest / "meta.json").read_text())["skipped_steps"] > 0
    weights = load_file(newest / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    records = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in records and '"loss": null' in records


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one error line of a command that cannot work; exit code 2."""
    try:
        code = train.main(list(arguments))
    except SystemExit as end:
        code = end.code
    assert code == 2
    return capsys.readouterr().err


def test_missing_dataset_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of a missing dataset has the command that makes it."""
    said = refused(capsys, "--data", str(tmp_path / "none"))
    assert f"make shard DEST={tmp_path / 'none'}" in said and "no dataset" in said


def test_unknown_setting_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    """The error of an unknown setting names the setting that was meant."""
    assert "--train.global_batch" in refused(capsys, "--train.globalbatch", "3")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--train.global_batch", "1"],
            ["global_batch 1:", "world size 2", "--train.global_batch 64"],
        ),
        (["--train.global_batch", "63"], ["gcd(63, 64) = 1", "global_batch 64"]),
        (["--train.global_batch", "64", "--stream.lanes", "24"], ["24", "does not divide", "64"]),
        (
            ["--train.global_batch", "4096"],
            ["only 360 drawings", "--train.global_batch 360 or less"],
        ),
        (["--train.device", "cuda"], ["no CUDA device", "--train.device cpu"]),
        (["--model.name", "sketchcn"], ["sketchcn", "Did you mean 'sketchcnn'"]),
    ],
)
def test_impossible_settings_under_two_ranks(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    """Impossible settings are errors before the ranks meet (there is no second one here)."""
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    said = refused(capsys, "--data", str(dataset), "--output", str(tmp_path / "run"), *arguments)
    for part in parts:
        assert part in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("said", [True, False])
def test_other_ranks_leave_it_to_the_first_to_complain(
    said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They wait for it, since torchrun would end it if they left; what it does not say, they do."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    first, own = (tmp_path / rank / "error.json" for rank in ("0", "1"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(own))
    monkeypatch.setattr(exits, "_FIRST_RANK_GRACE_SECONDS", 60.0 if said else 0.05)
    with ThreadPoolExecutor(1) as pool:
        complaint = pool.submit(exits.report, RefusedError("no such setting"))
        if said:
            assert not own.exists()
            first.write_text("{}")
        assert complaint.result() == 2
    assert json.loads(own.read_text())["message"] == "error: no such setting"
    assert capsys.readouterr().err == ("" if said else "error: no such setting\n")
