"""A run as one page that can be mailed: `report.html` in its folder.

It is made of what the folder holds: metrics.jsonl, the newest checkpoint's settings, and the last
validation, which the run leaves there as `validation.npz`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import yaml

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, StorageError
from quickdraw_dist.base.units import counted, duration
from quickdraw_dist.evaluation.metrics import Evaluation
from quickdraw_dist.evaluation.report import EvaluationView, check_installed
from quickdraw_dist.run.checkpoint import files
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.report import history
from quickdraw_dist.run.report.history import History

PAGE, VALIDATION = "report.html", "validation.npz"


def write_final_report(
    folder: RunFolder, evaluation: Evaluation | None, end: Mapping[str, Any]
) -> str:
    """Write the last validation and the page into a finished run's folder.

    Args:
        end: the run's last record, which its log does not have yet.

    Returns:
        A line for the log. A failure is only reported in it: the run is finished and saved.
    """
    try:
        folder.flush()
        if evaluation is not None:
            storage.publish(storage.join(folder.url, VALIDATION), evaluation.to_bytes())
        return f"report: {write_run_report(folder.url, end)}"
    except (RefusedError, OSError, StorageError) as error:
        return f"no {PAGE}: {error}. To write it later: python -m jobs.report {folder.url}"


def write_run_report(run: str, end: Mapping[str, Any] | None = None) -> str:
    """Write the page of a run, a folder or gs://, from what is there and an `end` record that the
    log does not have yet; return its address.

    Raises:
        RefusedError: no run there, or a package of the extra `report` is missing.
        OSError, StorageError: the page could not be written.
    """
    check_installed()
    from quickdraw_dist.evaluation import charts, html  # need the extra
    from quickdraw_dist.run.report.curves import curves

    records = history.read(run)
    if end is not None:
        records = History((*records.records, end))
    meta, evaluation = _find_newest_meta(run), _read_validation(run)
    text = html.render(
        "run/report/run.html.jinja",
        title=f"Run {run}",
        history=records,
        finished=_is_finished(records, meta),
        epochs=counted(records.last["epoch"], "epoch"),
        tiles=_tiles(records),
        details=_details(run, records, meta),
        curves=charts.render(curves(records)),
        validation=EvaluationView.draw(evaluation) if evaluation is not None else None,
        settings=yaml.safe_dump(meta["config"], sort_keys=False) if meta is not None else "",
    )
    page = storage.join(run, PAGE)
    storage.publish(page, text.encode())
    return page


def _is_finished(records: History, meta: Mapping[str, Any] | None) -> bool:
    """Whether the run is complete; by its last checkpoint where it was killed during the report."""
    if records.finished or meta is None:
        return records.finished
    resumed = records.last["kind"] == "start" or records.last["step"] > meta["step"]
    return not resumed and bool(meta["epoch"] >= meta["config"]["train"]["epochs"])


def _find_newest_meta(run: str) -> dict[str, Any] | None:
    """Return meta.json of the newest checkpoint that can be read."""
    for step in reversed(files.steps(run)):
        try:
            return files.read_meta(storage.join(files.folder(run), files.name(step)))
        except (FileNotFoundError, RefusedError):
            continue
    return None


def _read_validation(run: str) -> Evaluation | None:
    url = storage.join(run, VALIDATION)
    try:
        evaluation = Evaluation.from_bytes(storage.read(url), url)
    except FileNotFoundError:
        return None
    return evaluation if evaluation.drawings else None


def _tiles(records: History) -> list[tuple[str, str, str]]:
    from quickdraw_dist.evaluation.html import percent

    seconds = records.goodput_seconds
    wall = sum(seconds.values())
    _, accuracies = records.curve("validation", "top1")
    _, speeds = records.curve("train", "drawings_per_second")
    return [
        ("Top-1", percent(accuracies[-1] if accuracies else None), "of the last validation"),
        ("Speed", f"{statistics.median(speeds):,.0f}" if speeds else "–", "drawings per second"),
        ("Wall time", duration(wall), "since the first start"),
        ("Training", percent(seconds["train"] / wall if wall else None), "of the wall time"),
        ("Restarts", f"{len(records.restarts):,}", "after the first start"),
    ]


def _hardware(start: Mapping[str, Any]) -> str:
    return f"{start['ranks']} × {start['device']}, {start['precision']}"


def _details(run: str, records: History, meta: Mapping[str, Any] | None) -> dict[str, str]:
    starts = records.of("start")
    first, last = starts[0], starts[-1]
    details = {
        "run": run,
        "started": datetime.fromtimestamp(first["time"], UTC).strftime("%F %T UTC"),
        "model": f"{last['model']}, {last['parameters']:,} parameters",
        "hardware": ", then ".join(hardware for hardware, _ in groupby(map(_hardware, starts))),
    }
    if meta is not None:
        details["pictures"] = meta["raster"]
        details["dataset"] = f"{meta['config']['data']}, digest {meta['dataset_digest'][:16]}"
        details["versions"] = ", ".join(f"{name} {v}" for name, v in meta["versions"].items())
    return details
