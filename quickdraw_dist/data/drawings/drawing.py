"""One drawing (28 x 28 uint8, white ink on black) and what a source of drawings offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SIDE = 28
"""Pixels along one side of a drawing."""


PIXELS = SIDE * SIDE
"""Pixels, and bytes, of one drawing."""


class Source(Protocol):
    """Drawings of some classes, each addressed by (label, row). Picklable: workers get a copy."""

    @property
    def url(self) -> str:
        """Where the drawings come from, as the user named it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Drawings of every class."""

    @property
    def identity(self) -> str:
        """What makes it this source beside classes and counts; empty for files, which have
        checksums."""

    def header(self, label: int) -> bytes:
        """The bytes of the class's file before its first row; empty when there is no file."""

    def checksum(self, label: int) -> int | None:
        """CRC-32C of the class's whole file as its keeper has it; None when there is no file."""

    def read(self, label: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` of a class, (stop - start, 28, 28) uint8, white ink on black.

        Raises:
            CorruptError: the file is shorter than its header says.
            StorageError: the store did not answer within its retries.
        """
