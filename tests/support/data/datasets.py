"""Small sharded datasets for tests, and the drawings that they hold by an independent reading."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.drawing import PIXELS, Drawings, Source
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import pack
from quickdraw_dist.data.shards import manifest, writer
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.batch import StrokeBatch

COUNTS = {"cat": 601, "dog": 353, "The Eiffel Tower": 89, "sun": 700, "zigzag": 257}
"""Drawings per class of the small dataset: no count divides by a size used anywhere else."""

CONTENTS = ("bitmaps", "strokes")
"""What a dataset may hold of its drawings."""

of_both_contents = pytest.mark.parametrize("dataset", CONTENTS, indirect=True)
"""Runs a test with the small dataset of bitmaps, and with that of strokes."""

Location = tuple[int, int, int]
"""Shard, block and index in the block: where a drawing is stored."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A sharded dataset and the source that it was made from."""

    folder: str
    manifest: Manifest
    source: Source

    def whole(self) -> Drawings:
        """Return the source's drawings, class after class."""
        several = [
            self.source.read(at, 0, count).drawings for at, count in enumerate(self.source.counts)
        ]
        if self.source.content == "strokes":
            return Strokes.concatenate(several)
        return np.concatenate(several)

    def select(self, labels: NDArray[np.integer], rows: NDArray[np.integer]) -> Drawings:
        """Return the source's drawings of these identities."""
        at = np.concatenate([[0], np.cumsum(self.source.counts)])[labels] + rows
        return take(self.whole(), at)

    def pixels(self, labels: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return the source's bitmaps of these identities, (n, 28, 28)."""
        return self.select(labels, rows)

    def drawings(self, identities: Iterable[tuple[int, int]]) -> list[bytes]:
        """Return the source's drawings of these (label, row), as `as_bytes` has them."""
        return [self._drawings()[label][row] for label, row in identities]

    @cache  # noqa: B019 a dataset lives as long as the tests
    def _drawings(self) -> list[list[bytes]]:
        counts = enumerate(self.source.counts)
        return [as_bytes(self.source.read(label, 0, count).drawings) for label, count in counts]

    @cache  # noqa: B019 a dataset lives as long as the tests
    def stored(self, split: str) -> dict[Location, tuple[int, int]]:
        """Map the location of every drawing of a split to its (label, row).

        Reads the tar files with the standard library, not with the code under test.
        """
        found: dict[Location, tuple[int, int]] = {}
        for shard, entry in enumerate(self.manifest.splits[split]):
            arrays = {}
            with tarfile.open(Path(self.folder, entry.name)) as tar:
                for member in tar:
                    key, kind, *_ = member.name.split(".")
                    file = tar.extractfile(member)
                    if kind in ("labels", "rows") and file is not None:
                        data = io.BytesIO(gzip.decompress(file.read()))
                        arrays[int(key.split("-")[1]), kind] = np.load(data).tolist()
            for block, kind in arrays:
                if kind == "labels":
                    pairs = zip(arrays[block, "labels"], arrays[block, "rows"], strict=True)
                    found |= {(shard, block, at): pair for at, pair in enumerate(pairs)}
        return found

    def identities(self, split: str) -> set[tuple[int, int]]:
        """Return (label, row) of every drawing that the plan assigns to a split."""
        plan = Plan(self.manifest.classes, self.source.counts, self.manifest.settings)
        found: set[tuple[int, int]] = set()
        for group in range(plan.groups):
            labels, rows = plan.identities(group)
            for shard in plan.shards(group):
                if shard.split == split:
                    members = plan.members(group, shard)
                    found |= set(zip(labels[members].tolist(), rows[members].tolist(), strict=True))
        return found


DatasetMaker = Callable[..., Dataset]
"""The fixture `make_dataset`: (dest, source, **settings of Shard) -> Dataset."""


def take(drawings: Drawings, at: NDArray[np.integer]) -> Drawings:
    """Return a copy of some drawings."""
    return drawings.take(at) if isinstance(drawings, Strokes) else drawings[at]


def equal(some: Drawings, others: Drawings) -> bool:
    """Whether two are the same drawings."""
    if isinstance(some, Strokes):
        return len(some) == len(others) and not some.differs(others).any()
    return np.array_equal(some, others)


def as_bytes(drawings: Drawings | torch.Tensor | StrokeBatch) -> list[bytes]:
    """Return what a batch or a source holds of each drawing: the pixels; or the segments, with
    repetitions, their number, and `recognized`."""
    if isinstance(drawings, torch.Tensor):
        drawings = drawings.cpu().numpy()
    if isinstance(drawings, np.ndarray):
        return [pixels.tobytes() for pixels in drawings]
    if isinstance(drawings, Strokes):
        tiles = pack(drawings)
        segments, counts, recognized = tiles.segments, tiles.counts, tiles.recognized
        first = tiles.first
    else:
        segments, owners, _, counts, recognized = (it.cpu().numpy() for it in drawings.inputs())
        first = np.searchsorted(owners, np.arange(len(counts) + 1))
    return [
        segments[start:stop].tobytes() + bytes([*count.tobytes(), known])
        for start, stop, count, known in zip(first, first[1:], counts, recognized, strict=False)
    ]


def write_bitmaps(folder: Path, counts: dict[str, int]) -> None:
    """Write `.npy` files like the official ones.

    A drawing's pixels follow from its class and row alone and no two drawings are equal, so that
    a test sees a drawing that is stored as another.
    """
    folder.mkdir(parents=True)
    for name, count in counts.items():
        values = random64(key64("test", name), count * PIXELS).reshape(count, PIXELS)
        ink = np.where(values % 5 == 0, values >> np.uint64(8) & np.uint64(255), 0)
        np.save(folder / f"{name}.npy", ink.astype(np.uint8))


def shard(source: Source, dest: str, settings: Shard) -> Dataset:
    """Shard a source into a folder, in this process."""
    plan = Plan(source.classes, source.counts, settings)
    writer.build(plan, list(range(plan.groups)), source, dest, 1, lambda _: None)
    merged = writer.merge_if_complete(plan, source, dest)
    assert merged is not None
    return Dataset(dest, manifest.read(dest), source)
