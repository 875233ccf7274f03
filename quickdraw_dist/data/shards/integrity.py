"""Check that the bytes read are the bytes that the source stores.

A range of an object has no checksum of its own, so a bit that flips in transit goes unnoticed.
Every group therefore records the CRC-32C of each range it read. Combined, these give the CRC-32C
of the whole file, which the store knows; where the two differ, ranges are read until two readings
agree, and the groups that had read other bytes are built again.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import PurePath

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError, flag
from quickdraw_dist.data.drawings.classes import official_file
from quickdraw_dist.data.drawings.drawing import Rows, Source
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.shards.schema import PartFile, SourceFile

READERS = 8
"""Ranges of the source read in parallel: over a network each one waits for a round trip."""

CRC32C, SIZE, MD5 = CHECKS = ("crc32c", "official size", "official md5")
"""What a file may have been compared with: the checksum in its store, and the size and MD5 of the
official file of its class. The size settles the number of drawings, too."""

Crcs = list[list[int]]
"""The CRC-32C of every range: [group][label]."""


def read(source: Source, label: int, start: int, stop: int, true_crc: int | None = None) -> Rows:
    """Read rows of a class until their CRC-32C is the true one, if that is given.

    Raises:
        CorruptError: the file is too short, or no reading had the true checksum.
        StorageError: the store failed.
    """
    for _ in range(1 if true_crc is None else storage.READINGS):
        rows = source.read(label, start, stop)
        if true_crc is None or rows.crc32c == true_crc:
            return rows
    raise CorruptError(
        _range(source, label, start, stop),
        None,
        f"read {storage.READINGS} times with another crc32c than {true_crc:08x}, the last time "
        f"with {rows.crc32c:08x}; the store is damaged",
    )


def read_again(source: Source, label: int, start: int, stop: int, crc: int) -> Rows:
    """Read rows of a class until two readings agree, the one before with this `crc` included.

    Raises:
        CorruptError: the file is too short, or no two readings agree.
        StorageError: the store failed.
    """
    seen = {crc}
    for _ in range(storage.READINGS):
        rows = read(source, label, start, stop)
        if rows.crc32c in seen:
            return rows
        seen.add(rows.crc32c)
    raise CorruptError(
        _range(source, label, start, stop),
        None,
        f"read {len(seen)} times, every time with another crc32c; the store is damaged",
    )


def check_official(source: Source, label: int) -> tuple[str, ...]:
    """Compare a class's file with the official one, if it has an official name and size.

    The MD5 is the one that a store keeps; a local file is read for it.

    Returns:
        The `CHECKS` that the file passed.

    Raises:
        CorruptError: the file has another MD5 than the official one.
    """
    url, (_, size) = source.file_url(label), source.span(label, 0, source.counts[label])
    official = official_file(PurePath(url).name, size)
    if official is None:
        return ()
    md5 = storage.object_md5(url)
    if md5 is None:
        return (SIZE,)
    if md5 != official.md5:
        problem = f"MD5 {md5}, the official file's is {official.md5}"
        raise CorruptError(url, None, problem, "Fetch it again")
    return (SIZE, MD5)


def find_official_problems(source: Source) -> Iterator[str]:
    """Yield a line for every file of a source that has another MD5 than the official one."""

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
    """Compare the ranges that all groups read, and the files, with every checksum known of them.

    Args:
        plan: the plan of the dataset.
        source: the drawings.
        parts: the part files of all groups, in order.
        progress: called with 1 for every file that was compared.

    Returns:
        The files of the source, and the true CRC-32C of every range. Groups that recorded
        another one must be built again.

    Raises:
        CorruptError: a file is not the official one, or not what its own checksum says.
        StorageError: the store failed.
    """

    def check_file(label: int) -> tuple[int | None, tuple[str, ...]]:
        own = source.checksum(label)
        return own, (() if own is None else (CRC32C,)) + check_official(source, label)

    labels, checked = range(len(plan.classes)), []
    with ThreadPoolExecutor(READERS) as pool:
        for passed in pool.map(check_file, labels):
            checked.append(passed)
            progress(1)
    crcs = [[read.crc32c for read in part.ranges] for part in parts]
    whole = [_combined(plan, source, crcs, label) for label in labels]
    suspects = [at for at, (own, _) in enumerate(checked) if own is not None and own != whole[at]]
    if suspects:
        _read_suspects_again(plan, source, crcs, suspects)
    for label in suspects:
        own, whole[label] = checked[label][0], _combined(plan, source, crcs, label)
        if own != whole[label]:
            raise CorruptError(
                _range(source, label, 0, plan.counts[label]),
                None,
                "two readings of every range agree, but with the header they have crc32c "
                f"{whole[label]:08x}, the file's own is {own:08x}; the file is being changed, or "
                "the store is damaged",
            )
    return tuple(
        SourceFile(
            name=plan.classes[label],
            drawings=plan.counts[label],
            bytes=source.span(label, 0, plan.counts[label])[1],
            crc32c=whole[label],
            checked=checked[label][1],
        )
        for label in labels
    ), crcs


def summary(files: Sequence[SourceFile]) -> str:
    """Return in words what the files of a source were compared with."""
    made = Counter(name for file in files for name in file.checked)
    if not made:
        return "nothing: this source has no checksums"
    counts = [f"{name} of {made[name]:,}" for name in CHECKS]
    return f"of {len(files):,} source files: {', '.join(counts)}"


def check_blank(plan: Plan, source: Source, blank: Sequence[int] | Mapping[int, int]) -> None:
    """Raise RefusedError if a class has more blank drawings than --shard.max_blank allows.

    `blank` has the number of blank drawings by label, of all or of the groups read so far.
    """
    for label, (name, count) in enumerate(zip(plan.classes, plan.counts, strict=True)):
        found = blank[label]  # 0 in a Counter that has none
        if found > plan.settings.max_blank * count:
            limit = flag("shard.max_blank", plan.settings.max_blank)
            problem = (
                f"{found:,} of its {count:,} drawings are blank, more than {limit} "
                "allows; the download of its file may be unfinished"
            )
            remedy = "Fetch it again, or raise --shard.max_blank if they are meant to be blank"
            raise RefusedError(f"{source.url}: class {name!r}", None, problem, remedy, blank=found)


def blank_summary(blank: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """Return in words how many drawings of which classes are blank; empty if none are."""
    most = sorted((name for name in blank if blank[name]), key=lambda name: -blank[name])
    named = [f"{name} {blank[name]:,} of {counts[name]:,}" for name in most[:3]]
    more = [f"{len(most) - 3} more classes"] if len(most) > 3 else []
    return ", ".join([*named, *more])


def _read_suspects_again(plan: Plan, source: Source, crcs: Crcs, suspects: list[int]) -> None:
    """Set `crcs` of every range of some classes to the CRC-32C on which two readings agree."""
    names = ", ".join(plan.classes[label] for label in suspects[:3])
    more = f" and {len(suspects) - 3} more" if len(suspects) > 3 else ""
    print(f"source: {names}{more}: crc32c is not the file's own; reading again", file=sys.stderr)

    def settle(group_and_label: tuple[int, int]) -> None:
        group, label = group_and_label
        start, stop = plan.rows(group, label)
        crcs[group][label] = read_again(source, label, start, stop, crcs[group][label]).crc32c

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(settle, itertools.product(range(plan.groups), suspects)):
            pass  # raises the first error


def _range(source: Source, label: int, start: int, stop: int) -> str:
    first, end = source.span(label, start, stop)
    return (
        f"{source.url}: {source.classes[label]!r}: bytes {first:,} to {end:,} "
        f"(rows {start:,} to {stop:,})"
    )


def _combined(plan: Plan, source: Source, crcs: Crcs, label: int) -> int:
    """Return the CRC-32C of a class's whole file, from those of its header and its ranges."""
    crc = storage.crc32c(source.header(label))
    for group in range(plan.groups):
        first, end = source.span(label, *plan.rows(group, label))
        crc = combine_crc32c(crc, crcs[group][label], end - first)
    return crc


def combine_crc32c(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32C of a concatenation, from those of both pieces and the second one's length.

    Appending n zero bytes to a message is a linear map of its CRC over GF(2); squaring the map
    for one zero byte gives those for 2, 4, 8 ... (the method of zlib's crc32_combine).
    """
    for bit, columns in enumerate(_zero_bytes_maps()):
        if second_bytes >> bit & 1:
            first = _apply(columns, first)
    return first ^ second


@cache
def _zero_bytes_maps() -> tuple[list[int], ...]:
    """Return the maps of 1, 2, 4 ... 2^47 zero bytes, each as the images of the 32 bits."""
    # The map of one zero bit: shift right, and fold a one that falls out into the polynomial.
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
