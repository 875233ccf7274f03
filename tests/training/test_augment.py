"""Random changes of drawings on the device: as far and as often as stated, and seeded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from quickdraw_dist.base.settings import Augment
from quickdraw_dist.models.input import Normalisation
from quickdraw_dist.training.augment import (
    ROTATION_RADIANS,
    SCALE,
    SHEAR,
    SHIFT_PIXELS,
    affine_matrices,
    augment,
    random_affine,
    random_erase,
    random_flip,
    random_thickness,
)

SIDE = 28


@pytest.fixture(autouse=True)
def _same_every_time() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


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


# -- random_affine ---------------------------------------------------------------------------------

BACKGROUND = -0.6


def inputs(count: int) -> torch.Tensor:
    """Doodles on a background of -0.6, (count, 1, 28, 28) float32."""
    return Normalisation(0.15, 0.25).apply(doodles(count))


def test_blank_stays_blank() -> None:
    """Pixels from outside are background; a border of another value would be ink."""
    blank = torch.full((200, 1, SIDE, SIDE), BACKGROUND)
    assert torch.equal(random_affine(blank, BACKGROUND), blank)


def transforms(count: int) -> torch.Tensor:
    """Random matrices (count, 2, 3) from a place in the result to its source, in pixels around the
    centre, float64."""
    matrices = affine_matrices(count, torch.device("cpu")).double()
    matrices[:, :, 2] *= SIDE / 2  # a shift is in halves of a side
    return matrices


def test_moves_as_far_as_stated() -> None:
    """Each amount is uniform within its stated largest change in both directions, and independent
    of the others."""
    matrices = transforms(3_000)
    (a, b), (c, d) = matrices[:, :, :2].permute(1, 2, 0)
    angle = torch.atan2(c, a)
    scale = torch.hypot(a, c) - 1
    shear = (a * b + c * d) / (a * a + c * c)  # the second axis, projected on the first
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


def test_every_drawing_is_moved_by_its_own_matrix() -> None:
    """A dot lands where its drawing's matrix finds the dot as its source."""
    count = 200
    axis = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dot = torch.tensor([3.0, -4.0], dtype=torch.float64)  # (x, y) from the centre
    drawing = torch.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / 4)
    torch.manual_seed(7)
    matrices = transforms(count)
    torch.manual_seed(7)
    batch = drawing.float().expand(count, 1, SIDE, SIDE)
    moved = random_affine(batch, 0.0)[:, 0].double()  # (count, 28, 28)
    weights = moved / moved.sum((1, 2), keepdim=True)
    landed = torch.stack([(weights * x).sum((1, 2)), (weights * y).sum((1, 2))], 1)  # (count, 2)
    sources = torch.einsum("nij,nj->ni", matrices[:, :, :2], landed) + matrices[:, :, 2]
    torch.testing.assert_close(sources, dot.expand(count, 2), atol=0.1, rtol=0)


def sharpness(drawings: torch.Tensor) -> torch.Tensor:
    """Sum of the squared differences of neighbouring pixels per drawing, (count,)."""
    right, down = drawings.diff(dim=-1), drawings.diff(dim=-2)
    return right.square().sum((1, 2, 3)) + down.square().sum((1, 2, 3))


def test_lines_stay_sharp(real_data: Path) -> None:
    """Real drawings, which have lines of 1.5 pixels, keep most of their contrast; of bilinear
    sampling 58 % would be left."""
    stored = np.load(real_data / "numpy_bitmap" / "cat.npy", mmap_mode="r")[:500]
    batch = torch.from_numpy(stored.reshape(-1, 1, SIDE, SIDE) / np.float32(255))
    ratio = sharpness(random_affine(batch, 0.0)).mean() / sharpness(batch).mean()
    assert 0.75 < float(ratio) < 1


def test_most_ink_stays_inside() -> None:
    """Drawings fill their square, so some lose a corner, but never most of their ink."""
    torch.manual_seed(3)
    batch = inputs(500)
    before = (batch - BACKGROUND).sum((1, 2, 3))
    after = (random_affine(batch, BACKGROUND) - BACKGROUND).sum((1, 2, 3))
    kept = after / before  # scale alone makes this 1 / (1 +- SCALE)^2
    assert float(kept.mean()) > 0.9
    assert float(kept.min()) > 0.5


def test_values_stay_between_paper_and_ink() -> None:
    """Interpolation gives no value below the background or above a drawing's own ink, though
    bicubic overshoots at every edge."""
    batch = inputs(64)
    batch[::2] = (batch[::2] - BACKGROUND) / 2 + BACKGROUND  # half the ink
    moved = random_affine(batch, BACKGROUND)
    assert float(moved.min()) >= BACKGROUND - 1e-4
    assert bool((moved.amax((1, 2, 3)) <= batch.amax((1, 2, 3)) + 1e-4).all())


# -- flip, thickness, erase ------------------------------------------------------------------------


