"""An evaluation as a folder: metrics, pictures and one page that can be mailed.

`evaluation.json` has the numbers, four PNG files the pictures, and `index.html` everything in one
file that loads nothing. Equal evaluations give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.evaluation.metrics import Evaluation

PICTURES = ("pairs", "mistakes", "confusion", "classes")
"""Names of the PNG files, in the page's order."""

PAIRS = 30  # most confused pairs in the JSON file and in the page's table

Rows = list[dict[str, Any]]


def check_installed() -> None:
    """Check that what draws and renders a report is installed.

    Raises:
        RefusedError: a package of the extra `report` is missing.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            import_module(package)
        except ModuleNotFoundError:
            raise RefusedError(
                "report",
                None,
                f"the package {package} is not installed",
                "Run pip install 'quickdraw-dist[report]'",
            ) from None


def write_report(
    evaluation: Evaluation, folder: Path, *, title: str, details: Mapping[str, str]
) -> Path:
    """Write the report of `evaluation` into `folder` and return its index.html.

    A picture with nothing to show (no mistakes) is not written, and one of an earlier report is
    removed.

    Args:
        details: shown as a table, in the given order: checkpoint, dataset, step, hardware.

    Raises:
        RefusedError: a package of the extra `report` is missing.
    """
    check_installed()
    from quickdraw_dist.evaluation import html  # needs the extra

    view = EvaluationView.draw(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(report_metrics(evaluation), indent=1, allow_nan=False) + "\n"
    (folder / "evaluation.json").write_text(numbers, encoding="utf-8")
    for name in PICTURES:
        if name in view.pictures:
            (folder / f"{name}.png").write_bytes(view.pictures[name])
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)
    page = folder / "index.html"
    text = html.render(
        "evaluation/templates/report.html.jinja", title=title, details=details, view=view
    )
    page.write_text(text, encoding="utf-8", newline="\n")
    return page


@dataclass(frozen=True)
class EvaluationView:
    """What evaluation.html.jinja shows."""

    evaluation: Evaluation  # its class names are printable
    per_class: Rows
    confused_pairs: Rows
    pictures: Mapping[str, bytes]  # PNG files by the names in PICTURES, where there is one

    @classmethod
    def draw(cls, evaluation: Evaluation) -> EvaluationView:
        """Draw the pictures and compute the tables; `check_installed` comes first."""
        from quickdraw_dist.evaluation import charts, html  # need the extra

        names = tuple(html.printable(name) for name in evaluation.classes)
        shown = replace(evaluation, classes=names)
        return cls(shown, per_class(shown), confused_pairs(shown), charts.draw_pictures(shown))


def report_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """Return the contents of evaluation.json: overall metrics, each class, most confused pairs."""
    headline = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in evaluation.metrics().items()
    }
    lists = {"per_class": per_class(evaluation), "confused_pairs": confused_pairs(evaluation)}
    return headline | lists


def per_class(evaluation: Evaluation) -> Rows:
    """Return the metrics of each class, in the order of the classes; None where undefined."""
    off = evaluation.confusion.copy()
    np.fill_diagonal(off, 0)
    rows: Rows = []
    for label, name in enumerate(evaluation.classes):
        drawings, guess = int(evaluation.support[label]), int(off[label].argmax())
        most = int(off[label, guess])
        top3 = int(evaluation.top3_per_class[label])
        rows.append(
            {
                "class": name,
                "drawings": drawings,
                "top1": round(float(evaluation.class_accuracy[label]), 6) if drawings else None,
                "top3": round(top3 / drawings, 6) if drawings else None,
                "most_confused_with": evaluation.classes[guess] if most else None,
                "most_confused_drawings": most,
            }
        )
    return rows


def confused_pairs(evaluation: Evaluation) -> Rows:
    """Return the `PAIRS` most confused pairs, most frequent first.

    `share` is the share of the true class's drawings.
    """
    return [
        {
            "true": evaluation.classes[true],
            "predicted": evaluation.classes[guess],
            "drawings": drawings,
            "share": round(drawings / int(evaluation.support[true]), 6),
        }
        for true, guess, drawings in evaluation.confused_pairs(PAIRS)
    ]
