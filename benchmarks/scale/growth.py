"""How cost grows with the dataset, from half a million drawings to five: make bench-growth.

Shards, verifies and streams synthetic datasets of all 345 classes with the settings of the full
dataset (65,536 drawings per shard, 8 shards per group), each step in one process. Time per drawing
and peak memory must stay flat. Before that, the plan and the order of the official 50,426,266
drawings are built. `--content strokes` stores pen strokes. The last line is JSON; --page writes
benchmarks/results/growth.md, or growth_strokes.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tqdm import tqdm

from benchmarks.measure import (
    CLASSES,
    Metrics,
    add_content,
    page_of,
    parser,
    provenance,
    publish,
    run_case,
    table,
)

STEPS = ("shard", "verify", "stream")
PAGE = "growth.md"
_DRAWINGS = [500_000, 1_600_000, 5_000_000]


def main() -> None:
    """Measure every size and print the table."""
    arguments = parser("bench-growth", __doc__, PAGE)
    arguments.add_argument(
        "--drawings", type=int, nargs="+", default=_DRAWINGS,
        help="sizes of the datasets, at least two [500000 1600000 5000000]",
    )  # fmt: skip
    add_content(arguments)
    options = arguments.parse_args()
    official = {
        what: run_case("benchmarks.data_path.cases", f"official_{what}")
        for what in ("plan", "order")
    }
    sizes: dict[int, dict[str, Metrics]] = {}
    for drawings in tqdm(options.drawings, unit=" dataset", leave=False):
        shutil.rmtree(options.folder, ignore_errors=True)
        sizes[drawings] = _measure(options.folder, drawings, options.content)
    shutil.rmtree(options.folder)
    first, last = sizes[options.drawings[0]], sizes[options.drawings[-1]]
    growth = {step: _ratios(first[step], last[step]) for step in STEPS}
    metrics = {"drawings": last["shard"]["drawings"]} | growth
    given = "--page" + (" --content strokes" if options.content == "strokes" else "")
    if options.drawings != _DRAWINGS:
        given += f" --drawings {' '.join(map(str, options.drawings))}"
    text = _page(options.content, given, official, sizes)
    publish(options, page_of(PAGE, options.content), text, metrics)


def _measure(folder: Path, drawings: int, content: str) -> dict[str, Metrics]:
    source = f"synthetic:?classes={CLASSES}&per_class={-(-drawings // CLASSES)}&seed=7&pool=64"
    cases = {
        "shard": ("shard", source, folder, "gzip", 65_536, content),
        "verify": ("verify", folder),
        "stream": ("read", folder, 1),
    }
    return {step: run_case("benchmarks.data_path.cases", *case) for step, case in cases.items()}


def _ratios(first: Metrics, last: Metrics) -> dict[str, float]:
    memory = last["peak_rss_bytes"] / first["peak_rss_bytes"]
    return {
        "seconds_a_drawing_ratio": round(first["per_second"] / last["per_second"], 3),
        "peak_rss_ratio": round(memory, 3),
    }


def _page(
    content: str, given: str, official: dict[str, Metrics], sizes: dict[int, dict[str, Metrics]]
) -> str:
    """Markdown with all metrics of the run."""
    rows: list[tuple[str, ...]] = [("drawings", "step", "seconds", "drawings/s", "peak memory")]
    for results in sizes.values():
        for step in STEPS:
            result = results[step]
            rows.append((f"{result['drawings']:,}", step, *_cells(result)))
    first, *_, last = (results["shard"] for results in sizes.values())
    slope = (last["seconds"] - first["seconds"]) / (last["drawings"] - first["drawings"])
    fixed_seconds = first["seconds"] - slope * first["drawings"]
    builds = [("of 50,426,266 drawings", "seconds", "drawings/s", "peak memory")]
    builds += [(what, *_cells(result)) for what, result in official.items()]
    packages = ("numpy", "torch", "isal", "deflate")
    return "\n".join(
        [
            f"# How cost grows{', with pen strokes' if content == 'strokes' else ''}",
            "",
            provenance(f"make bench-growth ARGS='{given}'", "n = 1", *packages),
            "",
            f"Synthetic drawings of {CLASSES} classes; gzip, 65,536 per shard, 8 shards per group; "
            "one process. `stream` is an epoch after a warm-up epoch, with 64 lanes.",
            "",
            table(rows),
            "",
            f"From the first size to the last, sharding takes {slope * 1e6:.1f} us per additional "
            f"drawing, and {fixed_seconds:.0f} s that do not grow: the source makes its pools "
            "first.",
            "",
            "The official dataset's plan (splits of every row, every shard) and order (schedule of "
            "an epoch on one rank). Peak memory is the process's, of which "
            f"{official['plan']['imports_bytes'] / 1e6:,.0f} MB are imports.",
            "",
            table(builds),
            "",
        ]
    )


def _cells(result: Metrics) -> tuple[str, str, str]:
    peak = f"{result['peak_rss_bytes'] / 1e6:,.0f} MB"
    return f"{result['seconds']:,.2f}", f"{result['per_second']:,}", peak


if __name__ == "__main__":
    main()
