"""The synthetic source: drawings follow from (seed, class, row) alone and never change."""

from __future__ import annotations

import pickle
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.classes import official
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.drawings.synthetic import source as synthetic

CHUNK = synthetic._CHUNK


def test_defaults_and_names() -> None:
    source: Source = open_source("synthetic:")
    assert source.classes[:2] == ("synthetic-000", "synthetic-001")
    assert source.counts == (1000,) * 20
    assert source.header(0) == b""
    assert source.url == "synthetic:"
    spelled_out = synthetic.open_synthetic("synthetic:?seed=7&per_class=1000&classes=20")
    assert np.array_equal(source.read(3, 0, 2).drawings, spelled_out.read(3, 0, 2).drawings)


@settings(max_examples=15, deadline=None)
@given(
    label=st.integers(0, 2),
    cuts=st.lists(st.integers(0, 9), min_size=2, max_size=4).map(sorted),
)
def test_a_slice_is_its_rows(label: int, cuts: list[int]) -> None:
    source = synthetic.open_synthetic("synthetic:?classes=3&per_class=9")
    whole = source.read(label, cuts[0], cuts[-1]).drawings
    assert whole.shape == (cuts[-1] - cuts[0], 28, 28)
    assert whole.dtype == np.uint8
    pieces = [source.read(label, a, b).drawings for a, b in pairwise(cuts)]
    rows = [source.read(label, row, row + 1).drawings for row in range(cuts[0], cuts[-1])]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert np.array_equal(whole, np.concatenate([whole[:0], *rows]))


def test_a_slice_is_its_rows_across_chunks() -> None:
    source = synthetic.open_synthetic(f"synthetic:?per_class={3 * CHUNK}")
    whole = source.read(1, 5, 2 * CHUNK + 7).drawings
    for row in (5, CHUNK - 1, CHUNK, CHUNK + 4, CHUNK + 5, 2 * CHUNK + 6):
        assert np.array_equal(whole[row - 5], source.read(1, row, row + 1).drawings[0]), row


def test_a_drawing_does_not_depend_on_the_numbers_of_classes_and_drawings() -> None:
    few = synthetic.open_synthetic("synthetic:?classes=5&per_class=10")
    many = synthetic.open_synthetic("synthetic:?classes=50&per_class=5000000")
    assert np.array_equal(few.read(4, 3, 9).drawings, many.read(4, 3, 9).drawings)
    assert many.read(4, 4_999_998, 5_000_000).drawings.any(axis=(1, 2)).all()


def test_a_selected_class_is_the_same_class() -> None:
    every = synthetic.open_synthetic("synthetic:?classes=12")
    some = synthetic.open_synthetic("synthetic:?classes=12", ["synthetic-011", "synthetic-002"])
    assert some.classes == ("synthetic-011", "synthetic-002")
    assert some.counts == (1000, 1000)
    assert np.array_equal(some.read(0, 0, 5).drawings, every.read(11, 0, 5).drawings)
    assert np.array_equal(some.read(1, 0, 5).drawings, every.read(2, 0, 5).drawings)


def test_seeds_give_other_classes_and_other_drawings() -> None:
    one, other = (synthetic.open_synthetic(f"synthetic:?seed={seed}") for seed in (0, 1))
    assert not np.array_equal(one.read(0, 0, 3).drawings, other.read(0, 0, 3).drawings)
    assert len({drawing.tobytes() for drawing in one.read(0, 0, 500).drawings}) == 500


def test_a_pickled_source_reads_the_same() -> None:
    source = synthetic.open_synthetic("synthetic:?classes=4", ["synthetic-003"])
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert np.array_equal(copy.read(0, 10, 20).drawings, source.read(0, 10, 20).drawings)


def test_the_bytes_never_change() -> None:
    """Shards, checksums and results quote these drawings: a change here is a new source.

    Whoever changes a knob or a template on purpose writes the new number here and measures the
    accuracies named in `synthetic` again.
    """
    source = synthetic.open_synthetic("synthetic:?classes=345&seed=7")
    crc = 0
    for label in (0, 1, 19, 200, 344):
        crc = zlib.crc32(source.read(label, 0, 64).drawings.tobytes(), crc)
    assert crc == 0x2A8EABA7


