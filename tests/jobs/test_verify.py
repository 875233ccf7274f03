"""`python -m jobs.verify`: 0 for a dataset that is right, 2 and the names of what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from jobs import command, verify

if TYPE_CHECKING:
    from tests.support.datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the job as its main program does; it must end with 2: the lines that it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command.run(partial(verify.main, argv))
    assert caught.value.code == 2
    text = capsys.readouterr()
    assert "checksums right" not in text.out
    said = text.err[text.err.index("error: ") :]
    return said.removeprefix("error: ").rstrip().split("\n       ")


def test_a_good_dataset(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what was proved, and with --source that the pixels were, too."""
    verify.main([dataset.folder])
    text = capsys.readouterr().out
    shards = sum(len(of_split) for of_split in dataset.manifest.splits.values())
    expected = f"{dataset.folder}: 2,000 drawings of 5 classes in {shards} shards: checksums right"
    assert text.startswith(expected)
    assert "pixel" not in text
    assert text.endswith(f"digest {dataset.manifest.digest}\n")
    verify.main([dataset.folder, "--source", dataset.source.url])
    assert "every pixel equal to the source's" in capsys.readouterr().out


def test_the_dataset_is_the_setting_data(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an argument, the dataset that training will look for."""
    monkeypatch.setenv("QUICKDRAW_DATA", dataset.folder)
    verify.main([])
    assert dataset.manifest.digest in capsys.readouterr().out


def test_a_flipped_byte_from_the_command_line(dataset: Dataset, tmp_path: Path) -> None:
    """The real program: exit code 2, the shard's name, no traceback."""
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
    """Of a folder that lost its shards, some lines are enough, and it says that there are more."""
    folder = shutil.copytree(dataset.folder, tmp_path / "dataset")
    shards = list(folder.rglob("*.tar"))
    for path in shards:
        path.unlink()
    lines = refused([str(folder)], capsys)
    assert [line.rpartition(": ")[2] for line in lines] == ["missing"] * len(shards)
    monkeypatch.setattr(verify, "_SHOWN", 3)
    few = refused([str(folder)], capsys)
    assert few == [*lines[:3], "and more; verify again when these are repaired"]


def test_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that makes one."""
    (line,) = refused([str(tmp_path)], capsys)
    assert line.endswith(
        f"no dataset there (no manifest.json). Make one with: make shard DEST={tmp_path}"
    )


def test_a_source_without_a_class(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compared with another folder than it was made from, it says what is missing there."""
    np.save(tmp_path / "cat.npy", np.zeros((601, 784), np.uint8))
    (line,) = refused([dataset.folder, "--source", str(tmp_path)], capsys)
    assert line.startswith("class 'dog': there is no dog.npy in ")


def test_changed_and_truncated_sources(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pixel names the drawing, a length names the file."""
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


def test_a_wrong_flag_and_help(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    """2 and the nearest flag, or 0 and the text."""
    (line, *_) = _said(["--sorce", "x", dataset.folder], 2, capsys)
    assert "unknown argument --sorce. Did you mean '--source'" in line
    assert any("--source" in line for line in _said(["--help"], 0, capsys))


def _said(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        verify.main(argv)
    assert caught.value.code == code
    text = capsys.readouterr()
    return (text.out + text.err).splitlines()
