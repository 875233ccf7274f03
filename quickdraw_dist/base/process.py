"""How many processors this process may use: in a container or a job, fewer than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux tells of groups of processes and their limits (cgroup version 2)."""


def processors() -> int:
    """Processors by the scheduler's binding and by the group's share of time, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, int(min([count, *_quotas(CGROUPS)])))


def _quotas(root: Path) -> list[float]:
    """What this process's group and those around it may use at once, where that is limited."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::/")[2].strip()
    except OSError:
        return []  # not Linux
    found = []
    for folder in (root / own, *(root / own).parents):
        try:
            found.append(quota((folder / "cpu.max").read_text(encoding="utf-8")))
        except OSError:
            continue
    return found


def quota(cpu_max: str) -> float:
    """Processors of a `cpu.max`: microseconds in a period, and the period; pure."""
    used, _, period = cpu_max.strip().partition(" ")
    return float("inf") if used == "max" else int(used) / int(period or 100_000)
