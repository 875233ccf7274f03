"""Open `synthetic:?classes=345&per_class=2000&seed=7`: made-up drawings, no network, no files.

A class is a template (see `templates`), made from the random stream of (seed, label); a drawing is
a distortion of the template, made from the stream of (seed, label, row) alone. So a drawing has
the same bytes on every machine, as one in an official file has.

`pool=64` makes only the first 64 drawings of every class; the others are copies, each moved by
as much as its margins allow. This is hundreds of times as fast for bitmaps and more than ten times
for strokes (millions of drawings per second of a core), for rehearsals at full size;
`per_class=official` gives the official counts, `per_class=official*0.01` a hundredth of each. A
model trained on a pool has seen the drawings it is tested on: measure no accuracy with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, nearest
from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.data.drawings.classes import official
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Content, Rows
from quickdraw_dist.data.drawings.synthetic import rendering as draw
from quickdraw_dist.data.drawings.synthetic import strokes
from quickdraw_dist.data.drawings.synthetic.templates import distort, make_template

# Drawings rendered at a time: about 10 MB of memory, and faster than 256 or 1024.
_CHUNK = 512

_SHIFT_PX = 3
"""How far a drawing of a pool is moved at most, along either side."""

_GAP = _SHIFT_PX * (SIDE + 1)
"""Blank pixels between the drawings of a pool: they enter where a moved drawing leaves."""

_DEFAULTS = {"classes": 20, "per_class": 1000, "seed": 7, "pool": 0}
# Shards store labels as uint16 and rows as uint32. 345 classes of the largest pool take 1.2 GB.
_LIMITS = {"classes": (1, 1 << 16), "per_class": (1, 1 << 32), "seed": (0, 1 << 63),
           "pool": (0, 1 << 12)}  # fmt: skip
_SUCH_AS = _DEFAULTS | {"pool": 64}
_OFFICIAL = "official"
_EXAMPLE = "synthetic:?classes=20&per_class=1000&seed=7"


@dataclass(frozen=True)
class SyntheticSource:
    """A `Source` whose drawing (class, row) does not depend on the number of classes or rows."""

    url: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]  # of `classes`, as indices into all classes of the url
    counts: tuple[int, ...]
    seed: int
    pool: int  # drawings made per class; 0: all of them
    content: Content

    @property
    def identity(self) -> str:
        """Seed and pool: another one gives other drawings of the same classes."""
        return f"synthetic, seed {self.seed}" + (f", pool {self.pool}" if self.pool else "")

    def file_url(self, label: int) -> str:
        """Return the address of the source: there is no file."""
        return self.url

    def header(self, label: int) -> bytes:
        """Return nothing: there is no file."""
        return b""

    def checksum(self, label: int) -> int | None:
        """Return None: there is no file."""
        return None

    def span(self, label: int, start: int, stop: int) -> tuple[int, int]:
        """Return the position of rows `start` to `stop` among what checksums of a class cover: all
        pixels, or a few bytes per drawing of strokes."""
        size = PIXELS if self.content == "bitmaps" else strokes.CHECKED_BYTES
        return start * size, stop * size

    def read(self, label: int, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop` of a class.

        Raises:
            IndexError: the class has no such rows.
        """
        if not 0 <= start <= stop <= self.counts[label]:
            raise IndexError(f"rows {start} to {stop} of {self.counts[label]} in {self.url}")
        of_class = self.seed, self.labels[label]
        if self.content == "strokes":
            if self.pool:
                drawn = strokes.stroke_pool(*of_class, self.pool).read(start, stop)
            else:
                drawn = strokes.draw_strokes(*of_class, start, stop)
            return Rows(drawn, storage.crc32c(strokes.checked(drawn)))
        if self.pool:
            pixels = _pool(*of_class, self.pool).read(start, stop)
        else:
            pixels = _render(*of_class, start, stop)
        return Rows(pixels, storage.crc32c(pixels.data))


