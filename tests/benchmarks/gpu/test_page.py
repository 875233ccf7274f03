"""The page and the README's table, from records as the steps write them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import page, record
from benchmarks.gpu.facts import machine
from benchmarks.gpu.record import Record
from benchmarks.gpu.smoke.__main__ import summary
from benchmarks.gpu.smoke.cases import Case
from benchmarks.measure import Metrics
from benchmarks.train_speed.__main__ import BASE, PROFILED, RESIDENT, SAVING, SMALL, key_metrics
from benchmarks.train_speed.profile import summarize
from quickdraw_dist.base.errors import RefusedError

README = f"before\n\n{page.BEGIN}\nnothing yet\n{page.END}\n\nafter\n"


def case(rate: int, **more: object) -> Metrics:
    return {"per_second": rate, "memory_bytes": 5 * 10**9, "data_wait_share": 0.001} | more


def speed() -> Metrics:
    trace = [
        {"ph": "X", "name": "ProfilerStep#4", "ts": 0, "dur": 9, "cat": "user_annotation"},
        {"ph": "X", "name": "conv|fused", "ts": 0, "dur": 750, "cat": "kernel", "tid": 7},
        {"ph": "X", "name": "add", "ts": 900, "dur": 100, "cat": "kernel", "tid": 7},
    ]
    cases = {
        BASE: case(400_000),
        RESIDENT: case(404_000),
        f"{SMALL}, 8 workers": {"per_second": 40_000, "memory_bytes": 10**9},
        PROFILED: case(390_000, profile=summarize(trace)),
        SAVING: case(395_000, checkpoint_pause_ms_median=3.0, checkpoint_pauses=16),
    }
    limits = {
        "flops_per_drawing": 7.0e8, "flops_per_second": 7.0e14, "bytes_per_second": 3.0e12,
        "arithmetic_drawings_per_second": 10**6, "memory_drawings_per_second": 10**7,
        "device": "H",
    }  # fmt: skip
    return {
        "about": "SketchCNN; base case: batch 4,096, bf16", "rounds": 1, "limits": limits,
        "cases": cases, "metrics": key_metrics(cases, limits),
        "failed": {"compiled with max-autotune": "exit code 1"}, "left_out": ["batch 1,024"],
        "problem": "compiled with max-autotune: exit code 1",
    }  # fmt: skip


def phase(**more: object) -> Metrics:
    usual = {"exit_code": 0, "stopped": False, "seconds": 100.0, "peak_memory_bytes": 10**9,
             "drawings": 45_000_000, "drawings_per_second": 450_000, "bytes_read": 10**10,
             "bytes_written": 10**6}  # fmt: skip
    return usual | more


def results() -> dict[str, Metrics]:
    """Results of every step on a card that exists nowhere."""
    smoke = summary(
        [Case("bf16, off"), Case("fp16, off")],
        {
            "bf16, off": {"status": "passed", "reason": "", "seconds": 9.0, "tail": "",
                          "steps": 21, "loss": 5.5},
            "fp16, off": {"status": "failed", "reason": "exit code 1", "seconds": 4.0,
                          "tail": "RuntimeError: odd"},
        },
    )  # fmt: skip
    tests = {"marker": "cuda", "passed": 39, "failed": 1, "skipped": 0, "seconds": 41.0,
             "failures": {"tests.a::test_b": "assert 1 == 2"}, "problem": "1 failed"}  # fmt: skip
    card = {"device": "NVIDIA X9", "driver": "999.1", "cuda": "13.0", "nccl": "2.29",
            "gpu_memory_bytes": 2**36, "bf16_flops_per_second": 7.0e14,
            "device_copy_bytes_per_second": 1.5e12}  # fmt: skip
    trained = phase(median_drawings_per_second=500_000, median_data_wait_share=0.01)
    stopped = phase(stopped=True, exit_code=85)
    phases = {"shard": phase(), "verify": phase(), "train": trained, "train, resident": stopped}
    return {
        "facts": machine(torch.device("cpu")) | card,
        "smoke": smoke,
        "tests": tests,
        "speed": speed(),
        "full-size": {"fraction": 1.0, "settings": ["--train.epochs", "1"], "phases": phases},
        "slow-tests": {},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """JSON files of a run on a GPU."""
    for step, found in results().items():
        done = Record(step, record.PASSED if found else record.SKIPPED, results=found)
        record.write(tmp_path, done)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with the README's markers and a folder for the page."""
    tree = tmp_path / "tree"
    (tree / "benchmarks" / "results").mkdir(parents=True)
    (tree / "README.md").write_text(README)
    return tree


