"""The full-size rehearsal, from nothing to a trained epoch: make full-size.

Synthetic drawings with the official class counts (50,426,266 drawings; every class is a pool of 64
drawings and shifted copies of them, see `data/drawings/synthetic/source.py`) are sharded on all
cores, verified, and one epoch is trained, with --resident a second one from memory; each step is
the command that a user would type. `--content strokes` stores pen strokes, which training renders;
`--fraction 0.01` scales the counts down; other options, such as --model.width 16, are settings of
the training. After --seconds the phase under way gets a TERM: a
training saves and ends, and counts as far as it came. Linux only. The last line is JSON; --page
writes benchmarks/results/full_size.md, or full_size_strokes.md.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.chaos.processes import memory_of
from benchmarks.measure import (
    Metrics,
    add_content,
    add_limits,
    page_of,
    parser,
    provenance,
    publish,
    table,
    train_records,
    write_json,
)
from quickdraw_dist.data.shards import manifest

MARK = "FULL_SIZE_REHEARSAL"
STREAMED, RESIDENT = "train", "train, resident"
PAGE = "full_size.md"

_SIZES = ("peak_memory_bytes", "bytes_read", "bytes_written")


def main() -> int:
    """Run the phases and print the table; return 1 if a phase failed."""
    began = time.monotonic()
    arguments = parser("full-size", __doc__, PAGE)
    arguments.add_argument("--fraction", type=float, default=1.0, help="of the official counts [1]")
    arguments.add_argument(
        "--resident", action="store_true", help="train again with the drawings in memory"
    )
    add_content(arguments)
    add_limits(arguments)
    options, more = arguments.parse_known_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    gpus = torch.cuda.device_count()
    settings = [*training_settings(gpus), *more]
    measured: Metrics = {"fraction": options.fraction, "content": options.content}
    measured |= {"settings": settings, "phases": {}}
    for name, command in _commands(options, gpus, settings).items():
        left = began + options.seconds - time.monotonic()
        if left <= 0 or not _can_go_on(measured["phases"]):
            break
        result = _run_phase(command, left)
        measured["phases"][name] = result | _sizes(name, options.folder, result)
        measured["seconds"] = round(time.monotonic() - began, 1)
        measured["problem"] = problem(measured["phases"])
        write_json(options.results, measured)
    phases = measured.pop("phases")
    publish(options, page_of(PAGE, options.content), page(measured, phases), measured | phases)
    return 1 if measured["problem"] else 0


def _commands(
    options: argparse.Namespace, gpus: int, settings: list[str]
) -> dict[str, tuple[str, ...]]:
    """Module and arguments of each phase."""
    shards = str(options.folder / "shards")
    origin = ("--source", source(options.fraction), "--shard.content", options.content)

    def train(name: str, *more: str) -> tuple[str, ...]:
        output = str(_run_folder(options.folder, name))
        data = ("--data", shards, "--output", output)
        return (*_torchrun(gpus), "quickdraw_dist.train", *data, *settings, *more)

    commands = {
        "shard": ("jobs.shard", *origin, "--dest", shards),
        "verify": ("jobs.verify", shards),
        STREAMED: train(STREAMED),
    }
    if options.resident:
        commands[RESIDENT] = train(RESIDENT, "--stream.resident", "true")
    return commands


def _run_folder(folder: Path, name: str) -> Path:
    return folder / f"run-{name.replace(', ', '-')}"


def _can_go_on(phases: Mapping[str, Metrics]) -> bool:
    """Whether there are shards for the next phase."""
    return "shard" not in phases or phases["shard"]["exit_code"] == 0


def problem(phases: Mapping[str, Metrics]) -> str:
    """Name the phases that failed; one that was stopped because the time was up did not. Pure."""
    bad = (
        f"{name}: exit code {result['exit_code']}"
        for name, result in phases.items()
        if result["exit_code"] and not result["stopped"]
    )
    return "; ".join(bad)


def source(fraction: float) -> str:
    """Address of synthetic drawings with this fraction of the official counts."""
    scale = "" if fraction == 1 else f"*{fraction:.9f}".rstrip("0")
    return f"synthetic:?per_class=official{scale}&seed=7&pool=64"


def training_settings(gpus: int) -> list[str]:
    """One epoch with the default network; without a GPU, a narrow network and small batches."""
    settings = ["--train.epochs", "1", "--metrics.port", "0", "--metrics.report", "false"]
    if gpus:
        return [*settings, "--train.global_batch", str(8_192 * gpus)]
    return [*settings, "--train.global_batch", "1024", "--model.width", "8"]


def _torchrun(gpus: int) -> list[str]:
    """One rank per GPU; nothing where one rank is enough."""
    if gpus < 2:
        return []
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}", "-m"]


def _run_phase(command: Sequence[str], seconds: float) -> Metrics:
    """Run `python -m command`, at most so long; time it and the memory of all its processes."""
    mark = uuid.uuid4().hex
    started, stopped = time.monotonic(), False
    with memory_of(MARK, mark) as peak:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=os.environ | {MARK: mark}, stdout=sys.stderr
        )
        try:
            process.wait(None if math.isinf(seconds) else seconds)
        except subprocess.TimeoutExpired:
            stopped = True
            process.terminate()
            process.wait()
    return {
        "exit_code": process.returncode,
        "stopped": stopped,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak.bytes,
    }


def _sizes(phase: str, folder: Path, result: Metrics) -> Metrics:
    """Drawings and bytes of a phase, and the speed of a training without its start-up."""
    shards, run = folder / "shards", _run_folder(folder, phase)
    stored = _bytes(shards)
    if phase in (STREAMED, RESIDENT):
        records = train_records(run) if (run / "metrics.jsonl").exists() else []
        drawings = max((record["drawings"] for record in records), default=0)
        read, written = sum(_bytes(shards / split) for split in ("train", "val")), _bytes(run)
        found = _rates(records)
    else:
        drawings, found = 0, {}
        if result["exit_code"] == 0:
            drawings = sum(file.drawings for file in manifest.read(str(shards)).source_files)
        read, written = (0, stored) if phase == "shard" else (stored, 0)
    rate = round(drawings / result["seconds"]) if result["seconds"] else 0
    sizes = {"drawings": drawings, "drawings_per_second": rate}
    return sizes | {"bytes_read": read, "bytes_written": written} | found


def _rates(records: Sequence[Metrics]) -> Metrics:
    """Medians of the progress lines without the first, whose steps are the warm-up."""
    if len(records) < 2:
        return {}
    rates = [record["drawings_per_second"] for record in records[1:]]
    waits = [record["data_wait_share"] for record in records[1:]]
    return {
        "median_drawings_per_second": round(statistics.median(rates)),
        "median_data_wait_share": round(statistics.median(waits), 5),
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def page(measured: Metrics, phases: Mapping[str, Metrics]) -> str:
    """Markdown with all metrics of the run."""
    fraction, of_strokes = measured["fraction"], measured["content"] == "strokes"
    options = "--page" + (" --content strokes" if of_strokes else "")
    arguments = f"ARGS='{options}{'' if fraction == 1 else f' --fraction {fraction}'}'"
    versions = ("torch", "numpy", "isal", "deflate")
    origin = provenance(f"make full-size {arguments}", "n = 1", *versions)
    title = f"# The full-size rehearsal{', with pen strokes' if of_strokes else ''}"
    return "\n".join([title, "", origin, "", *body(measured, phases), ""])


def body(measured: Metrics, phases: Mapping[str, Metrics]) -> list[str]:
    """Lines of Markdown without a title.

    Args:
        measured: `fraction` and `settings`.
        phases: result of each phase, by name.
    """
    fraction = measured["fraction"]
    counts = "the official" if fraction == 1 else f"{fraction} of the official"
    head = ("phase", "drawings", "seconds", "drawings/s", "while training", "data wait",
            "peak memory", "read", "written")  # fmt: skip
    rows: list[tuple[str, ...]] = [head]
    for phase, result in phases.items():
        rate = result.get("median_drawings_per_second")
        wait = result.get("median_data_wait_share")
        rows.append(
            (
                f"{phase} (stopped)" if result["stopped"] else phase,
                f"{result['drawings']:,}",
                f"{result['seconds']:,.1f}",
                f"{result['drawings_per_second']:,}",
                "" if rate is None else f"{rate:,}",
                "" if wait is None else f"{wait:.2%}",
                *(f"{result[key] / 1e6:,.0f} MB" for key in _SIZES),
            )
        )
    return [
        f"Synthetic drawings with {counts} class counts; one epoch with "
        f"`{' '.join(measured['settings'])}`. Seconds are those of whole commands, imports "
        "included; the rate while training is the median of the progress lines without the first; "
        "memory is the sum over all processes of a command, sampled twice per second; bytes are "
        "file sizes. A stopped phase was ended because its time was up.",
        "",
        table(rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
