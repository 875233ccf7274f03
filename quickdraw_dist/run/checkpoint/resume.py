"""Which checkpoint a run goes on from: chosen by the first rank, read and checked by all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.run.checkpoint import files as checkpoint
from quickdraw_dist.run.checkpoint.files import Checkpoint

if TYPE_CHECKING:
    from quickdraw_dist.data.feed import Dataset


def find(settings: Settings, dataset: Dataset) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, None for a new run; and the settings that changed since.

    Every rank calls it, and gets the same.

    Raises:
        RefusedError: the run may not, or cannot, be gone on with as asked.
    """
    url = distributed.from_first_rank(lambda: _choose(settings))
    if url is None:
        return None, []
    loaded = checkpoint.load(url)
    return loaded, refuse_changes(loaded, settings, dataset)


def _choose(settings: Settings) -> str | None:
    output, resume = settings.output, settings.train.resume
    # A run that was killed before its first one was whole is no run yet: it begins anew.
    home, names = checkpoint.folder(output), map(checkpoint.name, checkpoint.steps(output))
    there = any(storage.exists(storage.join(home, name, "meta.json")) for name in names)
    if resume == "never" and there:
        raise RefusedError(
            f"--output {output}: holds a run, and --train.resume is never; another "
            "--output, or --train.resume auto, is right"
        )
    found = checkpoint.newest(output)
    if found is None and there:
        raise RefusedError(
            f"--output {output}: holds a run, but no checkpoint that verifies; another "
            "--output, or emptying this one, is right"
        )
    if found is None and resume == "must":
        raise RefusedError(
            f"--output {output}: no run there to resume; its folder, or --train.resume auto, "
            "is right"
        )
    return found.url if found is not None else None


_FIXED = ("model", "optimizer.name", "train.global_batch", "train.seed", "stream.window_blocks")
"""Settings that decide the network, the optimizer's state or the order: another value is another
run. One that the checkpoint does not know yet is new, with a default that does what was done."""


def refuse_changes(saved: Checkpoint, settings: Settings, dataset: Dataset) -> list[str]:
    """Compare a checkpoint with what is asked for now; returns harmless changes, one line each.

    Raises:
        RefusedError: the dataset, network or order is not the checkpoint's.
    """
    before, now = saved.meta["config"], settings.model_dump(mode="json")
    differences = list(_differences(before, now))
    changes = [f"{name}: {old} -> {new}" for name, old, new in differences]
    fixed = [
        change
        for change, (name, old, _) in zip(changes, differences, strict=True)
        if name.startswith(_FIXED) and old is not None
    ]
    lanes = saved.meta["lanes"]  # 0: an external dataset, which has none
    if lanes and settings.stream.lanes not in ("auto", lanes):
        fixed.append(f"stream.lanes: {lanes} -> {settings.stream.lanes}")
    if fixed:
        raise RefusedError(
            f"{saved.url}: cannot go on with other settings: {'; '.join(fixed)}. Give the old "
            "ones, or start anew with another --output"
        )
    if saved.meta["classes"] != list(dataset.classes):
        raise RefusedError(
            f"{saved.url}: was trained on other classes than {settings.data} holds; the same "
            "dataset, or another --output, is right"
        )
    if saved.meta["dataset_digest"] != dataset.digest and not settings.train.allow_dataset_change:
        raise RefusedError(
            f"{saved.url}: was trained on dataset {saved.meta['dataset_digest'][:16]}, "
            f"{settings.data} is {dataset.digest[:16]}; if that is meant: "
            "--train.allow_dataset_change true"
        )
    return changes


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Settings that changed, as ('train.epochs', 4, 8); None: not known then."""
    for section, values in now.items():
        old = before.get(section)
        if isinstance(values, dict):
            for key, value in values.items():
                if (was := (old or {}).get(key)) != value:
                    yield f"{section}.{key}", was, value
        elif old != values:
            yield section, old, values
