"""How cost grows with the dataset, from half a million drawings to five: make bench-growth.

Shards, verifies and streams synthetic datasets of all 345 classes at full-size settings (65,536
drawings a shard, 8 shards a group), each step in one process. Time a drawing and peak memory must
stay flat. Before that, the plan and the order of the official 50,426,266 drawings are built. The
last line is JSON; --page writes benchmarks/results/growth.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from tqdm import tqdm

from benchmarks.measure import Metrics, environment, run_case, table

STEPS = ("shard", "verify", "stream")


def main() -> None:
    """Run every size, print the table."""
    parser = argparse.ArgumentParser("make bench-growth", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-growth"), help="anew")
    parser.add_argument("--drawings", type=int, nargs="+", default=[500_000, 1_600_000, 5_000_000])
    parser.add_argument("--page", action="store_true", help="write benchmarks/results/growth.md")
    options = parser.parse_args()
    official = {
        what: run_case("benchmarks.data_path.cases", f"official_{what}")
        for what in ("plan", "order")
    }
    sizes: dict[int, dict[str, Metrics]] = {}
    for drawings in tqdm(options.drawings, unit=" dataset", leave=False):
        shutil.rmtree(options.folder, ignore_errors=True)
        sizes[drawings] = _measure(options.folder, drawings)
    shutil.rmtree(options.folder)
    text = _page(official, sizes)
    print(text)
    if options.page:
        (Path(__file__).parent / "results" / "growth.md").write_text(text, encoding="utf-8")
    first, last = sizes[options.drawings[0]], sizes[options.drawings[-1]]
    growth = {
        step: {
            "seconds_a_drawing_ratio": round(
                first[step]["per_second"] / last[step]["per_second"], 3
            ),
            "peak_rss_ratio": round(
                last[step]["peak_rss_bytes"] / first[step]["peak_rss_bytes"], 3
            ),
        }
        for step in STEPS
    }
    print(json.dumps({"drawings": last["shard"]["drawings"]} | growth))


def _measure(folder: Path, drawings: int) -> dict[str, Metrics]:
    source = f"synthetic:?classes=345&per_class={-(-drawings // 345)}&seed=7&pool=64"
    cases = {
        "shard": ("shard", source, folder, "gzip"),
        "verify": ("verify", folder),
        "stream": ("read", folder, 1),
    }
    return {step: run_case("benchmarks.data_path.cases", *case) for step, case in cases.items()}


def _page(official: dict[str, Metrics], sizes: dict[int, dict[str, Metrics]]) -> str:
    known = environment("numpy", "torch", "isal", "deflate")
    rows: list[tuple[str, ...]] = [("drawings", "step", "seconds", "drawings/s", "peak memory")]
    for results in sizes.values():
        for step in STEPS:
            result = results[step]
            rows.append((f"{result['drawings']:,}", step, *_cells(result)))
    first, *_, last = (results["shard"] for results in sizes.values())
    slope = (last["seconds"] - first["seconds"]) / (last["drawings"] - first["drawings"])
    once = first["seconds"] - slope * first["drawings"]
    builds = [("of 50,426,266 drawings", "seconds", "drawings/s", "peak memory")]
    builds += [(what, *_cells(result)) for what, result in official.items()]
    return "\n".join(
        [
            "# How cost grows",
            "",
            f"`make bench-growth ARGS=--page`, {known['date']}, n = 1. {known['hardware']}. "
            f"{known['versions']}.",
            "",
            "Synthetic drawings of 345 classes; gzip, 65,536 a shard, 8 shards a group; one "
            "process. `stream` is an epoch after one that warms up, at 64 lanes.",
            "",
            table(rows),
            "",
            f"Sharding takes {slope * 1e6:.1f} us a drawing more from the first size to the last, "
            f"and {once:.0f} s that do not grow: the source renders its pools first.",
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
