"""What all benchmarks share: options, a process per case, medians, the page and the last line.

Imports only the standard library at the top: `data_path/peers.py` runs in an environment without
this project's dependencies.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quickdraw_dist.run.checkpoint.files import Checkpoint

Metrics = dict[str, Any]
Case = Callable[[], Metrics | None]
"""A measurement; None: there is none to report."""

CONTENTS = ("bitmaps", "strokes")
RESULTS = Path(__file__).parent / "results"
CLASSES = 345
_TRIES = 6


def parser(
    target: str, description: str | None, page: str = "", *, kept: bool = False
) -> ArgumentParser:
    """Options that all benchmarks have: `--folder` and, where `page` names one, `--page`.

    Args:
        target: of the Makefile.
        description: the module's docstring.
        page: file in `results/`.
        kept: the benchmark goes on with what is in its folder.
    """
    made = ArgumentParser(f"make {target}", description=description)
    folder = Path("runs") / target
    use = "of earlier runs and this one" if kept else "deleted first"
    made.add_argument("--folder", type=Path, default=folder, help=f"{use} [{folder}]")
    if page:
        made.add_argument("--page", action="store_true", help=f"write benchmarks/results/{page}")
    return made


def add_content(arguments: ArgumentParser) -> None:
    """Add `--content`: what is stored of every drawing."""
    arguments.add_argument(
        "--content", choices=CONTENTS, default="bitmaps", help="stored per drawing [bitmaps]"
    )


def page_of(page: str, content: str) -> str:
    """The page of a benchmark that has one of bitmaps and another one of strokes."""
    return page if content == "bitmaps" else page.replace(".md", "_strokes.md")


def add_limits(arguments: ArgumentParser) -> None:
    """Add `--seconds` and `--results`, with which `benchmarks.gpu` runs a benchmark."""
    arguments.add_argument(
        "--seconds", type=float, default=math.inf, help="start nothing new after these [no limit]"
    )
    arguments.add_argument("--results", type=Path, metavar="FILE",
                           help="JSON file that is kept up to date with all results")  # fmt: skip


def write_json(path: Path | None, metrics: Metrics) -> None:
    """Create or replace a JSON file, if there is one to write."""
    if path is not None:
        from quickdraw_dist.base import storage

        storage.publish(str(path), json.dumps(metrics, indent=1).encode() + b"\n")


def publish(
    options: Namespace, page: str, text: str, metrics: Metrics, shown: str | None = None
) -> None:
    """Print the page, or `shown` in its place, and the metrics as the last line, in JSON. With
    `--page`, write the page to `results/`."""
    print(text if shown is None else shown)
    if options.page:
        (RESULTS / page).write_text(text, encoding="utf-8")
    print(json.dumps(metrics))


def flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as a command line: `{"train.epochs": 1}` is `--train.epochs 1`."""
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def run_module(
    *command: str, capture: bool = False, variables: Mapping[str, str] | None = None
) -> str:
    """Run `python -m command`; exit with its exit code if that is not 0.

    Args:
        command: module and arguments.
        capture: return what it prints. Otherwise it goes to standard error: standard output is
            for the benchmark's own result.
        variables: added to the environment.
    """
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | dict(variables or {}),
        stdout=subprocess.PIPE if capture else sys.stderr,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def run_case(
    module: str, *arguments: object, python: str = sys.executable, seconds: float = math.inf
) -> Metrics:
    """Run `python -m module arguments` and return the metrics that it reports.

    Raises:
        subprocess.CalledProcessError: it failed.
        subprocess.TimeoutExpired: it was killed, after these seconds.
    """
    command = [python, "-m", module, *map(str, arguments)]
    limit = None if math.isinf(seconds) else seconds
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit)
    metrics: Metrics = json.loads(done.stdout.splitlines()[-1])
    return metrics


def call_case(functions: Mapping[str, Any]) -> None:
    """Call the function that the command line names first, with the remaining arguments; digits
    become an int."""
    name, *given = sys.argv[1:]
    functions[name](*(int(text) if text.isdigit() else text for text in given))


