"""CPUs: how many this process may use, and sharing them with other programs."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Mount point of Linux's control groups, version 2, which limit a container's or a job's CPUs."""


def processors() -> int:
    """Return how many CPUs this process may use, at least 1: the smaller of its scheduler
    affinity and its control group's quota, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, int(min([count, *_quotas(CGROUPS)])))


def _quotas(root: Path) -> list[float]:
    """CPU quotas of this process's control group and of the groups that contain it."""
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
    """Return the CPUs that the contents of a `cpu.max` file allow ("QUOTA PERIOD" in
    microseconds, or "max PERIOD": infinity); pure."""
    used, _, period = cpu_max.strip().partition(" ")
    return float("inf") if used == "max" else int(used) / int(period or 100_000)


def share_processors() -> None:
    """Have OpenMP's threads sleep where they wait, unless the environment says otherwise
    (OMP_WAIT_POLICY, GOMP_SPINCOUNT, KMP_BLOCKTIME). Call it before torch is imported.

    By default they spin, and a step waits until the thread that another program has displaced is
    run again, while the others burn the time.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