def _render(seed: int, label: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Render rows of a class, (stop - start, 28, 28) uint8."""
    of_class, key = make_template(seed, label), key64("drawings", seed, label)
    drawings = np.empty((stop - start, SIDE, SIDE), np.uint8)
    for first in range(start, stop, _CHUNK):
        count = min(_CHUNK, stop - first)
        points = draw.fit(distort(of_class, random64(key, count, first)))
        drawings[first - start :][:count] = draw.render(points, of_class.segments)
    return drawings


@dataclass(frozen=True)
class _Pool:
    """Some drawings of one class, and all shifts that each of them allows."""

    line: NDArray[np.uint8]  # the drawings' pixels, one drawing after the other, gaps between
    starts: NDArray[np.int64]  # (variants,): where in the line the 784 pixels of each begin
    key: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows of the class, (stop - start, 28, 28) uint8."""
        chosen = random64(self.key, stop - start, start) % np.uint64(len(self.starts))
        variants = sliding_window_view(self.line, PIXELS)  # a view: nothing is copied for it
        drawings: NDArray[np.uint8] = variants[self.starts[chosen]]
        return drawings.reshape(-1, SIDE, SIDE)


@lru_cache(maxsize=512)
def _pool(seed: int, label: int, count: int) -> _Pool:
    """Return the pool of a class. Reading from d pixels earlier in its line moves a drawing by
    d % 28 pixels to the right and d // 28 down, exactly, as long as its margins allow that."""
    drawings = _render(seed, label, 0, count)
    line = np.zeros((count + 1, _GAP + PIXELS), np.uint8)  # the last row ends the last gap
    line[:count, _GAP:] = drawings.reshape(count, PIXELS)
    starts = [
        at * line.shape[1] + _GAP - down * SIDE - right
        for at, drawing in enumerate(drawings)
        for down in _moves(drawing.any(axis=1))
        for right in _moves(drawing.any(axis=0))
    ]
    return _Pool(line.ravel(), np.array(starts), key64("pool", seed, label))


def _moves(inked: NDArray[np.bool_]) -> range:
    """Return how far ink at `inked` can move along one side and stay off the outer ring."""
    ink = np.flatnonzero(inked)
    before, after = int(ink[0]) - 1, SIDE - 2 - int(ink[-1])
    return range(-min(before, _SHIFT_PX), min(after, _SHIFT_PX) + 1)


def open_synthetic(
    url: str, classes: Sequence[str] = (), content: Content = "bitmaps"
) -> SyntheticSource:
    """Open the source at `synthetic:?classes=20&per_class=1000&seed=7`.

    Args:
        url: what the user typed; the settings of the example are the defaults.
            `per_class=official` gives each of 345 classes its official number of drawings,
            `official*0.01` a hundredth, rounded, at least one; `pool=N` renders only N drawings
            per class and moves them.
        classes: only these, in this order, without repeats; empty for all.
        content: what to make of every drawing: its pixels or its pen strokes.

    Raises:
        RefusedError: a setting or a class is unknown, or a value is out of range.
    """
    settings, all_counts = _settings(url)
    names = tuple(f"synthetic-{label:03d}" for label in range(len(all_counts)))
    labels = {name: label for label, name in enumerate(names)}
    for name in classes:
        if name not in labels:
            problem = f"no class of {url}.{nearest(name, names)}"
            remedy = f"Name classes from {names[0]!r} to {names[-1]!r}"
            raise RefusedError("--shard.classes", name, problem, remedy)
    chosen = tuple(classes) or names
    chosen_labels = tuple(labels[name] for name in chosen)
    counts = tuple(all_counts[label] for label in chosen_labels)
    return SyntheticSource(
        url, chosen, chosen_labels, counts, settings["seed"], settings["pool"], content
    )


def _settings(url: str) -> tuple[dict[str, int], tuple[int, ...]]:
    """Return the settings in an address, and the number of drawings of each class."""
    head, _, query = url.partition("?")
    if head != "synthetic:":
        raise RefusedError("source", url, "malformed", f"Write it like {_EXAMPLE}")
    typed: dict[str, str] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _LIMITS or name in typed:
            problem = f"unknown setting {name!r}.{nearest(name, _LIMITS)}"
            if name in typed:
                problem = f"{name!r} is set twice"
            raise RefusedError("source", url, problem, f"Write it like {_EXAMPLE}")
        typed[name] = text
    counts: tuple[int, ...] = ()
    if typed.get("per_class", "").startswith(_OFFICIAL):
        fraction = _fraction(url, typed.pop("per_class"))
        counts = tuple(max(1, round(entry.drawings * fraction)) for entry in official())
        typed.setdefault("classes", str(len(counts)))
    settings = _DEFAULTS | {name: _number(url, name, text) for name, text in typed.items()}
    counts = counts or (settings["per_class"],) * settings["classes"]
    if settings["classes"] != len(counts):
        problem = f"classes={settings['classes']}, but official counts exist for {len(counts)}"
        remedy = "Remove classes=, or choose some with --shard.classes"
        raise RefusedError("source", url, problem, remedy)
    return settings, counts


def _fraction(url: str, text: str) -> float:
    """Return the fraction of the official counts: 1 for 'official', 0.01 for 'official*0.01'."""
    found = re.fullmatch(_OFFICIAL + r"(?:\*(1|0?\.[0-9]{1,9}))?", text)
    fraction = float(found[1] or 1) if found else 0.0
    if not fraction:
        problem = f"per_class={text} is neither {_OFFICIAL} nor a fraction of it"
        remedy = f"Use a fraction above 0 and up to 1, such as per_class={_OFFICIAL}*0.01"
        raise RefusedError("source", url, problem, remedy)
    return fraction


def _number(url: str, name: str, text: str) -> int:
    low, high = _LIMITS[name]
    value = int(text) if re.fullmatch("[0-9]{1,20}", text) else -1
    if not low <= value <= high:
        remedy = f"Use a number such as {name}={_SUCH_AS[name]}"
        if name == "per_class":
            remedy += f", or per_class={_OFFICIAL}"
        problem = f"{name}={text} is no whole number from {low} to {high}"
        raise RefusedError("source", url, problem, remedy)
    return value
