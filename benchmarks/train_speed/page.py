"""The results of `train_speed` as a page."""

from __future__ import annotations

from benchmarks.measure import Metrics, environment, table


def page(
    about: str, rounds: int, results: dict[str, Metrics], limits: Metrics, metrics: Metrics
) -> str:
    """Markdown with every figure of the run."""
    known = environment("torch", "numpy")
    base = next(iter(results.values()))["per_second"]
    rows = [("case", "drawings/s", "of the first", "GFLOP/s", "of peak", "data wait", "memory")]
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
    lines = [
        "# How fast it trains",
        "",
        f"`make bench-train ARGS=--page`, {known['date']}, n = {rounds} of every case, in "
        f"turn, medians. {known['hardware']}. {known['versions']}.",
        "",
        f"{about}. Synthetic drawings, streamed from shards; a case is one process, and its rate "
        "the median of its progress lines without the first. GFLOP/s are the model's "
        f"({limits['flops_per_drawing'] / 1e9:.3f} GFLOP a drawing, forward and backward), of the "
        "largest matrix product measured in the same run and the base case's precision.",
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
        "once each way (`benchmarks/train_speed/work.py`); where they stay in the "
        "processor's caches, it is no limit.",
        "",
        "## The metrics",
        "",
        table([("figure", "value"), *((k, f"{v:,}" if isinstance(v, int) else str(v))
                                      for k, v in metrics.items())]),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _remark(rounds: int, emulated: bool) -> str:
    """What the table does not show."""
    noise = "With n = 1, differences below a tenth may be the machine's. " if rounds == 1 else ""
    return noise + (
        "This processor multiplies in fp32 only (no avx512_bf16, no amx), so bf16 was left out."
        if emulated
        else "bf16 is multiplied in hardware here."
    )


def _limits(limits: Metrics, rate: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("limit", "measured", "drawings/s at the most", "reached")]
    for name, key, unit in (
        ("arithmetic: largest matrix product", "flops_per_second", "GFLOP/s"),
        ("memory: read and written by a copy", "bytes_per_second", "GB/s"),
    ):
        most = limits[f"{name.split(':')[0]}_drawings_per_second"]
        rows.append((name, f"{limits[key] / 1e9:,.0f} {unit}", f"{most:,}", f"{rate / most:.1%}"))
    return rows
