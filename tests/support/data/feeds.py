"""Feeds of the small dataset, opened as the trainer opens them."""

from __future__ import annotations

from pathlib import Path

import torch

from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.feed import ShardFeed
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.distributed.ranks import World
from tests.support.data.delivery import Shape


def make_settings(
    data: str, cache: Path, shape: Shape, **stream: object
) -> Settings:  # fmt: skip
    return Settings.model_validate(
        {
            "data": data,
            "train": {"global_batch": shape.global_batch, "seed": 5, "device": "cpu"},
            "evaluation": {"batch": 32},
            "stream": {
                "lanes": shape.lanes,
                "window_blocks": shape.window_blocks,
                "cache_folder": str(cache),
                **stream,
            },
        }
    )


def open_feed(settings: Settings, rank: int = 0, size: int = 1) -> ShardFeed:
    world = World(rank, size, rank, size, torch.device("cpu"))
    return ShardFeed(settings, manifest.read(settings.data), world, settings.stream.lanes)
