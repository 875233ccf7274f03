"""The results of `train_speed` as a page."""

from __future__ import annotations

from benchmarks.measure import Metrics, metrics_table, provenance, table
from benchmarks.train_speed import strokes

_NAME_WIDTH = 80


def page(measured: Metrics) -> str:
    """Markdown with everything that was measured; see `body`."""
    repeats = f"n = {measured['rounds']} of every case, in turn, medians"
    origin = provenance("make bench-train ARGS=--page", repeats, "torch", "numpy")
    return "\n".join(["# How fast it trains", "", origin, "", *body(measured)])


def body(measured: Metrics) -> list[str]:
    """Lines of Markdown without a title, from what `--results` writes: `about`, `rounds`, `cases`,
    `left_out`, `failed`, `limits` and `metrics`."""
    about, limits, cases = measured["about"], measured["limits"], measured["cases"]
    if not cases:
        return [f"{about}. No case has ended.", *_missing(measured)]
    base = next(iter(cases.values()))["per_second"]
    rows: list[tuple[str, ...]] = [
        ("case", "drawings/s", "of the first", "GFLOP/s", "of peak", "data wait", "memory")
    ]
    for name, result in cases.items():
        if name.startswith(strokes.RENDERING):
            continue
        flops = result["per_second"] * limits["flops_per_drawing"]
        reached = (f"{flops / 1e9:,.0f}", f"{flops / limits['flops_per_second']:.1%}")
        wait = result.get("data_wait_share")
        rows.append(
            (
                name,
                f"{result['per_second']:,}",
                f"{result['per_second'] / base:.2f}",
                *(("", "") if "56 px" in name else reached),  # of another size
                "" if wait is None else f"{wait:.2%}",
                f"{result['memory_bytes'] / 1e6:,.0f} MB",
            )
        )
    return [
        f"{about}. Synthetic drawings, streamed from shards; a case is one process, its rate "
        "the median of its progress lines without the first. GFLOP/s are the model's "
        f"({limits['flops_per_drawing'] / 1e9:.3f} GFLOP per drawing, forward and backward), of the"
        " largest matrix product measured in the same run and the base case's precision.",
        "",
        table(rows),
        *_missing(measured),
        "",
        _remark(measured["rounds"], about.endswith("fp32")),
        "",
        "## The limits",
        "",
        table(_limits(limits, base)),
        "",
        "Memory: layers that cannot be fused with one another read and write their activations "
        "once per direction (`benchmarks/train_speed/work.py`); while the activations fit the "
        "processor's caches, memory is not a limit.",
        "",
        *strokes.body(cases),
        *_profile(cases),
        "## Key metrics",
        "",
        metrics_table(measured["metrics"]),
        "",
    ]


def _missing(measured: Metrics) -> list[str]:
    """Name the cases without a result."""
    lines = [f"Failed: {name}, {why}." for name, why in measured["failed"].items()]
    if measured["left_out"]:
        lines.append(f"Not measured, for lack of time: {', '.join(measured['left_out'])}.")
    return [text for line in lines for text in ("", line)]


def _profile(cases: Metrics) -> list[str]:
    """What the device did in a step, if a case was profiled."""
    profile = next((result["profile"] for result in cases.values() if "profile" in result), None)
    if profile is None or not profile["top"]:
        return []
    rows: list[tuple[str, ...]] = [("kernel", "share", "ms per step", "calls per step")]
    for kernel in profile["top"]:
        name = kernel["kernel"].replace("|", " ")
        name = name if len(name) <= _NAME_WIDTH else f"{name[:_NAME_WIDTH]}..."
        rows.append(
            (
                f"`{name}`",
                f"{kernel['share']:.1%}",
                f"{kernel['milliseconds_per_step']:,}",
                f"{kernel['calls_per_step']:g}",
            )
        )
    return [
        "## Profile of a step",
        "",
        f"{profile['steps']} steps under torch's profiler: {profile['milliseconds_per_step']:,} ms "
        f"per step, in {profile['gap_share']:.1%} of which the device did nothing.",
        "",
        table(rows),
        "",
    ]


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
