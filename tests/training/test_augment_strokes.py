"""Random changes of strokes: those of bitmaps, made on points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quickdraw_dist.base.settings import Augment
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.models.input import NetworkInput, Normalisation, Raster, stored
from quickdraw_dist.models.stroke_raster import StrokeRaster
from quickdraw_dist.training.augment import (
    affine_matrices,
    augment,
    random_strokes,
    training_input,
)
from tests.support.data.strokes import stroke_batch

CPU = torch.device("cpu")
NORMALISATION = Normalisation(0.2, 0.4)


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def spirals(count: int) -> tuple[torch.Tensor, ...]:
    """Drawings without symmetry, lines far apart, as a batch's tensors."""
    angle = np.linspace(0, 4.5 * math.pi, 40)
    drawings = []
    for seed in range(count):
        turned, radius = angle + seed, 8 + 7 * angle
        x, y = 128 + radius * np.cos(turned), 128 + radius * np.sin(turned)
        drawings.append([(np.rint(x).astype(np.uint8), np.rint(y).astype(np.uint8))])
    return stroke_batch(Strokes.from_lists(drawings)).inputs()


def changed(
    drawings: tuple[torch.Tensor, ...],
    seed: int = 1,
    side: int = 28,
    channels: int = 1,
    **how: object,
) -> torch.Tensor:
    """What a network sees of drawings with these settings of `Augment`, affine only if it is set,
    with ink from 0 to 1."""
    source = NetworkInput(Raster("strokes", side, channels), Normalisation(0, 1))
    torch.manual_seed(seed)
    return training_input(drawings, source, Augment.model_validate({"affine": False} | how))


def test_the_affine_change_is_that_of_bitmaps() -> None:
    """The same random numbers move strokes where they move pixels, at every side; what differs is
    the blur of resampling."""
    drawings = spirals(40)
    plain = changed(drawings)
    torch.manual_seed(1)
    bitmaps = augment(plain, Augment(affine=True), 0.0)
    strokes = changed(drawings, affine=True)
    assert float((strokes - bitmaps).abs().mean()) < 0.04
    assert float((plain - bitmaps).abs().mean()) > 0.12
    large = changed(drawings, side=56, affine=True)
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert float((strokes - halved).abs().mean()) < 0.02


def test_points_go_where_pixels_come_from() -> None:
    """The map of points is the inverse of that of pixels."""
    torch.manual_seed(5)
    points, width = random_strokes(100, Augment(affine=True), CPU)
    torch.manual_seed(5)
    pixels = affine_matrices(100, CPU)
    assert points is not None and width is None
    square = torch.tensor([[0.0, 0.0, 1.0]]).expand(100, 1, 3)
    one, other = (torch.cat([m, square], 1).double() for m in (points, pixels))
    identity = torch.eye(3, dtype=torch.float64).expand(100, 3, 3)
    torch.testing.assert_close(one @ other, identity, atol=1e-6, rtol=0)


def test_flipped_drawings_are_mirror_images() -> None:
    """In all channels: what went right goes left. Without affine and after it."""
    drawings = spirals(200)
    plain = changed(drawings, channels=4)
    mirrored = plain.flip(-1) * torch.tensor([1.0, 1.0, -1.0, 1.0]).view(4, 1, 1)
    flipped = changed(drawings, channels=4, flip=1.0)
    torch.testing.assert_close(flipped[:, 0], mirrored[:, 0], atol=1e-3, rtol=0)
    assert float((flipped - mirrored).abs().mean()) < 1e-3
    some = changed(drawings, flip=0.3)
    moved = (some - plain[:, :1]).abs().flatten(1).amax(1) > 0.1
    assert float(moved.float().mean()) == pytest.approx(0.3, abs=0.12)
    torch.testing.assert_close(some[moved], mirrored[moved][:, :1], atol=1e-3, rtol=0)
    both = changed(drawings, affine=True, flip=1.0)
    torch.testing.assert_close(both, changed(drawings, affine=True).flip(-1), atol=2e-3, rtol=0)


def test_thickness_widens_lines_by_up_to_a_pixel_per_side() -> None:
    """No pixel loses ink, the width is uniform, and the stated share of drawings changes."""
    drawings = spirals(300)
    plain, thick = changed(drawings), changed(drawings, thickness=1.0)
    assert bool((thick >= plain - 1e-5).all())
    _, widths = random_strokes(2_000, Augment(affine=False, thickness=1.0), CPU)
    assert widths is not None
    pixels = (widths - 16) * 28 / 304
    assert 0 <= float(pixels.min()) < 0.02 and 1.98 < float(pixels.max()) <= 2
    assert float(pixels.mean()) == pytest.approx(1, abs=0.05)
    _, widths = random_strokes(2_000, Augment(affine=False, thickness=0.25), CPU)
    assert widths is not None
    assert float((widths > 16).float().mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("channels", [1, 4])
def test_erased_is_empty_in_all_channels(channels: int) -> None:
    """A rectangle without ink has neither order nor direction; the rest stays."""
    drawings = spirals(50)
    plain = changed(drawings, channels=channels)
    erased = changed(drawings, channels=channels, erase=1.0)
    gone = (erased != plain).any(1)
    assert float(gone.flatten(1).any(1).float().mean()) > 0.8  # some have no ink there
    assert not erased.movedim(1, -1)[gone].any()


@pytest.mark.parametrize("name", ["affine", "flip", "erase", "thickness"])
def test_settings_reach_the_drawings(name: str) -> None:
    """Each setting alone changes drawings, decided by the seed; without any, a network sees what it
    is evaluated on."""
    drawings = spirals(64)
    source = NetworkInput(Raster("strokes"), NORMALISATION)
    off = training_input(drawings, source, Augment(affine=False))
    assert torch.equal(off, source(drawings))
    one = {name: True if name == "affine" else 0.5}
    assert not torch.equal(changed(drawings, 1, **one), changed(drawings))
    assert torch.equal(changed(drawings, 1, **one), changed(drawings, 1, **one))
    assert not torch.equal(changed(drawings, 1, **one), changed(drawings, 2, **one))


def test_ink_is_as_dark_as_without_changes() -> None:
    """A moved line is as sharp as one at rest, in contrast to a moved bitmap's."""
    drawings = spirals(40)
    plain = StrokeRaster()(*drawings[:4])
    moved = changed(drawings, affine=True)
    torch.manual_seed(1)
    resampled = augment(plain, Augment(affine=True), 0.0)
    full = [float((pictures > 0.99).float().mean()) for pictures in (plain, moved, resampled)]
    assert full[1] == pytest.approx(full[0], rel=0.25)
    assert full[2] < 0.5 * full[0]


def test_tensors_stay_as_they_were() -> None:
    """The loader reuses a batch's memory, and resident drawings are read again."""
    drawings = stored(stroke_batch(Strokes.from_lists([[([0, 255], [0, 90])]])))
    before = [tensor.clone() for tensor in drawings]
    changed(tuple(drawings), affine=True, flip=0.5, erase=1.0, thickness=1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, drawings, strict=True))
