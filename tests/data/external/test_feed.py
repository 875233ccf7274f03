"""Batches of external tars: which drawings, in which order, and what the run prints."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quickdraw_dist.data.drawings.classes import official_names
from quickdraw_dist.data.external.shards import open_shards
from tests.support.data.datasets import Dataset
from tests.support.data.tars import (
    LAYOUTS,
    SAVED,
    STOCK,
    block_of,
    delivered,
    make_settings,
    open_feed,
    sequence,
    write_shards,
    write_tar,
)
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

pytestmark = pytest.mark.usefixtures("no_thread_left")


# -- what is delivered -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STOCK)
def test_an_epoch_of_stock_tars(tmp_path: Path, kind: str) -> None:
    """Every drawing with its own label, none twice; every epoch skips other ones."""
    labels = write_shards(tmp_path, [13, 25, 9], *STOCK[kind])
    feed = open_feed(make_settings(tmp_path))
    assert (feed.drawings, feed.steps, feed.lanes) == (47, 4, 0)
    assert feed.dataset.classes == official_names()
    epochs = [delivered(feed.epoch(epoch)) for epoch in range(3)]
    for drawings in epochs:
        assert len(drawings) == 40 and dict(drawings).items() <= labels.items()
        assert len(set(drawings)) == 40
    assert len({frozenset(drawings) for drawings in epochs}) == 3
    assert [label for _, label in epochs[0]] != [label for _, label in epochs[1]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_own_shards_as_external_data(of_layout: Callable[[str], Dataset], layout: str) -> None:
    """Splits are taken from the folders, the manifest is not read; blocks keep their rows; a small
    sample is measured exactly as the manifest says."""
    made = of_layout(layout)
    feed = open_feed(make_settings(made.folder, batch=90, class_names=made.manifest.classes))
    assert feed.drawings == made.manifest.drawings("train") == 1800
    assert feed.dataset.pixel_mean == pytest.approx(made.manifest.pixel_mean, rel=1e-12)
    assert feed.dataset.pixel_std == pytest.approx(made.manifest.pixel_std, rel=1e-12)
    batches = list(feed.epoch(0))
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    rows = np.concatenate([batch.rows for batch in batches])
    drawings = np.concatenate([batch.drawings.numpy() for batch in batches])
    assert len(drawings) == 1800
    if layout == "per_drawing":  # rows are hashed keys: any number, but a drawing's own
        again = {int(row) for batch in feed.epoch(1) for row in batch.rows}
        assert again == set(rows.tolist()) and len(again) == 1800
    else:
        assert set(zip(labels.tolist(), rows.tolist(), strict=True)) == made.identities("train")
        assert np.array_equal(drawings, made.pixels(labels, rows))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_validation_has_every_drawing_once(tmp_path: Path, size: int) -> None:
    """Over all ranks, also where some have fewer shards, or none."""
    write_shards(tmp_path / "train", [10] * size)
    labels = write_shards(tmp_path / "elsewhere", [15, 4])
    pattern = str(tmp_path / "elsewhere" / "x-*.tar")
    made = make_settings(tmp_path, epoch_drawings=10, validation_data=pattern)
    found: list[tuple[bytes, int]] = []
    for rank in range(size):
        validation = open_feed(made, rank, size, saved=SAVED).validation()
        assert validation is not None
        batches = list(validation)
        assert all(len(batch.labels) == 7 for batch in batches[:-1])
        found += delivered(iter(batches))
    assert dict(found) == labels and len(found) == len(labels)


# -- equal steps, any number of ranks --------------------------------------------------------------


def test_equal_steps_on_uneven_ranks(tmp_path: Path) -> None:
    """The rank with few drawings repeats them, each as often as the others of its own or once
    more, in another order; no rank reads another's shards."""
    write_shards(tmp_path, [5, 40, 6])
    feeds = [open_feed(make_settings(tmp_path, epoch_drawings=51), rank, 2) for rank in range(2)]
    parts = [list(feed.epoch(0)) for feed in feeds]
    assert [len(batches) for batches in parts] == [5, 5]
    few, many = (Counter(delivered(iter(batches))) for batches in parts)
    assert sum(few.values()) == sum(many.values()) == 25
    assert len(few) == 11 and set(few.values()) == {2, 3}
    assert set(many.values()) == {1} and not few.keys() & many.keys()
    sequence = delivered(iter(parts[0]))
    assert sequence[:11] != sequence[11:22]


# -- what the sequence depends on ------------------------------------------------------------------


