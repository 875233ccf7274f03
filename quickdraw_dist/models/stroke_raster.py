"""Render pen strokes to pictures in front of a network, on its device and without a gradient.

The ink of a pixel is clamp(0.5 + r - d): r is half the line's width and d the distance from the
pixel's centre to the nearest segment, both in pixels. On the geometry of the official bitmaps this
differs from their pixels by less than 2 of 255 on average.

A segment is x1, y1, x2, y2. A drawing's points, 0 to 255, are centred by (256 - max) / 2 along each
axis on a frame of 304 units, whose side is that of the picture; a line is 16 units wide.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from quickdraw_dist.base.geometry import FRAME, LINE_WIDTH, MARGIN

PADDING = 1e4
"""Coordinate of the points of segments that do not exist, in `StrokeRaster.from_segments`: so far
away that no pixel is near."""

_NUMBER_BITS = 10
_NUMBERS = 2**_NUMBER_BITS
_SMALLEST_KEY = 1e-6  # square units; a key without it could be denormal, and be flushed to 0
_SLICE_PIXELS = {"cpu": 2**16}
"""Pixels of all tiles that are rendered at once where nothing is compiled: five buffers of them fit
into the L2 cache of a core."""
_LARGEST_SLICE_PIXELS = 2**26


class StrokeRaster(nn.Module):
    """Renders drawings as (n, channels, side, side) float32.

    Channel 0 is ink, 0 to 1. With 4 channels, the next are of the nearest segment, each times ink:
    when it was drawn, from 0 (first) to 1 (last), and the cosine and sine of its direction, x to
    the right and y down, 0 for a dot.

    The number of the nearest segment comes out of the same minimum as its distance: it replaces the
    10 lowest bits of the squared distance, whose order as a float is that of its bits. So distances
    lose 2^-13 of their value. In a drawing of more than 1,024 segments, every 2, 3, ... of them
    share a number, and the first stands for all.
    """

    x: torch.Tensor  # (side * side,): centres of the pixels, in units
    y: torch.Tensor

    def __init__(self, side: int = 28, channels: int = 1) -> None:
        super().__init__()
        self.side, self.channels = side, channels
        self.unit_pixels = side / FRAME
        centres = (torch.arange(side) + 0.5) / self.unit_pixels
        self.register_buffer("x", centres.repeat(side), persistent=False)
        self.register_buffer("y", centres.repeat_interleave(side), persistent=False)

    @torch.no_grad()
    def forward(
        self,
        tiles: torch.Tensor,
        owners: torch.Tensor,
        numbers: torch.Tensor,
        counts: torch.Tensor,
        transform: torch.Tensor | None = None,
        width: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Render n drawings that are cut into tiles of 16 segments (`drawings/strokes/tiles.py`).

        Every tile is rendered alone, and a picture is the minimum of its drawing's tiles, so that
        shapes do not depend on the drawings and nothing is cut. A minimum does not depend on the
        order of its terms: equal drawings give equal bits, on CUDA as well.

        Args:
            tiles: (T, 16, 4) uint8 segments; a drawing's tiles are consecutive.
            owners: (T,) int64, the drawing of each tile; n where a tile is unused.
            numbers: (T,) int32, the number of the tile's first segment within its drawing.
            counts: (n,) int32 segments per drawing; 0 gives a blank picture.
            transform: (n, 2, 3) float, maps a drawing's points, with x and y from -1 (left, top
                edge of the frame) to 1, before they are rendered.
            width: (n,) float, the drawings' lines in units; without it, 16.
        """
        segments = self._place(tiles, owners, len(counts), transform)  # (T, 16, 4)
        planes, keys = _planes(segments), None
        if self.channels > 1:
            strides = functional.pad(_stride(counts), (0, 1), value=1)[owners]  # (T,)
            each = torch.arange(tiles.shape[1], dtype=torch.int32, device=tiles.device)
            keys = (numbers[:, None] + each) // strides[:, None]  # (T, 16), below 1,024
        nearest = torch.full((len(counts) + 1, len(self.x)), torch.inf, device=tiles.device)
        for rows in self._slices(tiles):
            found = self._nearest(planes[:, rows], None if keys is None else keys[rows])
            nearest.scatter_reduce_(0, owners[rows, None].expand(found.shape), found, "amin")
        nearest = nearest[:-1]
        if self.channels == 1:
            return self._pictures([self._ink(nearest, width)])
        number, nearest = _split_key(nearest)
        number = torch.minimum(number * _stride(counts)[:, None], counts[:, None] - 1).clamp_(min=0)
        # A blank drawing's is that behind all segments.
        index = _first_tiles(owners, len(counts))[:, None] * tiles.shape[1] + number
        cosine, sine = (functional.pad(d.flatten(), (0, 1))[index] for d in _directions(segments))
        ink = self._ink(nearest, width)
        return self._pictures([ink, _order(number, counts[:, None]), cosine, sine])

    def _slices(self, tiles: torch.Tensor) -> list[slice]:
        """Return ranges of tiles whose pixels are computed at once; all, where one kernel does."""
        if torch.compiler.is_compiling():
            return [slice(None)]
        pixels = _SLICE_PIXELS.get(tiles.device.type, _LARGEST_SLICE_PIXELS)
        step = max(1, pixels // self.side**2)
        return [slice(at, at + step) for at in range(0, len(tiles), step)]

    def _place(
        self,
        tiles: torch.Tensor,
        owners: torch.Tensor,
        drawings: int,
        transform: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return segments on the frame, (T, 16, 4) float32."""
        points = tiles.float().view(len(tiles), 2 * tiles.shape[1], 2)
        largest = points.new_zeros(drawings + 1, 2)
        largest.scatter_reduce_(0, owners[:, None].expand(-1, 2), points.amax(1), "amax")
        points = _centre(points, largest[owners][:, None])
        if transform is not None:
            spare = transform.new_zeros(1, 2, 3)
            points = _moved(points, torch.cat([transform, spare])[owners])
        return points.view(tiles.shape)

    def _nearest(self, planes: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Return the square of the distance to the nearest segment of each tile, (T, side * side),
        with the segment's number in its lowest bits if there are `keys`, (T, 16)."""
        found: torch.Tensor | None = None
        # Unrolled, so that compilers fuse all of it and vectorise along the pixels.
        for at in range(planes.shape[2]):
            squared = _squared_distance(planes[:, :, at, None], self.x, self.y)
            if keys is not None:
                squared = _with_number(squared, keys[:, at, None])
            found = squared if found is None else torch.minimum(found, squared)
        assert found is not None, "a tile has segments"
        return found

    def _ink(self, nearest: torch.Tensor, width: torch.Tensor | None) -> torch.Tensor:
        """Return the ink of pixels, (n, side * side), by the squared distance."""
        radius = LINE_WIDTH / 2 if width is None else width[:, None] / 2
        return (0.5 + (radius - nearest.sqrt()) * self.unit_pixels).clamp(0, 1)

    def _pictures(self, channels: list[torch.Tensor]) -> torch.Tensor:
        """Return ink and the other channels times ink, of (n, side * side), as pictures."""
        ink, *others = channels
        stacked = torch.stack([ink, *(ink * other for other in others)], 1)
        return stacked.view(-1, self.channels, self.side, self.side)

    @torch.no_grad()
    def from_segments(self, segments: torch.Tensor) -> torch.Tensor:
        """Render drawings whose segments fill up a rectangle: what is exported with a network.

        Operators that other runtimes know replace the scatter and the bits of a float: equal to
        `forward` but for rounding, and where two segments are equally near.

        Args:
            segments: (n, S, 4) float, in the order of drawing; `PADDING` where a drawing has fewer.

        Returns:
            (n, channels, side, side) float.
        """
        real = segments[:, :, 0] < PADDING  # (n, S)
        points = torch.stack([segments[:, :, :2], segments[:, :, 2:]], 2)  # (n, S, 2, 2)
        largest = torch.where(real[:, :, None, None], points, 0.0).amax((1, 2), keepdim=True)
        segments = _centre(points, largest).flatten(2)
        squared = _squared_distance(_planes(segments)[..., None], self.x, self.y)
        if self.channels == 1:
            return self._pictures([self._ink(squared.amin(1), None)])
        nearest, number = squared.min(1)
        cosine, sine = (axis.gather(1, number) for axis in _directions(segments))
        order = _order(number, real.sum(1, keepdim=True))
        return self._pictures([self._ink(nearest, None), order, cosine, sine])


def _centre(points: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Place (..., 2) points on the frame, given the largest x and y of their drawings."""
    return points + ((256 - largest) / 2 + MARGIN)


def _moved(points: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Map (T, P, 2) points on the frame by (T, 2, 3) matrices in halves of its side."""
    half = FRAME / 2
    places = points / half - 1
    x, y = places[:, :, :1], places[:, :, 1:]
    across, down, shift = transform[:, None].unbind(-1)  # (T, 1, 2) each; no matmul, so no TF32
    moved: torch.Tensor = across * x + down * y + shift
    return (moved + 1) * half


def _planes(segments: torch.Tensor) -> torch.Tensor:
    """Return x, y, dx, dy and 1 / length^2 of (..., 4) segments as (5, ...).

    Stacked, because a compiler then stores them: otherwise it would divide once per pixel.
    """
    x, y, x2, y2 = segments.unbind(-1)
    dx, dy = x2 - x, y2 - y
    return torch.stack([x, y, dx, dy, 1 / (dx * dx + dy * dy).clamp(min=1e-6)])


def _squared_distance(planes: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of pixels to segments: planes (5, ..., 1) gives (..., pixels)."""
    x1, y1, dx, dy, inverse = planes.unbind(0)
    right, down = x - x1, y - y1
    along = (right * dx).addcmul_(down, dy).mul_(inverse).clamp_(0, 1)
    right.addcmul_(along, dx, value=-1)
    down.addcmul_(along, dy, value=-1)
    squared: torch.Tensor = right.mul_(right).addcmul_(down, down)
    return squared


def _first_tiles(owners: torch.Tensor, drawings: int) -> torch.Tensor:
    """Return the index of each drawing's first tile, (drawings,) int64; T of a blank one."""
    tiles = torch.arange(len(owners), device=owners.device)
    first = torch.full((drawings + 1,), len(owners), device=owners.device)
    return first.scatter_reduce_(0, owners, tiles, "amin")[:-1]


def _order(number: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the place of a segment among those of its drawing, 0 to 1."""
    return number / (counts - 1).clamp(min=1)


def _directions(segments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine of (..., 4) segments; 0 for a dot."""
    x, y, x2, y2 = segments.unbind(-1)
    dx, dy = x2 - x, y2 - y
    inverse = (dx * dx + dy * dy).clamp(min=1e-6).rsqrt()
    return dx * inverse, dy * inverse


def _stride(counts: torch.Tensor) -> torch.Tensor:
    """Return how many segments of a drawing share a number, (n,) int32: 1 up to 1,024 of them."""
    stride: torch.Tensor = (counts + (_NUMBERS - 1)) // _NUMBERS
    return stride.clamp(min=1)


def _with_number(squared: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Replace the lowest bits of float32 values >= 0 by a number below 1,024."""
    bits = (squared + _SMALLEST_KEY).view(torch.int32)
    key: torch.Tensor = (bits & -_NUMBERS) | number
    return key.view(torch.float32)


def _split_key(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return number and value of what `_with_number` has made."""
    bits = key.view(torch.int32)
    return bits & (_NUMBERS - 1), (bits & -_NUMBERS).view(torch.float32)
