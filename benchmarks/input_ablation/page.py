"""The recorded runs as a page: what follows, and per task means, spread and differences; pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.input_ablation.arms import COMMON, DEFAULTS, QUESTIONS, TASKS, Question, Task
from benchmarks.input_ablation.compare import Difference, Runs, compare, hits, training_noise
from benchmarks.input_ablation.held_out import unpack
from benchmarks.measure import Metrics, provenance, table
from quickdraw_dist.base.settings import setting_fields

Tree = dict[str, dict[str, dict[int, Metrics]]]
"""Records by task, arm and seed."""


def by_arm(records: Sequence[Metrics]) -> Tree:
    """Return the records as a tree; the arms in the order of their task, then those that are no
    longer among them."""
    names = [arm.name for task in TASKS for arm in task.arms]
    tree: Tree = {}
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
    """Markdown: what follows for the defaults, then a table per task."""
    repeats = f"n in the tables, recorded from {min(r['date'] for r in records)} on, in turn"
    tree = by_arm(records)
    tasks = [task for task in TASKS if task.name in tree]
    noise = training_noise(runs for arms in tree.values() for runs in arms.values())
    lines = [
        "# What a network gets to see",
        "",
        provenance("make bench-input ARGS=--page", repeats, "torch", "numpy"),
        "",
        "Real drawings: the local slice of the official files. Every run is the training command "
        "with the same drawings in the same order per seed and "
        f"{_listed(COMMON)}, otherwise the defaults; nothing was tuned for an arm. The "
        "last checkpoint's averaged weights are scored on all drawings held out. `core s` is the "
        "least CPU time of an arm's runs, evaluation included, where it was measured; other work "
        "on the machine raises it. A star marks a setting of an earlier state of the code: what "
        "has earned nothing is gone.",
        "",
        *_conclusions(tree, tasks, noise),
    ]
    for task in tasks:
        lines += ["", *_section(task, tree[task.name])]
    return "\n".join([*lines, ""])


def _conclusions(tree: Tree, tasks: Sequence[Task], noise: float) -> list[str]:
    """The answers to all questions."""
    rows: list[tuple[str, ...]] = [
        ("question", "arms", *(task.name for task in tasks), "gains, costs")
    ]
    for question in QUESTIONS:
        found = [_answer(tree[task.name], question) for task in tasks]
        verdicts = [one.clear(noise) for one in found if one is not None]
        rows.append(
            (
                question.text,
                f"{question.arm} - {question.base}",
                *(f"{_with_error(one)} ({len(one.by_seed)})" if one else "" for one in found),
                f"{verdicts.count(1)}, {verdicts.count(-1)} of {len(verdicts)}",
            )
        )
    return [
        "## What follows",
        "",
        "Differences in points of top-1, over the seeds that both arms have, their number in "
        "brackets. The value after ± is the paired standard error over the held-out drawings. From "
        f"seed to seed an arm's top-1 varies by {100 * noise:.2f} points (standard deviation, "
        "pooled over all arms with several seeds); a gain or a cost is counted where it is more "
        "than two standard errors of both together.",
        "",
        table(rows),
        "",
        "The defaults:",
        "",
        *(f"- `{name} {setting_fields()[name].default}`: {why}" for name, why in DEFAULTS.items()),
    ]


def _answer(arms: dict[str, dict[int, Metrics]], question: Question) -> Difference | None:
    """The difference that a question asks for, if its arms are among these."""
    return compare(arms.get(question.arm, {}), arms.get(question.base, {}))


def _section(task: Task, arms: dict[str, dict[int, Metrics]]) -> list[str]:
    """One task's heading and table."""
    base = task.arms[0].name
    rows: list[tuple[str, ...]] = [
        ("arm", "stored, settings", "n", "top-1 %", "lowest, highest", "mean per class %",
         "recognised %", "core s", f"less {base}", "by seed")
    ]  # fmt: skip
    records = [run for runs in arms.values() for run in runs.values()]
    mask = next((run["recognized"] for run in records if "recognized" in run), None)
    for name, runs in arms.items():
        some = next(iter(runs.values()))
        top1 = [run["top1"] for run in runs.values()]
        seconds = [run["core_seconds"] for run in runs.values() if run["core_seconds"]]
        against = compare(runs, arms.get(base, {})) if name != base else None
        rows.append(
            (
                name,
                ", ".join(filter(None, (some["content"], _listed(some["settings"])))),
                str(len(runs)),
                _percent(statistics.fmean(top1)),
                f"{_percent(min(top1))}, {_percent(max(top1))}",
                _percent(statistics.fmean(run["mean_class_accuracy"] for run in runs.values())),
                _percent(_recognized(runs, mask)) if mask else "",
                f"{min(seconds):,.0f}" if seconds else "",
                _with_error(against),
                ", ".join(f"{100 * value:+.2f}" for value in against.by_seed) if against else "",
            )
        )
    about = f"{some['train_drawings']:,} drawings to train on, {some['drawings']:,} held out"
    if mask:
        known = int(unpack(mask, some["drawings"]).sum())
        about += f", {known:,} of them known to have been recognised as they were drawn"
    return [f"## {task.title}", "", f"{about}.", "", table(rows)]


def _recognized(runs: Runs, mask: str) -> float:
    """Mean top-1 over the recognised drawings."""
    chosen = [hits(run)[unpack(mask, run["drawings"])].mean() for run in runs.values()]
    return statistics.fmean(chosen)


def _percent(share: float) -> str:
    """A share as percent, without the sign."""
    return f"{100 * share:.2f}"


def _with_error(found: Difference | None) -> str:
    """A difference in points with its error; nothing where there is none."""
    return f"{100 * found.mean:+.2f} ± {100 * found.error:.2f}" if found else ""


def _listed(settings: dict[str, object]) -> str:
    """Settings as on the command line; a star marks those that exist no longer."""
    known = setting_fields()
    return ", ".join(
        f"`{name} {value}`" + ("" if name in known else "*") for name, value in settings.items()
    )
