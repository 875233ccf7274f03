"""Evaluating: what there is nothing of is refused, and external data is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import evaluate
from quickdraw_dist import train
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.run.checkpoint import files
from quickdraw_dist.run.report.page import write_run_report
from tests.data.external import test_run as external
from tests.support import runs
from tests.support.pages import Page

pytestmark = pytest.mark.usefixtures("one_thread")


def test_nothing_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a validation split there are no figures anywhere, and that is said once."""
    data = runs.make_dataset(tmp_path / "data", val_fraction=0, test_fraction=0)
    output = tmp_path / "run"
    assert train.main(runs.settings(data, output)) == 0
    said = capsys.readouterr().out
    assert said.count("no validation split (--shard.val_fraction 0): nothing is measured") == 1
    assert "validation after" not in said and "top-1" not in said
    kinds = [json.loads(line)["kind"] for line in (output / "metrics.jsonl").open()]
    assert "validation" not in kinds and kinds[-1] == "end"
    meta = runs.last_meta(output)
    assert meta["validation"] is None and files.score(meta, "top1") is None
    page = Page(Path(write_run_report(str(output))))
    assert "0.00%" not in page.text("main") and "Validation" not in page.text("h2")
    for split in ("val", "test"):
        with pytest.raises(RefusedError) as refused:
            evaluate.main(["--checkpoint", str(output), "--data", str(data), "--split", split])
        assert (refused.value.subject, refused.value.value) == ("--split", split)
        assert "Use --split train, or shard again" in refused.value.remedy
    assert list(output.glob("report-*")) == []


def test_either_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of one channel and 28 pixels is evaluated on bitmaps and on strokes, whichever it
    was trained on, with the same result up to rounding; one of more channels on strokes only."""
    contents = ("strokes", "bitmaps")
    data = {content: runs.make_dataset(tmp_path / content, content=content) for content in contents}
    further = ["--strokes.channels", "4"]
    trained = [("strokes", "strokes", []), ("bitmaps", "bitmaps", []), ("4", "strokes", further)]
    for name, content, extra in trained:
        arguments = runs.settings(data[content], tmp_path / name, "--train.epochs", "1", *extra)
        assert train.main(arguments) == 0
    capsys.readouterr()

    def measure(name: str, content: str) -> dict[str, float]:
        chosen = ["--checkpoint", str(tmp_path / name), "--data", str(data[content])]
        evaluate.main([*chosen, "--split", "val", "--train.device", "cpu"])
        found: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    for name, content in (("strokes", "bitmaps"), ("bitmaps", "strokes"), ("4", "strokes")):
        validation = runs.last_meta(tmp_path / name)["validation"]
        assert measure(name, content)["loss"] == pytest.approx(validation["loss"], abs=2e-3)
    with pytest.raises(RefusedError) as refused:
        measure("4", "bitmaps")
    assert refused.value.subject == "--data"
    assert "holds bitmaps, and" in refused.value.problem
    assert "was trained on strokes-28-4" in refused.value.problem


def test_external_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluated from tars, by split or by pattern, with the class names of the checkpoint."""
    data, output = tmp_path / "data", tmp_path / "run"
    external.write_shards(data / "train", [70, 60])
    external.write_shards(data / "val", [40, 13])
    assert train.main(external.settings(data, output, "--train.epochs", "1")) == 0
    measured = runs.last_meta(output)["validation"]
    common = ["--checkpoint", str(output), "--stream.reader", "webdataset"]
    common += ["--train.device", "cpu"]
    for where in (
        ["--data", str(data)],
        ["--data", str(data / "val" / "x-{00..01}.tar")],
        ["--data", str(data / "train"), "--stream.validation_data", str(data / "val")],
    ):
        evaluate.main([*common, *where, "--split", "val"])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["drawings"] == 53
        assert found["top1"] == pytest.approx(measured["top1"], abs=1e-5)
    evaluate.main([*common, "--data", str(data), "--split", "train"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["drawings"] == 130
    with pytest.raises(RefusedError) as refused:
        evaluate.main([*common, "--data", str(data)])
    assert refused.value.problem == "no .tar file there for --split test"
    with pytest.raises(RefusedError) as refused:
        evaluate.main([*common, "--data", str(data / "val"), "--stream.class_names", "a", "b"])
    assert "has 2 classes" in refused.value.problem
