"""Tars that webdataset wrote, and feeds of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray

from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.external.feed import ExternalFeed
from quickdraw_dist.data.external.shards import open_shards
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.distributed.ranks import World

Pixels = NDArray[np.uint8]
Counts = dict[bytes, int]

LAYOUTS: dict[str, dict[str, object]] = {
    "gzip": {},
    "none": {"compression": "none"},
    "per_drawing": {"layout": "per_drawing"},
}
"""Settings of `shard` that write the same drawings in other bytes."""
STOCK: dict[str, tuple[Any, ...]] = {"png": ("png",), "npy": ("npy",), "flat npy": ("npy", 784)}


def make_drawings(count: int, seed: int = 0) -> tuple[Pixels, list[int]]:
    """Drawings of which no two are alike, (count, 28, 28), and a label of 0 to 4 for each."""
    drawings = np.random.default_rng(seed).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    return drawings, [int(d[0, 0]) % 5 for d in drawings]


def write_tar(path: Path, samples: Sequence[dict[str, Any]]) -> Path:
    """A tar as the webdataset package writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=True, mtime=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{path.stem}/{number:05d}"} | sample)
    return path


def write_shards(folder: Path, sizes: Sequence[int], member: str = "npy", *shape: int) -> Counts:
    """Stock-written shards x-000.tar and so on; returns the label of every drawing's bytes."""
    labels: dict[bytes, int] = {}
    for shard, size in enumerate(sizes):
        drawings, classes = make_drawings(size, seed=shard)
        labels |= {d.tobytes(): c for d, c in zip(drawings, classes, strict=True)}
        samples = [
            {member: d.reshape(shape) if shape else d, "cls": c}
            for d, c in zip(drawings, classes, strict=True)
        ]
        write_tar(folder / f"x-{shard:03d}.tar", samples)
    return labels


def make_settings(data: str | Path, batch: int = 10, seed: int = 1, **stream: Any) -> Settings:
    """Of a run with the webdataset reader."""
    train = {"global_batch": batch, "seed": seed}
    evaluation = {"batch": 7}
    names = {"reader": "webdataset"} | stream
    return Settings(data=str(data), stream=names, train=train, evaluation=evaluation)  # type: ignore[arg-type]


def world_of(rank: int = 0, size: int = 1) -> World:
    """A rank of so many, on the processor, that has met no other."""
    return World(rank, size, rank, size, torch.device("cpu"))


def open_feed(made: Settings, rank: int = 0, size: int = 1, **more: Any) -> ExternalFeed:
    """A rank's feed."""
    return ExternalFeed(made, open_shards(made), world_of(rank, size), **more)


def delivered(batches: Iterator[Batch]) -> list[tuple[bytes, int]]:
    """Pixels and label of every drawing, in order."""
    return [
        (pixels.numpy().tobytes(), int(label))
        for batch in batches
        for pixels, label in zip(batch.drawings, batch.labels, strict=True)
    ]


def sequence(feed: ExternalFeed, epoch: int, first_step: int = 0) -> list[tuple[int, ...]]:
    """Rows of every batch."""
    return [tuple(batch.rows.tolist()) for batch in feed.epoch(epoch, first_step)]


def block_of(rows: range) -> dict[str, NDArray[Any]]:
    """A block whose pixels and labels follow from its rows."""
    numbers = np.array(rows)
    pixels = np.broadcast_to(numbers[:, None, None], (len(rows), 28, 28)).astype(np.uint8)
    return {
        "drawings.npy": pixels,
        "labels.npy": (numbers % 5).astype(np.uint16),
        "rows.npy": numbers.astype(np.uint32),
    }


SAVED: dict[str, Any] = {
    "dataset_digest": "",
    "config": {"stream": {"epoch_drawings": 0}},
    "normalisation": {"mean": 0.25, "std": 0.5},
}
"""Of a checkpoint; with its values nothing is measured."""
