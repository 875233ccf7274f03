"""Python's garbage collector at chosen moments only: in the midst of a step it would stop one rank
for a while, each time another one, and so all of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """No automatic collections in the body, which calls `collect` now and then."""
    gc.collect()
    gc.freeze()  # what is here stays: later collections need not look at it again
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect() -> None:
    """Free what the last steps left in cycles: the young generations, in a millisecond or so."""
    gc.collect(1)
