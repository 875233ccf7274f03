"""The size of a drawing (28 x 28 uint8, white ink on black) and the protocol of a source."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SIDE = 28
"""Pixels along one side of a drawing."""

PIXELS = SIDE * SIDE
"""Pixels, and bytes, of one drawing."""


def is_blank(drawings: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which of some drawings, (n, 28, 28), have no ink: (n,)."""
    return np.logical_not(drawings.reshape(len(drawings), PIXELS).view(np.uint64).any(axis=1))


class Source(Protocol):
    """Drawings of some classes, each addressed by (label, row); picklable for worker processes."""

    @property
    def url(self) -> str:
        """Address of the source, as the user typed it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of drawings of every class."""

    @property
    def identity(self) -> str:
        """What distinguishes the source beside classes and counts; empty for files, which have
        checksums."""

    def header(self, label: int) -> bytes:
        """Return the bytes of a class's file before its first row; empty if there is no file."""

    def checksum(self, label: int) -> int | None:
        """Return the CRC-32C of a class's whole file in its store; None if there is no file."""

    def read(self, label: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows `start` to `stop` of a class, (stop - start, 28, 28) uint8.

        Raises:
            CorruptError: the file is shorter than its header says.
            StorageError: the store did not answer within its retries.
        """
