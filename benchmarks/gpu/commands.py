"""The command of each step, on a GPU and in miniature."""

from __future__ import annotations

import sys
from pathlib import Path


def command_of(step: str, folder: Path, results: Path, seconds: float, cpu: bool) -> list[str]:
    """Return the command line of a step. Pure.

    Args:
        step: its name.
        folder: for its shards and runs.
        results: JSON file that it keeps up to date with what it has measured.
        seconds: after which it should have ended by itself, with what it has measured by then.
        cpu: in miniature.
    """
    own = folder / step
    common = ["--folder", str(own), "--results", str(results), "--seconds", f"{seconds:.0f}"]
    kind = "slow" if step == "slow-tests" else "not slow"
    modules: dict[str, list[str]] = {
        "facts": ["benchmarks.gpu.facts", "--results", str(results)],
        "smoke": ["benchmarks.gpu.smoke", *common],
        "tests": ["benchmarks.gpu.cuda_tests", *common, "--marker", f"cuda and {kind}"],
        "speed": ["benchmarks.train_speed", *common, *(_SMALL_SPEED if cpu else _GPU_SPEED)],
        "full-size": ["benchmarks.scale.full_size", *common, "--resident",
                      *(_SMALL_FULL_SIZE if cpu else [])],
    }  # fmt: skip
    modules["strokes"] = [*modules["full-size"], "--content", "strokes"]
    modules["slow-tests"] = modules["tests"]
    return [sys.executable, "-m", *modules[step]]


_GPU_SPEED = ["--drawings", "2000000"]
_SMALL_SPEED = ["--drawings", "2048", "--batch", "64", "--width", "4", "--batches",
                "--only", "ours", "resident", "small", "profile", "28 px"]  # fmt: skip
_SMALL_FULL_SIZE = ["--fraction", "0.0004", "--model.width", "2", "--train.global_batch", "256"]
