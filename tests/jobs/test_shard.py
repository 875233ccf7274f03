"""`python -m jobs.shard`: what a user types, what it answers, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from jobs import command, shard, verify
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.plan import SPLITS

if TYPE_CHECKING:
    from tests.support.datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["--shard.drawings_per_shard", "320", "--shard.block", "32", "--shard.group_shards", "2"]
FOREIGN = ("JOB_COMPLETION_INDEX", "SLURM_", "QUICKDRAW_")
GROUPS = 4  # of the small dataset, by these sizes


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves run under Slurm or Kubernetes."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)


@pytest.fixture
def arguments(dataset: Dataset, tmp_path: Path) -> list[str]:
    """A command line that makes the small dataset again, in a folder of this test."""
    dest = str(tmp_path / "dataset")
    return ["--source", dataset.source.url, "--dest", dest, "--processes", "1", *SIZES]


def tree(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder by its path."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def parts(folder: Path) -> list[int]:
    """The groups whose part files are there."""
    return sorted(int(path.stem[-6:]) for path in folder.glob("parts/*.json"))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the job as its main program does; it must end with 2 and one line: that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command.run(partial(shard.main, argv))
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if line != "See python -m jobs.shard --help."]
    assert len(lines) == 1, lines
    return lines[0]


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The job in a process of its own, from the repository's root as a user would."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return subprocess.run(
        [sys.executable, "-m", "jobs.shard", *argv],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dataset_from_the_command_line(
    dataset: Dataset, arguments: list[str], tmp_path: Path
) -> None:
    """The real program with a pool of its own: the library's bytes, and a line to go on from."""
    arguments[arguments.index("--processes") + 1] = "2"
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "dataset") == tree(dataset.folder)
    assert "drawings  2,000 (0.00 GB of pixels)" in done.stdout
    assert f"groups    {GROUPS} of about 500 drawings" in done.stdout
    last = f"{tmp_path}/dataset/manifest.json: complete, digest {dataset.manifest.digest[:16]}"
    assert done.stdout.splitlines()[-1] == last
    assert "Traceback" not in done.stderr


