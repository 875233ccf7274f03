"""The full-size rehearsal, from nothing to a trained epoch: make full-size.

Synthetic drawings with the official class counts (50,426,266 drawings; every class a pool of 64
that are moved about, see `drawings/synthetic.py`) are sharded on all cores, verified, and one
epoch is trained; each step is the command that a user would type. `--fraction 0.01` scales the
counts down; settings such as --model.width 16 go to the training. The last line is JSON; --page
writes benchmarks/results/full_size.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import torch

from benchmarks.chaos.processes import memory_of
from benchmarks.measure import Metrics, environment, table
from quickdraw_dist.data.shards import manifest

MARK = "FULL_SIZE_REHEARSAL"
PHASES = ("shard", "verify", "train")


def main() -> None:
    """Run the phases, print the table."""
    parser = argparse.ArgumentParser("make full-size", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/full-size"), help="anew")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the official counts")
    parser.add_argument("--page", action="store_true", help="write benchmarks/results/full_size.md")
    options, settings = parser.parse_known_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    shards, run = options.folder / "shards", options.folder / "run"
    settings = [*training_settings(torch.cuda.device_count()), *settings]
    commands = {
        "shard": ["jobs.shard", "--source", source(options.fraction), "--dest", str(shards)],
        "verify": ["jobs.verify", str(shards)],
        "train": [*_ranks(torch.cuda.device_count()), "quickdraw_dist.train",
                  "--data", str(shards), "--output", str(run), *settings],
    }  # fmt: skip
    results: dict[str, Metrics] = {}
    for phase, command in commands.items():
        results[phase] = _phase(*command)
    dataset = manifest.read(str(shards))
    whole = sum(file.drawings for file in dataset.source_files)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    trained = max(json.loads(line)["drawings"] for line in lines)
    stored, read = _bytes(shards), sum(_bytes(shards / split) for split in ("train", "val"))
    moved = {"shard": (whole, 0, stored), "verify": (whole, stored, 0),
             "train": (trained, read, _bytes(run))}  # fmt: skip
    for phase, (drawings, bytes_read, bytes_written) in moved.items():
        results[phase] |= {
            "drawings": drawings,
            "drawings_per_second": round(drawings / results[phase]["seconds"]),
            "bytes_read": bytes_read,
            "bytes_written": bytes_written,
        }
    text = page(options.fraction, settings, results)
    print(text)
    if options.page:
        (Path(__file__).parent / "results" / "full_size.md").write_text(text, encoding="utf-8")
    total = round(sum(result["seconds"] for result in results.values()), 1)
    print(json.dumps({"fraction": options.fraction, "seconds": total} | results))


def source(fraction: float) -> str:
    """The address of the synthetic drawings."""
    share = "" if fraction == 1 else f"*{fraction:.9f}".rstrip("0")
    return f"synthetic:?per_class=official{share}&seed=7&pool=64"


def training_settings(gpus: int) -> list[str]:
    """One epoch with the default network; a narrow one in small batches without a GPU."""
    settings = ["--train.epochs", "1", "--metrics.port", "0", "--metrics.report", "false"]
    if gpus:
        return [*settings, "--train.global_batch", str(8_192 * gpus)]
    return [*settings, "--train.global_batch", "1024", "--model.width", "8"]


def _ranks(gpus: int) -> list[str]:
    """One rank a GPU."""
    if gpus < 2:
        return []
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}", "-m"]


def _phase(*command: str) -> Metrics:
    """python -m command, watched; its failure is ours."""
    mark = uuid.uuid4().hex
    started = time.monotonic()
    with memory_of(MARK, mark) as peak:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=os.environ | {MARK: mark},
            stdout=sys.stderr,  # ours is the result
            check=False,
        )
    if done.returncode:
        sys.exit(done.returncode)
    return {"seconds": round(time.monotonic() - started, 1), "peak_memory_bytes": peak.bytes}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def page(fraction: float, settings: list[str], results: dict[str, Metrics]) -> str:
    """Markdown with every figure of the run."""
    known = environment("torch", "numpy", "isal", "deflate")
    arguments = f"ARGS='--page{'' if fraction == 1 else f' --fraction {fraction}'}'"
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
            f"`make full-size {arguments}`, {known['date']}, n = 1. {known['hardware']}. "
            f"{known['versions']}.",
            "",
            "Synthetic drawings with "
            + ("the official class counts" if fraction == 1 else f"{fraction} of the official "
               "class counts")
            + f"; one epoch with `{' '.join(settings)}`. Seconds are of whole commands, imports "
            "included; memory is of all processes of a command together, looked at twice a second; "
            "bytes are those of the files.",
            "",
            table(rows),
            "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
