"""What is read from a profiler's trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.train_speed import profile
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.profiler import StepProfiler


def event(name: str, start: float, length: float, category: str, thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": length, "cat": category, "tid": thread}


STEPS = [event(f"ProfilerStep#{number}", 0, 1, "user_annotation") for number in (5, 6)]


def test_kernels_and_gaps() -> None:
    """Operators of the host do not count where there are kernels; parallel kernels overlap."""
    found = profile.summarize(
        [
            *STEPS,
            event("aten::conv2d", 0, 10_000, "cpu_op"),
            event("conv", 1_000, 2_000, "kernel"),
            event("conv", 4_000, 1_000, "kernel"),
            event("copy", 2_000, 2_000, "gpu_memcpy", thread=2),
            {"ph": "M", "name": "process_name", "ts": 0},
            event("clear", 8_000, 1_000, "gpu_memset"),
        ]
    )
    assert found["steps"] == 2
    assert found["milliseconds_per_step"] == 4.0
    assert found["gap_share"] == 3_000 / 8_000
    assert [(top["kernel"], top["share"], top["calls_per_step"]) for top in found["top"]] == [
        ("conv", 0.5, 1.0),
        ("copy", 0.3333, 0.5),
        ("clear", 0.1667, 0.5),
    ]


def test_without_a_gpu_only_outermost_operators_count() -> None:
    found = profile.summarize(
        [
            *STEPS,
            event("aten::conv2d", 0, 100, "cpu_op"),
            event("aten::convolution", 10, 80, "cpu_op"),
            event("aten::add", 10, 80, "cpu_op", thread=2),
        ]
    )
    assert {top["kernel"] for top in found["top"]} == {"aten::conv2d", "aten::add"}
    assert found["gap_share"] == 0


@pytest.mark.parametrize("events", [[], STEPS, [event("conv", 0, 1, "kernel")]])
def test_a_trace_with_nothing_in_it(events: list[Mapping[str, Any]]) -> None:
    assert profile.summarize(events)["top"] == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_the_union_of_intervals(pairs: list[tuple[int, int]]) -> None:
    intervals = sorted((start, start + length) for start, length in pairs)
    points = {point for start, end in intervals for point in range(start, end)}
    assert profile.covered(intervals) == len(points)


def test_the_trace_that_the_trainer_writes(tmp_path: Path) -> None:
    world, lines = World(0, 1, 0, 1, torch.device("cpu")), list[str]()
    profiler = StepProfiler(3, world, str(tmp_path), lines.append)
    for _ in range(9):
        profiler.step()
        torch.ones(200, 200) @ torch.ones(200, 200)
    profiler.close()
    found = profile.read(tmp_path)
    assert found["steps"] == 3, lines
    assert "aten::matmul" in {top["kernel"] for top in found["top"]}
    assert 0 <= found["gap_share"] < 1
