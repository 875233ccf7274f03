"""Find the checkpoint that a run resumes from: rank 0 chooses it, all ranks read and check it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.settings import Settings, leaves
from quickdraw_dist.distributed import ranks
from quickdraw_dist.models.input import Raster
from quickdraw_dist.run.checkpoint import files
from quickdraw_dist.run.checkpoint.files import Checkpoint

if TYPE_CHECKING:
    from quickdraw_dist.data.feed import Dataset


def find(settings: Settings, dataset: Dataset) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint to resume from, None for a new run, and the settings that changed.

    All ranks call it and get the same.

    Raises:
        RefusedError: the run cannot be resumed with these settings.
    """
    url = ranks.from_first_rank(lambda: _choose(settings))
    if url is None:
        return None, []
    loaded = files.load(url)
    return loaded, check_changes(loaded, settings, dataset)


def _choose(settings: Settings) -> str | None:
    output, resume = settings.output, settings.train.resume
    # A run that was killed before its first checkpoint was complete starts from scratch.
    home, names = files.folder(output), map(files.name, files.steps(output))
    has_checkpoint = any(storage.exists(storage.join(home, name, "meta.json")) for name in names)
    if resume == "never" and has_checkpoint:
        raise RefusedError(
            "--output",
            output,
            "holds a run, and --train.resume is never",
            "Use another --output, or --train.resume auto",
        )
    found = files.newest(output)
    if found is None and has_checkpoint:
        raise RefusedError(
            "--output",
            output,
            "holds a run, but no checkpoint that verifies",
            "Use another --output, or empty this one",
        )
    if found is None and resume == "must":
        raise RefusedError(
            "--output",
            output,
            "no run there to resume, and --train.resume is must",
            "Use the run's folder, or --train.resume auto",
        )
    return found.url if found is not None else None


_FIXED = ("model", "optimizer.name", "train.global_batch", "train.seed", "stream.window_blocks")
"""Settings that decide the network, the optimizer's state or the order of drawings, and so cannot
change within a run. One that the checkpoint lacks was added since, with the default that keeps its
behaviour."""


def check_changes(saved: Checkpoint, settings: Settings, dataset: Dataset) -> list[str]:
    """Compare a checkpoint with the settings and dataset; return harmless changes, one line each.

    Raises:
        RefusedError: the dataset, pictures, network or order are not the checkpoint's.
    """
    before, now = (
        dict(leaves(c)) for c in (saved.meta["config"], settings.model_dump(mode="json"))
    )
    # Settings that no longer exist are ignored; those added since have no old value.
    changed = [name for name, value in now.items() if before.get(name) != value]
    changes = {name: f"{name}: {before.get(name)} -> {now[name]}" for name in changed}
    fixed = [
        change
        for name, change in changes.items()
        if name.startswith(_FIXED) and before.get(name) is not None
    ]
    lanes = saved.meta["lanes"]  # 0: an external dataset, which has none
    if lanes and settings.stream.lanes not in ("auto", lanes):
        fixed.append(f"stream.lanes: {lanes} -> {settings.stream.lanes}")
    if fixed:
        raise RefusedError(
            saved.url,
            None,
            f"cannot be resumed with other settings: {'; '.join(fixed)}",
            "Give the old values, or start a new run with another --output",
            changes=fixed,
        )
    if saved.meta["classes"] != list(dataset.classes):
        raise RefusedError(
            saved.url,
            None,
            f"trained on other classes than those of {settings.data}",
            "Use the same dataset, or another --output",
        )
    _check_pictures(saved, settings, dataset)
    if saved.meta["dataset_digest"] != dataset.digest and not settings.train.allow_dataset_change:
        raise RefusedError(
            saved.url,
            None,
            f"trained on dataset {saved.meta['dataset_digest'][:16]}, "
            f"and {settings.data} is {dataset.digest[:16]}",
            "Use the same dataset, or, if the change is intended, "
            f"{flag('train.allow_dataset_change', True)}",
        )
    return list(changes.values())


def _check_pictures(saved: Checkpoint, settings: Settings, dataset: Dataset) -> None:
    """Refuse pictures of another size than the network was trained on. Bitmaps and strokes of one
    channel and 28 pixels are the same to it.

    Raises:
        RefusedError: they are of another size.
    """
    before = Raster.parse(saved.meta["raster"])
    now = Raster.of(dataset.content, settings.strokes)
    if (before.side, before.channels) != (now.side, now.channels):
        flags = f"{flag('strokes.side', before.side)} {flag('strokes.channels', before.channels)}"
        raise RefusedError(
            saved.url,
            None,
            f"trained on pictures {before.name}, and those of {settings.data} are {now.name}",
            f"Use a dataset of strokes with {flags}, or another --output",
            before=before.name,
            now=now.name,
        )
