"""The results of `train_speed` as a page."""

from __future__ import annotations

from benchmarks.measure import Metrics, metrics_table, provenance, table


def page(
    about: str, rounds: int, results: dict[str, Metrics], limits: Metrics, metrics: Metrics
) -> str:
    """Markdown with all metrics of the run."""
    base = next(iter(results.values()))["per_second"]
    rows: list[tuple[str, ...]] = [
        ("case", "drawings/s", "of the first", "GFLOP/s", "of peak", "data wait", "memory")
    ]
    for name, result in results.items():
        flops = result["per_second"] * limits["flops_per_drawing"]
        wait = result.get("data_wait_share")
        rows.append(
            (
                name,
                f"{result['per_second']:,}",
                f"{result['per_second'] / base:.2f}",
                f"{flops / 1e9:,.0f}",
                f"{flops / limits['flops_per_second']:.1%}",
                "" if wait is None else f"{wait:.2%}",
                f"{result['memory_bytes'] / 1e6:,.0f} MB",
            )
        )
    repeats = f"n = {rounds} of every case, in turn, medians"
    lines = [
        "# How fast it trains",
        "",
        provenance("make bench-train ARGS=--page", repeats, "torch", "numpy"),
        "",
        f"{about}. Synthetic drawings, streamed from shards; a case is one process, its rate "
        "the median of its progress lines without the first. GFLOP/s are the model's "
        f"({limits['flops_per_drawing'] / 1e9:.3f} GFLOP per drawing, forward and backward), of the"
        " largest matrix product measured in the same run and the base case's precision.",
        "",
        table(rows),
        "",
        _remark(rounds, about.endswith("fp32")),
        "",
        "## The limits",
        "",
        table(_limits(limits, base)),
        "",
        "Memory: layers that cannot be fused with one another read and write their activations "
        "once per direction (`benchmarks/train_speed/work.py`); while the activations fit the "
        "processor's caches, memory is not a limit.",
        "",
        "## Key metrics",
        "",
        metrics_table(metrics),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _remark(rounds: int, emulated: bool) -> str:
    """Name what limits the table's validity."""
    noise = "With n = 1, differences below a tenth may be noise. " if rounds == 1 else ""
    return noise + (
        "This processor multiplies in fp32 only (no avx512_bf16, no amx): bf16 was skipped."
        if emulated
        else "bf16 is multiplied in hardware here."
    )


def _limits(limits: Metrics, rate: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("limit", "measured", "drawings/s at most", "reached")]
    for name, key, unit in (
        ("arithmetic: largest matrix product", "flops_per_second", "GFLOP/s"),
        ("memory: read and written by a copy", "bytes_per_second", "GB/s"),
    ):
        most = limits[f"{name.split(':')[0]}_drawings_per_second"]
        rows.append((name, f"{limits[key] / 1e9:,.0f} {unit}", f"{most:,}", f"{rate / most:.1%}"))
    return rows
