"""Synthetic drawings: `synthetic:?classes=345&per_class=2000&seed=7`, no network, no files.

A class is a template (see `templates`), made from the stream of (seed, label); a drawing is a
distortion of it, made from the stream of (seed, label, row) alone. So a drawing's bytes are the
same on every machine, as those of an official file would be.

`pool=64` renders only the first 64 drawings of every class; the others are those, each moved to a
place that its margins leave. It is hundreds of times as fast, for rehearsals at full size, and
`per_class=official` gives the official counts, `per_class=official*0.01` a hundredth of each. A
model trained on a pool has seen the drawings it is tested on: rehearse with it, measure no
accuracy.
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

from quickdraw_dist.base.errors import RefusedError, nearest
from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.data.drawings.classes import official
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE
from quickdraw_dist.data.drawings.synthetic import rendering as draw
from quickdraw_dist.data.drawings.synthetic.templates import distort, make_template

# Drawings rendered at a time: about 10 MB of work space, and faster than 256 or 1024.
_CHUNK = 512

_SHIFT_PX = 3
"""The farthest that a drawing of a pool is moved, along either side."""

_GAP = _SHIFT_PX * (SIDE + 1)
"""Blank pixels around every drawing of a pool: what moves in when it moves out."""

_DEFAULTS = {"classes": 20, "per_class": 1000, "seed": 7, "pool": 0}
# Shards store labels as uint16 and rows as uint32. 345 classes of the largest pool take 1.2 GB.
_LIMITS = {"classes": (1, 1 << 16), "per_class": (1, 1 << 32), "seed": (0, 1 << 63),
           "pool": (0, 1 << 12)}  # fmt: skip
_SUCH_AS = _DEFAULTS | {"pool": 64}
_OFFICIAL = "official"
_EXAMPLE = "synthetic:?classes=20&per_class=1000&seed=7"


@dataclass(frozen=True)
class SyntheticSource:
    """Fulfils `Source`. Drawing (class, row) does not depend on how many there are of either."""

    url: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]  # of `classes`, among all classes of the url
    counts: tuple[int, ...]
    seed: int
    pool: int  # drawings of a class that are rendered; 0: every one

    @property
    def identity(self) -> str:
        """The seed and the pool: another one has other drawings of the same classes."""
        return f"synthetic, seed {self.seed}" + (f", pool {self.pool}" if self.pool else "")

    def header(self, label: int) -> bytes:
        """Nothing: there is no file."""
        return b""

    def checksum(self, label: int) -> int | None:
        """There is no file to have one."""
        return None

    def read(self, label: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` of a class, (stop - start, 28, 28) uint8, white ink on black.

        Raises:
            IndexError: there are no such rows.
        """
        if not 0 <= start <= stop <= self.counts[label]:
            raise IndexError(f"rows {start} to {stop} of {self.counts[label]} in {self.url}")
        if self.pool:
            return _pool(self.seed, self.labels[label], self.pool).read(start, stop)
        return _render(self.seed, self.labels[label], start, stop)