def test_345_classes_look_like_real_drawings() -> None:
    source = synthetic.open_synthetic("synthetic:?classes=345")
    inks: list[float] = []
    seen: set[bytes] = set()
    for label in range(345):
        drawings = source.read(label, 0, 8).drawings
        assert not drawings[:, [0, -1]].any()
        assert not drawings[:, :, [0, -1]].any()
        ink = (drawings > 0).mean(axis=(1, 2))
        assert ink.min() > 0.05  # none is blank
        assert (drawings.max(axis=(1, 2)) == 255).all()
        inks.append(float(ink.mean()))
        seen.update(drawing.tobytes() for drawing in drawings)
    assert len(seen) == 345 * 8
    assert 0.17 < np.mean(inks) < 0.26
    assert np.percentile(inks, 5) > 0.14
    assert np.percentile(inks, 95) < 0.28
    assert np.std(inks) > 0.015  # classes differ in how much there is to draw


def test_drawings_are_fitted_and_centred() -> None:
    """Ink reaches the official margin on both ends of the longer side, and only there."""
    drawings = synthetic.open_synthetic("synthetic:").read(0, 0, 200).drawings
    for drawing in drawings:
        rows, columns = (np.flatnonzero(drawing.any(axis=axis)) for axis in (1, 0))
        longer = max(rows, columns, key=np.ptp)
        assert (longer[0], longer[-1]) == (1, 26)
        for side in (rows, columns):
            assert abs(side[0] + side[-1] - 27) <= 1


def test_pixels_give_a_class_away_only_in_part() -> None:
    """The nearest mean drawing is far above chance and far below sure."""
    source = synthetic.open_synthetic("synthetic:?classes=20")
    rows = np.stack([source.read(label, 0, 500).drawings for label in range(20)])
    train, held_out = np.split(rows.reshape(20, 500, -1) / 255, [400], axis=1)
    means = train.mean(axis=1)  # (20, 784)
    scores = held_out.reshape(-1, 784) @ means.T - (means**2).sum(axis=1) / 2
    right = (scores.argmax(axis=1) == np.repeat(np.arange(20), 100)).mean()
    assert 0.25 < right < 0.70


POOL = "synthetic:?classes=3&per_class=4000&pool=16"


