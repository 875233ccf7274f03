"""What a page says of an evaluation: figures, pictures, tables that sort and filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from quickdraw_dist.evaluation.html import section, text, tiles
from quickdraw_dist.evaluation.metrics import Evaluation

Rows = list[dict[str, Any]]  # of a table: figures by the names that `COLUMNS` has

SECTIONS = {  # a picture's name: heading, caption, what the page says instead of the picture
    "pairs": (
        "Most confused pairs",
        "True class → guess.",
        "No drawing was taken for another class.",
    ),
    "mistakes": ("Mistakes", "True class, guess and its probability.", "No mistakes to show."),
    "confusion": ("Confusion matrix", "Rows are true classes and add up to 100%.", ""),
    "classes": ("Accuracy of every class", "Hardest class first.", ""),
}
COLUMNS = {  # of a table: figure and heading
    "pairs": {"true": "Class", "predicted": "Taken for", "drawings": "Times", "share": "Share"},
    "classes": {
        "class": "Class",
        "drawings": "Drawings",
        "top1": "Top-1",
        "top3": "Top-3",
        "most_confused_with": "Most often taken for",
        "most_confused_drawings": "Times",
    },
}
NAMES = ("class", "true", "predicted", "most_confused_with")  # columns of text
SCRIPT = """
const table = document.getElementById('classes-table'), find = document.getElementById('find');
const body = table.tBodies[0], rows = [...body.rows];
find.parentElement.hidden = false;
find.oninput = () => rows.forEach(row => {
  row.hidden = !row.textContent.toLowerCase().includes(find.value.trim().toLowerCase());
});
[...table.tHead.rows[0].cells].forEach((head, column, heads) => {
  const button = document.createElement('button'), key = row => row.cells[column].dataset.v;
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const up = head.ariaSort !== 'ascending', numbers = head.className === 'n';
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    rows.sort((a, b) => !key(a) - !key(b) || (up ? 1 : -1) *
      (numbers ? key(a) - key(b) : key(a).localeCompare(key(b))));
    body.append(...rows);
  };
});
"""


def evaluation_parts(
    evaluation: Evaluation, pictures: Mapping[str, bytes], tables: Mapping[str, Rows], *facts: str
) -> list[str]:
    """HTML for `page.document`, which `SCRIPT` belongs to; `facts` come below the figures. Every
    class name has been through `printable`.

    `pictures` are PNG files by the names in `SECTIONS`, and one that is missing leaves a sentence
    in its place; `tables` are rows by the names in `COLUMNS`.
    """
    return [
        f'<p class="lead">{_lead(evaluation)}</p>',
        _tiles(evaluation),
        *facts,
        *(_section(key, pictures.get(key), tables) for key in SECTIONS),
        '<section id="table"><h2>Every class</h2>',
        '<p hidden><input type="search" id="find" placeholder="Filter" aria-label="Filter classes">'
        "</p>",
        f"{_table('classes', tables['classes'])}</section>",
    ]


def share(value: float | None) -> str:
    """As a percentage, or a dash where there is none to give."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f}%"


def _lead(evaluation: Evaluation) -> str:
    split = text(evaluation.split)
    if not evaluation.drawings:
        return f"The {split} split has no drawings."
    right = int(np.trace(evaluation.confusion))
    hardest = int(np.nanargmin(evaluation.class_accuracy))
    worst = share(float(evaluation.class_accuracy[hardest]))
    return (
        f"{right:,} of the {evaluation.drawings:,} drawings of the {split} split were recognised "
        f"at the first guess. Hardest class: <b>{text(evaluation.classes[hardest])}</b>, {worst}."
    )


def _tiles(evaluation: Evaluation) -> str:
    loss = f"{evaluation.loss:.4f}" if math.isfinite(evaluation.loss) else "–"
    return tiles(
        (
            ("Top-1", share(evaluation.top1), "first guess is right"),
            ("Top-3", share(evaluation.top3), "among the first three"),
            ("MAP@3", share(evaluation.map3), "1, ½ or ⅓ by place"),
            ("Mean class", share(evaluation.mean_class_accuracy), "top-1, classes equal"),
            ("Loss", loss, "cross entropy, nats"),
            ("Drawings", f"{evaluation.drawings:,}", f"in {len(evaluation.classes)} classes"),
        )
    )


def _section(key: str, picture: bytes | None, tables: Mapping[str, Rows]) -> str:
    heading, caption, without = SECTIONS[key]
    if picture is None:
        return f"<section id={key}><h2>{heading}</h2><p>{without}</p></section>"
    below = ""
    if key == "pairs":
        below = f"<details><summary>As a table</summary>{_table(key, tables[key])}</details>"
    return section(key, heading, caption, picture, below)


def _table(key: str, rows: Rows) -> str:
    heads = "".join(
        f"<th scope=col{'' if field in NAMES else ' class=n'}>{heading}</th>"
        for field, heading in COLUMNS[key].items()
    )
    body = "\n".join(
        f"<tr>{''.join(_cell(field, row[field]) for field in COLUMNS[key])}</tr>" for row in rows
    )
    return (
        f"<div class=scroll><table id={key}-table><thead><tr>{heads}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(field: str, value: str | float | None) -> str:
    """A name, a count, or a share with a bar; `data-v` is what the page's script sorts by."""
    if value is None:
        return f"<td{'' if field in NAMES else ' class=n'} data-v=''>–</td>"
    if isinstance(value, str):
        return f"<td data-v='{escape(value)}'>{text(value)}</td>"
    if isinstance(value, int):
        return f"<td class=n data-v='{value}'>{value:,}</td>"
    bar = f"style='--share:{100 * value:.1f}%'"
    return f"<td class='n bar' {bar} data-v='{value}'>{share(value)}</td>"
