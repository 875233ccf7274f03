"""The results of `scaling` as a page."""

from __future__ import annotations

import argparse
import os

from benchmarks.measure import Metrics, environment, table
from benchmarks.scaling.model import EPOCH_DRAWINGS, Links, Step


def page(
    options: argparse.Namespace, results: dict[int, Metrics], about: str, step: Step, size: int,
    rows: dict[int, Metrics],
) -> str:  # fmt: skip
    """Markdown with every figure of the run; `about` says where the GPU's step is from."""
    known = environment("torch", "numpy")
    keys = ("drawings_per_second", "step_ms", "all_reduce_ms", "communication_share")
    measured = [("ranks", "drawings/s", "step, ms", "all-reduce, ms", "share", "order digest")]
    for ranks, result in results.items():
        measured.append((str(ranks), *(f"{result[key]:,}" for key in keys), result["order_digest"]))
    head = ("GPUs", "all-reduce, ms", f"{options.gpu_batch:,} a GPU", "an epoch of it, s",
            f"{options.global_batch:,} over all")  # fmt: skip
    model = [head]
    for gpus, row in rows.items():
        growing, fixed = (f"{row[key][0]:.0%} to {row[key][1]:.0%}" for key in ("growing", "fixed"))
        ms, epoch = f"{row['all_reduce_ms']:.3f}", f"{row['epoch_seconds']:,.1f}"
        model.append((str(gpus), ms, growing, epoch, fixed))
    links = Links()
    return "\n".join(
        [
            "# Scaling",
            "",
            f"`make bench-scaling ARGS=--page`, {known['date']}, n = 1. {known['hardware']}. "
            f"{known['versions']}.",
            "",
            "## Measured: gloo ranks on this machine",
            "",
            f"SketchCNN of width {options.width}, global batch {options.batch}, medians of one "
            f"run each; the ranks share {os.cpu_count()} cores, so that more of them train no "
            "faster here. The all-reduce of the gradients is timed by itself; in training it "
            "runs beside the backward pass. The order digest must not depend on the ranks.",
            "",
            table(measured),
            "",
            "## Modelled, not measured: GPUs",
            "",
            f"{about}: a GPU by itself takes {step.fixed_seconds * 1e3:.1f} ms a step, and "
            f"{step.drawings_per_second:,.0f} drawings/s besides. The links are assumed: "
            f"{links.gpus_per_node} GPUs a node at {links.node_bytes_per_second / 1e9:.0f} GB/s, "
            f"{links.network_bytes_per_second / 1e9:.0f} GB/s a GPU between nodes, "
            f"{links.hop_seconds * 1e6:.0f} us a hop; rings; "
            f"{size:,} bytes of gradients (SketchCNN of width 64). Shares of linear scaling, with "
            "no communication hidden and with all that the backward pass can hide; the epoch of "
            f"{EPOCH_DRAWINGS:,} drawings with none hidden.",
            "",
            table(model),
            "",
        ]
    )  # fmt: skip
