"""`python -m jobs.verify`: 0 for a correct dataset, 2 and the problems for any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from jobs import verify
from tests.jobs import conftest
from tests.jobs.conftest import ROOT
from tests.support.data.datasets import of_both_contents

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the job; it must exit with 2: the lines that it prints."""
    return conftest.refused(verify.main, argv, capsys)


@of_both_contents
def test_a_good_dataset(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports what was checked, with --source also the pixels or points."""
    folder = str(shutil.copytree(dataset.folder, tmp_path / "dataset"))
    verify.main([folder])
    text = capsys.readouterr().out
    shards = sum(len(of_split) for of_split in dataset.manifest.splits.values())
    expected = f"{folder}: 2,000 drawings of 5 classes in {shards} shards: checksums right"
    assert text.startswith(expected)
    assert "equal to the source's" not in text
    assert text.endswith(f"digest {dataset.manifest.digest}\n")
    verify.main([folder, "--source", dataset.source.url])
    unit = {"bitmaps": "pixel", "strokes": "point"}[dataset.source.content]
    assert f"every {unit} equal to the source's" in capsys.readouterr().out


def test_the_dataset_is_the_setting_data(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an argument: the dataset that training reads."""
    monkeypatch.setenv("QUICKDRAW_DATA", dataset.folder)
    verify.main([])
    assert dataset.manifest.digest in capsys.readouterr().out


def test_a_flipped_byte_from_the_command_line(dataset: Dataset, tmp_path: Path) -> None:
    """As a process: exit code 2, the shard's name, no traceback."""
    folder = shutil.copytree(dataset.folder, tmp_path / "dataset")
    path = folder / dataset.manifest.splits["val"][0].name
    data = bytearray(path.read_bytes())
    data[1_000] ^= 1
    path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.verify", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"error: {path}: crc32c " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_problems_are_cut_off(
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder without its shards: only the first problems are printed."""
    folder = shutil.copytree(dataset.folder, tmp_path / "dataset")
    shards = list(folder.rglob("*.tar"))
    for path in shards:
        path.unlink()
    lines = refused([str(folder)], capsys)
    assert [line.rpartition(": ")[2] for line in lines] == ["missing"] * len(shards)
    monkeypatch.setattr(verify, "_SHOWN", 3)
    few = refused([str(folder)], capsys)
    assert few == [*lines[:3], "and more; repair these and verify again"]


def test_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the command that makes one."""
    (line,) = refused([str(tmp_path)], capsys)
    assert line.endswith(
        f"no dataset there (no manifest.json). Make one with: make shard DEST={tmp_path}"
    )


def test_a_source_without_a_class(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names what the source lacks."""
    np.save(tmp_path / "cat.npy", np.zeros((601, 784), np.uint8))
    (line,) = refused([dataset.folder, "--source", str(tmp_path)], capsys)
    assert line.startswith("class 'dog': there is no dog.npy in ")


def test_changed_and_truncated_sources(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed pixel is reported with its drawing, a wrong length with its file."""
    source = shutil.copytree(dataset.source.url, tmp_path / "source")
    path = source / "zigzag.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(data)
    (line,) = refused([dataset.folder, "--source", str(source)], capsys)
    assert "pixels of class 'zigzag' row 256 are not the source's (1 such drawings)" in line
    os.truncate(path, len(data) - 1)
    (line,) = refused([dataset.folder, "--source", str(source)], capsys)
    assert line.startswith(f"{path}: ")
    assert "truncated" in line
