"""Steps are run, recorded, kept and skipped; the real command in miniature."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.gpu import record
from benchmarks.gpu.__main__ import check, main
from benchmarks.gpu.commands import command_of
from benchmarks.gpu.plan import STEPS, Step
from benchmarks.gpu.record import Record
from benchmarks.gpu.steps import Benchmark
from quickdraw_dist.base.errors import RefusedError

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


def read(folder: Path, step: str = "facts") -> Record:
    found = record.read(folder, step)
    assert found is not None
    return found


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Record("smoke", record.FAILED, "why", True, ["a", "b"], "now", 1.5, 9.0, {"n": [1]})
    record.write(tmp_path, written)
    assert record.read_all(tmp_path) == {"smoke": written}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert written.brief == {"status": "failed", "seconds": 1.5, "reason": "why"}


@pytest.mark.parametrize("step", [step.name for step in STEPS])
@pytest.mark.parametrize("cpu", [True, False])
def test_every_step_has_a_module(step: str, cpu: bool, tmp_path: Path) -> None:
    command = command_of(step, tmp_path, tmp_path / "r.json", 60, cpu)
    assert command[:2] == [sys.executable, "-m"]
    module = Path(*command[2].split("."))
    assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
    assert str(tmp_path / "r.json") in command


def test_what_is_due(tmp_path: Path) -> None:
    here = Benchmark(tmp_path / "out", tmp_path / "work", cpu=True)
    for status, due in (
        (record.PASSED, False),
        (record.FAILED, False),
        (record.TIMED_OUT, True),
        (record.SKIPPED, True),
        (record.STOPPED, True),
    ):
        record.write(here.out, Record("facts", status))
        assert here.is_due("facts", []) == due
        assert here.is_due("facts", ["facts"])
        assert not here.is_due("facts", ["smoke"])
    assert here.is_due("smoke", [])


def test_skipping_keeps_earlier_results(tmp_path: Path) -> None:
    here = Benchmark(tmp_path / "out", tmp_path / "work", cpu=False)
    here.skip(Step("facts", 99))
    assert (read(here.out).status, read(here.out).results) == (record.SKIPPED, {})
    kept = Record("facts", record.TIMED_OUT, results={"cores": 2})
    record.write(here.out, kept)
    here.skip(Step("facts", 99))
    assert read(here.out) == kept


@needs_proc
def test_a_step_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It passes, is kept when the command is repeated, and is refused for the pages."""
    options = ["--out", str(tmp_path / "out"), "--folder", str(tmp_path / "work"), "--cpu"]
    assert main([*options, "--only", "facts"]) == 0
    first = read(tmp_path / "out")
    assert first.status == record.PASSED
    assert first.results["device"] == "cpu"
    assert first.results["host_copy_bytes_per_second"] > 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"results.json", "01-facts.log"}
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["steps"] == {"facts": {"status": "passed", "seconds": first.seconds}}
    assert not (tmp_path / "work").exists()
    assert main(["--page", str(tmp_path / "out")]) == 2
    assert "in miniature" in capsys.readouterr().err


@needs_proc
def test_a_step_that_fails_or_hangs_costs_only_itself(tmp_path: Path) -> None:
    here = Benchmark(tmp_path / "out", tmp_path / "work", cpu=True)
    here.run("facts", 0.2)
    assert read(here.out).status == record.TIMED_OUT
    assert read(here.out).reason.startswith("killed at its limit")
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "torch.py").write_text("raise ImportError('broken')")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
        here.run("facts", 100)
    assert (read(here.out).status, read(here.out).reason) == (record.FAILED, "exit code 1")
    assert "ImportError: broken" in (here.out / "01-facts.log").read_text()


@needs_proc
def test_a_signal_leaves_no_process_and_a_record(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "out"), "--folder", str(tmp_path / "work"), "--cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("facts: at most")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 1
    found = json.loads(output.splitlines()[-1])["steps"]
    assert found["facts"]["status"] == record.STOPPED
    assert list(found) == ["facts"]


@pytest.mark.parametrize(("cpu", "measured_on_cpu"), [(True, False), (False, True)])
def test_results_of_both_kinds_are_never_mixed(
    cpu: bool, measured_on_cpu: bool, tmp_path: Path
) -> None:
    record.write(tmp_path, Record("facts", record.PASSED, cpu=measured_on_cpu))
    with pytest.raises(RefusedError) as refused:
        check(Namespace(cpu=cpu, out=tmp_path), on_gpu=True)
    assert (refused.value.subject, refused.value.value) == ("--out", tmp_path)
    check(Namespace(cpu=measured_on_cpu, out=tmp_path), on_gpu=True)


def test_without_a_gpu_only_the_miniature_runs(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        check(Namespace(cpu=False, out=tmp_path), on_gpu=False)
    assert refused.value.problem == "no CUDA device here"
    check(Namespace(cpu=True, out=tmp_path), on_gpu=False)
