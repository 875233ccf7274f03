"""Bytes of drawings in a loader's memory: bitmaps, all of one size, or strokes.

Strokes are counted in tiles by the mean and six standard deviations of their sum: with tens of
thousands of drawings at once that is a few percent above the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.drawings.strokes.tiles import TILE_BYTES, TilesPerDrawing
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import steps_per_window
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import BYTES_PER_DRAWING

BATCHES_IN_USE = 2
"""Batches that the consumer of a loader holds at once: see Ownership in `data/stream/ring`."""

_SCRATCH_BLOCKS = 2
"""Blocks' worth of bytes per decoding thread: one as read, one decoded."""

_WINDOW_INDEX_BYTES = 40
"""Bytes per drawing while a window's ring indices are computed: five integers."""

_RESIDENT_INDEX_BYTES = 2 * 8
"""Bytes per resident drawing: its int64 index in two epochs."""

_IDENTITY_BYTES = 2 + 4
"""Label and row of a drawing as stored."""

_INDEX_BYTES = 8 + 4 + 1
"""Of each drawing as strokes: where its tiles begin, its segments, and `recognized`."""

_LABEL_BYTES, _ROW_BYTES = 8, 4
"""Label and row of a drawing in a batch."""


class ContentBytes(Protocol):
    """What drawings take in memory."""

    @property
    def decoded(self) -> int:
        """Bytes of a decoded drawing with its label and row, on average."""

    def batch(self, drawings: int, pin: bool) -> int:
        """Return the bytes of a batch with labels and rows. torch rounds pinned memory, array by
        array, up to a power of two."""

    def ring(self, order: Order, share: Share, steps: int, pin: bool) -> int:
        """Return the bytes of a rank's ring of `steps` slots."""

    def thread(self, order: Order) -> int:
        """Return the bytes that a thread uses while it decodes a window."""

    def resident(self, drawings: int) -> int:
        """Return the bytes of resident drawings, all in the memory of one device."""

    def resident_on_host(self, drawings: int) -> int:
        """Return how many of these bytes stay on the host if the device is a GPU."""


@dataclass(frozen=True)
class BitmapBytes:
    """28 x 28 pixels per drawing."""

    @property
    def decoded(self) -> int:
        """See `ContentBytes.decoded`."""
        return BYTES_PER_DRAWING

    def batch(self, drawings: int, pin: bool) -> int:
        """See `ContentBytes.batch`."""
        return _pinned((drawings * PIXELS, drawings * _LABEL_BYTES), pin) + drawings * _ROW_BYTES

    def ring(self, order: Order, share: Share, steps: int, pin: bool) -> int:
        """See `ContentBytes.ring`; there is a spare element."""
        return self.batch(steps * share.drawings + 1, pin)

    def thread(self, order: Order) -> int:
        """See `ContentBytes.thread`."""
        blocks = _SCRATCH_BLOCKS * order.longest_block * BYTES_PER_DRAWING
        return blocks + _WINDOW_INDEX_BYTES * order.longest_window

    def resident(self, drawings: int) -> int:
        """See `ContentBytes.resident`."""
        return drawings * PIXELS + self.resident_on_host(drawings)

    def resident_on_host(self, drawings: int) -> int:
        """See `ContentBytes.resident_on_host`."""
        return drawings * (_IDENTITY_BYTES + _RESIDENT_INDEX_BYTES)


@dataclass(frozen=True)
class StrokeBytes:
    """Tiles of 64 bytes."""

    per_drawing: TilesPerDrawing

    @property
    def decoded(self) -> int:
        """See `ContentBytes.decoded`."""
        return round(self.per_drawing.mean * TILE_BYTES) + _INDEX_BYTES + _IDENTITY_BYTES

    def batch(self, drawings: int, pin: bool) -> int:
        """See `ContentBytes.batch`."""
        sizes = self._tiles(drawings), 4 * drawings, drawings, _LABEL_BYTES * drawings
        return _pinned(sizes, pin) + _ROW_BYTES * drawings + 8 * (drawings + 1)

    def ring(self, order: Order, share: Share, steps: int, pin: bool) -> int:
        """See `ContentBytes.ring`.

        A window is held whole from when it may be decoded, `steps` - `BATCHES_IN_USE` batches
        before its last, until that has been made: at most one window's batches longer than that.
        """
        batches = steps - BATCHES_IN_USE + steps_per_window(order)
        held = batches * share.drawings
        in_use = BATCHES_IN_USE * self.batch(share.drawings, pin)
        return self._tiles(held) + held * (_INDEX_BYTES + _IDENTITY_BYTES) + in_use

    def thread(self, order: Order) -> int:
        """See `ContentBytes.thread`: a block while it is read and packed, and a window's tiles
        before they are in the order of delivery."""
        packing = 8 * self._tiles(order.longest_block)
        return (
            packing
            + 2 * self._tiles(order.longest_window)
            + (_WINDOW_INDEX_BYTES * order.longest_window)
        )

    def resident(self, drawings: int) -> int:
        """See `ContentBytes.resident`."""
        return self._tiles(drawings) + drawings * _INDEX_BYTES + self.resident_on_host(drawings)

    def resident_on_host(self, drawings: int) -> int:
        """See `ContentBytes.resident_on_host`; with segments per drawing."""
        return drawings * (4 + _IDENTITY_BYTES + _RESIDENT_INDEX_BYTES)

    def _tiles(self, drawings: int) -> int:
        return self.per_drawing.capacity(drawings) * TILE_BYTES


def content_bytes(per_drawing: TilesPerDrawing | None) -> ContentBytes:
    """Return the bytes of a dataset's drawings: strokes of so many tiles, or bitmaps if None."""
    return BitmapBytes() if per_drawing is None else StrokeBytes(per_drawing)


def _pinned(sizes: tuple[int, ...], pin: bool) -> int:
    return sum(1 << (size - 1).bit_length() if pin else size for size in sizes)
