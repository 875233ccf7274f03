"""The 345 official classes, in official order, with the facts of their official files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class OfficialClass:
    """One class as Google publishes it."""

    name: str
    drawings: int
    npy_bytes: int
    npy_md5: str


@cache
def official() -> tuple[OfficialClass, ...]:
    """All of them; a label of the full dataset is an index into this tuple."""
    table = files("quickdraw_dist.data.drawings").joinpath("official_classes.csv")
    text = table.read_text(encoding="utf-8")
    return tuple(
        OfficialClass(row["name"], int(row["drawings"]), int(row["npy_bytes"]), row["npy_md5"])
        for row in csv.DictReader(text.splitlines())
    )


def official_class(name: str) -> OfficialClass | None:
    """The official class of this name; None if there is none."""
    return next((entry for entry in official() if entry.name == name), None)


def official_file(name: str, size: int) -> OfficialClass | None:
    """What a file of this name and size must be; None where the name or the size is no official
    one: it is a file of somebody's own, or a part of the official one."""
    figures = official_class(name)
    return figures if figures is not None and figures.npy_bytes == size else None


def official_names() -> tuple[str, ...]:
    """Their names only, in official order."""
    return tuple(entry.name for entry in official())
