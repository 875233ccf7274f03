"""A run as one page that can be mailed: `report.html` in its folder.

It is made of what the folder holds: metrics.jsonl, the newest checkpoint's settings, and the last
validation, which the run leaves there as `validation.npz`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

import yaml

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.storage import StorageError
from quickdraw_dist.base.units import duration
from quickdraw_dist.evaluation.html import document, facts_table, section, tiles
from quickdraw_dist.evaluation.metrics import Evaluation
from quickdraw_dist.evaluation.report import evaluation_section
from quickdraw_dist.evaluation.report_page import SCRIPT, share
from quickdraw_dist.run.checkpoint import files as checkpoint
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.report import history
from quickdraw_dist.run.report.history import History

PAGE, VALIDATION = "report.html", "validation.npz"

CURVES = {  # a picture's name: heading and caption
    "loss": (
        "Loss",
        "Mean cross entropy of a drawing, nats. In training it is of augmented drawings, with "
        "dropout and label smoothing; in validation of the averaged weights, without.",
    ),
    "accuracy": ("Accuracy", "Drawings recognised at the first guess."),
    "learning_rate": ("Learning rate", "Of the last step of every look."),
    "speed": ("Drawings a second", "Over all ranks, evaluations and checkpoints aside."),
    "goodput": (
        "Where the time went",
        "Wall time since the first start. Restart: starting, lying still, and work that was done "
        "again.",
    ),
}


def write_final_report(folder: RunFolder, evaluation: Evaluation | None) -> str:
    """At the end of a run, leave its last validation and its page in its folder. Returns a line to
    say of it; nothing that goes wrong here makes a failure of a finished run."""
    try:
        folder.flush()
        if evaluation is not None:
            storage.publish(storage.join(folder.url, VALIDATION), evaluation.to_bytes())
        return f"report: {write_run_report(folder.url)}"
    except (RefusedError, OSError, StorageError) as error:
        return f"no {PAGE}: {error}. Later: python -m jobs.report {folder.url}"


def write_run_report(run: str) -> str:
    """Write the page of a run, a folder or gs://, from what is there; returns its address.

    Raises:
        RefusedError: no run there, or matplotlib, the extra `report`, is not installed.
        OSError, StorageError: it could not be written.
    """
    from quickdraw_dist.evaluation import (
        charts as report_pictures,  # first: it refuses without matplotlib
    )
    from quickdraw_dist.run.report.curves import curves

    told = history.read(run)
    meta, evaluation = _newest_meta(run), _last_validation(run)
    pictures = report_pictures.render(curves(told))
    parts = [_lead(told), _tiles(told), facts_table(_facts(run, told, meta))]
    parts += [section(name, *CURVES[name], pictures[name]) for name in CURVES if name in pictures]
    if evaluation is not None:
        parts += ["<h2>Validation</h2>", *evaluation_section(evaluation)]
    if meta is not None:
        settings = escape(yaml.safe_dump(meta["config"], sort_keys=False))
        parts.append(
            "<section><h2>Settings</h2><details><summary>Of the newest checkpoint</summary>"
            f"<pre>{settings}</pre></details></section>"
        )
    page = storage.join(run, PAGE)
    text = document(f"Run {run}", parts, SCRIPT if evaluation is not None else "")
    storage.publish(page, text.encode())
    return page


def _newest_meta(run: str) -> dict[str, Any] | None:
    """Of the newest checkpoint that can be read, if there is one."""
    for step in reversed(checkpoint.steps(run)):
        try:
            return checkpoint.read_meta(storage.join(checkpoint.folder(run), checkpoint.name(step)))
        except (FileNotFoundError, RefusedError):
            continue
    return None


def _last_validation(run: str) -> Evaluation | None:
    try:
        return Evaluation.from_bytes(storage.read(storage.join(run, VALIDATION)))
    except FileNotFoundError:
        return None


def _lead(told: History) -> str:
    end = "" if told.finished else " The run is not at its end."
    return (
        f'<p class="lead">{told.last["drawings"]:,} drawings in {told.last["epoch"]:.4g} epochs.'
        f"{end}</p>"
    )


def _tiles(told: History) -> str:
    seconds, restarts = told.goodput_seconds, len(told.restarts)
    wall = sum(seconds.values())
    _, accuracies = told.curve("validation", "top1")
    _, speeds = told.curve("train", "drawings_per_second")
    return tiles(
        (
            ("Top-1", share(accuracies[-1] if accuracies else None), "of the last validation"),
            ("Speed", f"{statistics.median(speeds):,.0f}" if speeds else "–", "drawings a second"),
            ("Wall time", duration(wall), "since the first start"),
            ("Training", share(seconds["train"] / wall if wall else None), "of the wall time"),
            ("Restarts", f"{restarts:,}", "after the first start"),
        )
    )


def _facts(run: str, told: History, meta: Mapping[str, Any] | None) -> dict[str, str]:
    start = told.of("start")[-1]
    known = {
        "run": run,
        "started": datetime.fromtimestamp(told.of("start")[0]["time"], UTC).strftime("%F %T UTC"),
        "model": f"{start['model']}, {start['parameters']:,} parameters",
        "hardware": f"{start['ranks']} × {start['device']}, {start['precision']}",
    }
    if meta is not None:
        known["dataset"] = f"{meta['config']['data']}, digest {meta['dataset_digest'][:16]}"
        known["versions"] = ", ".join(f"{name} {v}" for name, v in meta["versions"].items())
    return known
