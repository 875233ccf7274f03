"""The page of an evaluation report: one HTML file with its styles, script and pictures inside.

It opens without a server and loads nothing from anywhere, which `POLICY` also holds it to. Every
text that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import math
import struct
import unicodedata
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from quickdraw_dist.evaluation import Evaluation

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
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6673; --line: #dfe4ea; --page: #f4f6f8;
  --card: #fff; --bar: #d5e4f5; --link: #1f5fa8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --soft: #a3acb8; --line: #34383e; --page: #111214; --card: #1a1a1a;
    --bar: #243c58; --link: #8fbcf0 }
  img { filter: invert(.9) hue-rotate(180deg) } /* a picture's white becomes the card's #1a1a1a */
}
* { box-sizing: border-box; margin: 0 }
body { background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1rem 4rem; display: grid; gap: 1.2rem }
main > *, main > * > * { min-width: 0 } /* lets wide tables scroll inside their cards */
h1 { font-size: 1.9rem; line-height: 1.2 } h2 { font-size: 1.2rem }
h1, .lead, .facts td { overflow-wrap: anywhere }
.lead { max-width: 48rem; margin-top: -.7rem }
section, .facts, .tiles div { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 1.2rem }
section p, .note, .facts th, summary { color: var(--soft) }
section p { margin: .2rem 0 1rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem }
.tiles div { padding: .8rem 1rem }
dt { font-weight: 600; font-size: .9rem } dd { font-size: 1.6rem; line-height: 1.3 }
dd.note { font-size: .8rem }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
.facts { border-collapse: separate; padding: .4rem }
th, td { text-align: left; padding: .32rem .7rem; vertical-align: top; min-width: 7rem }
th, .n { white-space: nowrap } .n { min-width: 0; text-align: right; font-variant: tabular-nums }
.facts th { width: 1%; font-weight: 400; padding-right: 1.5rem }
section td { border-bottom: 1px solid var(--line) }
thead th { position: sticky; top: 0; background: var(--card); box-shadow: 0 1px var(--line) }
.bar { background: linear-gradient(90deg, var(--bar) var(--share), transparent 0) }
.scroll { display: block; overflow: auto; max-height: 95vh }
.zoom .scroll { cursor: zoom-in; max-height: none } .zoom input { position: absolute; opacity: 0 }
.zoom input:checked + .scroll { cursor: zoom-out; max-height: 95vh }
.zoom input:checked + .scroll img { max-width: none; width: auto }
:focus-visible + .scroll, button:focus-visible { outline: 2px solid var(--link) }
img { display: block; max-width: 100%; height: auto; margin: 0 auto }
summary, button { cursor: pointer } button { all: unset }
button::after { content: " ↕"; color: var(--soft) }
[aria-sort=ascending] button::after { content: " ↑" }
[aria-sort=descending] button::after { content: " ↓" }
[type=search] { font: inherit; color: inherit; background: var(--page); width: min(22rem, 100%);
  padding: .4rem .7rem; border: 1px solid var(--line); border-radius: 8px }
"""
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


def make_page(
    evaluation: Evaluation,
    pictures: Mapping[str, bytes],
    tables: Mapping[str, Rows],
    title: str,
    facts: Mapping[str, str],
) -> str:
    """The whole page as text. Every class name has been through `printable`.

    `pictures` are PNG files by the names in `SECTIONS`, and one that is missing leaves a sentence
    in its place; `tables` are rows by the names in `COLUMNS`; `facts` are shown in their order.
    """
    name = escape(printable(title))
    rows = "".join(
        f"<tr><th scope=row>{_text(fact)}</th><td>{_text(value)}</td></tr>"
        for fact, value in facts.items()
    )
    sections = "\n".join(_section(key, pictures.get(key), tables) for key in SECTIONS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{name}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{name}</h1>
<p class="lead">{_lead(evaluation)}</p>
{_tiles(evaluation)}
{f'<table class="facts">{rows}</table>' if rows else ""}
{sections}
<section id="table"><h2>Every class</h2>
<p hidden><input type="search" id="find" placeholder="Filter" aria-label="Filter classes"></p>
{_table("classes", tables["classes"])}
</section>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def printable(text: str) -> str:
    """`text` on one line, with a sign in place of what neither a page nor a picture can hold."""
    return "".join(
        (" " if sign.isspace() else "\N{REPLACEMENT CHARACTER}")
        if unicodedata.category(sign) in {"Cc", "Cs", "Zl", "Zp"}
        else sign
        for sign in text
    )


def _text(text: str) -> str:
    """Text of the caller's for the page: escaped, and kept from turning its surroundings round."""
    return f"<bdi>{escape(printable(text))}</bdi>"


def _share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f}%"


def _lead(evaluation: Evaluation) -> str:
    split = _text(evaluation.split)
    if not evaluation.drawings:
        return f"The {split} split has no drawings."
    right = int(np.trace(evaluation.confusion))
    hardest = int(np.nanargmin(evaluation.class_accuracy))
    share = _share(float(evaluation.class_accuracy[hardest]))
    return (
        f"{right:,} of the {evaluation.drawings:,} drawings of the {split} split were recognised "
        f"at the first guess. Hardest class: <b>{_text(evaluation.classes[hardest])}</b>, {share}."
    )


def _tiles(evaluation: Evaluation) -> str:
    loss = f"{evaluation.loss:.4f}" if math.isfinite(evaluation.loss) else "–"
    tiles = (
        ("Top-1", _share(evaluation.top1), "first guess is right"),
        ("Top-3", _share(evaluation.top3), "among the first three"),
        ("MAP@3", _share(evaluation.map3), "1, ½ or ⅓ by place"),
        ("Mean class", _share(evaluation.mean_class_accuracy), "top-1, classes equal"),
        ("Loss", loss, "cross entropy, nats"),
        ("Drawings", f"{evaluation.drawings:,}", f"in {len(evaluation.classes)} classes"),
    )
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class=note>{note}</dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _section(key: str, picture: bytes | None, tables: Mapping[str, Rows]) -> str:
    heading, caption, without = SECTIONS[key]
    if picture is None:
        return f"<section id={key}><h2>{heading}</h2><p>{without}</p></section>"
    width, height = (dots // 2 for dots in struct.unpack(">II", picture[16:24]))
    data = base64.b64encode(picture).decode("ascii")
    table = ""
    if key == "pairs":
        table = f"<details><summary>As a table</summary>{_table(key, tables[key])}</details>"
    return (
        f"<section id={key}><h2>{heading}</h2><p>{caption}</p><label class=zoom><input "
        f"type=checkbox aria-label='{heading} in full size'><span class=scroll><img "
        f"alt='{heading}. {caption}' width={width} height={height} "
        f"style='min-width:min({width}px,44rem)' src='data:image/png;base64,{data}'></span>"
        f"</label>{table}</section>"
    )


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
        return f"<td data-v='{escape(value)}'>{_text(value)}</td>"
    if isinstance(value, int):
        return f"<td class=n data-v='{value}'>{value:,}</td>"
    bar = f"style='--share:{100 * value:.1f}%'"
    return f"<td class='n bar' {bar} data-v='{value}'>{_share(value)}</td>"
