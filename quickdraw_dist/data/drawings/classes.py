"""The 345 official classes with their official files, and the class files of a folder or bucket."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NoReturn

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError, nearest


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


SUFFIXES = (".npy", ".bin", ".ndjson")
"""Ends of the names of class files: bitmaps, and two forms of strokes."""

_CONFLICT_COPY = re.compile(r"\.sync-conflict-|\(.*conflicted copy.*\)$|^~\$")
"""In names that sync tools and office programs give to copies of a file beside it."""


@dataclass(frozen=True)
class ClassFiles:
    """Files of one kind, one per class."""

    folder: str
    suffix: str
    classes: tuple[str, ...]
    sizes: tuple[int, ...]  # bytes

    def url(self, label: int) -> str:
        """Return the address of a class's file."""
        return storage.join(self.folder, f"{self.classes[label]}{self.suffix}")

    def read_rows(self, label: int, span: tuple[int, int], rows: tuple[int, int]) -> bytes:
        """Return the bytes of `span`, which are those of `rows`.

        Raises:
            CorruptError: the file is shorter than it was.
        """
        (first, end), (start, stop) = span, rows
        data = storage.read_range(self.url(label), first, end - first) if end > first else b""
        if len(data) != end - first:
            problem = (
                f"rows {start} to {stop} are {end - first:,} bytes, only {len(data):,} could be "
                "read; the file has changed or is truncated"
            )
            raise CorruptError(
                self.url(label), None, problem, start=start, stop=stop, read_bytes=len(data)
            )
        return data

    def official_counts(self) -> tuple[int | None, ...]:
        """Return the number of drawings of each of Google's own files, without a look into it;
        None for any other file."""
        if not self.folder.startswith("gs://quickdraw_dataset/"):
            return (None,) * len(self.classes)
        found = map(official_class, self.classes)
        return tuple(None if entry is None else entry.drawings for entry in found)

    def check_official_counts(self, counts: Sequence[int]) -> None:
        """Raise CorruptError if these are not the numbers of drawings of Google's own files."""
        for label, (count, official) in enumerate(zip(counts, self.official_counts(), strict=True)):
            if official is not None and count != official:
                problem = f"{count:,} drawings, the official file has {official:,}"
                raise CorruptError(self.url(label), None, problem)


@dataclass(frozen=True)
class FileSource:
    """What every `Source` over class files has in common."""

    files: ClassFiles

    @property
    def url(self) -> str:
        """The folder."""
        return self.files.folder

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that have a file."""
        return self.files.classes

    @property
    def identity(self) -> str:
        """Empty: files have checksums."""
        return ""

    def file_url(self, label: int) -> str:
        """Return the address of a class's file."""
        return self.files.url(label)

    def checksum(self, label: int) -> int | None:
        """Return the CRC-32C that the store has of a class's file; a local file is read for it."""
        return storage.object_crc32c(self.file_url(label))


def find_class_files(url: str, classes: Sequence[str] = ()) -> ClassFiles:
    """Find the class files in a folder, which must be of one kind.

    Args:
        url: a folder or gs:// prefix.
        classes: only these, in this order, without repeats; empty for all official ones.

    Raises:
        RefusedError: no such folder, no class file in it or several kinds, an unknown or missing
            class, a link that leads nowhere, a file whose name ends in capitals.
        StorageError: the store did not answer; DeniedError: not for this account.
    """
    try:
        found = storage.sizes(url, SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        _refuse_source(url, "no such folder")
    copies = [file for file in found if _CONFLICT_COPY.search(_split(file)[0])]
    files = {file: size for file, size in found.items() if file not in copies}
    kinds = sorted({_split(file)[1].lower() for file in files})
    if not files:
        _refuse_source(url, f"no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file in it")
    if len(kinds) > 1:
        problem = f"holds {' and '.join(kinds)} files"
        raise RefusedError("source", url, problem, "Keep each kind of file in a folder of its own")
    suffix = kinds[0]
    if classes:
        names = tuple(classes)
        for name in names:
            _check_chosen(url, files, name, suffix)
    else:
        for file in copies:
            print(f"source: {storage.join(url, file)} is passed over", file=sys.stderr)
        for file in files:
            _check_official(url, file, suffix)
        names = tuple(name for name in official_names() if f"{name}{suffix}" in files)
    return ClassFiles(url, suffix, names, tuple(files[f"{name}{suffix}"] for name in names))


def _split(file: str) -> tuple[str, str]:
    """Return the name of a class file without its suffix, and the suffix as it is spelled."""
    suffix = next(suffix for suffix in SUFFIXES if file.lower().endswith(suffix))
    return file[: -len(suffix)], file[-len(suffix) :]


def _refuse_source(url: str, problem: str) -> NoReturn:
    raise RefusedError(
        "source",
        url,
        problem,
        "Use a folder with one .npy, .bin or .ndjson file per class, "
        "SOURCE=gs://quickdraw_dataset/full/numpy_bitmap (the official bitmaps, 39.5 GB), or "
        "'synthetic:?classes=20&per_class=1000&seed=7' to try without any data",
    ) from None


def _check_chosen(url: str, files: dict[str, int], name: str, suffix: str) -> None:
    """Raise RefusedError if a class that the user named has no file."""
    wanted = f"{name}{suffix}"
    if wanted not in files:
        problem = f"there is no {wanted} in {url}"
        alike = [file for file in files if file.casefold() == wanted.casefold()]
        near = nearest(name, [_split(file)[0] for file in files]).strip()
        remedy = f"Rename {alike[0]} to {wanted}" if alike else near
        raise RefusedError(f"class {name!r}", None, problem, remedy)


def _check_official(url: str, file: str, suffix: str) -> None:
    """Raise RefusedError if a file is not that of an official class, or its name not as spelled."""
    known = official_names()
    name, spelled = _split(file)
    if name not in known:
        alike = [other for other in known if other.casefold() == name.casefold()]
        near = nearest(alike[0] if alike else name, alike or known)
        raise RefusedError(
            storage.join(url, file),
            None,
            f"{name!r} is none of the 345 official classes.{near}",
            "Rename or remove it, or list all classes with --shard.classes to shard classes of "
            "your own",
        )
    if spelled != suffix:
        problem = f"its name ends in {spelled}, that of a class file in {suffix}"
        raise RefusedError(storage.join(url, file), None, problem, f"Rename it to {name}{suffix}")
