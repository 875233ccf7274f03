"""The recorded runs as a page: means, spread, and paired differences; pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.input_ablation.arms import ARMS, COMMON
from benchmarks.input_ablation.held_out import Hits, unpack
from benchmarks.measure import Metrics, provenance, table
from quickdraw_dist.base.settings import setting_fields


class Difference(NamedTuple):
    """Top-1 of an arm minus that of another, over the seeds that both have; shares, not percent."""

    mean: float
    error: float  # standard error of the mean that is due to which drawings were held out
    by_seed: tuple[float, ...]  # its spread is due to training


def difference(arm: Sequence[Hits], base: Sequence[Hits]) -> Difference:
    """Compare two arms drawing by drawing; pure.

    Args:
        arm, base: the hits of one run per seed, on the same held-out drawings.
    """
    gains = np.stack(arm).astype(np.float64) - np.stack(base)  # (seeds, N)
    per_drawing = gains.mean(0)
    error = float(per_drawing.std(ddof=1)) / math.sqrt(len(per_drawing))
    return Difference(float(per_drawing.mean()), error, tuple(gains.mean(1).tolist()))


def by_arm(records: Sequence[Metrics]) -> dict[str, dict[str, dict[int, Metrics]]]:
    """Return the records by task, arm and seed; the arms in the order of `ARMS`, then those that
    are no longer among them."""
    names = [arm.name for arm in ARMS]
    tree: dict[str, dict[str, dict[int, Metrics]]] = {}
    for record in sorted(records, key=lambda r: [*names, r["arm"]].index(r["arm"])):
        arms = tree.setdefault(record["task"], {})
        arms.setdefault(record["arm"], {})[record["seed"]] = record
    return tree


def summary(records: Sequence[Metrics]) -> Metrics:
    """Return the mean top-1 of every arm by task."""
    return {
        task: {
            arm: round(statistics.fmean(run["top1"] for run in runs.values()), 4)
            for arm, runs in arms.items()
        }
        for task, arms in by_arm(records).items()
    }


def page(records: Sequence[Metrics]) -> str:
    """Markdown with a table per task. Every arm is compared with the first of `ARMS`."""
    repeats = f"n in the tables, recorded from {min(r['date'] for r in records)} on, in turn"
    lines = [
        "# What a network gets to see",
        "",
        provenance("make bench-input ARGS=--page", repeats, "torch", "numpy"),
        "",
        "Real drawings: the local slice of the official bitmaps. Every run is the training command "
        "with the same drawings in the same order per seed and "
        f"{_listed(COMMON)}, otherwise the defaults; nothing was tuned for an arm. The "
        "last checkpoint's averaged weights are scored on all drawings held out.",
        "",
        f"Differences are to `{ARMS[0].name}`, in points of top-1, over the seeds that both have. "
        "The value after ± is the paired standard error over the held-out drawings; from seed to "
        "seed training adds noise of its own, which the differences by seed show. A star marks a "
        "setting of an earlier state of the code: what has earned nothing is gone.",
    ]
    for task, arms in by_arm(records).items():
        lines += ["", *_section(task, arms)]
    return "\n".join([*lines, ""])


def _section(task: str, arms: dict[str, dict[int, Metrics]]) -> list[str]:
    """One task's heading and table."""
    classes, epochs = task.split("-")
    rows: list[tuple[str, ...]] = [
        ("arm", "settings", "n", "top-1 %", "lowest, highest", "mean per class %", "difference",
         "by seed")
    ]  # fmt: skip
    some = next(iter(next(iter(arms.values())).values()))
    for name, runs in arms.items():
        top1 = [run["top1"] for run in runs.values()]
        settings = next(iter(runs.values()))["settings"]
        rows.append(
            (
                name,
                _listed(settings),
                str(len(runs)),
                f"{statistics.fmean(top1):.2%}"[:-1],
                f"{min(top1):.2%}, {max(top1):.2%}".replace("%", ""),
                f"{statistics.fmean(r['mean_class_accuracy'] for r in runs.values()):.2%}"[:-1],
                *_compared(runs, arms.get(ARMS[0].name, {}) if name != ARMS[0].name else {}),
            )
        )
    about = f"{some['train_drawings']:,} drawings to train on, {some['drawings']:,} held out."
    return [f"## {classes} classes, {epochs} epochs", "", about, "", table(rows)]


def _compared(runs: dict[int, Metrics], base: dict[int, Metrics]) -> tuple[str, str]:
    """The difference of an arm to the first one, and by seed; empty where no seed is common.

    Raises:
        ValueError: the two were scored on different drawings.
    """
    seeds = sorted(runs.keys() & base.keys())
    if not seeds:
        return "", ""
    if len({record["dataset"] for some in (runs, base) for record in some.values()}) > 1:
        raise ValueError("runs of one task were scored on different datasets")
    pairs = ([unpack(some[seed]["hits"], some[seed]["drawings"]) for seed in seeds]
             for some in (runs, base))  # fmt: skip
    found = difference(*pairs)
    by_seed = ", ".join(f"{100 * value:+.2f}" for value in found.by_seed)
    return f"{100 * found.mean:+.2f} ± {100 * found.error:.2f}", by_seed


def _listed(settings: dict[str, object]) -> str:
    """Settings as on the command line; a star marks those that exist no longer."""
    known = setting_fields()
    return ", ".join(
        f"`{name} {value}`" + ("" if name in known else "*") for name, value in settings.items()
    )
