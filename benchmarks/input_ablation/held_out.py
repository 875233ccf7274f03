"""Score a finished run on every drawing that it was not trained on, one by one."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import Metrics, last_checkpoint
from quickdraw_dist.base.settings import Stream
from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.models.input import stored
from quickdraw_dist.run.checkpoint.files import build_model, network_input

SPLITS = ("val", "test")
"""The last checkpoint is scored, whatever its validation: no drawing of val had a say in it."""
BATCH = 1_024

Hits = NDArray[np.bool_]
"""Whether the first guess is right, (N,), in the order of the splits: the same for all runs on one
dataset, and on one of bitmaps and one of strokes of the same drawings."""


@torch.no_grad()
def score(run: Path, data: Path) -> Metrics:
    """Return top-1, its mean over classes, and the packed hits of a run's last checkpoint.

    `held_out` is a hash of the drawings' identities in their order: hits with equal ones can be
    compared one by one. `recognized`, of strokes only, is packed as the hits are: the drawings that
    are known to have been recognised.
    """
    saved = last_checkpoint(run)
    network, source = build_model(saved), network_input(saved)
    dataset = manifest.read(str(data))
    hits, recognized, labels = [], [], []
    identity = hashlib.sha256("\n".join(dataset.classes).encode())
    for split in SPLITS:
        reader = SplitReader(str(data), dataset, split, Stream())
        for batch in evaluation_batches(reader, rank=0, world_size=1, batch=BATCH, threads=1):
            drawings = stored(batch.drawings)
            hits.append((network(source(drawings)).argmax(1) == batch.labels).numpy())
            labels.append(batch.labels.numpy())
            for array in (labels[-1], batch.rows):
                identity.update(array.astype("<i8").tobytes())
            if not isinstance(drawings, torch.Tensor):
                recognized.append((drawings[4] == RECOGNIZED).numpy())
    hit, label = np.concatenate(hits), np.concatenate(labels)
    per_class = np.bincount(label, hit) / np.bincount(label)
    return {
        "held_out": identity.hexdigest(),
        "train_drawings": dataset.drawings("train"),
        "drawings": len(hit),
        "top1": float(hit.mean()),
        "mean_class_accuracy": float(per_class.mean()),
        "hits": pack(hit),
    } | ({"recognized": pack(np.concatenate(recognized))} if recognized else {})


def pack(hits: Hits) -> str:
    """Return hits as text, an eighth of a byte each before base64."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def unpack(text: str, count: int) -> Hits:
    """Return the first `count` hits of a packed text."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count)
    return bits.astype(bool)
