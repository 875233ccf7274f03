"""Templates of synthetic classes: all different, always the same, and drawn within their bounds."""

from __future__ import annotations

import zlib

import numpy as np

from quickdraw_dist.base.hashing import random64
from quickdraw_dist.data.drawings.synthetic import templates


def test_345_templates_are_all_different() -> None:
    made = [templates.make_template(7, label) for label in range(345)]
    assert len({template.around.tobytes() for template in made}) == 345
    for template in made:
        assert template.chance[0] == 1  # the body is always drawn
        assert 3 <= len(template.centres) // 2 <= 9


def test_the_points_never_change() -> None:
    """The bytes of every synthetic drawing follow from these: see `test_synthetic` for more."""
    crc = 0
    for label in (0, 19, 344):
        points = templates.distort(templates.make_template(7, label), random64(label, 64))
        crc = zlib.crc32(points.tobytes(), crc)
    assert crc == 0xD072ECF6


def test_a_stroke_left_out_lies_on_the_body() -> None:
    """Where it changes neither the ink nor the fit."""
    template = templates.make_template(7, 3)
    points = templates.distort(template, random64(1, 200))
    left_out = 0
    for drawing in points:
        for stroke in range(1, len(template.centres)):
            of_stroke = drawing[template.stroke == stroke]
            if (of_stroke == of_stroke[0]).all():
                assert np.array_equal(of_stroke[0], drawing[0])
                left_out += 1
    first = len(template.centres) // 2  # the second half are the repetitions
    expected = 200 * ((first - 1) * templates.MISSING + first * (1 - templates.REPEATED))
    assert abs(left_out - expected) < 0.1 * expected