def test_pages_have_the_measured_figures(folder: Path, root: Path) -> None:
    page.write_pages(record.read_all(folder), root)
    text = (root / "benchmarks" / "results" / page.PAGE).read_text()
    for part in (
        "NVIDIA X9, driver 999.1",
        "| matrix product, bf16 | 700.00 TFLOP/s |",
        "| device copy, bytes copied | 1,500.0 GB/s |",
        "RuntimeError: odd",
        "39 passed, 1 failed, 0 skipped",
        "assert 1 == 2",
        "| ours | 400,000 |",
        "### Profile of a step",
        "`conv fused`",
        "Failed: compiled with max-autotune, exit code 1.",
        "for lack of time: batch 1,024.",
        "train, resident (stopped)",
        "| slow-tests | skipped |",
    ):
        assert part in text, part
    readme = (root / "README.md").read_text()
    assert readme.startswith(f"before\n\n{page.BEGIN}\nOn one GPU")
    assert readme.endswith(f"{page.END}\n\nafter\n")
    assert "nothing yet" not in readme
    for part in (
        "NVIDIA X9",
        "| SketchCNN, streamed from shards | **400,000** | 40% of",
        "| the same, resident | 404,000 | 1.01 of streamed |",
        "| 40,000 | streamed is 10.0 times as fast |",
        "| an epoch of 45,000,000 drawings, streamed | 450,000 | 100 s",
    ):
        assert part in readme, part
    assert "drawings, resident" not in readme  # it was stopped


def test_writing_twice_changes_nothing(folder: Path, root: Path) -> None:
    page.write_pages(record.read_all(folder), root)
    files = [root / "README.md", root / "benchmarks" / "results" / page.PAGE]
    before = [file.read_bytes() for file in files]
    page.write_pages(record.read_all(folder), root)
    assert [file.read_bytes() for file in files] == before


def test_a_page_of_few_results(folder: Path) -> None:
    """Steps that were killed or skipped leave gaps, not errors."""
    records = record.read_all(folder)
    half = speed() | {"cases": {}, "metrics": {}}
    partial = records | {
        "speed": replace(records["speed"], results=half),
        "tests": replace(records["tests"], results={"marker": "cuda", "problem": "no report"}),
    }
    text = page.text(partial)
    assert "No case has ended." in text
    assert "no report" in text
    assert page.text({"facts": records["facts"]}).count("##") == 1
    without_base = speed()
    del without_base["cases"][BASE]
    without_base["metrics"] = key_metrics(without_base["cases"], without_base["limits"])
    assert "404,000" in page.readme_table(
        records | {"speed": replace(records["speed"], results=without_base)}
    )


@pytest.mark.parametrize(
    ("missing", "cpu", "problem"),
    [
        ([], True, "measured on CPU in miniature"),
        (["facts"], False, "no results of the step facts"),
        (["speed", "full-size"], False, "neither the step speed nor full-size"),
    ],
)
def test_refused(missing: list[str], cpu: bool, problem: str, folder: Path, root: Path) -> None:
    """Nothing is written then."""
    records = {
        step: replace(found, cpu=cpu)
        for step, found in record.read_all(folder).items()
        if step not in missing
    }
    with pytest.raises(RefusedError) as refused:
        page.write_pages(records, root)
    assert problem in refused.value.problem
    assert (root / "README.md").read_text() == README
    assert not (root / "benchmarks" / "results" / page.PAGE).exists()


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        page.filled("before", "table")
    assert refused.value.subject == "README.md"


def test_the_readme_has_the_markers() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert page.filled(text, "table").count(page.BEGIN) == 1
