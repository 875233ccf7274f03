"""What torch's profiler saw of some training steps: the kernels that take longest, and the gaps."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Metrics

_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_STEP = "ProfilerStep#"
_TOP = 12

Event = Mapping[str, Any]
Interval = tuple[float, float]


def read(run: Path) -> Metrics:
    """Summarize the trace that rank 0 of a run with `--train.profile` has written."""
    text = gzip.decompress((run / "profile" / "rank-0.json.gz").read_bytes())
    return summarize(json.loads(text)["traceEvents"])


def summarize(events: Iterable[Event]) -> Metrics:
    """Add up the work of the device: its kernels and copies or, in a trace without any, the
    operators of the CPU that no other one called. Pure.

    Args:
        events: of a Chrome trace by torch's profiler; times are in microseconds.

    Returns:
        `steps`; `milliseconds_per_step`, from the first event to the last; `gap_share`, the share
        of that time in which the device did nothing; and `top`, the kernels that took longest.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    work = [event for event in complete if event.get("cat") in _ON_GPU] or _outermost(
        event for event in complete if event.get("cat") == "cpu_op"
    )
    steps = len({event["name"] for event in complete if event["name"].startswith(_STEP)})
    if not work or not steps:
        return {"steps": steps, "milliseconds_per_step": 0.0, "gap_share": 0.0, "top": []}
    intervals = sorted((event["ts"], event["ts"] + event["dur"]) for event in work)
    span = max(end for _, end in intervals) - intervals[0][0]
    seconds, calls = Counter[str](), Counter[str]()
    for event in work:
        seconds[event["name"]] += event["dur"]
        calls[event["name"]] += 1
    total = sum(seconds.values()) or 1
    return {
        "steps": steps,
        "milliseconds_per_step": round(span / steps / 1e3, 3),
        "gap_share": round(1 - covered(intervals) / span, 4) if span else 0.0,
        "top": [
            {
                "kernel": name,
                "share": round(spent / total, 4),
                "milliseconds_per_step": round(spent / steps / 1e3, 4),
                "calls_per_step": round(calls[name] / steps, 2),
            }
            for name, spent in seconds.most_common(_TOP)
        ],
    }


def covered(intervals: Iterable[Interval]) -> float:
    """Length of the union of intervals that are sorted by their start. Pure."""
    length, reached = 0.0, float("-inf")
    for start, end in intervals:
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def _outermost(events: Iterable[Event]) -> list[Event]:
    """Events that lie within no other one of their thread."""
    found, reached = list[Event](), dict[Any, float]()
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= reached.get(event["tid"], float("-inf")):
            found.append(event)
            reached[event["tid"]] = event["ts"] + event["dur"]
    return found
