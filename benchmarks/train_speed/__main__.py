"""How fast SketchCNN trains, what each setting is worth, and how far the limits are:
make bench-train.

Every case is a run of the trainer from shards in a process of its own, the cases in turn,
`--rounds` times; results are medians. For comparison: a training loop as small projects write it,
and the largest matrix product and memory copy of this device. On a GPU the sizes are larger. The
last line is JSON; --page writes benchmarks/results/train_speed_cpu.md, on a GPU train_speed_gpu.md.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.measure import (
    CLASSES,
    Case,
    Metrics,
    flags,
    parser,
    publish,
    run_case,
    run_module,
    run_rounds,
    synthetic_source,
)
from benchmarks.train_speed.page import page

BASE, SAVING, SMALL = "ours", "ours, 16 checkpoints", "small projects' way"


@dataclass(frozen=True)
class Sizes:
    """Amounts that a device trains in about ten seconds per case."""

    drawings: int  # of the training split
    batch: int  # of the base case
    batches: tuple[int, ...]  # of the other cases
    small_drawings: int
    small_workers: tuple[int, ...]


CPU = Sizes(4_096, 256, (64, 1_024), 2_048, (0,))
GPU = Sizes(4_000_000, 4_096, (1_024, 2_048, 8_192, 16_384), 400_000, (0, 8))


def main() -> None:
    """Shard, run all cases, print the table and the JSON."""
    on_gpu = torch.cuda.is_available()
    sizes = GPU if on_gpu else CPU
    file = f"train_speed_{'gpu' if on_gpu else 'cpu'}.md"
    arguments = parser("bench-train", __doc__, file)
    for option, default, text in (
        ("drawings", sizes.drawings, "drawings per epoch; a case is one epoch"),
        ("batch", sizes.batch, "global batch of the base case"),
        ("width", 64, "width of SketchCNN"),
        ("rounds", 1, "runs per case"),
    ):
        arguments.add_argument(f"--{option}", type=int, default=default, help=f"{text} [{default}]")
    arguments.add_argument(
        "--batches", type=int, nargs="*", default=sizes.batches, help="other global batches"
    )
    arguments.add_argument("--only", nargs="*", help="cases whose name contains one of these words")
    options = arguments.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    source = synthetic_source(options.drawings)
    run_module("jobs.shard", "--source", source, "--dest", str(options.folder / "shards"))
    precision = best_precision(on_gpu)
    ours = our_cases(precision, options.drawings, options.batch, tuple(options.batches), on_gpu)
    cases: dict[str, Case] = {
        name: partial(_ours, options, name, settings) for name, settings in ours.items()
    }
    small_drawings = min(sizes.small_drawings, options.drawings)
    cases |= _small(source, small_drawings, sizes.small_workers, options.width)
    if options.only:
        cases = {n: c for n, c in cases.items() if any(word in n for word in options.only)}
    results = run_rounds(cases, options.rounds)
    limits = run_case(
        "benchmarks.train_speed.cases", "limits", options.batch, options.width, precision
    )
    metrics = key_metrics(results, limits)
    about = f"SketchCNN of width {options.width}, {limits['parameters']:,} parameters, "
    about += f"{CLASSES} classes; base case: batch {options.batch:,}, {precision}"
    publish(options, file, page(about, options.rounds, results, limits, metrics), metrics)


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
        "resident": {"stream.resident": True},
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


def _ours(options: argparse.Namespace, name: str, settings: dict[str, object]) -> Metrics:
    """Run one epoch in a folder of its own, with at most eight progress lines."""
    batch = int(str(settings["train.global_batch"]))
    every = max(1, options.drawings // batch // 8)
    settings = {"train.epochs": 1, "train.log_every": every, "model.width": options.width,
                "evaluation.batch": 1_024} | settings  # fmt: skip
    output = options.folder / "runs" / name.replace(" ", "-")
    shutil.rmtree(output, ignore_errors=True)
    shards = options.folder / "shards"
    return run_case("benchmarks.train_speed.cases", "ours", shards, output, *flags(settings))


def _small(source: str, drawings: int, workers: tuple[int, ...], width: int) -> dict[str, Case]:
    """Small projects' loop, one case per number of DataLoader workers; the fastest counts."""
    case = partial(run_case, "benchmarks.train_speed.cases", "small_project", source)
    return {f"{SMALL}, {count} workers": partial(case, drawings, count, width) for count in workers}


def key_metrics(results: dict[str, Metrics], limits: Metrics) -> Metrics:
    """Metrics that are followed from release to release; None if their case did not run."""
    small = [result["per_second"] for name, result in results.items() if name.startswith(SMALL)]
    base, saving = results.get(BASE), results.get(SAVING)
    resident = results.get("resident")
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
    main()
