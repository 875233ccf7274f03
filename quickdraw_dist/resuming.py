"""Which checkpoint a run goes on from: chosen by the first rank, read and checked by all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quickdraw_dist import checkpoint, distributed
from quickdraw_dist.checkpoint import Checkpoint
from quickdraw_dist.config import Settings
from quickdraw_dist.errors import RefusedError

if TYPE_CHECKING:
    from quickdraw_dist.stream.feed import Dataset


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
    return loaded, checkpoint.refuse_changes(loaded, settings, dataset)


def _choose(settings: Settings) -> str | None:
    output, resume = settings.output, settings.train.resume
    there = checkpoint.steps(output)
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
