"""Python's garbage collector, by hand."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def manual_garbage_collection() -> Iterator[None]:
    """Turn automatic garbage collection off in the body, which calls `collect_garbage` itself.

    An automatic collection in a training step delays one rank, at another step each rank, and all
    other ranks wait for it.
    """
    gc.collect()
    gc.freeze()  # later collections skip what exists now
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect_garbage() -> None:
    """Free the reference cycles of the last steps: young generations only, about a millisecond."""
    gc.collect(1)
