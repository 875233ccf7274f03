"""How fast SketchCNN trains, what each setting is worth, and how far the limits are:
make bench-train.

Every case is a run of the trainer from shards in a process of its own, the cases in turn,
`--rounds` times; results are medians. For comparison: a training loop as small projects write it,
and the largest matrix product and memory copy of this device. One case is profiled. A case that
fails is named, and the others go on; the exit code is then 1. On a GPU the sizes are larger. The
last line is JSON; --page writes benchmarks/results/train_speed_cpu.md, on a GPU train_speed_gpu.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.measure import (
    CLASSES,
    Case,
    Metrics,
    add_limits,
    flags,
    parser,
    publish,
    run_case,
    run_module,
    run_rounds,
    synthetic_source,
    write_json,
)
from benchmarks.train_speed import strokes
from benchmarks.train_speed.page import page

CASES = "benchmarks.train_speed.cases"
BASE, SAVING, SMALL = "ours", "ours, 16 checkpoints", "small projects' way"
RESIDENT, PROFILED, PROFILED_STEPS = "resident", "ours, profiled", 20

TimedCase = Callable[[float], Metrics]
"""Runs for at most so many seconds."""


@dataclass(frozen=True)
class Sizes:
    """Amounts that a device trains in about ten seconds per case."""

    drawings: int  # of the training split
    batch: int  # of the base case
    batches: tuple[int, ...]  # of the other cases
    small_drawings: int
    small_workers: tuple[int, ...]


CPU = Sizes(4_096, 256, (64, 1_024), 2_048, (0,))
GPU = Sizes(4_000_000, 4_096, (8_192, 16_384, 1_024, 2_048), 200_000, (8, 0))


def main() -> int:
    """Shard, run all cases, print the table and the JSON; return 1 if a case failed."""
    began = time.monotonic()
    on_gpu = torch.cuda.is_available()
    file = f"train_speed_{'gpu' if on_gpu else 'cpu'}.md"
    options = _parse(file, GPU if on_gpu else CPU)
    shutil.rmtree(options.folder, ignore_errors=True)
    precision = best_precision(on_gpu)
    limits = run_case(CASES, "limits", options.batch, options.width, precision)
    source = synthetic_source(options.drawings)
    about = f"SketchCNN of width {options.width}, {limits['parameters']:,} parameters, "
    about += f"{CLASSES} classes; base case: batch {options.batch:,}, {precision}"
    deadline = began + options.seconds
    timed, failed = _cases(options, source, precision, on_gpu), dict[str, str]()
    for content in {content_of(name) for name in timed}:
        dest = str(options.folder / content)
        run_module("jobs.shard", "--source", source, "--dest", dest, "--shard.content", content)
    cases: dict[str, Case] = {
        name: partial(_tried, name, case, deadline, failed) for name, case in timed.items()
    }
    measured: Metrics = {"about": about, "rounds": options.rounds, "limits": limits}

    def keep(results: dict[str, Metrics]) -> None:
        measured["cases"], measured["metrics"] = results, key_metrics(results, limits)
        measured["left_out"] = [name for name in cases if name not in results | failed]
        measured["failed"] = failed
        measured["problem"] = "; ".join(f"{name}: {why}" for name, why in failed.items())
        write_json(options.results, measured)

    keep({})
    run_rounds(cases, options.rounds, deadline, keep)
    publish(options, file, page(measured), measured["metrics"])
    return 1 if failed else 0


def _parse(file: str, sizes: Sizes) -> argparse.Namespace:
    arguments = parser("bench-train", __doc__, file)
    for option, default, text in (
        ("drawings", sizes.drawings, "drawings per epoch; a case is one epoch"),
        ("batch", sizes.batch, "global batch of the base case"),
        ("width", 64, "width of SketchCNN"),
        ("rounds", 1, "runs per case"),
        ("small-drawings", sizes.small_drawings, "drawings of small projects' loop"),
    ):
        arguments.add_argument(f"--{option}", type=int, default=default, help=f"{text} [{default}]")
    arguments.add_argument(
        "--batches", type=int, nargs="*", default=sizes.batches, help="other global batches"
    )
    arguments.add_argument(
        "--workers", type=int, nargs="*", default=sizes.small_workers,
        help="DataLoader workers of small projects' loop; the fastest counts",
    )  # fmt: skip
    arguments.add_argument("--only", nargs="*", help="cases whose name contains one of these words")
    add_limits(arguments)
    return arguments.parse_args()


def _cases(
    options: argparse.Namespace, source: str, precision: str, on_gpu: bool
) -> dict[str, TimedCase]:
    """All cases that `--only` leaves, in order of worth: what is compared most comes first."""
    settings = our_cases(precision, options.drawings, options.batch, tuple(options.batches), on_gpu)
    ours: dict[str, TimedCase] = {
        name: partial(_ours, options, name, chosen) for name, chosen in settings.items()
    }
    first = {name: ours.pop(name) for name in (BASE, RESIDENT)}
    base = settings[BASE]
    of_strokes: dict[str, TimedCase] = {
        name: partial(_ours, options, name, chosen)
        for name, chosen in strokes.training_cases(base, on_gpu).items()
    }
    cases = first | _small(source, options) | of_strokes | _rendering(options, on_gpu) | ours
    if options.only:
        cases = {n: c for n, c in cases.items() if any(word in n for word in options.only)}
    return cases


def _tried(name: str, case: TimedCase, deadline: float, failed: dict[str, str]) -> Metrics | None:
    """Run a case. None: it failed, which is noted in `failed`, or the time was up before its end,
    which is no failure."""
    try:
        return case(max(1.0, deadline - time.monotonic()))
    except subprocess.CalledProcessError as error:
        failed[name] = f"exit code {error.returncode}"
    except subprocess.TimeoutExpired:
        print(f"{name}: the time is up", file=sys.stderr)
    return None


def best_precision(on_gpu: bool) -> str:
    """bf16 if the device multiplies it in hardware, else fp32."""
    cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if on_gpu or cpu else "fp32"


def our_cases(
    precision: str, drawings: int, batch: int, batches: tuple[int, ...], on_gpu: bool
) -> dict[str, dict[str, object]]:
    """Settings of every run of our trainer: the base, then one change at a time. Pure."""
    base: dict[str, object] = {"train.global_batch": batch, "train.precision": precision}
    off: dict[str, object] = {"train.channels_last": False, "train.compile": "off"}
    off |= {"optimizer.ema_half_life_drawings": 0}
    changes: dict[str, dict[str, object]] = {
        BASE: {},
        "channels first": {"train.channels_last": False},
        "torch.compile off" if on_gpu else "torch.compile on": {
            "train.compile": "off" if on_gpu else "default"
        },
        "augmentation": {"augment.affine": True},
        "no moving average": {"optimizer.ema_half_life_drawings": 0},
        "all of these off, fp32, batch 256": {
            **off, "train.precision": "fp32", "train.global_batch": 256,
        },
        RESIDENT: {"stream.resident": True},
        PROFILED: {"train.profile": PROFILED_STEPS},
        SAVING: {"checkpoint.every_drawings": max(batch, drawings // 16)},
    }  # fmt: skip
    if precision == "bf16":  # emulated elsewhere, at a tenth of the speed
        changes["fp32 instead of bf16"] = {"train.precision": "fp32"}
    if on_gpu:
        changes["fp16 instead of bf16"] = {"train.precision": "fp16"}
        for mode in ("reduce-overhead", "max-autotune"):
            changes[f"compiled with {mode}"] = {"train.compile": mode}
    changes |= {f"batch {size:,}": {"train.global_batch": size} for size in batches}
    return {name: base | change for name, change in changes.items()}


def _ours(
    options: argparse.Namespace, name: str, settings: dict[str, object], seconds: float
) -> Metrics:
    """Run one epoch in a folder of its own, with at most eight progress lines."""
    batch = int(str(settings["train.global_batch"]))
    every = max(1, options.drawings // batch // 8)
    settings = {"train.epochs": 1, "train.log_every": every, "model.width": options.width,
                "evaluation.batch": 1_024, "metrics.report": False} | settings  # fmt: skip
    output = options.folder / "runs" / name.replace(" ", "-")
    shutil.rmtree(output, ignore_errors=True)
    shards = options.folder / content_of(name)
    return run_case(CASES, "ours", shards, output, *flags(settings), seconds=seconds)


def content_of(case: str) -> str:
    """Return what the drawings of a case are stored as, the name of its folder of shards."""
    return "strokes" if case.startswith((strokes.STROKES, strokes.RENDERING)) else "bitmaps"


def _rendering(options: argparse.Namespace, on_gpu: bool) -> dict[str, TimedCase]:
    """Rendering alone, one case per kind of picture."""

    def run(side: int, channels: int, seconds: float) -> Metrics:
        case = ("rendering", options.folder / "strokes", options.batch, side, channels)
        return run_case("benchmarks.train_speed.strokes", *case, seconds=seconds)

    return {
        strokes.name_of(strokes.RENDERING, *picture): partial(run, *picture)
        for picture in strokes.pictures(on_gpu)
    }


def _small(source: str, options: argparse.Namespace) -> dict[str, TimedCase]:
    """Small projects' loop, one case per number of DataLoader workers; the fastest counts."""
    drawings = min(options.small_drawings, options.drawings)

    def run(workers: int, seconds: float) -> Metrics:
        case = ("small_project", source, drawings, workers, options.width)
        return run_case(CASES, *case, seconds=seconds)

    return {f"{SMALL}, {count} workers": partial(run, count) for count in options.workers}


def key_metrics(results: dict[str, Metrics], limits: Metrics) -> Metrics:
    """Metrics that are followed from release to release; None if their case did not run."""
    small = [result["per_second"] for name, result in results.items() if name.startswith(SMALL)]
    base, saving = results.get(BASE), results.get(SAVING)
    resident = results.get(RESIDENT)
    return {
        "baseline_ratio": round(base["per_second"] / max(small), 2) if base and small else None,
        "data_wait_share": base["data_wait_share"] if base else None,
        "checkpoint_pause_ms_median": saving["checkpoint_pause_ms_median"] if saving else None,
        "checkpoint_pauses": saving["checkpoint_pauses"] if saving else 0,
        "drawings_per_second": base["per_second"] if base else None,
        "resident_ratio": round(resident["per_second"] / base["per_second"], 3)
        if base and resident
        else None,
        "share_of_matrix_peak": round(
            base["per_second"] * limits["flops_per_drawing"] / limits["flops_per_second"], 4
        )
        if base
        else None,
        "device": limits["device"],
    }


if __name__ == "__main__":
    sys.exit(main())
