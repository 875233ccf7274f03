"""The full-size rehearsal, from nothing to a trained epoch: make full-size.

Synthetic drawings with the official class counts (50,426,266 drawings; every class is a pool of 64
drawings and shifted copies of them, see `data/drawings/synthetic/source.py`) are sharded on all
cores, verified, and one epoch is trained; each step is the command that a user would type.
`--fraction 0.01` scales the counts down; other options, such as --model.width 16, are settings of
the training. Linux only. The last line is JSON; --page writes benchmarks/results/full_size.md.
"""

from __future__ import annotations

import shutil
import time
import uuid
from pathlib import Path

import torch

from benchmarks.chaos.processes import memory_of
from benchmarks.measure import (
    Metrics,
    parser,
    provenance,
    publish,
    run_module,
    table,
    train_records,
)
from quickdraw_dist.data.shards import manifest

MARK = "FULL_SIZE_REHEARSAL"
PHASES = ("shard", "verify", "train")
PAGE = "full_size.md"


def main() -> None:
    """Run the phases and print the table."""
    arguments = parser("full-size", __doc__, PAGE)
    arguments.add_argument("--fraction", type=float, default=1.0, help="of the official counts [1]")
    options, settings = arguments.parse_known_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    shards, run = options.folder / "shards", options.folder / "run"
    settings = [*training_settings(torch.cuda.device_count()), *settings]
    commands = {
        "shard": ["jobs.shard", "--source", source(options.fraction), "--dest", str(shards)],
        "verify": ["jobs.verify", str(shards)],
        "train": [*_torchrun(torch.cuda.device_count()), "quickdraw_dist.train",
                  "--data", str(shards), "--output", str(run), *settings],
    }  # fmt: skip
    results = {phase: _run_phase(*command) for phase, command in commands.items()}
    dataset = manifest.read(str(shards))
    total = sum(file.drawings for file in dataset.source_files)
    trained = max(record["drawings"] for record in train_records(run))
    stored, read = _bytes(shards), sum(_bytes(shards / split) for split in ("train", "val"))
    moved = {"shard": (total, 0, stored), "verify": (total, stored, 0),
             "train": (trained, read, _bytes(run))}  # fmt: skip
    for phase, (drawings, bytes_read, bytes_written) in moved.items():
        results[phase] |= {
            "drawings": drawings,
            "drawings_per_second": round(drawings / results[phase]["seconds"]),
            "bytes_read": bytes_read,
            "bytes_written": bytes_written,
        }
    seconds = round(sum(result["seconds"] for result in results.values()), 1)
    metrics = {"fraction": options.fraction, "seconds": seconds} | results
    publish(options, PAGE, page(options.fraction, settings, results), metrics)


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


def _run_phase(*command: str) -> Metrics:
    """Time `python -m command` and the memory of all its processes."""
    mark = uuid.uuid4().hex
    started = time.monotonic()
    with memory_of(MARK, mark) as peak:
        run_module(*command, variables={MARK: mark})
    return {"seconds": round(time.monotonic() - started, 1), "peak_memory_bytes": peak.bytes}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def page(fraction: float, settings: list[str], results: dict[str, Metrics]) -> str:
    """Markdown with all metrics of the run."""
    arguments = f"ARGS='--page{'' if fraction == 1 else f' --fraction {fraction}'}'"
    counts = "the official" if fraction == 1 else f"{fraction} of the official"
    head = ("phase", "drawings", "seconds", "drawings/s", "peak memory", "read", "written")
    rows: list[tuple[str, ...]] = [head]
    for phase in PHASES:
        result = results[phase]
        sizes = (result[key] for key in ("peak_memory_bytes", "bytes_read", "bytes_written"))
        rows.append(
            (
                phase,
                f"{result['drawings']:,}",
                f"{result['seconds']:,.1f}",
                f"{result['drawings_per_second']:,}",
                *(f"{size / 1e6:,.0f} MB" for size in sizes),
            )
        )
    return "\n".join(
        [
            "# The full-size rehearsal",
            "",
            provenance(f"make full-size {arguments}", "n = 1", "torch", "numpy", "isal", "deflate"),
            "",
            f"Synthetic drawings with {counts} class counts; one epoch with "
            f"`{' '.join(settings)}`. Seconds are those of whole commands, imports included; "
            "memory is the sum over all processes of a command, sampled twice per second; bytes "
            "are file sizes.",
            "",
            table(rows),
            "",
        ]
    )


if __name__ == "__main__":
    main()