def _moved(drawing: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Moved by at most 3 pixels each way; what goes over an edge is lost."""
    return np.pad(drawing, 3)[3 - down : 31 - down, 3 - right : 31 - right]


@pytest.mark.parametrize("label", [0, 2])
def test_a_pool_is_the_first_drawings_moved_within_their_margins(label: int) -> None:
    originals = synthetic.open_synthetic("synthetic:?classes=3").read(label, 0, 16).drawings
    copies = [
        _moved(drawing, down, right)
        for drawing in originals
        for down in range(-3, 4)
        for right in range(-3, 4)
        if _moved(drawing, down, right)[1:-1, 1:-1].sum() == drawing.sum()  # all ink, off the ring
    ]
    drawings = synthetic.open_synthetic(POOL).read(label, 0, 4000).drawings
    assert drawings.shape == (4000, 28, 28)
    assert drawings.dtype == np.uint8
    # None other, and with 4,000 rows for about 100 copies all of them.
    assert {drawing.tobytes() for drawing in drawings} == {copy.tobytes() for copy in copies}
    assert 16 < len(copies) < 16 * 7**2


@settings(max_examples=15)
@given(
    label=st.integers(0, 2),
    cuts=st.lists(st.integers(0, 4000), min_size=2, max_size=4).map(sorted),
)
def test_a_slice_of_a_pool_is_its_rows(label: int, cuts: list[int]) -> None:
    source = synthetic.open_synthetic(POOL)
    pieces = [source.read(label, a, b).drawings for a, b in pairwise(cuts)]
    assert np.array_equal(source.read(label, cuts[0], cuts[-1]).drawings, np.concatenate(pieces))


def test_a_pool_is_counter_based_as_the_rest() -> None:
    few = synthetic.open_synthetic(POOL)
    many = synthetic.open_synthetic(
        "synthetic:?classes=50&per_class=4294967296&pool=16", ["synthetic-049", "synthetic-001"]
    )
    assert np.array_equal(few.read(1, 3, 90).drawings, many.read(1, 3, 90).drawings)
    assert many.read(0, 2**32 - 2, 2**32).drawings.any(axis=(1, 2)).all()
    other_seed = synthetic.open_synthetic(POOL + "&seed=8")
    other_pool = synthetic.open_synthetic(POOL.replace("16", "17"))
    sources = (few, other_seed, other_pool, synthetic.open_synthetic("synthetic:"))
    assert len({source.identity for source in sources}) == 4
    assert len({source.read(1, 0, 9).drawings.tobytes() for source in sources}) == 4
    assert pickle.loads(pickle.dumps(few)) == few


def test_a_pool_renders_once_and_no_more_than_it_has() -> None:
    """A pool is rendered once, however many ranges are read from it."""
    synthetic._pool.cache_clear()
    source = synthetic.open_synthetic("synthetic:?classes=2&per_class=100000&pool=1&seed=91")
    for start in range(0, 100_000, 10_000):
        source.read(1, start, start + 100)
    assert synthetic._pool.cache_info().misses == 1
    assert synthetic._pool(91, 1, 1).line.nbytes < 2 * (784 + 100)


def test_the_bytes_of_a_pool_never_change() -> None:
    source = synthetic.open_synthetic("synthetic:?classes=345&per_class=official&seed=7&pool=64")
    crc = 0
    for label in (0, 19, 344):
        crc = zlib.crc32(source.read(label, 100_000, 100_064).drawings.tobytes(), crc)
    assert crc == 0x3504704D


def test_the_official_counts() -> None:
    source = open_source("synthetic:?per_class=official&pool=8")
    assert source.classes[0] == "synthetic-000"  # nobody takes it for real drawings
    assert source.counts == tuple(entry.drawings for entry in official())
    assert sum(source.counts) == 50_426_266
    assert source.identity == "synthetic, seed 7, pool 8"
    some = open_source("synthetic:?per_class=official", ["synthetic-344", "synthetic-002"])
    assert some.counts == (source.counts[344], source.counts[2])
    last = source.counts[344]
    assert some.read(0, last - 1, last).drawings.any()
    with pytest.raises(IndexError, match=f"of {last}"):
        some.read(0, last, last + 1)


def test_a_share_of_the_official_counts() -> None:
    whole = open_source("synthetic:?per_class=official").counts
    assert open_source("synthetic:?per_class=official*1").counts == whole
    hundredth = open_source("synthetic:?per_class=official*0.01").counts
    assert hundredth == tuple(round(count / 100) for count in whole)
    assert set(open_source("synthetic:?per_class=official*.000001").counts) == {1}


@pytest.mark.parametrize(
    ("query", "problem", "remedy"),
    [
        ("clases=3", "'clases'. Did you mean 'classes'", "synthetic:?classes=20"),
        ("classes=0", "classes=0 is no whole number from 1 to 65536", "classes=20"),
        ("classes=-3", "classes=-3", "classes=20"),
        ("classes=65537", "classes=65537", "classes=20"),
        ("per_class=1e3", "per_class=1e3 is no whole number", "per_class=official"),
        ("per_class=", "per_class= is no", "per_class=1000"),
        ("per_class=1.5", "per_class=1.5", "per_class=1000"),
        ("per_class=oficial", "per_class=oficial", "per_class=official"),
        ("per_class=official*2", "per_class=official*2", "per_class=official*0.01"),
        ("per_class=official*0.0", "per_class=official*0.0", "above 0"),
        ("per_class=official*", "per_class=official*", "official*0.01"),
        ("classes=official", "classes=official is no whole number", "classes=20"),
        ("classes=20&per_class=official", "classes=20, but official counts exist for", "Remove"),
        ("per_class=official&per_class=3", "'per_class' is set twice", "synthetic:?"),
        ("pool=-1", "pool=-1 is no whole number from 0 to 4096", "pool=64"),
        ("pool=5000", "pool=5000", "pool=64"),
        ("pol=64", "Did you mean 'pool'", "synthetic:?"),
        ("seed=x", "seed=x", "seed=7"),
        ("seed=²", "seed=²", "seed=7"),
        ("seed=" + "9" * 5000, "seed=999", "seed=7"),
        ("seed=1&seed=2", "'seed' is set twice", "synthetic:?"),
        ("per_class", "per_class= is no", "per_class=1000"),
    ],
)  # fmt: skip
def test_a_wrong_url_is_refused(query: str, problem: str, remedy: str) -> None:
    with pytest.raises(RefusedError) as refused:
        synthetic.open_synthetic(f"synthetic:?{query}")
    assert refused.value.value == f"synthetic:?{query}"
    assert problem in refused.value.problem
    assert remedy in refused.value.remedy


def test_a_malformed_url_is_refused() -> None:
    with pytest.raises(RefusedError) as refused:
        synthetic.open_synthetic("synthetic:classes=3")
    assert "synthetic:?classes=20" in refused.value.remedy


def test_wrong_classes_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"Did you mean 'synthetic-0") as caught:
        synthetic.open_synthetic("synthetic:", ["synthetic-001", "synthetic-02"])
    assert (caught.value.subject, caught.value.value) == ("--shard.classes", "synthetic-02")
    with pytest.raises(RefusedError, match="named twice"):
        open_source("synthetic:", ["synthetic-001", "synthetic-001"])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11), (11, 12)])
def test_rows_that_are_not_there(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="of 10"):
        synthetic.open_synthetic("synthetic:?per_class=10").read(0, start, stop)
