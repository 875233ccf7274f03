"""`python -m jobs.shard`: arguments, output and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from jobs import shard, verify
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.drawing import Content
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.plan import SPLITS
from tests.jobs import conftest
from tests.jobs.conftest import GROUPS, ROOT, SIZES, parts, tree
from tests.support.data.datasets import of_both_contents

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the job; it must exit with 2 and one line: that line."""
    (line,) = conftest.refused(shard.main, argv, capsys)
    return line


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run the job in a process of its own, as a user does."""
    command = [sys.executable, "-m", "jobs.shard", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@of_both_contents
def test_a_dataset_from_the_command_line(
    dataset: Dataset, arguments: list[str], tmp_path: Path
) -> None:
    """As a process, with a pool of processes: the same bytes, and where the manifest is."""
    arguments[arguments.index("--processes") + 1] = "2"
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "dataset") == tree(dataset.folder)
    size = {"bitmaps": "1.57 MB of pixels", "strokes": "about 210 kB of strokes"}
    assert f"drawings  2,000 ({size[dataset.source.content]})" in done.stdout
    assert f"groups    {GROUPS} of about 500 drawings" in done.stdout
    last = f"{tmp_path}/dataset/manifest.json: complete, digest {dataset.manifest.digest[:16]}"
    assert done.stdout.splitlines()[-1] == last
    assert "Traceback" not in done.stderr


def test_a_bad_input_from_the_command_line(tmp_path: Path) -> None:
    """Exit code 2 tells a scheduler not to retry. One line, no traceback."""
    done = run("--source", str(tmp_path / "nowhere"), "--dest", str(tmp_path / "dataset"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: source {tmp_path}/nowhere: no such folder. ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "dataset").exists()


def test_term_ends_it_at_once(tmp_path: Path) -> None:
    """With its workers and a signal's exit code, leaving complete files."""
    source = "synthetic:?classes=5&per_class=400000&pool=4"
    command = [sys.executable, "-m", "jobs.shard", "--source", source, "--dest", str(tmp_path)]
    command += [*SIZES, "--processes", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    while not parts(tmp_path):
        assert process.poll() is None
    process.terminate()
    # Its workers hold these pipes, too: they end only when all of them have ended.
    _, error = process.communicate()
    assert process.returncode == 143
    assert "error: ended by TERM. The same command continues from here" in error
    assert not (tmp_path / "manifest.json").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Shows this job's arguments and settings, and commands to copy."""
    with pytest.raises(SystemExit) as caught:
        shard.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("--source", "--merge", "--dry-run", "--shard.block", "JOB_COMPLETION_INDEX"):
        assert part in text
    assert "--train.global_batch" not in text
    assert "python -m jobs.shard --source 'synthetic:?classes=20&per_class=1000'" in text


def test_a_dry_run_writes_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the plan, with the memory of those processes that have work; creates no folder."""
    arguments[arguments.index("--processes") + 1] = "64"
    shard.main([*arguments, "--dry-run"])
    assert not (tmp_path / "dataset").exists()
    text = capsys.readouterr().out
    assert "classes   5" in text
    assert "drawings  2,000" in text
    assert "MB per process, " in text


def test_the_destination_is_the_setting_data(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --dest: the dataset that training reads."""
    monkeypatch.setenv("QUICKDRAW_DATA", str(tmp_path / "by environment"))
    at = arguments.index("--dest")
    shard.main(arguments[:at] + arguments[at + 2 :])
    assert manifest.read(str(tmp_path / "by environment")).drawings("train") == 1800


@of_both_contents
def test_the_same_command_again_does_nothing(
    dataset: Dataset, arguments: list[str], tmp_path: Path
) -> None:
    """A finished group is skipped, also when the manifest is missing or damaged."""
    shard.main(arguments)
    folder = tmp_path / "dataset"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    (folder / "manifest.json").unlink()
    shard.main(arguments)
    assert tree(folder) == tree(dataset.folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")} == times
    (folder / "manifest.json").write_text("{")
    shard.main(arguments)
    assert tree(folder) == tree(dataset.folder)


def test_a_finished_dataset(
    dataset: Dataset, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only its last lines are printed, not the plan; --dry-run and --merge still act."""
    folder = tmp_path / "dataset"
    shard.main(arguments)
    first = capsys.readouterr().out
    assert "drawings  2,000" in first
    lines = [
        "checked   of 5 source files: crc32c of 5, official size of 0, official md5 of 0",
        f"{folder}/manifest.json: complete, digest {dataset.manifest.digest[:16]}",
    ]
    assert first.splitlines()[-2:] == lines
    before = (folder / "manifest.json").stat().st_mtime_ns
    shard.main(arguments)
    assert capsys.readouterr().out.splitlines() == lines
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    shard.main([*arguments, "--dry-run"])
    assert "complete" not in capsys.readouterr().out
    shard.main([*arguments, "--merge"])
    assert capsys.readouterr().out.splitlines()[-2:] == lines
    assert (folder / "manifest.json").stat().st_mtime_ns > before


def test_a_manifest_of_other_shards_is_not_complete(
    dataset: Dataset, arguments: list[str], tmp_path: Path
) -> None:
    """Groups were built again after the merge: the manifest describes earlier shards."""
    folder = tmp_path / "dataset"
    shard.main(arguments)
    stored = manifest.read(str(folder))
    changed = stored.splits["val"][0].model_copy(update={"crc32c": 7})
    splits = stored.splits | {"val": (changed, *stored.splits["val"][1:])}
    (folder / "manifest.json").write_bytes(
        manifest.to_json(stored.model_copy(update={"splits": splits}))
    )
    shard.main(arguments)
    assert tree(folder) == tree(dataset.folder)


def test_settings_reach_the_dataset(arguments: list[str], tmp_path: Path) -> None:
    """Classes in the order given, layout, fractions and seed, from flags and from YAML."""
    config = tmp_path / "config.yaml"
    config.write_text("shard: {val_fraction: 0.2, test_fraction: 0, compression: none}\n")
    wanted = ["--shard.classes", "zigzag", "The Eiffel Tower", "--shard.seed", "7"]
    shard.main([*arguments, *wanted, "--config", str(config)])
    made = manifest.read(str(tmp_path / "dataset"))
    assert made.classes == ("zigzag", "The Eiffel Tower")
    assert made.per_class["val"] == (round(257 * 0.2), round(89 * 0.2))
    assert made.per_class["test"] == (0, 0)
    assert (made.settings.compression, made.settings.seed) == ("none", 7)
    verify.main([str(tmp_path / "dataset"), "--source", made.source])


BAD_ARGUMENTS: dict[str, tuple[list[str], str]] = {
    "unknown class": (["--shard.classes", "catt"], "Did you mean 'cat'"),
    "class twice": (["--shard.classes", "cat", "cat"], "--shard.classes cat: named twice"),
    "fractions": (["--shard.val_fraction", "0.6", "--shard.test_fraction", "0.4"], "is left to"),
    "one fraction": (["--shard.val_fraction", "1.5"], "shard.val_fraction"),
    "block above shard": (["--shard.block", "321"], "--shard.block 321: larger than a shard"),
    "no number": (["--shard.block", "many"], "--shard.block many: should be"),
    "negative": (["--shard.drawings_per_shard", "-1"], "shard.drawings_per_shard"),
    "unknown layout": (["--shard.layout", "blokcs"], "--shard.layout blokcs: should be"),
    "unknown flag": (["--shard.blok", "32"], "Did you mean '--shard.block'"),
    "worker no number": (["--worker", "one"], "--worker"),
    "no config": (["--config", "nowhere.yaml"], "--config nowhere.yaml"),
    "unknown synthetic setting": (["--source", "synthetic:?clases=3"], "Did you mean 'classes'"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Before any work: exit code 2, one line, no folder created."""
    flags, part = BAD_ARGUMENTS[case]
    assert part in refused([*arguments, *flags], capsys)
    assert not (tmp_path / "dataset").exists()


BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda folder: None, "no .npy, .bin or .ndjson file in it"),
    "truncated": (
        lambda folder: (
            np.save(folder / "cat.npy", np.zeros((5, 784), np.uint8)),
            os.truncate(folder / "cat.npy", 1000),
        ),
        "cat.npy: 1,000 bytes, but its header promises 5 drawings",
    ),
    "no drawings": (
        lambda folder: np.save(folder / "cat.npy", np.zeros((0, 784), np.uint8)),
        "class 'cat': the source has no drawings",
    ),
    "unknown class": (
        lambda folder: np.save(folder / "catt.npy", np.zeros((5, 784), np.uint8)),
        "'catt' is none of the 345 official classes. Did you mean 'cat'",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """The same for the contents of the source."""
    make, part = BAD_SOURCES[case]
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    dest = tmp_path / "dataset"
    assert part in refused(["--source", str(tmp_path / "source"), "--dest", str(dest)], capsys)
    assert not dest.exists()


def test_a_destination_of_another_plan_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second dataset in the same folder would damage the first."""
    shard.main(arguments)
    before = tree(tmp_path / "dataset")
    message = refused([*arguments, "--shard.seed", "2"], capsys)
    assert "belongs to another dataset" in message
    assert "Choose another DEST" in message
    assert tree(tmp_path / "dataset") == before


def test_a_file_as_destination_is_refused(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "dataset").write_text("a file")
    with pytest.raises(RefusedError) as caught:
        shard.main(arguments)
    assert (caught.value.subject, caught.value.value) == ("--dest", str(tmp_path / "dataset"))


def test_a_source_that_changes_meanwhile(
    arguments: list[str], tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished groups stay, no manifest is written, and the same command continues."""
    source = tmp_path / "source"
    source.mkdir()
    for path in Path(dataset.source.url).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    arguments[1] = str(source)
    whole = (source / "dog.npy").read_bytes()
    opened = shard.open_source

    def open_then_truncate(*given: object) -> object:
        found = opened(*given)  # type: ignore[arg-type]
        (source / "dog.npy").write_bytes(whole[:-784])
        return found

    monkeypatch.setattr(shard, "open_source", open_then_truncate)
    with pytest.raises(RefusedError, match=r"dog\.npy: rows .*; the file has changed"):
        shard.main(arguments)
    assert parts(tmp_path / "dataset") == [0, 1, 2]
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    monkeypatch.undo()
    (source / "dog.npy").write_bytes(whole)
    shard.main(arguments)
    made = manifest.read(str(tmp_path / "dataset"))
    assert made.digest == dataset.manifest.digest


@pytest.mark.parametrize(
    ("folder", "content", "unit"),
    [("numpy_bitmap", "bitmaps", "pixel"), ("simplified", "strokes", "point")],
)
def test_real_drawings(
    real_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    content: Content,
    unit: str,
) -> None:
    """Three official classes, every pixel or point compared with the source."""
    source, dest = str(real_data / folder), str(tmp_path / "dataset")
    classes = ["airplane", "The Eiffel Tower", "zigzag"]
    flags = ["--source", source, "--dest", dest, "--processes", "1", *SIZES]
    shard.main([*flags, "--shard.content", content, "--shard.classes", *classes])
    made = manifest.read(dest)
    assert made.classes == tuple(classes)
    for label, name in enumerate(classes):
        file = next(Path(source).glob(f"{name}.*"))
        strokes = content == "strokes"
        rows = file.read_bytes().count(b"\n") if strokes else len(np.load(file, mmap_mode="r"))
        assert sum(made.per_class[split][label] for split in SPLITS) == rows
    assert 0.05 < made.pixel_mean < 0.3
    verify.main([dest, "--source", source])
    assert f"every {unit} equal to the source's" in capsys.readouterr().out


def test_another_synthetic_seed_is_another_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checksum of a synthetic source tells two seeds apart."""
    source, dest = "synthetic:?classes=3&per_class=20&seed=", ["--dest", str(tmp_path / "d")]
    shard.main(["--source", f"{source}7", *dest])
    assert "belongs to another dataset" in refused(["--source", f"{source}8", *dest], capsys)
