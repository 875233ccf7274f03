"""Steps 3 and 6: the tests that need a CUDA device, several at once where pytest-xdist is there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import torch

from benchmarks.gpu.process import started
from benchmarks.measure import Metrics, add_limits, parser, write_json

_TESTS = Path(__file__).parents[2] / "tests"
_MARK = "pytest.mark.cuda"
_MOST_AT_ONCE = 8
_INTERRUPT_SECONDS = 15.0
"""That pytest has to write its report after an interrupt."""

_KEPT_CHARACTERS = 4_000
"""Of the message of each test that failed."""


def main() -> int:
    """Run pytest and count its outcomes; return 1 unless the tests passed, or 0 if they were
    skipped because there is no CUDA device."""
    arguments = parser("bench-gpu", __doc__)
    arguments.add_argument("--marker", default="cuda", help="which tests, as pytest -m [cuda]")
    add_limits(arguments)
    options = arguments.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    report, log = options.folder / "report.xml", options.folder / "pytest.log"
    at_once = max(1, min(_MOST_AT_ONCE, (os.cpu_count() or 1) // 2))
    problem = _run(_command(options.marker, report, at_once), log, options.seconds, at_once)
    print(log.read_text(encoding="utf-8", errors="replace"))
    found = count(report.read_text(encoding="utf-8")) if report.exists() else dict[str, object]()
    on_gpu = torch.cuda.is_available()
    problem = verdict(found, problem, on_gpu)
    write_json(options.results, {"marker": options.marker, **found, "problem": problem})
    if not problem and not on_gpu:
        print(f"{found['skipped']} skipped, no CUDA device")
    return 1 if problem else 0


def _run(command: list[str], log: Path, seconds: float, at_once: int) -> str:
    """Run pytest; at the limit interrupt it, so that it reports what it has run by then. Return
    what went wrong."""
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    with started(command, log, {"TORCHINDUCTOR_COMPILE_THREADS": threads}) as process:
        try:
            code = process.wait(max(0, seconds - _INTERRUPT_SECONDS))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_INTERRUPT_SECONDS)
            return "interrupted: the time was up"
    return f"exit code {code}" if code else ""


def _command(marker: str, report: Path, at_once: int) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-m", marker, "-p", "no:cacheprovider"]
    command += ["--junitxml", str(report), "--continue-on-collection-errors"]
    # Only these: other tests may import what a GPU machine without a network lacks.
    command += sorted(str(path) for path in _TESTS.rglob("test_*.py") if _MARK in path.read_text())
    if importlib.util.find_spec("xdist") and torch.cuda.is_available():
        command += ["-n", str(at_once), "--dist", "worksteal"]
    return command


def count(report: str) -> Metrics:
    """Count the outcomes in a JUnit file by pytest, and name the tests that failed. Pure."""
    found: Metrics = {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "failures": {}}
    for suite in ET.fromstring(report).iter("testsuite"):
        found["seconds"] += float(suite.get("time", "0"))
    for case in ET.fromstring(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        if bad is not None:
            found["failed"] += 1
            text = f"{bad.get('message')}\n{bad.text or ''}"
            found["failures"][name] = text[-_KEPT_CHARACTERS:]
        elif case.find("skipped") is not None:
            found["skipped"] += 1
        else:
            found["passed"] += 1
    return found


def verdict(found: Metrics, problem: str, on_gpu: bool) -> str:
    """Say why the tests do not count as passed; empty if they do. Pure.

    Args:
        found: by `count`; empty if pytest wrote no report.
        problem: of pytest's process.
        on_gpu: whether the tests had a CUDA device.
    """
    if not found:
        return f"pytest wrote no report: {problem}"
    if found["failed"]:
        return f"{found['failed']} failed: {', '.join(found['failures'])}"
    if problem:
        return problem
    if on_gpu and not found["passed"]:
        return f"none ran, {found['skipped']} skipped"
    return "" if on_gpu or found["skipped"] else "no test has this marker"


if __name__ == "__main__":
    sys.exit(main())
