"""A rank that leaves a dead grandchild to process 1; returns 85 if that stays a zombie."""

import os
import time
from pathlib import Path

from quickdraw_dist.distributed.exits import leave


def zombies() -> int:
    """Count the processes that have ended and were not waited for."""
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            found += b") Z " in status.read_bytes()
        except OSError:  # it is gone
            continue
    return found


if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)  # its parent is gone or about to go: the first process inherits it
    os._exit(0)
os.wait()
until = time.monotonic() + 30
while zombies() and time.monotonic() < until:
    time.sleep(0.01)
leave(85 if zombies() else 0)
