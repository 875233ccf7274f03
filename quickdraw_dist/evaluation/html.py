"""Pages for people: one HTML file with its styles, script and pictures inside.

It opens without a server and loads nothing from anywhere, which `POLICY` also holds it to. Every
text that comes from outside is escaped.
"""

from __future__ import annotations

import base64
import struct
import unicodedata
from collections.abc import Iterable, Mapping
from html import escape

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
pre { overflow: auto; font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace }
[type=search] { font: inherit; color: inherit; background: var(--page); width: min(22rem, 100%);
  padding: .4rem .7rem; border: 1px solid var(--line); border-radius: 8px }
"""


def document(title: str, parts: Iterable[str], script: str = "") -> str:
    """The whole page as text. `parts` are HTML, below the title and above each other."""
    name, body = escape(printable(title)), "\n".join(part for part in parts if part)
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
{body}
</main>
{f"<script>{script}</script>" if script else ""}
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


def text(raw: str) -> str:
    """Text of the caller's for the page: escaped, and kept from turning its surroundings round."""
    return f"<bdi>{escape(printable(raw))}</bdi>"


def facts_table(facts: Mapping[str, str]) -> str:
    """Names and values, in the given order; nothing where there are none."""
    rows = "".join(
        f"<tr><th scope=row>{text(fact)}</th><td>{text(value)}</td></tr>"
        for fact, value in facts.items()
    )
    return f'<table class="facts">{rows}</table>' if rows else ""


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Headline figures: name, value and a note of plain text each."""
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><dd class=note>{note}</dd></div>"
        for name, value, note in figures
    )
    return f'<dl class="tiles">{cells}</dl>'


def section(key: str, heading: str, caption: str, picture: bytes, below: str = "") -> str:
    """A card with a PNG file of `report_pictures`, which opens in full size, and HTML below it."""
    width, height = (dots // 2 for dots in struct.unpack(">II", picture[16:24]))
    data = base64.b64encode(picture).decode("ascii")
    return (
        f"<section id={key}><h2>{heading}</h2><p>{caption}</p><label class=zoom><input "
        f"type=checkbox aria-label='{heading} in full size'><span class=scroll><img "
        f"alt='{heading}. {caption}' width={width} height={height} "
        f"style='min-width:min({width}px,44rem)' src='data:image/png;base64,{data}'></span>"
        f"</label>{below}</section>"
    )
