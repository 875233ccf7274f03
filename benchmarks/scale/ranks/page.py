"""The results of `scaling` as a page."""

from __future__ import annotations

import argparse
import os

from benchmarks.measure import Metrics, provenance, table
from benchmarks.scale.ranks.model import EPOCH_DRAWINGS, Links, Step


def page(
    options: argparse.Namespace, results: dict[int, Metrics], about: str, step: Step, size: int,
    rows: dict[int, Metrics],
) -> str:  # fmt: skip
    """Markdown with all metrics of the run; `about` says where the GPU's step comes from."""
    keys = ("drawings_per_second", "step_ms", "all_reduce_ms", "communication_share")
    measured: list[tuple[str, ...]] = [
        ("ranks", "drawings/s", "step, ms", "all-reduce, ms", "share", "order digest")
    ]
    for ranks, result in results.items():
        measured.append((str(ranks), *(f"{result[key]:,}" for key in keys), result["order_digest"]))
    head = ("GPUs", "all-reduce, ms", f"{options.gpu_batch:,} per GPU", "an epoch of that, s",
            f"{options.global_batch:,} in total")  # fmt: skip
    model: list[tuple[str, ...]] = [head]
    for gpus, row in rows.items():
        growing, fixed = (f"{row[key][0]:.0%} to {row[key][1]:.0%}" for key in ("growing", "fixed"))
        ms, epoch = f"{row['all_reduce_ms']:.3f}", f"{row['epoch_seconds']:,.1f}"
        model.append((str(gpus), ms, growing, epoch, fixed))
    links = Links()
    return "\n".join(
        [
            "# Scaling",
            "",
            provenance("make bench-scaling ARGS=--page", "n = 1", "torch", "numpy"),
            "",
            "## Measured: gloo ranks on this machine",
            "",
            f"SketchCNN of width {options.width}, global batch {options.batch}, medians of one "
            f"run each; the ranks share {os.cpu_count()} cores, so more of them do not train "
            "faster here. The all-reduce of the gradients is timed alone; in training it overlaps "
            "the backward pass. The order digest must not depend on the ranks.",
            "",
            table(measured),
            "",
            "## Modelled, not measured: GPUs",
            "",
            f"{about}: one GPU alone takes {step.fixed_seconds * 1e3:.1f} ms per step plus its "
            f"drawings at {step.drawings_per_second:,.0f} per second. The links are assumed: "
            f"{links.gpus_per_node} GPUs per node at {links.node_bytes_per_second / 1e9:.0f} GB/s, "
            f"{links.network_bytes_per_second / 1e9:.0f} GB/s per GPU between nodes, "
            f"{links.hop_seconds * 1e6:.0f} us per hop; rings; "
            f"{size:,} bytes of gradients (SketchCNN of width 64). Shares of linear scaling, with "
            "no communication hidden and with all that the backward pass can hide; the epoch of "
            f"{EPOCH_DRAWINGS:,} drawings with none hidden.",
            "",
            table(model),
            "",
        ]
    )  # fmt: skip
