"""An evaluation as a folder of figures, pictures and one page that can be mailed.

`evaluation.json` has the numbers, four PNG files the pictures, and `index.html` everything in one
file: it opens without a server and loads nothing from anywhere. Equal evaluations give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quickdraw_dist.evaluation.html import document, facts_table, printable
from quickdraw_dist.evaluation.metrics import Evaluation
from quickdraw_dist.evaluation.report_page import SCRIPT, SECTIONS, Rows, evaluation_parts

PAIRS = 30  # most confused pairs in the JSON file and in the page's table


def write_report(
    evaluation: Evaluation, folder: Path, *, title: str, facts: Mapping[str, str]
) -> Path:
    """Write the report of `evaluation` into `folder` and return its index.html.

    `facts` are shown in the given order: checkpoint, dataset, step, hardware. A picture with
    nothing to show (no mistakes) is not written, and one of an earlier report is removed.
    Raises RefusedError when matplotlib, the extra `report`, is not installed.
    """
    from quickdraw_dist.evaluation import (
        charts as report_pictures,  # here, since importing it needs matplotlib
    )

    visible = _visible(evaluation)
    pictures = report_pictures.draw_pictures(visible)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(figures(evaluation), indent=1, allow_nan=False) + "\n"
    (folder / "evaluation.json").write_text(numbers, encoding="utf-8")
    for name in SECTIONS:
        if name in pictures:
            (folder / f"{name}.png").write_bytes(pictures[name])
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)
    page = folder / "index.html"
    parts = evaluation_parts(visible, pictures, _tables(visible), facts_table(facts))
    page.write_text(document(title, parts, SCRIPT), encoding="utf-8", newline="\n")
    return page


def evaluation_section(evaluation: Evaluation) -> list[str]:
    """An evaluation as part of another page: HTML for `page.document`, with `SCRIPT`.

    Raises RefusedError when matplotlib, the extra `report`, is not installed.
    """
    from quickdraw_dist.evaluation import charts as report_pictures

    visible = _visible(evaluation)
    return evaluation_parts(visible, report_pictures.draw_pictures(visible), _tables(visible))


def _visible(evaluation: Evaluation) -> Evaluation:
    """With names that can be shown."""
    return replace(evaluation, classes=tuple(printable(name) for name in evaluation.classes))


def _tables(visible: Evaluation) -> dict[str, Rows]:
    return {"classes": per_class(visible), "pairs": confused_pairs(visible)}


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """What evaluation.json holds: the headline figures, every class, the most confused pairs."""
    headline = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in evaluation.metrics().items()
    }
    lists = {"per_class": per_class(evaluation), "confused_pairs": confused_pairs(evaluation)}
    return headline | lists


def per_class(evaluation: Evaluation) -> Rows:
    """The figures of every class, in the order of the classes; None where there is none to give."""
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
    """The `PAIRS` most confused pairs, most first; `share` is of the true class's drawings."""
    return [
        {
            "true": evaluation.classes[true],
            "predicted": evaluation.classes[guess],
            "drawings": drawings,
            "share": round(drawings / int(evaluation.support[true]), 6),
        }
        for true, guess, drawings in evaluation.confused_pairs(PAIRS)
    ]
