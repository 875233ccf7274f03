"""Sharding in a process that may be killed. Imports little: a test starts many of them."""

from __future__ import annotations

import gc
import os
import signal
import sys

import fsspec.config

from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.shards import writer
from quickdraw_dist.data.shards.plan import Plan


def shard(plan: Plan, source: Source, dest: str, server: str | None, killed_at: int = 0) -> None:
    """Build the groups that are missing and merge, as `jobs.shard` does. Without a store's server,
    which kills by itself, die just before file number `killed_at` is renamed into place."""
    gc.freeze()  # what the server of processes has imported: a full collection takes half a second
    renamed = 0

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal renamed
        if event == "os.rename" and str(arguments[1]).startswith(dest):
            renamed += 1
            if renamed == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if server is None:
        sys.addaudithook(on_event)
    else:
        os.environ["STORAGE_EMULATOR_HOST"] = server
        fsspec.config.conf["gs"] = {"token": "anon"}
    done = writer.finished_groups(plan, dest)
    missing = [group for group in range(plan.groups) if group not in done]
    writer.build(plan, missing, source, dest, 1, lambda _: None)
    writer.merge_if_complete(plan, source, dest)
