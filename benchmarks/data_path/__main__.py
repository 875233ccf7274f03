"""The data path compared with its alternatives, in one run: make bench-data.

Every case runs in a process of its own, the cases in turn, `--rounds` times; results are medians.
The drawings are the real ones in QUICKDRAW_REAL_DATA (default ../shared/quickdraw), repeated up to
`--drawings`, or synthetic ones if that folder does not exist. The last line is JSON; --page writes
benchmarks/results/data_path.md and data_path.svg.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data_path.cases import load_array
from benchmarks.data_path.page import page, plot
from benchmarks.data_path.peers import PEERS
from benchmarks.measure import (
    RESULTS,
    Case,
    Metrics,
    parser,
    publish,
    real_bitmaps,
    run_case,
    run_rounds,
)
from quickdraw_dist.data.drawings.classes import official_names
from quickdraw_dist.data.drawings.sources import open_source

PAGE = "data_path.md"

_PEER_TORCH = ("torch==2.13.0", "torchvision==0.28.0")

_PEER_DRAWINGS = 100_000
_CLASSIC_DRAWINGS = 30_000
"""Enough for a few seconds of the slow cases; their rates do not depend on it."""


def main() -> None:
    """Write, read, stream from a server and measure the limits; print the table and the JSON."""
    arguments = parser("bench-data", __doc__, PAGE)
    arguments.add_argument("--drawings", type=int, default=2_000_000, help="about [2000000]")
    arguments.add_argument("--rounds", type=int, default=3, help="runs per case [3]")
    arguments.add_argument("--no-peers", action="store_true", help="without mosaicml and litdata")
    options = arguments.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    folder = options.folder.resolve()
    about = write_bitmaps(folder / "bitmaps", options.drawings)
    for name, count in (("classic", _CLASSIC_DRAWINGS), ("peers", _PEER_DRAWINGS)):
        pixels, labels = load_array(folder / "bitmaps", count)
        order = np.random.default_rng(1).permutation(len(labels))
        np.savez(folder / f"{name}.npz", pixels=pixels[order], labels=labels[order])
    peers = None if options.no_peers else _peers_python(folder)
    results = run_rounds(_write_cases(folder, peers), options.rounds)
    results |= run_rounds(_read_cases(folder, peers), options.rounds)
    with _server(folder):
        results |= run_rounds(_store_cases(folder), options.rounds)
    limits = run_case("benchmarks.data_path.limits", folder / "bitmaps")["limits"]
    metrics = _key_metrics(results)
    if options.page:
        plot(results, limits, RESULTS / "data_path.svg")
    publish(options, PAGE, page(about, options.rounds, results, limits, metrics), metrics)


def write_bitmaps(folder: Path, drawings: int) -> str:
    """Write .npy files with about `drawings` drawings; return a description."""
    folder.mkdir()
    real = real_bitmaps().is_dir()
    synthetic = "synthetic:?classes=345&per_class=600&seed=7"
    source = open_source(str(real_bitmaps()) if real else synthetic)
    times = max(1, round(drawings / sum(source.counts)))
    names = source.classes if real else official_names()
    for label, count in enumerate(source.counts):
        pixels = source.read(label, 0, count).drawings.reshape(-1, 784)
        np.save(folder / f"{names[label]}.npy", np.tile(pixels, (times, 1)))
    kind, once = "real" if real else "synthetic", sum(source.counts)
    classes = len(source.classes)
    return f"{once * times:,} drawings of {classes} classes: {once:,} {kind} ones, {times} times"


def _peers_python(folder: Path) -> str | None:
    """Return the Python of the peers' environment, made at the first call; None if that fails.
    It is separate because their dependencies conflict with ours."""
    home = folder.parent / "bench-peers"
    python = home / "bin" / "python"
    if not (home / ".installed").exists():
        print(f"installing {', '.join(PEERS)} into {home} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for packages in (_PEER_TORCH[:1], (*PEERS, *_PEER_TORCH)):
            if subprocess.run([*pip, *packages], check=False).returncode:
                print("the peers cannot be installed here: skipped", file=sys.stderr)
                return None
        (home / ".installed").touch()
    return str(python)


def _write_cases(folder: Path, peers: str | None) -> dict[str, Case]:
    """Writers of what the readers read; each round starts without the folder."""

    def emptied(dest: Path, case: Case) -> Metrics:
        shutil.rmtree(dest, ignore_errors=True)
        return case()

    def ours(compression: str) -> Metrics:
        arguments = (folder / "bitmaps", folder / compression, compression)
        return run_case("benchmarks.data_path.cases", "shard", *arguments)

    def peer(name: str, array: str, python: str) -> Metrics:
        arguments = (f"write_{name}", folder / f"{array}.npz", folder / name)
        return run_case("benchmarks.data_path.peers", *arguments, python=python)

    cases: dict[str, Case] = {
        "write: ours, gzip": partial(emptied, folder / "gzip", partial(ours, "gzip")),
        "write: ours, uncompressed": partial(emptied, folder / "none", partial(ours, "none")),
        "write: webdataset TarWriter, png + cls": partial(
            emptied, folder / "classic", partial(peer, "classic", "classic", sys.executable)
        ),
    }
    if peers is not None:
        for name, title in (("mosaic", "MosaicML streaming"), ("litdata", "litdata")):
            case = partial(emptied, folder / name, partial(peer, name, "peers", peers))
            cases[f"write: {title}"] = case
    return cases


def _read_cases(folder: Path, peers: str | None) -> dict[str, Case]:
    ours = partial(run_case, "benchmarks.data_path.cases")
    theirs = partial(run_case, "benchmarks.data_path.peers")
    array = (folder / "bitmaps", _PEER_DRAWINGS)
    cases: dict[str, Case] = {
        "read: ours, gzip": partial(ours, "read", folder / "gzip", 2),
        "read: ours, uncompressed": partial(ours, "read", folder / "none", 4),
        "read: ours, resident": partial(ours, "resident", folder / "none", 8),
        "read: webdataset, png + cls": partial(theirs, "read_classic", folder / "classic"),
        "read: webdataset, our gzip blocks": partial(theirs, "read_blocks", folder / "gzip"),
        "read: webdataset, our plain blocks": partial(theirs, "read_blocks", folder / "none"),
        "read: numpy Dataset + DataLoader": partial(ours, "in_memory", array[0], 0, array[1]),
        "read: the same, 2 workers": partial(ours, "in_memory", array[0], 2, array[1]),
    }
    if peers is not None:
        for name, title in (("mosaic", "MosaicML streaming"), ("litdata", "litdata")):
            for workers in (0, 2):
                arguments = (f"read_{name}", folder / name, workers)
                case = partial(theirs, *arguments, python=peers)
                cases[f"read: {title}, {workers} workers"] = case
    return cases


@contextmanager
def _server(folder: Path) -> Iterator[None]:
    """Serve gs:// from a process on this machine, as in the tests, with small shards in it."""
    command = [sys.executable, "-m", "tests.support.gcs.server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None, "stdout=PIPE"
        os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        try:
            for compression in ("gzip", "none"):
                shards, bitmaps = folder / f"small-{compression}", folder / "bitmaps"
                url = f"gs://bench-{compression}/quickdraw"
                ours = partial(run_case, "benchmarks.data_path.cases")
                ours("shard", bitmaps, shards, compression, 16_384)
                ours("upload", shards, url)
            yield
        finally:
            server.terminate()


def _store_cases(folder: Path) -> dict[str, Case]:
    """A bare download, our loader with an empty cache, and our loader with a full one."""
    cache = folder / "cache"

    def cold(url: str) -> Metrics:
        shutil.rmtree(cache, ignore_errors=True)
        os.sync()  # the writes of the previous case must not slow down this one
        return run_case("benchmarks.data_path.cases", "cold", url, cache)

    ours = partial(run_case, "benchmarks.data_path.cases")
    cases: dict[str, Case] = {}
    for compression, title in (("none", "uncompressed"), ("gzip", "gzip")):
        url = f"gs://bench-{compression}/quickdraw"
        cases[f"store: bare gcsfs download, {title}"] = partial(ours, "bare", url)
        cases[f"store: ours, {title}, empty cache"] = partial(cold, url)
        cases[f"store: ours, {title}, full cache"] = partial(ours, "cached", url, cache)
    return cases


def _key_metrics(results: dict[str, Metrics]) -> Metrics:
    """Metrics that are followed from release to release."""

    def rate(name: str) -> int:
        return int(results[name]["per_second"])

    gzip, classic = rate("read: ours, gzip"), rate("read: webdataset, png + cls")
    sharded = results["write: ours, gzip"]
    tar_writer = rate("write: webdataset TarWriter, png + cls")
    bare, ours = (
        rate(f"store: {name}")
        for name in ("bare gcsfs download, uncompressed", "ours, uncompressed, empty cache")
    )
    return {
        "gzip_drawings_per_second": gzip,
        "classic_ratio": round(gzip / classic, 1),
        "raw_drawings_per_second": rate("read: ours, uncompressed"),
        "resident_drawings_per_second": rate("read: ours, resident"),
        "shard_drawings_per_second_per_core": sharded["per_core"],
        "shard_classic_ratio": round(rate("write: ours, gzip") / tar_writer, 1),
        "gcs_share_of_bare_download": round(ours / bare, 3),
        "worker_peak_rss_bytes": sharded["peak_rss_bytes"],
        "loader_peak_rss_bytes": results["read: ours, gzip"]["peak_rss_bytes"],
    }


if __name__ == "__main__":
    main()