def report(drawings: int, seconds: float, **more: object) -> None:
    """Print a case's metrics as one line of JSON, the last line of its process."""
    rate = round(drawings / seconds)
    metrics = {"drawings": drawings, "seconds": round(seconds, 3), "per_second": rate}
    print(json.dumps(metrics | {"peak_rss_bytes": peak_rss_bytes()} | more), flush=True)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far. Linux: from /proc, because getrusage of a new
    process begins with the peak of its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_rounds(
    cases: Mapping[str, Case],
    rounds: int,
    deadline: float = math.inf,
    keep: Callable[[dict[str, Metrics]], None] = lambda _: None,
) -> dict[str, Metrics]:
    """Run every case once per round and return each case's `median`. Cases take turns, so that
    other load on the machine affects all of them alike.

    Args:
        cases: by name.
        rounds: runs per case.
        deadline: of time.monotonic(), after which no other case starts.
        keep: called with the medians so far after each case.
    """
    from tqdm import tqdm  # the peers' environment may lack it

    results: dict[str, list[Metrics]] = {}
    with tqdm(total=rounds * len(cases), leave=False) as bar:
        for name, case in list(cases.items()) * rounds:
            if time.monotonic() >= deadline:
                break
            bar.set_description(name)
            if (result := case()) is not None:
                results.setdefault(name, []).append(result)
            keep({name: median(found) for name, found in results.items()})
            bar.update()
    return {name: median(found) for name, found in results.items()}


def median(results: Sequence[Metrics]) -> Metrics:
    """The result with the median rate, plus the slowest and fastest rate and their number."""
    rates = sorted(result["per_second"] for result in results)
    middle = statistics.median_low(rates)
    chosen = next(result for result in results if result["per_second"] == middle)
    return chosen | {"slowest": rates[0], "fastest": rates[-1], "n": len(rates)}


def best_seconds(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls: a limit is what the machine can do at best."""
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def synthetic_source(train_drawings: int) -> str:
    """Address of synthetic drawings of all classes whose training split, nine tenths, has about
    `train_drawings`."""
    per_class = -(-train_drawings * 10 // (9 * CLASSES)) + 1
    pool = "&pool=64" if per_class > 64 else ""
    return f"synthetic:?classes={CLASSES}&per_class={per_class}&seed=7{pool}"


def real_bitmaps() -> Path:
    """Folder of the local slice of the official bitmaps; it need not exist."""
    return Path(os.environ.get("QUICKDRAW_REAL_DATA", "../shared/quickdraw"), "numpy_bitmap")


def real_strokes() -> Path:
    """Folder of the local slice of the official simplified strokes; it need not exist."""
    return real_bitmaps().parent / "simplified"


def train_records(run: Path) -> list[Metrics]:
    """The training lines of a run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def last_checkpoint(run: Path) -> Checkpoint:
    """The newest checkpoint of a run that has ended."""
    from quickdraw_dist.run.checkpoint import files

    found = files.newest(str(run))
    assert found is not None, "the run has ended with exit code 0"
    return files.load(found.url)


def provenance(command: str, repeats: str, *packages: str) -> str:
    """First line of a page: command, date, number of runs, hardware, and versions of Python and of
    these packages."""
    hardware = f"{_gpus()}{os.cpu_count()} cores of {processor_name()}, {memory_gib():.0f} GiB"
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {repeats}. {hardware}; shared with other work: "
        "compare metrics of one run only. "
        f"Python {platform.python_version()}, {', '.join(versions)}."
    )


def _gpus() -> str:
    """'8 x NVIDIA H200, ', or nothing."""
    import torch

    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name()}, " if count else ""


def processor_name() -> str:
    """Name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float:
    """Memory of this machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def metrics_table(metrics: Metrics) -> str:
    """A Markdown table of the metrics that are followed from release to release."""
    values = (
        f"{value:,}" if isinstance(value, int | float) else value for value in metrics.values()
    )
    return table([("metric", "value"), *zip(metrics, map(str, values), strict=True)])


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
