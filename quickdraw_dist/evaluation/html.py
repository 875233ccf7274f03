"""Render a page: one HTML file with its styles, script and pictures inside.

It opens without a server and loads nothing, which its Content-Security-Policy also enforces. All
values are escaped. Importing this module needs jinja2, the extra `report`.
"""

from __future__ import annotations

import base64
import math
import struct
import unicodedata
from functools import cache
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: object) -> str:
    """Return a page as text.

    Args:
        template: its path below quickdraw_dist, such as 'evaluation/templates/report.html.jinja'.
        values: what the template shows; one that it does not find is an error.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("quickdraw_dist", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (printable, text, percent, fixed, grouped, image):
        environment.filters[function.__name__] = function
    return environment


def printable(raw: str) -> str:
    """Return `raw` on one line, with U+FFFD in place of characters that a page cannot hold."""
    return "".join(
        (" " if sign.isspace() else "\N{REPLACEMENT CHARACTER}")
        if unicodedata.category(sign) in {"Cc", "Cs", "Zl", "Zp"}
        else sign
        for sign in raw
    )


def text(raw: str) -> Markup:
    """Return a name for the page: escaped, and kept from reversing the text around it."""
    return Markup("<bdi>{}</bdi>").format(printable(raw))


def percent(share: float | None) -> str:
    """Return 0.5 as '50.00%', and a dash for None, NaN and inf."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.2f}%"


def fixed(number: float) -> str:
    """Return a number with four decimals, and a dash for NaN and inf."""
    return f"{number:.4f}" if math.isfinite(number) else "–"


def grouped(number: float) -> str:
    """Return a whole number with commas between its thousands."""
    return f"{number:,.0f}"


class Image(NamedTuple):
    """A PNG file for an <img>, at half its size: two dots per CSS pixel."""

    width: int
    height: int
    base64: str


def image(png: bytes) -> Image:
    """Read a PNG file's size from its header and encode it for a data: address."""
    width, height = (dots // 2 for dots in struct.unpack(">II", png[16:24]))
    return Image(width, height, base64.b64encode(png).decode("ascii"))
