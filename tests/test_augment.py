"""Transforms on the device: what the network sees is normalised, and moved as far as stated."""

from __future__ import annotations

import math

import pytest
import torch

from quickdraw_dist.augment import (
    ROTATION_RADIANS,
    SCALE,
    SHEAR,
    SHIFT_PIXELS,
    normalise,
    random_affine,
)

SIDE = 28


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def doodles(count: int, seed: int = 0) -> torch.Tensor:
    """White boxes with a diagonal, the size of a drawing: (count, 28, 28) uint8, ring black."""
    generator = torch.Generator().manual_seed(seed)
    drawings = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for drawing in drawings:
        top, left = torch.randint(1, 8, (2,), generator=generator).tolist()
        bottom, right = torch.randint(19, 27, (2,), generator=generator).tolist()
        drawing[[top, bottom], left : right + 1] = 255
        drawing[top : bottom + 1, [left, right]] = 255
        for step in range(11):
            drawing[top + step, left + step] = 128
    return drawings


# -- normalise -------------------------------------------------------------------------------------


def test_normalise_to_zero_mean_and_unit_variance() -> None:
    """Mean and standard deviation are on a scale of 0 to 1, as the manifest stores them."""
    drawings = doodles(64)
    scaled = drawings.double() / 255
    inputs = normalise(drawings, float(scaled.mean()), float(scaled.std()))
    assert inputs.shape == (64, 1, SIDE, SIDE)
    assert inputs.dtype == torch.float32
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_normalise_is_linear_and_leaves_its_input() -> None:
    """Every byte has its own value in order, from -mean/std to (1 - mean)/std, and the batch's
    buffer, which is used again, is not written to."""
    drawings = torch.arange(784).remainder(256).to(torch.uint8).view(1, SIDE, SIDE)
    before = drawings.clone()
    inputs = normalise(drawings, 0.2, 0.4).flatten()
    assert torch.equal(drawings, before)
    expected = (torch.arange(256).double() / 255 - 0.2) / 0.4
    torch.testing.assert_close(inputs[:256].double(), expected, atol=1e-6, rtol=1e-6)


def test_normalise_an_empty_batch() -> None:
    """A rank may have no drawings in the last batch of an evaluation."""
    empty = torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)
    assert normalise(empty, 0.2, 0.4).shape == (0, 1, SIDE, SIDE)


# -- random_affine ---------------------------------------------------------------------------------

BACKGROUND = -0.6


def inputs(count: int) -> torch.Tensor:
    """Doodles on a background of -0.6, (count, 1, 28, 28) float32."""
    return normalise(doodles(count), 0.15, 0.25)


def test_blank_stays_blank() -> None:
    """What comes in from outside is paper: a border of another value would be ink to the net."""
    blank = torch.full((200, 1, SIDE, SIDE), BACKGROUND)
    assert torch.equal(random_affine(blank, BACKGROUND), blank)


def test_shape_dtype_and_input() -> None:
    """A batch in, a batch out; the normalised batch itself is not written to."""
    batch = inputs(8)
    before = batch.clone()
    moved = random_affine(batch, BACKGROUND)
    assert moved.shape == batch.shape
    assert moved.dtype == torch.float32
    assert torch.equal(batch, before)


def test_the_seed_decides() -> None:
    """A resumed run seeds a step and must get the same bits; another step gets other ones."""
    batch = inputs(16)

    def moved(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return random_affine(batch, BACKGROUND)

    assert torch.equal(moved(1), moved(1))
    assert not torch.equal(moved(1), moved(2))


def test_every_drawing_is_moved_by_its_own_amounts() -> None:
    """One transform for the whole batch would be a fraction of the augmentation."""
    same = inputs(1).expand(32, -1, -1, -1)
    torch.manual_seed(0)
    moved = random_affine(same, BACKGROUND)
    assert not any(torch.equal(drawing, same[0]) for drawing in moved)
    assert len({drawing.numpy().tobytes() for drawing in moved}) == 32


def transforms(count: int) -> torch.Tensor:
    """The matrices that were drawn, (count, 2, 3): from each pixel to where it is taken from, in
    pixels around the centre. Read off pictures of the coordinates themselves, which bilinear
    sampling reproduces exactly wherever all four neighbours are inside."""
    axis = torch.arange(SIDE, dtype=torch.float32) - (SIDE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    sources = []
    for picture in (x, y):
        torch.manual_seed(7)
        batch = picture.expand(count, 1, SIDE, SIDE).contiguous()
        sources.append(random_affine(batch, 0.0)[:, 0, 10:18, 10:18].reshape(count, -1))
    x, y = x[10:18, 10:18].reshape(-1), y[10:18, 10:18].reshape(-1)
    places = torch.stack([x, y, torch.ones_like(x)], 1).expand(count, -1, -1)
    fitted = torch.linalg.lstsq(places, torch.stack(sources, 2)).solution  # (count, 3, 2)
    residual = (places @ fitted - torch.stack(sources, 2)).abs().max()
    assert residual < 1e-3, "not an affine map"
    return fitted.transpose(1, 2).double()


def test_moves_as_far_as_stated() -> None:
    """Each amount stays within its stated largest change and uses the whole range in both
    directions: more would deform drawings beyond what people draw, less would be no help."""
    matrices = transforms(3_000)
    (a, b), (c, d) = matrices[:, :, :2].permute(1, 2, 0)
    angle = torch.atan2(c, a)
    scale = torch.hypot(a, c) - 1
    shear = (a * b + c * d) / (a * a + c * c)  # what the second axis has of the first
    area = (a * d - b * c) / (1 + scale) ** 2
    torch.testing.assert_close(area, torch.ones_like(area), atol=1e-3, rtol=0)
    right, down = matrices[:, :, 2].T
    for values, largest in [
        (angle, ROTATION_RADIANS),
        (scale, SCALE),
        (shear, SHEAR),
        (right, SHIFT_PIXELS),
        (down, SHIFT_PIXELS),
    ]:
        assert values.abs().max() <= largest * 1.001 + 1e-4
        assert values.min() < -0.97 * largest
        assert values.max() > 0.97 * largest
        # Uniform: flat, and the same on both sides.
        assert float(values.mean()) == pytest.approx(0, abs=0.06 * largest)
        assert float(values.std()) == pytest.approx(largest / math.sqrt(3), rel=0.05)
    amounts = torch.stack([angle, scale, shear, right, down])
    assert (torch.corrcoef(amounts) - torch.eye(5)).abs().max() < 0.08, "not independent"


def test_most_ink_stays_inside() -> None:
    """Drawings fill their square, so corners are cut now and then, but never the drawing."""
    torch.manual_seed(3)
    batch = inputs(500)
    before = (batch - BACKGROUND).sum((1, 2, 3))
    after = (random_affine(batch, BACKGROUND) - BACKGROUND).sum((1, 2, 3))
    kept = after / before  # scale alone makes this 1 / (1 +- SCALE)^2
    assert float(kept.mean()) > 0.9
    assert float(kept.min()) > 0.5


def test_values_stay_between_paper_and_ink() -> None:
    """Interpolation mixes neighbours; it must not make darker paper or brighter ink."""
    batch = inputs(64)
    moved = random_affine(batch, BACKGROUND)
    assert float(moved.min()) >= BACKGROUND - 1e-4
    assert float(moved.max()) <= float(batch.max()) + 1e-4
