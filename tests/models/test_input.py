"""From stored bytes to a network input: the same for training, evaluation and later use."""

from __future__ import annotations

import pytest
import torch

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Strokes as StrokeSettings
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.models.input import NetworkInput, Normalisation, Raster, stored, thumbnails
from tests.support.data.strokes import random_strokes, stroke_batch


def test_zero_mean_and_unit_variance() -> None:
    """Mean and standard deviation are on a scale of 0 to 1, as the manifest stores them."""
    generator = torch.Generator().manual_seed(0)
    drawings = torch.randint(256, (64, 28, 28), dtype=torch.uint8, generator=generator)
    scaled = drawings.double() / 255
    inputs = Normalisation(float(scaled.mean()), float(scaled.std())).apply(drawings)
    assert inputs.shape == (64, 1, 28, 28)
    assert inputs.dtype == torch.float32
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_linear_without_writing_to_its_input() -> None:
    """Bytes map in order to -mean/std (the background) .. (1 - mean)/std; the batch's buffer, which
    the loader reuses, keeps its values."""
    drawings = torch.arange(784).remainder(256).to(torch.uint8).view(1, 28, 28)
    before = drawings.clone()
    normalisation = Normalisation(0.2, 0.4)
    inputs = normalisation.apply(drawings).flatten()
    assert torch.equal(drawings, before)
    expected = (torch.arange(256).double() / 255 - 0.2) / 0.4
    torch.testing.assert_close(inputs[:256].double(), expected, atol=1e-6, rtol=1e-6)
    assert normalisation.background == pytest.approx(float(expected[0]))


def test_an_empty_batch() -> None:
    """A rank may have no drawings in the last batch of an evaluation."""
    empty = torch.zeros(0, 28, 28, dtype=torch.uint8)
    assert Normalisation(0.2, 0.4).apply(empty).shape == (0, 1, 28, 28)


def test_strokes_and_their_bitmaps_are_one_input() -> None:
    """A network that was trained on either content sees the other as it saw its own, up to the
    rounding of bytes."""
    strokes = random_strokes(50, "input")
    bitmaps = torch.from_numpy(raster.plain(strokes))
    normalisation = Normalisation(0.2, 0.4)
    for own in (Raster(), Raster("strokes")):
        source = NetworkInput(own, normalisation)
        rendered = source(stored(stroke_batch(strokes)))
        torch.testing.assert_close(rendered, source(bitmaps), atol=0.51 / 255 / 0.4, rtol=0)
    shown = thumbnails(stored(stroke_batch(strokes)))
    assert shown.dtype == torch.uint8
    assert int((shown.int() - bitmaps.int()).abs().max()) <= 1
    assert torch.equal(thumbnails(bitmaps), bitmaps)


def test_further_channels_are_zero_without_ink() -> None:
    """Order and direction have the unit of ink and no mean, so that paper has none."""
    drawings = stored(stroke_batch(random_strokes(20, "channels")))
    normalisation = Normalisation(0.2, 0.4)
    source = NetworkInput(Raster("strokes", 32, 4), normalisation)
    inputs = source(drawings)
    assert inputs.shape == (20, 4, 32, 32)
    paper = inputs[:, 0] == torch.tensor(normalisation.background)
    assert 0 < int(paper.sum()) < paper.numel()
    assert not inputs[:, 1:].amax(1)[paper].any() and not inputs[:, 1:].amin(1)[paper].any()
    assert float(inputs[:, 1:].abs().max()) == pytest.approx(1 / 0.4, rel=1e-2)
    ink = NetworkInput(Raster("strokes", 32), normalisation)(drawings)
    torch.testing.assert_close(inputs[:, :1], ink, atol=1e-3, rtol=0)


def test_names_of_rasters() -> None:
    """A checkpoint says which pictures its network looks at; checkpoints of bitmaps keep the name
    that they always had."""
    of_strokes = Raster.of("strokes", StrokeSettings(side=56, channels=4))
    assert Raster.of("bitmaps", StrokeSettings(side=56, channels=4)) == Raster()
    assert (Raster().name, of_strokes.name) == ("quickdraw-28x28", "strokes-56-4")
    for own in (Raster(), of_strokes, Raster("strokes")):
        assert Raster.parse(own.name) == own
    for unknown in ("strokes-28", "strokes-28-3", "photos", ""):
        with pytest.raises(RefusedError) as refused:
            Raster.parse(unknown)
        assert refused.value.value == unknown


@pytest.mark.parametrize(
    ("own", "content", "fits"),
    [
        (Raster(), "bitmaps", True),
        (Raster(), "strokes", True),
        (Raster("strokes"), "bitmaps", True),
        (Raster("strokes", 28, 4), "bitmaps", False),
        (Raster("strokes", 56, 1), "bitmaps", False),
        (Raster("strokes", 56, 4), "strokes", True),
    ],
)
def test_which_drawings_fit_a_network(own: Raster, content: str, fits: bool) -> None:
    """Bitmaps serve networks of one channel and 28 pixels only."""
    assert own.fits(content) == fits
