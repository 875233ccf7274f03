"""The stroke path: bytes, speed of every step, nearness to the official pixels: make bench-strokes.

Every case runs in a process of its own, the cases in turn, `--rounds` times; results are medians.
The drawings are the real ones in QUICKDRAW_REAL_DATA (default ../shared/quickdraw), repeated up to
`--drawings` for the loader, or synthetic ones if that folder does not exist. The last line is JSON;
--page writes benchmarks/results/strokes.md.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.data_path.__main__ import write_bitmaps
from benchmarks.measure import Case, Metrics, parser, publish, real_strokes, run_case, run_rounds
from benchmarks.strokes.files import write_bin, write_ndjson
from benchmarks.strokes.page import page
from quickdraw_dist.data.drawings.sources import open_source

PAGE = "strokes.md"
SYNTHETIC = "synthetic:?classes=345&per_class=600&seed=7"


def main() -> None:
    """Write files and shards, measure every case and print the table and the JSON."""
    arguments = parser("bench-strokes", __doc__, PAGE)
    arguments.add_argument("--drawings", type=int, default=1_000_000, help="about [1000000]")
    arguments.add_argument("--rounds", type=int, default=3, help="runs per case [3]")
    options = arguments.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    folder = options.folder.resolve()
    about, ndjson = _write_sources(folder, options.drawings)
    stored = _shard(ndjson, folder / "once", "strokes")
    _shard(folder / "bin", folder / "strokes", "strokes")
    _shard(folder / "bitmaps", folder / "pixels", "bitmaps")
    results = run_rounds(_per_core_cases(folder, ndjson), options.rounds)
    results |= run_rounds(_stream_cases(folder), options.rounds)
    metrics = key_metrics(stored["bytes_per_drawing"], results)
    publish(options, PAGE, page(about, options.rounds, results, metrics), metrics)


def _write_sources(folder: Path, drawings: int) -> tuple[str, Path]:
    """Write source files of both contents with about `drawings` drawings each; return a description
    and the folder of `.ndjson` files, each drawing once."""
    real = real_strokes()
    once = open_source(str(real) if real.is_dir() else SYNTHETIC, content="strokes")
    count = sum(once.counts)
    times = max(1, round(drawings / count))
    write_bin(once, folder / "bin", times)
    write_bitmaps(folder / "bitmaps", drawings)
    kind = "real" if real.is_dir() else "synthetic"
    about = f"{count:,} {kind} drawings of {len(once.classes)} classes"
    if times > 1:
        about += f", {times} times for the loader and for .bin files"
    if not real.is_dir():
        real = folder / "ndjson"
        write_ndjson(once, real)
    return about, real


def _shard(source: Path, dest: Path, content: str) -> Metrics:
    case = ("shard", source, dest, "gzip", 65_536, content)
    return run_case("benchmarks.data_path.cases", *case)


def _per_core_cases(folder: Path, ndjson: Path) -> dict[str, Case]:
    """One thread each; rates are per second of CPU time."""
    case = partial(run_case, "benchmarks.strokes.cases")
    once = folder / "once"
    return {
        "find records: .bin": partial(case, "find_records", folder / "bin"),
        "find records: .ndjson": partial(case, "find_records", ndjson),
        "read: .bin": partial(case, "read", folder / "bin"),
        "read: .ndjson": partial(case, "read", ndjson),
        "decode: stored block to strokes": partial(case, "decode", once),
        "pack: strokes to tiles": partial(case, "pack_tiles", once),
        "render: 1 channel": partial(case, "render", once, 1),
        "render: 4 channels": partial(case, "render", once, 4),
        "draw: plain rule in numpy": partial(case, "plain", once),
        "draw: cairo, the official pixels": partial(case, "cairo", once),
    }


def _stream_cases(folder: Path) -> dict[str, Case]:
    """Epochs of the training loader in one process on all cores; rates are per second."""
    ours = partial(run_case, "benchmarks.data_path.cases")
    return {
        "stream: strokes": partial(ours, "read", folder / "strokes", 4),
        "stream: bitmaps": partial(ours, "read", folder / "pixels", 4),
        "stream: strokes, resident": partial(ours, "resident", folder / "strokes", 8),
        "stream: bitmaps, resident": partial(ours, "resident", folder / "pixels", 8),
    }


def key_metrics(bytes_per_drawing: float, results: dict[str, Metrics]) -> Metrics:
    """Metrics that are followed from release to release."""

    def rate(name: str) -> int:
        return int(results[name]["per_second"])

    per_core = {
        "decode": "decode: stored block to strokes",
        "render": "render: 1 channel",
        "render_4_channels": "render: 4 channels",
        "read_bin": "read: .bin",
        "read_ndjson": "read: .ndjson",
        "pack": "pack: strokes to tiles",
        "cairo": "draw: cairo, the official pixels",
    }
    return {
        "bytes_per_drawing": bytes_per_drawing,
        **{f"{key}_drawings_per_second_per_core": rate(name) for key, name in per_core.items()},
        "stream_ratio_to_bitmaps": round(rate("stream: strokes") / rate("stream: bitmaps"), 2),
        "mean_error_to_official": results["render: 1 channel"]["mean_error"],
    }


if __name__ == "__main__":
    main()
