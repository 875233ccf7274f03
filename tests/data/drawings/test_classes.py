"""The official classes: 345, in Google's order, with Google's counts and checksums."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path

from quickdraw_dist.data.drawings.classes import (
    official,
    official_class,
    official_file,
    official_names,
)


def test_names_and_order_are_frozen() -> None:
    """A label is an index into this list: another order changes the meaning of every model."""
    names = official_names()
    assert len(names) == len(set(names)) == 345
    assert names[:2] == ("aircraft carrier", "airplane")
    assert names[-2:] == ("zebra", "zigzag")
    assert names != tuple(sorted(names)), "sorted() is not the official order"
    assert (
        hashlib.sha256("\n".join(names).encode()).hexdigest()
        == "305040dd185b7259a4795da7a5be4145837ddb9b4f61a5b4c366ab0e4e2e9360"
    )


def test_counts_and_checksums_are_the_official_ones() -> None:
    """Totals that Google publishes; a typo in one row of the table changes one of them."""
    drawings = sorted(entry.drawings for entry in official())
    assert sum(drawings) == 50_426_266
    assert (drawings[0], drawings[172], drawings[-1]) == (113_613, 130_371, 340_029)
    for entry in official():
        assert entry.npy.bytes == 80 + 784 * entry.drawings, entry.name
    published = [file for e in official() for file in (e.npy, e.bin, e.simplified, e.raw)]
    assert all(re.fullmatch("[0-9a-f]{32}", file.md5) for file in published)
    assert len({file.md5 for file in published}) == 4 * 345
    gigabytes = [sum(file.bytes for file in published[kind::4]) / 1e9 for kind in range(4)]
    assert [round(size, 2) for size in gigabytes] == [39.53, 5.89, 24.01, 194.81]


def test_a_file_is_official_by_name_and_size() -> None:
    """Simplified and raw files have the same name; half a download has the size of neither."""
    cat = official_class("cat")
    assert cat is not None
    for name, file in (
        ("cat.npy", cat.npy), ("cat.bin", cat.bin),
        ("cat.ndjson", cat.simplified), ("cat.ndjson", cat.raw),
    ):  # fmt: skip
        assert official_file(name, file.bytes) == file
        assert official_file(name, file.bytes - 1) is None
    assert official_file("cat.npy", cat.bin.bytes) is None
    assert official_file("my own.npy", cat.npy.bytes) is None


def test_the_table_equals_the_lists_beside_the_real_data(real_data: Path) -> None:
    """Our copy against the one that comes with the drawings, name by name."""
    listed = (real_data / "categories.txt").read_text(encoding="utf-8").splitlines()
    assert list(official_names()) == listed
    with (real_data / "official_files.csv").open(encoding="utf-8") as file:
        rows = {row["word"]: row for row in csv.DictReader(file)}
    for entry in official():
        row = rows[entry.name]
        assert entry.drawings == int(row["drawings"]), entry.name
        for file, kind in (
            (entry.npy, "numpy_bitmap"), (entry.bin, "binary"),
            (entry.simplified, "simplified"), (entry.raw, "raw"),
        ):  # fmt: skip
            assert file.bytes == int(row[f"{kind}_bytes"]), entry.name
            assert file.md5 == row[f"{kind}_md5"], entry.name
