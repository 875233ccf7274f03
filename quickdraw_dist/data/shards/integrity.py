"""Whether what was read is what the source holds.

A range of an object comes without a checksum of its own, so a bit that flips on the way is not
seen. Every group therefore records the CRC-32C of each range it read. Together they give that of
the whole file, which the file's keeper knows; where the two differ, ranges are read until two
readings agree, and the groups that had read something else are built again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings.bitmaps import READINGS, file_url
from quickdraw_dist.data.drawings.classes import official_file
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Source
from quickdraw_dist.data.shards.manifest import PartFile, SourceFile
from quickdraw_dist.data.shards.plan import Plan

READERS = 8
"""Ranges of the source read at once: over a network each one waits for a round trip."""

CRC32C, SIZE, MD5 = CHECKS = ("crc32c", "official size", "official md5")
"""What a file may have been compared with: the checksum that its keeper has, and the figures of
the official file of its class, whose size also settles the number of drawings."""

Crcs = list[list[int]]
"""The CRC-32C of every range: [group][label]."""


def read(
    source: Source, label: int, start: int, stop: int, true_crc: int | None = None
) -> tuple[NDArray[np.uint8], int]:
    """Rows of a class, (stop - start, 28, 28) uint8, and their CRC-32C: the true one, if given.

    Raises:
        CorruptError: the file is too short, or no reading had the true checksum.
    """
    if start == stop:
        return np.empty((0, SIDE, SIDE), np.uint8), 0
    for _ in range(1 if true_crc is None else READINGS):
        rows = source.read(label, start, stop)
        crc = storage.crc32c(rows.data)
        if true_crc is None or crc == true_crc:
            return rows, crc
    raise CorruptError(
        f"{_range(source, label, start, stop)} came {READINGS} times with another crc32c "
        f"than {true_crc:08x}, the last time with {crc:08x}; the store is damaged"
    )


def read_again(
    source: Source, label: int, start: int, stop: int, crc: int
) -> tuple[NDArray[np.uint8], int]:
    """Rows of a class as two readings had them, and their CRC-32C; `crc` is that of the reading
    before, which is in doubt.

    Raises:
        CorruptError: the file is too short, or no two readings agree.
    """
    seen = {crc}
    for _ in range(READINGS):
        rows, crc = read(source, label, start, stop)
        if crc in seen:
            return rows, crc
        seen.add(crc)
    raise CorruptError(
        f"{_range(source, label, start, stop)} came {len(seen)} times, always with another "
        "crc32c; the store is damaged"
    )


def check_official(source: Source, label: int) -> tuple[str, ...]:
    """Compare a class's file with Google's figures, if it has an official name and size. MD5 is
    asked for in a store that keeps it; a local file is read through.

    Returns:
        Which of `CHECKS` it passed.

    Raises:
        CorruptError: it has another MD5.
    """
    size = len(source.header(label)) + source.counts[label] * PIXELS
    official = official_file(source.classes[label], size)
    if official is None:
        return ()
    url = file_url(source, label)
    md5 = storage.own_md5(url)
    if md5 is None:
        return (SIZE,)
    if md5 != official.npy_md5:
        raise CorruptError(
            f"{url}: MD5 {md5}, the official file's is {official.npy_md5}; fetch it again"
        )
    return (SIZE, MD5)


def find_official_problems(source: Source) -> Iterator[str]:
    """A line for every official file of a source that has another MD5."""

    def problem(label: int) -> str | None:
        try:
            check_official(source, label)
        except CorruptError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(READERS) as pool:
        yield from filter(None, pool.map(problem, range(len(source.classes))))


def check_source(
    plan: Plan, source: Source, parts: list[PartFile], progress: Callable[[int], object]
) -> tuple[tuple[SourceFile, ...], Crcs]:
    """Compare what all groups read, and the files themselves, with all that is known of them.

    Args:
        plan: the dataset's.
        source: its source.
        parts: of every group, in order.
        progress: called with 1 for every file that was compared.

    Returns:
        The files of the source, and the true CRC-32C of every range. Groups that recorded
        another one must be built again.

    Raises:
        CorruptError: a file is not the official one, or not what its own checksum says.
        StorageError: the store failed.
    """

    def ask(label: int) -> tuple[int | None, tuple[str, ...]]:
        own = source.checksum(label)
        return own, (() if own is None else (CRC32C,)) + check_official(source, label)

    labels, kept = range(len(plan.classes)), []
    with ThreadPoolExecutor(READERS) as pool:
        for answer in pool.map(ask, labels):
            kept.append(answer)
            progress(1)
    crcs = [[piece.crc32c for piece in part.ranges] for part in parts]
    whole = [_combined(plan, source, crcs, label) for label in labels]
    suspects = [at for at, (own, _) in enumerate(kept) if own is not None and own != whole[at]]
    if suspects:
        _settle(plan, source, crcs, suspects)
    for label in suspects:
        own, whole[label] = kept[label][0], _combined(plan, source, crcs, label)
        if own != whole[label]:
            raise CorruptError(
                f"{_range(source, label, 0, plan.counts[label])}, every range of them read twice "
                f"alike, have with the header crc32c {whole[label]:08x}, the file's own is "
                f"{own:08x}; it changes, or the store is damaged"
            )
    return tuple(
        SourceFile(
            name=plan.classes[label],
            drawings=plan.counts[label],
            bytes=len(source.header(label)) + plan.counts[label] * PIXELS,
            crc32c=whole[label],
            checked=kept[label][1],
        )
        for label in labels
    ), crcs


def summary(files: Sequence[SourceFile]) -> str:
    """What the files of a source were compared with, in words."""
    made = Counter(name for file in files for name in file.checked)
    if not made:
        return "nothing: this source has no checksums"
    counts = [f"{name} of {made[name]:,}" for name in CHECKS]
    return f"of {len(files):,} source files: {', '.join(counts)}"


def _settle(plan: Plan, source: Source, crcs: Crcs, suspects: list[int]) -> None:
    """Put the CRC-32C on which two readings agree in `crcs`, for every range of some classes."""
    names = ", ".join(plan.classes[label] for label in suspects[:3])
    more = f" and {len(suspects) - 3} more" if len(suspects) > 3 else ""
    print(f"source: {names}{more}: not what its checksum says; reading it again", file=sys.stderr)

    def settle(place: tuple[int, int]) -> int:
        group, label = place
        return read_again(source, label, *plan.rows(group, label), crcs[group][label])[1]

    places = [(group, label) for group in range(plan.groups) for label in suspects]
    with ThreadPoolExecutor(READERS) as pool:
        for (group, label), crc in zip(places, pool.map(settle, places), strict=True):
            crcs[group][label] = crc


def _range(source: Source, label: int, start: int, stop: int) -> str:
    first = len(source.header(label))
    return (
        f"{source.url}: {source.classes[label]!r}: bytes {first + start * PIXELS:,} to "
        f"{first + stop * PIXELS:,} (rows {start:,} to {stop:,})"
    )


def _combined(plan: Plan, source: Source, crcs: Crcs, label: int) -> int:
    """CRC-32C of a class's whole file, from those of its header and its ranges."""
    crc = storage.crc32c(source.header(label))
    for group in range(plan.groups):
        start, stop = plan.rows(group, label)
        crc = combine_crc32c(crc, crcs[group][label], (stop - start) * PIXELS)
    return crc


def combine_crc32c(first: int, second: int, second_bytes: int) -> int:
    """CRC-32C of a concatenation from those of its two parts and the length of the second.

    Appending n zero bytes to a message is a linear map of its CRC over GF(2); squaring the map
    for one zero byte gives those for 2, 4, 8 ... (the method of zlib's crc32_combine).
    """
    for bit, columns in enumerate(_zero_bytes_maps()):
        if second_bytes >> bit & 1:
            first = _apply(columns, first)
    return first ^ second


@cache
def _zero_bytes_maps() -> tuple[list[int], ...]:
    """The maps of 1, 2, 4 ... 2^47 zero bytes, each as the images of the 32 bits."""
    # That of one zero bit: shift right, and fold a one that falls out into the polynomial.
    columns = [0x82F63B78] + [1 << n for n in range(31)]
    for _ in range(3):
        columns = [_apply(columns, column) for column in columns]
    maps = [columns]
    for _ in range(47):
        maps.append([_apply(maps[-1], column) for column in maps[-1]])
    return tuple(maps)


def _apply(columns: list[int], vector: int) -> int:
    result = 0
    for column in columns:
        if vector & 1:
            result ^= column
        vector >>= 1
        if not vector:
            break
    return result
