"""What the step of the CUDA tests makes of pytest's report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.cuda_tests import count, verdict

MODULE = """
import pytest

def test_good(): pass
def test_bad(): assert 1 == 2, "one is not two"
@pytest.fixture
def broken(): raise RuntimeError("no fixture")
def test_ugly(broken): pass
def test_skipped(): pytest.skip("no CUDA device here")
"""


def test_outcomes_are_counted(tmp_path: Path) -> None:
    """Pytest itself writes the report."""
    (tmp_path / "test_some.py").write_text(MODULE)
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--junitxml", str(report)]
    subprocess.run([*command, str(tmp_path)], capture_output=True, cwd=tmp_path, check=False)
    found = count(report.read_text())
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["seconds"] > 0
    bad, ugly = found["failures"].items()
    assert bad[0].endswith("::test_bad")
    assert "one is not two" in bad[1]
    assert "no fixture" in ugly[1]


@pytest.mark.parametrize(
    ("passed", "failed", "skipped", "problem", "on_gpu", "said"),
    [
        (9, 0, 0, "", True, ""),
        (9, 0, 1, "", True, ""),
        (0, 0, 9, "", False, ""),
        (0, 0, 9, "", True, "none ran, 9 skipped"),
        (0, 0, 0, "", False, "no test has this marker"),
        (8, 1, 0, "exit code 1", True, "1 failed: a"),
        (8, 0, 0, "interrupted: the time was up", True, "interrupted: the time was up"),
    ],
)
def test_verdict(
    passed: int, failed: int, skipped: int, problem: str, on_gpu: bool, said: str
) -> None:
    found = {"passed": passed, "failed": failed, "skipped": skipped}
    assert verdict(found | {"failures": dict.fromkeys("a"[:failed])}, problem, on_gpu) == said


def test_without_a_report() -> None:
    assert verdict({}, "exit code 4", True) == "pytest wrote no report: exit code 4"
