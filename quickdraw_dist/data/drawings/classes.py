"""The 345 official classes in official order, with size and MD5 of their official files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class OfficialFile:
    """Size and hexadecimal MD5 of one file as Google publishes it."""

    bytes: int
    md5: str


@dataclass(frozen=True)
class OfficialClass:
    """Name, number of drawings and files of one class as Google publishes it. `simplified` and
    `raw` are both `.ndjson`."""

    name: str
    drawings: int
    npy: OfficialFile
    bin: OfficialFile
    simplified: OfficialFile
    raw: OfficialFile


@cache
def official() -> tuple[OfficialClass, ...]:
    """Return the official classes; a label of the full dataset is an index into this tuple."""
    table = files("quickdraw_dist.data.drawings").joinpath("official_classes.csv")
    return tuple(
        OfficialClass(
            row["name"],
            int(row["drawings"]),
            *(
                OfficialFile(int(row[f"{kind}_bytes"]), row[f"{kind}_md5"])
                for kind in ("npy", "bin", "simplified", "raw")
            ),
        )
        for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    )


def official_class(name: str) -> OfficialClass | None:
    """Return the official class of this name; None if there is none."""
    return next((entry for entry in official() if entry.name == name), None)


def official_file(name: str, size: int) -> OfficialFile | None:
    """Return the official file of this name, such as 'cat.npy', and size; None if there is none:
    the file is the user's own, or the beginning of an official one."""
    stem, _, suffix = name.rpartition(".")
    found = official_class(stem)
    if found is None:
        return None
    published = {
        "npy": (found.npy,),
        "bin": (found.bin,),
        "ndjson": (found.simplified, found.raw),
    }
    return next((file for file in published.get(suffix, ()) if file.bytes == size), None)


def official_names() -> tuple[str, ...]:
    """Return the names of the official classes, in official order."""
    return tuple(entry.name for entry in official())
