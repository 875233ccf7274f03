"""The data path beside what one would take instead, in one run: make bench-data.

Every case runs in a process of its own, the cases in turn, `--rounds` times; metrics are medians.
The drawings are the real ones in QUICKDRAW_REAL_DATA (default ../shared/quickdraw), repeated to
`--drawings`; without them synthetic ones. The last line is JSON. With --page the results are
written to benchmarks/results/data_path.md and data_path.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.data_path import page as data_path_page
from benchmarks.data_path.cases import load_array
from benchmarks.measure import Metrics, median, run_case
from quickdraw_dist.data.drawings.sources import open_source

Case = Callable[[], Metrics]

PEERS = ("mosaicml-streaming==0.13.0", "litdata==0.2.76")
"""In an environment of their own: they need other versions of what our dependencies need."""

_BESIDE = ("torch==2.13.0", "torchvision==0.28.0")

_PEER_DRAWINGS = 100_000
_CLASSIC_DRAWINGS = 30_000
"""Enough seconds of the slow ones; their rates do not depend on it."""


def main() -> None:
    """Write, read, stream from a server, measure the limits; say it as a table and as JSON."""
    parser = argparse.ArgumentParser("make bench-data", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-data"), help="anew")
    parser.add_argument("--drawings", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="without mosaicml and litdata")
    parser.add_argument("--page", action="store_true", help="write benchmarks/results/data_path.md")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    folder = options.folder.resolve()
    about = _bitmaps(folder / "bitmaps", options.drawings)
    for name, count in (("classic", _CLASSIC_DRAWINGS), ("peers", _PEER_DRAWINGS)):
        pixels, labels = load_array(folder / "bitmaps", count)
        order = np.random.default_rng(1).permutation(len(labels))
        np.savez(folder / f"{name}.npz", pixels=pixels[order], labels=labels[order])
    peers = None if options.no_peers else _peers_python(folder)
    results = _rounds(_writing(folder, peers), options.rounds)
    results |= _rounds(_reading(folder, peers), options.rounds)
    with _server(folder):
        results |= _rounds(_from_store(folder), options.rounds)
    limits = run_case("benchmarks.data_path.limits", folder / "bitmaps")["limits"]
    metrics = _metrics(results)
    text = data_path_page.page(about, options.rounds, results, limits, metrics)
    print(text)
    if options.page:
        here = Path(__file__).parents[1] / "results"
        (here / "data_path.md").write_text(text, encoding="utf-8")
        data_path_page.plot(results, limits, here / "data_path.svg")
    print(json.dumps(metrics))


def _bitmaps(folder: Path, drawings: int) -> str:
    """Write .npy files of about so many drawings; returns what they are."""
    folder.mkdir()
    real = Path(os.environ.get("QUICKDRAW_REAL_DATA", "../shared/quickdraw"), "numpy_bitmap")
    url = str(real) if real.is_dir() else "synthetic:?classes=345&per_class=600&seed=7"
    source = open_source(url)
    times = max(1, round(drawings / sum(source.counts)))
    for label, name in enumerate(source.classes):
        pixels = source.read(label, 0, source.counts[label]).reshape(-1, 784)
        np.save(folder / f"{name if real.is_dir() else label}.npy", np.tile(pixels, (times, 1)))
    kind, once = "real" if real.is_dir() else "synthetic", sum(source.counts)
    classes = len(source.classes)
    return (
        f"{once * times:,} drawings of {classes} classes: {once:,} {kind} ones, {times} times over"
    )


def _peers_python(folder: Path) -> str | None:
    """The interpreter of the peers' environment, made if it is not there yet."""
    home = folder.parent / "bench-peers"
    python = home / "bin" / "python"
    if not (home / ".installed").exists():
        print(f"installing {', '.join(PEERS)} into {home} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for packages in (_BESIDE[:1], (*PEERS, *_BESIDE)):
            if subprocess.run([*pip, *packages], check=False).returncode:
                print("the peers cannot be installed here; going on without", file=sys.stderr)
                return None
        (home / ".installed").touch()
    return str(python)


def _writing(folder: Path, peers: str | None) -> dict[str, Case]:
    """Every writer makes what the readers read; each round anew."""

    def anew(dest: Path, case: Callable[[], Metrics]) -> Metrics:
        shutil.rmtree(dest, ignore_errors=True)
        return case()

    def ours(compression: str) -> Metrics:
        arguments = (folder / "bitmaps", folder / compression, compression)
        return run_case("benchmarks.data_path.cases", "shard", *arguments)

    def peer(name: str, array: str, python: str) -> Metrics:
        arguments = (f"write_{name}", folder / f"{array}.npz", folder / name)
        return run_case("benchmarks.data_path.peers", *arguments, python=python)

    cases: dict[str, Case] = {
        "write: ours, gzip": partial(anew, folder / "gzip", partial(ours, "gzip")),
        "write: ours, uncompressed": partial(anew, folder / "none", partial(ours, "none")),
        "write: webdataset TarWriter, png + cls": partial(
            anew, folder / "classic", partial(peer, "classic", "classic", sys.executable)
        ),
    }
    if peers is not None:
        for name, title in (("mosaic", "MosaicML streaming"), ("litdata", "litdata")):
            case = partial(anew, folder / name, partial(peer, name, "peers", peers))
            cases[f"write: {title}"] = case
    return cases


def _reading(folder: Path, peers: str | None) -> dict[str, Case]:
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
    """gs:// on this machine, as in the tests, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.gcs.server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None, "it was asked for"
        os.environ["STORAGE_EMULATOR_HOST"] = server.stdout.readline().strip()
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        try:
            for compression in ("gzip", "none"):
                source = folder / f"small-{compression}"
                run_case(
                    "benchmarks.data_path.cases",
                    "shard",
                    folder / "bitmaps",
                    source,
                    compression,
                    16_384,
                )
                run_case(
                    "benchmarks.data_path.cases",
                    "upload",
                    source,
                    f"gs://bench-{compression}/quickdraw",
                )
            yield
        finally:
            server.terminate()


def _from_store(folder: Path) -> dict[str, Case]:
    """A bare download, our loader with an empty cache, and with a full one."""
    cache = folder / "cache"

    def cold(url: str) -> Metrics:
        shutil.rmtree(cache, ignore_errors=True)
        os.sync()  # what the case before has written must not slow down what this one writes
        return run_case("benchmarks.data_path.cases", "cold", url, cache)

    ours = partial(run_case, "benchmarks.data_path.cases")
    cases: dict[str, Case] = {}
    for compression, title in (("none", "uncompressed"), ("gzip", "gzip")):
        url = f"gs://bench-{compression}/quickdraw"
        cases[f"store: bare gcsfs download, {title}"] = partial(ours, "bare", url)
        cases[f"store: ours, {title}, empty cache"] = partial(cold, url)
        cases[f"store: ours, {title}, full cache"] = partial(ours, "cached", url, cache)
    return cases


def _rounds(cases: dict[str, Case], rounds: int) -> dict[str, Metrics]:
    """Every case once, then every case again: what else the machine does hits all alike."""
    results: dict[str, list[Metrics]] = {name: [] for name in cases}
    bar = tqdm(total=rounds * len(cases), leave=False)
    for _ in range(rounds):
        for name, case in cases.items():
            bar.set_description(name)
            results[name].append(case())
            bar.update()
    bar.close()
    return {name: median(found) for name, found in results.items()}


def _metrics(results: dict[str, Metrics]) -> Metrics:
    """The metrics that are followed from release to release."""

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
