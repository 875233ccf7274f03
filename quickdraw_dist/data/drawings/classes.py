"""The 345 official classes in official order, with size and MD5 of their official files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class OfficialClass:
    """Name, number of drawings and file of one class as Google publishes it."""

    name: str
    drawings: int
    npy_bytes: int
    npy_md5: str


@cache
def official() -> tuple[OfficialClass, ...]:
    """Return the official classes; a label of the full dataset is an index into this tuple."""
    table = files("quickdraw_dist.data.drawings").joinpath("official_classes.csv")
    text = table.read_text(encoding="utf-8")
    return tuple(
        OfficialClass(row["name"], int(row["drawings"]), int(row["npy_bytes"]), row["npy_md5"])
        for row in csv.DictReader(text.splitlines())
    )


def official_class(name: str) -> OfficialClass | None:
    """Return the official class of this name; None if there is none."""
    return next((entry for entry in official() if entry.name == name), None)


def official_file(name: str, size: int) -> OfficialClass | None:
    """Return the official class whose file has this name and size; None if there is none: the file
    is the user's own, or the beginning of an official one."""
    found = official_class(name)
    return found if found is not None and found.npy_bytes == size else None


def official_names() -> tuple[str, ...]:
    """Return the names of the official classes, in official order."""
    return tuple(entry.name for entry in official())