def test_the_same_start_gives_the_same_sequence(tmp_path: Path) -> None:
    """Seed, epoch, first step and rank decide; nothing else does."""
    write_shards(tmp_path, [30, 30, 30, 30])
    made = make_settings(tmp_path, epoch_drawings=120)
    first = sequence(open_feed(made), epoch=1)
    assert first == sequence(open_feed(made), epoch=1)
    assert sequence(open_feed(made), 1, first_step=4) == sequence(open_feed(made), 1, first_step=4)
    others = [
        first[4:],
        sequence(open_feed(made), 1, first_step=4),
        sequence(open_feed(make_settings(tmp_path, seed=2, epoch_drawings=120)), 1)[4:],
        sequence(open_feed(made), 2)[4:],
        sequence(open_feed(made, 0, 2), 1)[4:],
        sequence(open_feed(made, 1, 2), 1)[4:],
    ]
    assert [len(other) for other in others] == [8] * 6
    assert len({tuple(other) for other in others}) == 6


def test_values_of_the_order(tmp_path: Path) -> None:
    """The same on every machine; a webdataset that shuffles in another way is noticed here."""
    for shard in range(3):
        write_tar(tmp_path / f"x-{shard}.tar", [block_of(range(8 * shard, 8 * shard + 8))])
    batches = open_feed(make_settings(tmp_path)).epoch(0)
    assert [batch.rows.tolist() for batch in batches] == [
        [16, 17, 7, 19, 5, 6, 1, 15, 11, 4],
        [0, 2, 22, 23, 20, 8, 12, 14, 10, 3],
    ]


def test_resuming_measures_nothing_again(store: Store, tmp_path: Path) -> None:
    """Count and normalisation are the checkpoint's, while the shards are the same ones."""
    write_shards(tmp_path, [20, 20])
    made = make_settings(store.upload(tmp_path, "gs://bucket/some"))
    feed = open_feed(made)
    saved = SAVED | {"dataset_digest": feed.dataset.digest, "epoch_drawings": 31}
    store.requests.clear()
    again = open_feed(made, saved=saved)
    assert store.media_reads("") == 0
    assert (again.drawings, again.steps) == (31, 3)
    assert (again.dataset.pixel_mean, again.dataset.pixel_std) == (0.25, 0.5)
    # Other shards are counted, and so are those of a run with --stream.epoch_drawings.
    assert open_feed(made, saved=saved | {"dataset_digest": "other"}).drawings == 40
    told = {"config": {"stream": {"epoch_drawings": 31}}}
    assert open_feed(made, saved=saved | told).drawings == 40


def test_digest_is_of_names_and_sizes(tmp_path: Path) -> None:
    """A copy elsewhere is the same dataset, one with another or longer shard is not."""
    for folder, sizes in (("a", [5, 6]), ("b", [5, 6]), ("c", [5, 12]), ("d", [5, 6, 7])):
        write_shards(tmp_path / folder, sizes)
    found = {name: open_shards(make_settings(tmp_path / name)).digest for name in "abcd"}
    assert found["a"] == found["b"]
    assert len(set(found.values())) == 3


# -- from a store ----------------------------------------------------------------------------------


def test_from_a_store_through_our_retries(store: Store, tmp_path: Path) -> None:
    """The same batches as from the disk, though every other request fails."""
    write_shards(tmp_path, [20, 20])
    expected = sequence(open_feed(make_settings(tmp_path)), 0)
    url = store.upload(tmp_path, "gs://bucket/some/tars")
    calls = itertools.count()

    def sometimes(request: Request) -> Response | None:
        return Response(503, body=b"busy") if next(calls) % 2 else None

    store.intercept = sometimes
    assert sequence(open_feed(make_settings(f"{url}/x-{{000..001}}.tar")), 0) == expected
    assert sequence(open_feed(make_settings(f"{url}/x-*.tar")), 0) == expected


# -- what the run prints ---------------------------------------------------------------------------


def test_what_it_cannot_promise_is_printed(tmp_path: Path) -> None:
    """At the start of a run, and more where it resumes inside an epoch."""
    write_shards(tmp_path, [25, 25])
    feed = open_feed(make_settings(tmp_path, memory_bytes=10_000_000))
    said = "\n".join(feed.start_lines(0))
    for part in (
        "50 drawings (all, as counted) of 2 shards, 5 steps of 10",
        "up to 10,120 drawings (--stream.memory_bytes)",
        "webdataset 1.",
        "not promise that a drawing comes exactly once per epoch",
        "names and sizes only",
        "no validation split",
    ):
        assert part in said
    assert "again" not in said
    (line,) = set(feed.start_lines(2)) - set(feed.start_lines(0))
    assert "the 3 steps left in this epoch are shuffled again" in line
    told = open_feed(make_settings(tmp_path, epoch_drawings=20))
    assert "20 drawings (as --stream.epoch_drawings says)" in told.start_lines(0)[0]


def test_leaving_early_ends_the_thread(tmp_path: Path) -> None:
    """At once, not when it is done: after the first batches, before them, and at the end."""
    write_shards(tmp_path, [300])
    feed = open_feed(make_settings(tmp_path, batch=3))
    for taken in (0, 1, 2, 100):
        batches = feed.epoch(0)
        assert len(list(itertools.islice(batches, taken))) == taken
        batches.close()
        assert "loader" not in [thread.name for thread in threading.enumerate()]
