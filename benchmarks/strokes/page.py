"""The results of `strokes` as a page."""

from __future__ import annotations

from benchmarks.measure import Metrics, metrics_table, provenance, table

PACKAGES = ("numpy", "torch", "isal", "deflate", "orjson", "cairocffi")


def page(about: str, rounds: int, results: dict[str, Metrics], metrics: Metrics) -> str:
    """Markdown with all metrics of the run."""
    repeats = f"n = {rounds} rounds of all cases in turn, medians"
    streamed = {name: result for name, result in results.items() if name.startswith("stream")}
    others = {name: result for name, result in results.items() if name not in streamed}
    return "\n".join(
        [
            "# The stroke path",
            "",
            provenance("make bench-strokes ARGS=--page", repeats, *PACKAGES),
            "",
            f"{about}. Every case is one process; the range is that of its rounds.",
            "",
            "## Each step, on one core",
            "",
            "Drawings per second of the process's own CPU time, one thread. `decode` begins with "
            "the stored bytes of a gzip block and includes its checksum; `render` is the module "
            "that trains, compiled, at 28 pixels, in batches of 1,024.",
            "",
            table(_rows("drawings per core-second", others)),
            "",
            "## The loader",
            "",
            "Drawings per second of a clock: epochs of the training loader, after a warm-up epoch, "
            "from gzip blocks in the page cache, with 64 lanes and batches of 4,096 on the host.",
            "",
            table(_rows("drawings/s", streamed)),
            "",
            "## Key metrics",
            "",
            "`bytes_per_drawing` is shard files by drawings, each drawing once, with identities, "
            "tar headers and padding. `mean_error_to_official` is of 255, over all pixels.",
            "",
            metrics_table(metrics),
            "",
        ]
    )


def _rows(unit: str, results: dict[str, Metrics]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("case", unit, "range", "drawings", "peak memory")]
    for name, result in results.items():
        rows.append(
            (
                name,
                f"{result['per_second']:,}",
                f"{result['slowest']:,} to {result['fastest']:,}",
                f"{result['drawings']:,}",
                f"{result['peak_rss_bytes'] / 1e6:,.0f} MB",
            )
        )
    return rows
