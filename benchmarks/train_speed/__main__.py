"""How fast SketchCNN trains, what each setting is worth, and how far the limits are:
make bench-train.

Every case is a run of the trainer over real shards in a process of its own, the cases in turn,
`--rounds` times; metrics are medians. Beside them the small projects' way, and the largest matrix
product and memory copy of this device. On a GPU the sizes are larger. The last line is JSON;
--page writes benchmarks/results/train_speed_cpu.md, or train_speed_gpu.md from a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.measure import Metrics, median, run_case
from benchmarks.train_speed import page as train_speed_page
from benchmarks.train_speed.cases import CLASSES

Case = Callable[[], Metrics]

BASE, SAVING, SMALL = "ours", "ours, 16 checkpoints", "small projects' way"


@dataclass(frozen=True)
class Sizes:
    """What a device can do in some ten seconds a case."""

    drawings: int  # of the training split
    batch: int  # of the base case
    batches: tuple[int, ...]  # of the others
    small_drawings: int
    small_workers: tuple[int, ...]


CPU = Sizes(4_096, 256, (64, 1_024), 2_048, (0,))
GPU = Sizes(4_000_000, 4_096, (1_024, 2_048, 8_192, 16_384), 400_000, (0, 8))


def main() -> None:
    """Shard, run all cases, say it as a table and as JSON."""
    on_gpu = torch.cuda.is_available()
    sizes = GPU if on_gpu else CPU
    parser = argparse.ArgumentParser("make bench-train", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-train"), help="anew")
    parser.add_argument("--drawings", type=int, default=sizes.drawings, help="an epoch, one a case")
    parser.add_argument("--batch", type=int, default=sizes.batch)
    parser.add_argument("--batches", type=int, nargs="*", default=sizes.batches, help="others")
    parser.add_argument("--width", type=int, default=64, help="of SketchCNN")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="cases whose name has one of these words")
    parser.add_argument("--page", action="store_true", help="write the page of this device")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    source, data = _source(options.drawings), options.folder / "shards"
    arguments = ["--source", source, "--dest", str(data)]
    subprocess.run([sys.executable, "-m", "jobs.shard", *arguments], check=True, stdout=sys.stderr)
    precision = best_precision(on_gpu)
    names = our_cases(precision, options.drawings, options.batch, tuple(options.batches), on_gpu)
    cases = {
        name: partial(_ours, options, name, settings) for name, settings in names.items()
    } | _small(sizes, source, options.width)
    if options.only:
        cases = {n: c for n, c in cases.items() if any(word in n for word in options.only)}
    results = _rounds(cases, options.rounds)
    limits = run_case(
        "benchmarks.train_speed.cases", "limits", options.batch, options.width, precision
    )
    metrics = key_metrics(results, limits)
    about = f"SketchCNN of width {options.width}, {limits['parameters']:,} parameters, "
    about += f"{CLASSES} classes; base case: batch {options.batch:,}, {precision}"
    text = train_speed_page.page(about, options.rounds, results, limits, metrics)
    print(text)
    if options.page:
        name = f"train_speed_{'gpu' if on_gpu else 'cpu'}.md"
        (Path(__file__).parents[1] / "results" / name).write_text(text, encoding="utf-8")
    print(json.dumps(metrics))


def best_precision(on_gpu: bool) -> str:
    """bf16 where the device multiplies in it, else fp32."""
    cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if on_gpu or cpu else "fp32"


def our_cases(
    precision: str, drawings: int, batch: int, batches: tuple[int, ...], on_gpu: bool
) -> dict[str, dict[str, object]]:
    """Settings of every run of ours: the base, then one thing changed at a time; pure."""
    base: dict[str, object] = {"train.global_batch": batch, "train.precision": precision}
    off: dict[str, object] = {"train.channels_last": False, "train.compile": "off"}
    off |= {"augment.affine": False, "optimizer.ema_half_life_drawings": 0}
    changes: dict[str, dict[str, object]] = {
        BASE: {},
        "channels first": {"train.channels_last": False},
        "torch.compile off" if on_gpu else "torch.compile on": {
            "train.compile": "off" if on_gpu else "default"
        },
        "no augmentation": {"augment.affine": False},
        "no moving average": {"optimizer.ema_half_life_drawings": 0},
        "all of these off, fp32, batch 256": {
            **off, "train.precision": "fp32", "train.global_batch": 256,
        },
        "resident": {"stream.resident": True},
        SAVING: {"checkpoint.every_drawings": max(batch, drawings // 16)},
    }  # fmt: skip
    if precision == "bf16":  # elsewhere it is emulated, a tenth as fast
        changes["fp32 instead of bf16"] = {"train.precision": "fp32"}
    if on_gpu:
        changes["fp16 instead of bf16"] = {"train.precision": "fp16"}
        for mode in ("reduce-overhead", "max-autotune"):
            changes[f"compiled with {mode}"] = {"train.compile": mode}
    changes |= {f"batch {size:,}": {"train.global_batch": size} for size in batches}
    return {name: base | change for name, change in changes.items()}


def _source(drawings: int) -> str:
    """Synthetic drawings of which nine tenths, the training split, are at least so many."""
    each = -(-drawings * 10 // (9 * CLASSES)) + 1
    pool = "&pool=64" if each > 64 else ""
    return f"synthetic:?classes={CLASSES}&per_class={each}&seed=7{pool}"


def _ours(options: argparse.Namespace, name: str, settings: dict[str, object]) -> Metrics:
    """A run of one epoch, in a folder of its own; eight lines of progress at most."""
    batch = int(str(settings["train.global_batch"]))
    every = max(1, options.drawings // batch // 8)
    settings = {"train.epochs": 1, "train.log_every": every, "model.width": options.width,
                "evaluation.batch": 1_024} | settings  # fmt: skip
    output = options.folder / "runs" / name.replace(" ", "-")
    shutil.rmtree(output, ignore_errors=True)
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    shards = options.folder / "shards"
    return run_case("benchmarks.train_speed.cases", "ours", shards, output, *arguments)


def _small(sizes: Sizes, source: str, width: int) -> dict[str, Case]:
    """With and without workers, where there are cores for them: the faster one counts."""
    case = partial(run_case, "benchmarks.train_speed.cases", "small_project", source)
    return {
        f"{SMALL}, {workers} workers": partial(case, sizes.small_drawings, workers, width)
        for workers in sizes.small_workers
    }


def _rounds(cases: dict[str, Case], rounds: int) -> dict[str, Metrics]:
    """Every case once, then every case again: what else the machine does hits all alike."""
    results: dict[str, list[Metrics]] = {name: [] for name in cases}
    with tqdm(total=rounds * len(cases), leave=False) as bar:
        for _ in range(rounds):
            for name, case in cases.items():
                bar.set_description(name)
                results[name].append(case())
                bar.update()
    return {name: median(found) for name, found in results.items()}


def key_metrics(results: dict[str, Metrics], limits: Metrics) -> Metrics:
    """The metrics that are followed from release to release; None where a case did not run."""
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