def _render(seed: int, label: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Rows of a class, each drawn for itself, (stop - start, 28, 28) uint8."""
    of_class, key = make_template(seed, label), key64("drawings", seed, label)
    drawings = np.empty((stop - start, SIDE, SIDE), np.uint8)
    for first in range(start, stop, _CHUNK):
        count = min(_CHUNK, stop - first)
        points = draw.fit(distort(of_class, random64(key, count, first)))
        drawings[first - start :][:count] = draw.render(points, of_class.segments)
    return drawings


@dataclass(frozen=True)
class _Pool:
    """A few drawings of one class, and every place that each of them can be moved to."""

    line: NDArray[np.uint8]  # the drawings' pixels, one drawing after the other, gaps between
    starts: NDArray[np.int64]  # (variants,): 784 pixels of the line from there on are a drawing
    key: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows of the class, (stop - start, 28, 28) uint8."""
        chosen = random64(self.key, stop - start, start) % np.uint64(len(self.starts))
        variants = sliding_window_view(self.line, PIXELS)  # a view: nothing is copied for it
        drawings: NDArray[np.uint8] = variants[self.starts[chosen]]
        return drawings.reshape(-1, SIDE, SIDE)


@lru_cache(maxsize=512)
def _pool(seed: int, label: int, count: int) -> _Pool:
    """The pool of a class. To start d pixels earlier in its line moves a drawing d % 28 pixels to
    the right and d // 28 down, exactly, while its margins take that."""
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
    """How far ink can move along one side and stay off the outer ring: `inked` is where it is."""
    ink = np.flatnonzero(inked)
    before, after = int(ink[0]) - 1, SIDE - 2 - int(ink[-1])
    return range(-min(before, _SHIFT_PX), min(after, _SHIFT_PX) + 1)


def open_synthetic(url: str, classes: Sequence[str] = ()) -> SyntheticSource:
    """The source behind `synthetic:?classes=20&per_class=1000&seed=7`.

    Args:
        url: what the user typed; a setting left out has the value above. `per_class=official`
            has the official number of drawings of each of 345 classes, `official*0.01` a
            hundredth, rounded, one at the least; `pool=N` see above.
        classes: only these, in this order; empty for all.

    Raises:
        RefusedError: a setting or a class is unknown, or a value is not a number it can be.
    """
    settings, all_counts = _settings(url)
    names = tuple(f"synthetic-{label:03d}" for label in range(len(all_counts)))
    labels = {name: label for label, name in enumerate(names)}
    for name in classes:
        if name not in labels:
            raise RefusedError(
                f"{url} has no class {name!r}; its classes are {names[0]!r} to {names[-1]!r}."
                + nearest(name, names)
            )
    chosen = tuple(classes) or names
    if len(set(chosen)) < len(chosen):
        raise RefusedError(f"a class of {url} is asked for twice: {', '.join(chosen)}.")
    chosen_labels = tuple(labels[name] for name in chosen)
    counts = tuple(all_counts[label] for label in chosen_labels)
    return SyntheticSource(url, chosen, chosen_labels, counts, settings["seed"], settings["pool"])


def _settings(url: str) -> tuple[dict[str, int], tuple[int, ...]]:
    """The settings in an address, and the drawings of each of its classes."""
    head, _, query = url.partition("?")
    if head != "synthetic:":
        raise RefusedError(f"{url!r} should look like {_EXAMPLE}")
    typed: dict[str, str] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in _LIMITS or name in typed:
            problem = "is there twice" if name in typed else "is not a setting"
            raise RefusedError(
                f"{url}: {name}={text}: {name!r} {problem}; it should look like {_EXAMPLE}."
                + ("" if name in _LIMITS else nearest(name, _LIMITS))
            )
        typed[name] = text
    counts: tuple[int, ...] = ()
    if typed.get("per_class", "").startswith(_OFFICIAL):
        share = _share(url, typed.pop("per_class"))
        counts = tuple(max(1, round(entry.drawings * share)) for entry in official())
        typed.setdefault("classes", str(len(counts)))
    settings = _DEFAULTS | {name: _number(url, name, text) for name, text in typed.items()}
    counts = counts or (settings["per_class"],) * settings["classes"]
    if settings["classes"] != len(counts):
        raise RefusedError(
            f"{url}: classes={settings['classes']}: the official counts are those of "
            f"{len(counts)} classes; leave it out, or choose some with --shard.classes"
        )
    return settings, counts


def _share(url: str, text: str) -> float:
    """Of the official counts: 1 for 'official', 0.01 for 'official*0.01'."""
    found = re.fullmatch(_OFFICIAL + r"(?:\*(1|0?\.[0-9]{1,9}))?", text)
    share = float(found[1] or 1) if found else 0.0
    if not share:
        raise RefusedError(
            f"{url}: per_class={text} should be {_OFFICIAL}, or a share of it above 0 and up to 1 "
            f"such as {_OFFICIAL}*0.01."
        )
    return share


def _number(url: str, name: str, text: str) -> int:
    low, high = _LIMITS[name]
    value = int(text) if re.fullmatch("[0-9]{1,20}", text) else -1
    if not low <= value <= high:
        right = f"a whole number from {low} to {high}, such as {name}={_SUCH_AS[name]}"
        if name == "per_class":
            right += f", or per_class={_OFFICIAL}"
        raise RefusedError(f"{url}: {name}={text} should be {right}.")
    return value
