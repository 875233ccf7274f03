"""The benchmark of the stroke path: its files, its metrics, and all of it on a few drawings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.strokes.__main__ import key_metrics
from benchmarks.strokes.files import read_class, write_bin, write_ndjson
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.drawings.strokes.arrays import UNKNOWN
from tests.support.data.stroke_files import as_lists, equal

TINY = "synthetic:?classes=3&per_class=20&seed=7"

RATES = {
    "find records: .bin": 9_000,
    "read: .bin": 600,
    "read: .ndjson": 100,
    "decode: stored block to strokes": 2_000,
    "pack: strokes to tiles": 3_000,
    "render: 1 channel": 120,
    "render: 4 channels": 70,
    "draw: cairo, the official pixels": 4,
    "stream: strokes": 900,
    "stream: bitmaps": 1_000,
}


def test_files_hold_the_drawings_as_often_as_asked(tmp_path: Path) -> None:
    source = open_source(TINY, content="strokes")
    write_bin(source, tmp_path / "bin", times=2)
    write_ndjson(source, tmp_path / "ndjson")
    twice = open_source(str(tmp_path / "bin"), source.classes, "strokes")
    once = open_source(str(tmp_path / "ndjson"), source.classes, "strokes")
    assert (twice.counts, once.counts) == ((40,) * 3, (20,) * 3)
    for label in range(3):
        strokes, doubled = read_class(source, label), read_class(twice, label)
        assert equal(read_class(once, label), strokes)
        assert equal(doubled.slice(0, 20), strokes) and equal(doubled.slice(20, 40), strokes)


def test_a_drawing_without_a_verdict_can_be_written(tmp_path: Path) -> None:
    """The binary format has only yes and no."""
    source = open_source(TINY, content="strokes")
    write_ndjson(source, tmp_path / "ndjson")
    file = tmp_path / "ndjson" / f"{source.classes[0]}.ndjson"
    lines = map(json.loads, file.read_text().splitlines())
    kept = ({name: line[name] for name in ("word", "drawing")} for line in lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in kept))
    silent = open_source(str(tmp_path / "ndjson"), source.classes[:1], "strokes")
    assert np.all(read_class(silent, 0).recognized == UNKNOWN)
    write_bin(silent, tmp_path / "bin", times=1)
    written = read_class(open_source(str(tmp_path / "bin"), source.classes[:1], "strokes"), 0)
    assert as_lists(written) == as_lists(read_class(source, 0))
    assert np.all(written.recognized == 1)


def test_the_metrics_are_those_of_their_cases() -> None:
    results = {name: {"per_second": rate} for name, rate in RATES.items()}
    results["render: 1 channel"]["mean_error"] = 1.75
    assert key_metrics(84.5, results) == {
        "bytes_per_drawing": 84.5,
        "decode_drawings_per_second_per_core": 2_000,
        "render_drawings_per_second_per_core": 120,
        "render_4_channels_drawings_per_second_per_core": 70,
        "read_bin_drawings_per_second_per_core": 600,
        "read_ndjson_drawings_per_second_per_core": 100,
        "pack_drawings_per_second_per_core": 3_000,
        "cairo_drawings_per_second_per_core": 4,
        "stream_ratio_to_bitmaps": 0.9,
        "mean_error_to_official": 1.75,
    }


@pytest.mark.slow
def test_all_cases(tmp_path: Path) -> None:
    """On few drawings of three classes, which stand for the real ones."""
    real = tmp_path / "real"
    (real / "numpy_bitmap").mkdir(parents=True)
    names = ("cat", "dog", "zigzag")
    url = "synthetic:?classes=3&per_class=2500&seed=7&pool=64"
    pixels = open_source(url)
    for label, name in enumerate(names):
        drawings = pixels.read(label, 0, 2_500).drawings
        np.save(real / "numpy_bitmap" / f"{name}.npy", np.asarray(drawings).reshape(-1, 784))
    write_ndjson(open_source(url, content="strokes"), real / "made")
    (real / "simplified").mkdir()
    for label, name in enumerate(names):
        lines = (real / "made" / f"synthetic-{label:03d}.ndjson").read_text()
        made = lines.replace(f'"synthetic-{label:03d}"', f'"{name}"')
        (real / "simplified" / f"{name}.ndjson").write_text(made)
    command = [sys.executable, "-m", "benchmarks.strokes", "--folder", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--drawings", "7500", "--rounds", "1"],
        env=os.environ | {"QUICKDRAW_REAL_DATA": str(real)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "7,500 real drawings of 3 classes." in done.stdout
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics.keys() == key_metrics(1, _results()).keys()
    assert 20 < metrics["bytes_per_drawing"] < 120
    assert metrics["mean_error_to_official"] < 4
    assert all(value > 0 for value in metrics.values()), metrics


def _results() -> dict[str, dict[str, float]]:
    return {name: {"per_second": rate, "mean_error": 1} for name, rate in RATES.items()}
