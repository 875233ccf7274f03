"""What benchmarks share: a case in a process of its own, medians, and what it ran on."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]


def report(drawings: int, seconds: float, **more: object) -> None:
    """What a case prints last: its metrics as one line of JSON."""
    rate = round(drawings / seconds)
    metrics = {"drawings": drawings, "seconds": round(seconds, 3), "per_second": rate}
    print(json.dumps(metrics | {"peak_rss_bytes": peak_rss_bytes()} | more), flush=True)


def peak_rss_bytes() -> int:
    """Most memory that this process has had. Not getrusage's where there is better: a new process
    begins with the peak of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_case(module: str, *arguments: object, python: str = sys.executable) -> Metrics:
    """Run `python -m module arguments` and return the metrics that it reports.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [python, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    metrics: Metrics = json.loads(done.stdout.splitlines()[-1])
    return metrics


def median(results: list[Metrics]) -> Metrics:
    """The case's result with the middle rate, and the range of all."""
    rates = sorted(result["per_second"] for result in results)
    middle = statistics.median_low(rates)
    chosen = next(result for result in results if result["per_second"] == middle)
    return chosen | {"slowest": rates[0], "fastest": rates[-1], "n": len(rates)}


def environment(*packages: str) -> dict[str, str]:
    """Date, machine and versions, for the head of a page."""
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{_gpus()}{os.cpu_count()} cores of {_processor()}, {_memory_gib():.0f} GiB; "
        "shared with other work: compare metrics of one run only",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
    }


def _gpus() -> str:
    """'8 x NVIDIA H200, ', or nothing."""
    import torch  # not every case needs it

    count = torch.cuda.device_count()
    return f"{count} x {torch.cuda.get_device_name()}, " if count else ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def table(rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
