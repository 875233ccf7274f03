"""Small checkpoints for tests, complete and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quickdraw_dist.base.settings import Settings
from quickdraw_dist.run.checkpoint import files

FILES = ("model.safetensors", "state.pt", "meta.json")
CLASSES = ("cat", "light bulb", "zebra")
DIGEST = "d1" * 32


def meta(config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the entries of meta.json that reading a checkpoint needs."""
    return {
        "config": Settings(**(config or {})).model_dump(mode="json"),
        "classes": list(CLASSES),
        "dataset_digest": DIGEST,
        "lanes": 64,
        "normalisation": {"mean": 0.17, "std": 0.31},
        "raster": "quickdraw-28x28",
        "validation": None,
    } | more


def save(run: Path, step: int, **more: Any) -> Path:
    """Save a small checkpoint whose weight is its step."""
    weights = {"weight": torch.full((3,), float(step))}
    return Path(files.save(str(run), step, weights, {}, {"optimizer": step}, meta(**more)))


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file, as a bad disk does."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)