def test_a_bad_input_from_the_command_line(tmp_path: Path) -> None:
    """Exit code 2 means to a scheduler: do not try again. One line, no traceback."""
    done = run("--source", str(tmp_path / "nowhere"), "--dest", str(tmp_path / "dataset"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: source {tmp_path}/nowhere: no such folder. ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "dataset").exists()


def test_term_ends_it_at_once(tmp_path: Path) -> None:
    """With its workers, with a code that a scheduler takes for a signal's, leaving whole files."""
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
    assert "error: ended by TERM; the same command goes on from here" in error
    assert not (tmp_path / "manifest.json").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Help ends with 0, shows what belongs to this job, and commands to copy."""
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
    """The plan in words, with the memory of so many processes as have work; not even a folder."""
    arguments[arguments.index("--processes") + 1] = "64"
    shard.main([*arguments, "--dry-run"])
    assert not (tmp_path / "dataset").exists()
    text = capsys.readouterr().out
    assert "classes   5" in text
    assert "drawings  2,000" in text
    assert "memory    about 0.2 GB a process, 0.8 GB for 4" in text


def test_the_destination_is_the_setting_data(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --dest, the dataset that training will look for."""
    monkeypatch.setenv("QUICKDRAW_DATA", str(tmp_path / "by environment"))
    at = arguments.index("--dest")
    shard.main(arguments[:at] + arguments[at + 2 :])
    assert manifest.read(str(tmp_path / "by environment")).drawings("train") == 1800


def test_the_same_command_again_does_nothing(
    dataset: Dataset, arguments: list[str], tmp_path: Path
) -> None:
    """A finished group is skipped, also when the manifest was lost or damaged."""
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


def test_a_finished_dataset_says_so(
    dataset: Dataset, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the plan of what is done already; --dry-run and --merge do what they say."""
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
    """Groups that were built again since: the manifest beside them is of what is no more."""
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


def test_workers_by_flags_share_the_groups(
    dataset: Dataset, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three workers, the last to finish merges: one dataset, the same as that of one worker."""
    folder = tmp_path / "dataset"
    expected = {2: [2], 0: [0, 2, 3], 1: [0, 1, 2, 3]}
    for worker, done in expected.items():
        shard.main([*arguments, "--worker", str(worker), "--of", "3"])
        assert parts(folder) == done
        last = capsys.readouterr().out.splitlines()[-1]
        if worker == 1:
            assert "manifest.json: complete" in last
        else:
            missing = [group for group in range(GROUPS) if group not in done]
            assert f"{len(missing)} of 4 groups are not done yet, the first {missing[0]}" in last
            assert not (folder / "manifest.json").exists()
    assert tree(folder) == tree(dataset.folder)


@pytest.mark.parametrize(
    ("environment", "flags", "groups"),
    [
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"}, [], [1]),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "3"}, [], [0, 3]),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "9"}, ["--of", "2"], [1, 3]),
        ({"JOB_COMPLETION_INDEX": "2"}, ["--of", "3"], [2]),
        ({"JOB_COMPLETION_INDEX": "0"}, ["--of", "3"], [0, 3]),
        ({"JOB_COMPLETION_INDEX": "0"}, ["--of", "3", "--worker", "1"], [1]),
        (
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"},
            ["--of", "4", "--worker", "3"],
            [3],
        ),
    ],
    ids=str,
)
def test_workers_by_environment(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    flags: list[str],
    groups: list[int],
) -> None:
    """Every pod and every array task runs the same command; flags win over the scheduler."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shard.main([*arguments, *flags])
    assert parts(tmp_path / "dataset") == groups


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_ARRAY_TASK_ID": "1"},
        {"SLURM_ARRAY_TASK_ID": "1-2", "SLURM_ARRAY_TASK_COUNT": "3"},
    ],
    ids=str,
)
def test_a_schedulers_variables_that_make_no_sense_are_refused(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
) -> None:
    """A wrapper that passes on one variable of two: 2 and a line, so that nothing retries it."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert "SLURM_ARRAY_TASK" in refused(arguments, capsys)


def test_merge_refuses_what_is_incomplete(
    dataset: Dataset, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--merge builds nothing: it says how many groups are missing, and later finishes."""
    folder = tmp_path / "dataset"
    message = refused([*arguments, "--merge"], capsys)
    assert message == (
        f"error: {folder}: 4 of 4 groups are not done yet, the first 0. "
        "Run their workers, then --merge again"
    )
    shard.main([*arguments, "--worker", "0", "--of", "2"])
    assert "2 of 4 groups are not done yet, the first 1" in refused([*arguments, "--merge"], capsys)
    assert parts(folder) == [0, 2]
    assert not (folder / "manifest.json").exists()
    shard.main([*arguments, "--worker", "1", "--of", "2"])
    (folder / "manifest.json").unlink()
    shard.main([*arguments, "--merge"])
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
    "class twice": (["--shard.classes", "cat", "cat"], "names 'cat' twice"),
    "fractions": (["--shard.val_fraction", "0.6", "--shard.test_fraction", "0.4"], "= 1: leaves"),
    "one fraction": (["--shard.val_fraction", "1.5"], "shard.val_fraction"),
    "block above shard": (["--shard.block", "321"], "--shard.block 321: larger than a shard"),
    "no number": (["--shard.block", "many"], "setting shard.block = 'many': should be"),
    "negative": (["--shard.drawings_per_shard", "-1"], "shard.drawings_per_shard"),
    "unknown layout": (["--shard.layout", "blokcs"], "shard.layout = 'blokcs'"),
    "unknown flag": (["--shard.blok", "32"], "Did you mean '--shard.block'"),
    "worker too high": (["--worker", "3", "--of", "3"], "numbered from 0 to 2"),
    "worker negative": (["--worker", "-1", "--of", "3"], "numbered from 0 to 2"),
    "worker alone": (["--worker", "1"], "--worker 1 --of 1"),
    "no workers": (["--of", "0"], "--of 0"),
    "worker no number": (["--worker", "one"], "--worker"),
    "no config": (["--config", "nowhere.yaml"], "--config nowhere.yaml"),
    "no such recipe": (["--source", "synthetic:?clases=3"], "Did you mean 'classes'"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Before any work: exit code 2, one line that names the trouble, no folder left."""
    flags, part = BAD_ARGUMENTS[case]
    assert part in refused([*arguments, *flags], capsys)
    assert not (tmp_path / "dataset").exists()


BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty folder": (lambda folder: None, "no .npy file in it"),
    "truncated": (
        lambda folder: (
            np.save(folder / "cat.npy", np.zeros((5, 784), np.uint8)),
            os.truncate(folder / "cat.npy", 1000),
        ),
        "cat.npy: 1,000 bytes, but its header promises 5 drawings",
    ),
    "no drawings": (
        lambda folder: np.save(folder / "cat.npy", np.zeros((0, 784), np.uint8)),
        "class 'cat' has no drawings",
    ),
    "unknown class": (
        lambda folder: np.save(folder / "catt.npy", np.zeros((5, 784), np.uint8)),
        "'catt' is not one of the 345 official classes. Did you mean 'cat'",
    ),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """The same for what the source holds."""
    make, part = BAD_SOURCES[case]
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    dest = tmp_path / "dataset"
    assert part in refused(["--source", str(tmp_path / "source"), "--dest", str(dest)], capsys)
    assert not dest.exists()


def test_a_destination_of_another_plan_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second dataset must not grow into the first one's folder, nor spoil it."""
    shard.main(arguments)
    before = tree(tmp_path / "dataset")
    message = refused([*arguments, "--shard.seed", "2"], capsys)
    assert "belongs to another dataset" in message
    assert "Choose another DEST" in message
    assert tree(tmp_path / "dataset") == before


def test_a_file_as_destination_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of the user's, told as one."""
    (tmp_path / "dataset").write_text("a file")
    assert f"{tmp_path}/dataset" in refused(arguments, capsys)


def test_a_source_that_breaks_on_the_way_is_named(
    arguments: list[str], tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part that is done stays, the manifest is not written, the same command goes on."""
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
    with pytest.raises(RefusedError, match=r"dog\.npy: rows .* came; the file has changed"):
        shard.main(arguments)
    assert parts(tmp_path / "dataset") == [0, 1, 2]
    assert not (tmp_path / "dataset" / "manifest.json").exists()
    monkeypatch.undo()
    (source / "dog.npy").write_bytes(whole)
    shard.main(arguments)
    made = manifest.read(str(tmp_path / "dataset"))
    assert made.digest == dataset.manifest.digest


def test_real_drawings(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three classes as Google drew them: sharded, and every pixel proved against the source."""
    source, dest = str(real_data / "numpy_bitmap"), str(tmp_path / "dataset")
    classes = ["airplane", "The Eiffel Tower", "zigzag"]
    flags = ["--source", source, "--dest", dest, "--processes", "1", *SIZES]
    shard.main([*flags, "--shard.classes", *classes])
    made = manifest.read(dest)
    assert made.classes == tuple(classes)
    for label, name in enumerate(classes):
        rows = len(np.load(Path(source) / f"{name}.npy", mmap_mode="r"))
        assert sum(made.per_class[split][label] for split in SPLITS) == rows
    assert 0.05 < made.pixel_mean < 0.3
    verify.main([dest, "--source", source])
    assert "every pixel equal to the source's" in capsys.readouterr().out


def test_another_synthetic_seed_is_another_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No checksum tells two seeds apart; the parts of one must not pass for the other's."""
    source, dest = "synthetic:?classes=3&per_class=20&seed=", ["--dest", str(tmp_path / "d")]
    shard.main(["--source", f"{source}7", *dest])
    assert "belongs to another dataset" in refused(["--source", f"{source}8", *dest], capsys)
