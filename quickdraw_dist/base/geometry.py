"""The official geometry: how simplified strokes lie on the square that becomes a bitmap.

A drawing's 256 x 256 units are centred within margins on a square frame; lines have round ends.
"""

from __future__ import annotations

FRAME = 304
"""Units along the side of the frame, margins included."""

MARGIN = 24
"""Units around the 256 x 256 in which the points are centred: 16, and half a line's width."""

LINE_WIDTH = 16
"""Units."""
