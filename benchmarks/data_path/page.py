"""The results of `data_path` as a page and a plot."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data_path.peers import PEERS
from benchmarks.measure import Metrics, metrics_table, provenance, table

PACKAGES = ("numpy", "torch", "webdataset", "isal", "deflate", "gcsfs")

_GROUPS = (
    ("read", "Reading from warm local disk"),
    ("write", "Writing"),
    ("store", "From an object store on the same machine"),
)


def page(
    about: str, rounds: int, results: dict[str, Metrics], limits: dict[str, int], metrics: Metrics
) -> str:
    """Markdown with all metrics of the run."""
    repeats = f"n = {rounds} rounds of all cases in turn, medians"
    lines = [
        "# The data path, side by side",
        "",
        provenance("make bench-data ARGS=--page", repeats, *PACKAGES),
        "",
        f"{about}. Every case is one process; the range is that of its rounds. Peers in their own "
        f"environment: {', '.join(PEERS)}.",
    ]
    for group, title in _GROUPS:
        rows: list[tuple[str, ...]] = [
            ("case", "drawings/s", "range", "bytes per drawing", "peak memory")
        ]
        for name, result in results.items():
            if name.startswith(group):
                rows.append(_row(name.partition(": ")[2], result))
        lines += ["", f"## {title}", "", table(rows)]
    rows = [("of this machine, without any loader", "drawings/s")]
    rows += [(name, f"{rate:,}") for name, rate in limits.items()]
    lines += ["", "## The limits", "", table(rows), "", "![the same as a plot](data_path.svg)"]
    lines += ["", "## Key metrics", "", metrics_table(metrics), ""]
    return "\n".join(lines)


def _row(name: str, result: Metrics) -> tuple[str, ...]:
    stored = result.get("bytes_per_drawing")
    return (
        name,
        f"{result['per_second']:,}",
        f"{result['slowest']:,} to {result['fastest']:,}",
        f"{stored:,.0f}" if stored else "",
        f"{result['peak_rss_bytes'] / 1e6:,.0f} MB",
    )


def plot(results: dict[str, Metrics], limits: dict[str, int], path: Path) -> None:
    """Save bars on a logarithmic scale: readers, writers, and the machine's limits."""
    from matplotlib.figure import Figure

    bars = [(name, result["per_second"]) for name, result in results.items()]
    bars += [(f"limit: {name}", rate) for name, rate in limits.items()]
    bars.sort(key=lambda bar: (bar[0].split(":")[0], bar[1]))
    figure = Figure(figsize=(9, 0.26 * len(bars) + 1), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, rate) in enumerate(bars):
        group, _, what = name.partition(": ")
        colour = "#bbbbbb" if group == "limit" else "#1f77b4" if "ours" in what else "#e0a458"
        axes.barh(row, rate, color=colour)
        axes.text(rate, row, f" {rate:,.0f}", va="center", fontsize=7)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("drawings per second")
    axes.margins(x=0.12, y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