def changed(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Which drawings differ, (count,) bool."""
    return (before != after).flatten(1).any(1)


def test_flip_mirrors_the_stated_share() -> None:
    """Flipped drawings are mirror images, and flipped again they are themselves."""
    batch = inputs(2_000)
    flipped = random_flip(batch, 0.3)
    moved = changed(batch, flipped)
    assert float(moved.float().mean()) == pytest.approx(0.3, abs=0.05)
    assert torch.equal(flipped[moved], batch[moved].flip(-1))
    assert torch.equal(random_flip(random_flip(batch, 1.0), 1.0), batch)
    assert torch.equal(random_flip(batch, 0.0), batch)


def test_thickness_adds_ink_beside_the_lines_only() -> None:
    """No pixel loses ink, and pixels further than one from a line stay background."""
    batch = inputs(500)
    thick = random_thickness(batch, 1.0)
    assert bool((thick >= batch - 1e-6).all())
    near = torch.nn.functional.max_pool2d((batch > BACKGROUND + 0.01).float(), 3, 1, 1) > 0
    torch.testing.assert_close(thick[~near], batch[~near])
    assert float(thick.max()) <= float(batch.max()) + 1e-5
    growth = (thick - BACKGROUND).sum((1, 2, 3)) / (batch - BACKGROUND).sum((1, 2, 3))
    assert float(growth.min()) < 1.1 and float(growth.max()) > 1.8  # every amount up to the whole
    some = random_thickness(batch, 0.25)
    assert float(changed(batch, some).float().mean()) == pytest.approx(0.25, abs=0.07)


def test_erase_empties_a_rectangle_of_the_stated_size() -> None:
    """On drawings full of ink: one rectangle each, of 2 to 20 % of the area and a ratio of sides of
    at most 3 (and rounding), anywhere in the drawing."""
    full = torch.ones(2_000, 1, SIDE, SIDE)
    holes = random_erase(full, 1.0, BACKGROUND)[:, 0] == BACKGROUND
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths), "not rectangles"
    shares = heights * widths / SIDE**2
    assert 0.01 < float(shares.min()) < 0.03 and 0.17 < float(shares.max()) < 0.24
    ratios = (heights / widths).log2()
    assert float(ratios.abs().max()) <= math.log2(3) + 0.6
    assert float(ratios.mean()) == pytest.approx(0, abs=0.1)
    where = holes.float().mean(0)
    assert float(where.min()) > 0, "some pixels are never erased"
    torch.testing.assert_close(where, where.flip(0), atol=0.05, rtol=0)
    torch.testing.assert_close(where, where.T, atol=0.05, rtol=0)


def test_erase_takes_the_stated_share_and_leaves_the_rest() -> None:
    """Half of the drawings change; outside the rectangle no pixel does."""
    batch = inputs(1_000)
    erased = random_erase(batch, 0.5, BACKGROUND)
    moved = changed(batch, erased)
    assert 0.4 < float(moved.float().mean()) < 0.6  # a hole in the background changes nothing
    assert bool(((erased == batch) | (erased == BACKGROUND)).all())


@pytest.mark.parametrize("name", ["affine", "flip", "erase", "thickness"])
def test_settings_reach_the_drawings(name: str) -> None:
    """Each setting alone changes drawings, decided by the seed; without any, none change. The batch
    itself stays as it was."""
    batch = inputs(64)
    before = batch.clone()

    def augmented(settings: Augment, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return augment(batch, settings, BACKGROUND)

    one = Augment.model_validate({name: True if name == "affine" else 0.5})
    assert torch.equal(augmented(Augment(), 1), batch), "the default changes nothing"
    assert bool(changed(batch, augmented(one, 1)).any())
    assert torch.equal(augmented(one, 1), augmented(one, 1))
    assert not torch.equal(augmented(one, 1), augmented(one, 2))
    assert torch.equal(batch, before)
    assert augmented(one, 1).shape == batch.shape and augmented(one, 1).dtype == batch.dtype


def test_real_drawings_stay_drawings(real_data: Path) -> None:
    """All changes together on real drawings of three classes leave about as much ink, and values
    between background and ink."""
    names = ("cat", "The Eiffel Tower", "zigzag")
    stored = [np.load(real_data / "numpy_bitmap" / f"{name}.npy", mmap_mode="r") for name in names]
    pixels = np.concatenate([array[:200] for array in stored]).reshape(-1, SIDE, SIDE)
    normalisation = Normalisation(0.17, 0.31)
    batch = normalisation.apply(torch.from_numpy(pixels.copy()))
    paper = normalisation.background
    torch.manual_seed(0)
    settings = Augment(affine=True, flip=0.5, erase=0.25, thickness=0.5)
    seen = augment(batch, settings, paper)
    before, after = (batch - paper).sum((1, 2, 3)), (seen - paper).sum((1, 2, 3))
    ratio = after / before
    assert 0.8 < float(ratio.median()) < 1.6
    assert float(ratio.min()) > 0.2 and float(ratio.max()) < 4
    assert float(seen.min()) >= paper - 1e-4 and float(seen.max()) <= float(batch.max()) + 1e-4
