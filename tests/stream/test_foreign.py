"""Foreign tars: what is found, read, refused and delivered, from tars that webdataset wrote."""

from __future__ import annotations

import gzip
import io
import itertools
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraw_dist.classes import official_names
from quickdraw_dist.config import Settings
from quickdraw_dist.distributed import World
from quickdraw_dist.errors import CorruptError, RefusedError
from quickdraw_dist.stream.batch import Batch
from quickdraw_dist.stream.feed import open_dataset, refuse_misfit
from quickdraw_dist.stream.foreign import find_shards, open_shards
from quickdraw_dist.stream.foreign_feed import ForeignFeed
from quickdraw_dist.stream.foreign_samples import read_samples
from quickdraw_dist.stream.foreign_shuffle import ShuffledPasses
from tests.gcs_server import Request, Response

if TYPE_CHECKING:
    from tests.conftest import Dataset, Store

pytestmark = pytest.mark.usefixtures("no_thread_left")

Pixels = NDArray[np.uint8]
Counts = dict[bytes, int]

LAYOUTS: dict[str, dict[str, object]] = {
    "per_drawing": {"layout": "per_drawing"},
    "gzip blocks": {},
    "plain blocks": {"compression": "none"},
}
STOCK: dict[str, tuple[Any, ...]] = {"png": ("png",), "npy": ("npy",), "flat npy": ("npy", 784)}


def make_drawings(count: int, seed: int = 0) -> tuple[Pixels, list[int]]:
    """Drawings of which no two are alike, (count, 28, 28), and a label of 0 to 4 for each."""
    drawings = np.random.default_rng(seed).integers(0, 256, (count, 28, 28)).astype(np.uint8)
    return drawings, [int(d[0, 0]) % 5 for d in drawings]


def write_tar(path: Path, samples: Sequence[dict[str, Any]]) -> Path:
    """A tar as the webdataset package writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=True, mtime=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{path.stem}/{number:05d}"} | sample)
    return path


def write_shards(folder: Path, sizes: Sequence[int], member: str = "npy", *shape: int) -> Counts:
    """Stock-written shards x-000.tar and so on; returns the label of every drawing's bytes."""
    labels: dict[bytes, int] = {}
    for shard, size in enumerate(sizes):
        drawings, classes = make_drawings(size, seed=shard)
        labels |= {d.tobytes(): c for d, c in zip(drawings, classes, strict=True)}
        samples = [
            {member: d.reshape(shape) if shape else d, "cls": c}
            for d, c in zip(drawings, classes, strict=True)
        ]
        write_tar(folder / f"x-{shard:03d}.tar", samples)
    return labels


def make_settings(data: str | Path, batch: int = 10, seed: int = 1, **stream: Any) -> Settings:
    """Of a run with the webdataset reader."""
    train = {"global_batch": batch, "seed": seed}
    evaluation = {"batch": 7}
    names = {"reader": "webdataset"} | stream
    return Settings(data=str(data), stream=names, train=train, evaluation=evaluation)  # type: ignore[arg-type]


def world_of(rank: int = 0, size: int = 1) -> World:
    """A rank of so many, on the processor, that has met no other."""
    return World(rank, size, rank, size, torch.device("cpu"))


def open_feed(made: Settings, rank: int = 0, size: int = 1, **more: Any) -> ForeignFeed:
    """A rank's feed."""
    return ForeignFeed(made, open_shards(made), world_of(rank, size), **more)


def delivered(batches: Iterator[Batch]) -> list[tuple[bytes, int]]:
    """Pixels and label of every drawing, in order."""
    return [
        (pixels.numpy().tobytes(), int(label))
        for batch in batches
        for pixels, label in zip(batch.drawings, batch.labels, strict=True)
    ]


def sequence(feed: ForeignFeed, epoch: int, first_step: int = 0) -> list[tuple[int, ...]]:
    """Rows of every batch."""
    return [tuple(batch.rows.tolist()) for batch in feed.epoch(epoch, first_step)]


# -- what is delivered -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STOCK)
def test_an_epoch_of_stock_tars(tmp_path: Path, kind: str) -> None:
    """Every drawing with its own label, none twice, other ones left out in other epochs."""
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


@pytest.fixture(scope="module")
def ours(make_dataset: Callable[..., Dataset]) -> Callable[[str], Dataset]:
    """The small dataset in each layout, without its manifest."""
    made: dict[str, Dataset] = {}

    def get(layout: str) -> Dataset:
        if layout not in made:
            made[layout] = make_dataset(**LAYOUTS[layout])
            Path(made[layout].folder, "manifest.json").unlink()
        return made[layout]

    return get


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_own_shards_without_a_manifest(ours: Callable[[str], Dataset], layout: str) -> None:
    """Splits are taken from the folders; blocks keep their rows; a small sample is measured
    exactly as the manifest says."""
    made = ours(layout)
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


SAVED: dict[str, Any] = {
    "dataset_digest": "",
    "config": {"stream": {"epoch_drawings": 0}},
    "normalisation": {"mean": 0.25, "std": 0.5},
}
"""Of a checkpoint; with its values nothing is measured."""


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


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    capacity=st.integers(1, 60),
    draws=st.lists(st.integers(1, 40), min_size=1, max_size=12),
)
def test_every_pass_has_every_drawing_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], capacity: int, draws: list[int]
) -> None:
    """Whatever the sizes of shards, memory and batches; blocks are cut where they have to be."""
    folder = tmp_path_factory.mktemp("passes")
    total = sum(sizes)
    firsts = itertools.accumulate([0, *sizes])
    urls = [
        str(write_tar(folder / f"{at}.tar", [block_of(range(first, first + size))] if size else []))
        for at, (first, size) in enumerate(zip(firsts, sizes, strict=False))
    ]
    passes = ShuffledPasses(urls, 5, capacity, key=7)
    taken: list[int] = []
    for count in draws:
        arrays = np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint16)
        rows = np.zeros(count, np.uint32)
        if not total:
            with pytest.raises(CorruptError, match="no drawings in any"):
                passes.draw(*arrays, rows)
            return
        passes.draw(*arrays, rows)
        assert np.array_equal(arrays[1], rows % 5) and np.array_equal(arrays[0][:, 0, 0], rows)
        taken += rows.tolist()
    for start in range(0, len(taken), total):
        one = taken[start : start + total]
        assert len(set(one)) == len(one)


def block_of(rows: range) -> dict[str, NDArray[Any]]:
    """A block whose pixels and labels follow from its rows."""
    numbers = np.array(rows)
    pixels = np.broadcast_to(numbers[:, None, None], (len(rows), 28, 28)).astype(np.uint8)
    return {
        "drawings.npy": pixels,
        "labels.npy": (numbers % 5).astype(np.uint16),
        "rows.npy": numbers.astype(np.uint32),
    }


def test_shuffles_as_far_as_memory_goes(tmp_path: Path) -> None:
    """Of 20 blocks in a row, all of one class each, a batch has nearly all with memory for all,
    and few with memory for few."""
    blocks = [block_of(range(50 * at, 50 * at + 50)) for at in range(20)]
    url = str(write_tar(tmp_path / "x.tar", blocks))
    reached = {}
    for capacity in (100, 1000):
        passes = ShuffledPasses([url], 5, capacity, key=1)
        rows = np.zeros(50, np.uint32)
        for _ in range(8):
            passes.draw(np.zeros((50, 28, 28), np.uint8), np.zeros(50, np.uint16), rows)
        reached[capacity] = len(set((rows // 50).tolist()))
    assert reached[100] < 10 < 14 <= reached[1000]


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
    """The same in every release: a run may go on after an update."""
    for shard in range(3):
        write_tar(tmp_path / f"x-{shard}.tar", [block_of(range(8 * shard, 8 * shard + 8))])
    batches = open_feed(make_settings(tmp_path)).epoch(0)
    assert [batch.rows.tolist() for batch in batches] == [
        [22, 13, 0, 3, 8, 12, 4, 18, 6, 16],
        [7, 23, 5, 11, 20, 9, 21, 1, 17, 14],
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
    # Other shards are counted, and so are those of a run that was told what an epoch is.
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


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", "a/x-000 a/x-001 a/x-002"),
        ("a/x-{000..001}.tar", "a/x-000 a/x-001"),
        ("a/x-002.tar", "a/x-002"),
        ("a/x-*[12].tar", "a/x-001 a/x-002"),
        ("{a,b}/x-000.tar", "a/x-000 b/x-000"),
        ("a/x-002.tar::ROOT/b", "a/x-002 b/x-000"),
        ("none", ""),
        ("a/y-{000..001}.tar", ""),
    ],
)
@pytest.mark.parametrize("where", ["disk", "store"])
def test_patterns(store: Store, tmp_path: Path, where: str, pattern: str, names: str) -> None:
    """Folders, lists and wildcards name the same shards on a disk and in a store."""
    for name in ("a/x-000", "a/x-001", "a/x-002", "a/._x-000", "b/x-000"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.tar").write_bytes(bytes(1024))
    root = str(tmp_path)
    if where == "store":
        root = store.upload(tmp_path, "gs://bucket/tars")
    found = find_shards(f"{root}/{pattern.replace('ROOT', root)}")
    assert [shard.url for shard in found] == [f"{root}/{name}.tar" for name in names.split()]
    assert all(shard.bytes == 1024 for shard in found)


def refusal(call: Callable[[], object]) -> str:
    """What a refused call says."""
    with pytest.raises(RefusedError) as refused:
        call()
    return str(refused.value)


def test_shards_that_are_not_there(tmp_path: Path) -> None:
    """A hole in a list, a folder without tars, a malformed list: each is named."""
    write_shards(tmp_path / "a", [3, 3])
    said = refusal(lambda: find_shards(f"{tmp_path}/a/x-{{000..003}}.tar"))
    assert "2 of 4 are not there, such as" in said and "x-002.tar" in said
    said = refusal(lambda: open_shards(make_settings(tmp_path / "b")))
    assert f"--data {tmp_path / 'b'}: no .tar file there" in said
    said = refusal(lambda: open_shards(make_settings(f"{tmp_path}/a/x-{{000..001.tar")))
    assert "x-{000..001.tar" in said
    made = make_settings(tmp_path / "a", validation_data=str(tmp_path / "b"))
    assert "--stream.validation_data" in refusal(lambda: open_shards(made))


def test_splits_by_folder(tmp_path: Path) -> None:
    """train/ and val/ are the splits; without them all is train; both kinds at once is unclear."""
    write_shards(tmp_path / "train", [3, 3])
    write_shards(tmp_path / "val", [3])
    both = open_shards(make_settings(tmp_path))
    assert [len(both.train), len(both.val)] == [2, 1]
    alone = open_shards(make_settings(tmp_path / "train"))
    assert alone.train == both.train and alone.val == ()
    assert open_feed(make_settings(tmp_path / "train", batch=3)).validation() is None
    write_shards(tmp_path, [3])
    said = refusal(lambda: open_shards(make_settings(tmp_path)))
    assert "holds .tar files and a folder train/" in said and str(tmp_path / "train") in said


# -- what is refused before anything is read -------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "batch", "ranks", "parts"),
    [
        ({"resident": True}, 8, 1, ["--stream.resident true", "false is right"]),
        ({}, 8, 4, ["3 shards", "fewer than the 4 ranks", "3 ranks at most", "4 shards or more"]),
        ({}, 2, 3, ["--train.global_batch 2", "3 ranks", "--train.global_batch 3 or more"]),
        ({"epoch_drawings": 7}, 8, 1, ["--stream.epoch_drawings 7", "--train.global_batch of 8"]),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, stream: dict[str, Any], batch: int, ranks: int, parts: list[str]
) -> None:
    """With the setting, its value, and what would be right."""
    write_shards(tmp_path, [5, 5, 5])
    made = make_settings(tmp_path, batch=batch, **stream)
    said = refusal(lambda: refuse_misfit(made, open_dataset(made), ranks))
    for part in parts:
        assert part in said


def test_too_few_drawings_or_too_little_memory(tmp_path: Path) -> None:
    """Known only when the shards are."""
    write_shards(tmp_path, [5, 5])
    said = refusal(lambda: open_feed(make_settings(tmp_path, batch=11)))
    assert "--train.global_batch 11" in said and "only 10 drawings; at most 10" in said
    said = refusal(lambda: open_feed(make_settings(tmp_path, memory_bytes=30_000)))
    assert "--stream.memory_bytes 30000" in said and "39,740 bytes" in said
    least = open_feed(make_settings(tmp_path, memory_bytes=39_740))
    assert len(set(delivered(least.epoch(0)))) == 10


def test_the_default_reader_tells_of_this_one(tmp_path: Path, ours: Callable[..., Any]) -> None:
    """Where there are tars and nothing of ours; not where sharding has only begun. Settings of
    this reader without it are a mistake."""
    write_shards(tmp_path / "tars", [5])
    shards: dict[str, Any] = {"reader": "shards"}
    said = refusal(lambda: open_dataset(make_settings(tmp_path / "tars", **shards)))
    assert "make shard DEST=" in said and "--stream.reader webdataset" in said
    begun = Path(ours("gzip blocks").folder)
    assert "webdataset" not in refusal(lambda: open_dataset(make_settings(begun, **shards)))
    assert "webdataset" not in refusal(lambda: open_dataset(make_settings(tmp_path, **shards)))
    wrong = make_settings(tmp_path, reader="shards", epoch_drawings=100)
    said = refusal(lambda: open_dataset(wrong))
    assert "--stream.epoch_drawings 100" in said and "--stream.reader webdataset" in said


# -- samples that cannot be trained on -------------------------------------------------------------


def npy(array: NDArray[Any], pickled: bool = False) -> bytes:
    """The bytes of an .npy file."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=pickled)
    return data.getvalue()


GOOD = np.zeros((28, 28), np.uint8)


@pytest.mark.parametrize(
    ("sample", "parts"),
    [
        ({"png": np.zeros((28, 28, 3), np.uint8), "cls": 1}, [".png: 28 x 28", "mode RGB"]),
        ({"png": np.zeros((32, 30), np.uint8), "cls": 1}, [".png: 30 x 32 pixels of mode L"]),
        ({"png": b"no picture", "cls": 1}, [".png: cannot identify"]),
        ({"npy": np.zeros((32, 32), np.uint8), "cls": 1}, [".npy: uint8 of shape (32, 32)"]),
        ({"npy": np.zeros((28, 28), np.float32), "cls": 1}, [".npy: float32", "uint8 of shape"]),
        ({"npy": npy(np.array([{}], object), pickled=True), "cls": 1}, [".npy: not an npy"]),
        ({"npy": b"", "cls": 1}, [".npy: not an npy array"]),
        ({"npy": GOOD, "cls": 5}, ["label 5", "5 classes (0 to 4)", "--stream.class_names"]),
        ({"npy": GOOD, "cls": -1}, ["label -1"]),
        ({"npy": GOOD, "cls": b"cat"}, [".cls: b'cat'"]),
        ({"npy": GOOD}, ["has .npy; .png or .npy with .cls"]),
        ({"jpg": b"...", "cls": 1}, ["has .cls, .jpg; "]),
        ({"drawings.npy": GOOD[None], "labels.npy": np.array([0.5])}, ["labels.npy: float64"]),
        ({"drawings.npy": GOOD[None], "labels.npy": np.array([1, 2])}, ["shape (2, 28, 28)"]),
        ({"drawings.npy": GOOD[None], "labels.npy": np.array([9])}, ["label 9"]),
        ({"drawings.npy.gz": b"\x1f\x8b", "labels.npy.gz": b"\x1f\x8b"}, ["labels.npy.gz: not"]),
        (
            {"drawings.npy": GOOD[None], "labels.npy": np.array([1]), "rows.npy": np.zeros(2, int)},
            ["rows.npy: int64 of shape (2,)", "(1,)"],
        ),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, sample: dict[str, Any], parts: list[str]) -> None:
    """Shard, key and member, what is wrong and what would be right; it is never skipped."""
    good = {"npy": GOOD, "cls": 1}
    url = write_tar(tmp_path / "x.tar", [good, good, good, sample])
    made = make_settings(tmp_path, batch=4, class_names=tuple("abcde"), epoch_drawings=4)
    with pytest.raises(CorruptError) as refused:
        list(open_feed(made, saved=SAVED).epoch(0))
    for part in [f"{url}: x/00003", *parts]:
        assert part in str(refused.value)


def test_a_bad_label_is_found_while_counting(tmp_path: Path) -> None:
    """Not hours later."""
    write_tar(tmp_path / "x.tar", [{"npy": GOOD, "cls": 345}])
    with pytest.raises(CorruptError, match="label 345, but there are 345 classes"):
        open_feed(make_settings(tmp_path, batch=1))


def test_other_members_and_files_do_not_matter(tmp_path: Path) -> None:
    """Text beside the drawings, and files without a key."""
    path = tmp_path / "x.tar"
    write_tar(path, [{"npy": GOOD, "cls": 1, "json": {"by": "someone"}, "txt": "a line"}])
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("README"))
    assert len(delivered(open_feed(make_settings(tmp_path, batch=1)).epoch(0))) == 1


DAMAGES = ("cut at a header", "cut in a header", "cut in a payload", "damaged header")
NOT_TARS = ("no end", "empty", "no tar", "compressed")


@pytest.mark.parametrize("damage", DAMAGES + NOT_TARS)
def test_a_damaged_tar_is_named(tmp_path: Path, damage: str) -> None:
    """webdataset and tarfile take most of these for the end of the tar: that would lose the rest
    of it in silence."""
    write_shards(tmp_path, [4, 4])
    path = tmp_path / "x-001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    header, payload = members[4].offset, members[4].offset_data
    end = members[-1].offset_data + 512
    path.write_bytes(
        {
            "cut at a header": whole[:header],
            "cut in a header": whole[: header + 100],
            "cut in a payload": whole[: payload + 100],
            "damaged header": whole[:header] + b"#" + whole[header + 1 :],
            "no end": whole[:end],
            "empty": b"",
            "no tar": b"something else" * 1000,
            "compressed": gzip.compress(whole),
        }[damage]
    )
    with pytest.raises(CorruptError, match=f"{path}: (damaged|not a whole WebDataset tar)"):
        list(read_samples([str(tmp_path / "x-000.tar"), str(path)]))


def test_a_tar_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """Between the listing and its turn."""
    write_shards(tmp_path, [8, 8])
    feed = open_feed(make_settings(tmp_path))
    (tmp_path / "x-001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"x-001\.tar"):
        list(feed.epoch(0))


# -- what is said ----------------------------------------------------------------------------------


def test_what_it_cannot_promise_is_said(tmp_path: Path) -> None:
    """At the start of a run, and once more where it goes on inside an epoch."""
    write_shards(tmp_path, [25, 25])
    feed = open_feed(make_settings(tmp_path, memory_bytes=10_000_000))
    said = "\n".join(feed.describe(0))
    for part in (
        "50 drawings (all, as counted) of 2 shards, 5 steps of 10",
        "up to 12,617 together (--stream.memory_bytes)",
        "webdataset 1.",
        "not promise",
        "exactly once",
        "mid-epoch",
        "names and sizes only",
        "no validation split",
    ):
        assert part in said
    assert "anew" not in said
    (line,) = set(feed.describe(2)) - set(feed.describe(0))
    assert "the 3 steps that are left" in line and "shuffled anew" in line
    told = open_feed(make_settings(tmp_path, epoch_drawings=20))
    assert "20 drawings (as --stream.epoch_drawings says)" in told.describe(0)[0]


def test_leaving_early_ends_the_thread(tmp_path: Path) -> None:
    """At once, not when it is done: after the first batches, before them, and at the end."""
    write_shards(tmp_path, [300])
    feed = open_feed(make_settings(tmp_path, batch=3))
    for taken in (0, 1, 2, 100):
        batches = feed.epoch(0)
        assert len(list(itertools.islice(batches, taken))) == taken
        batches.close()
        assert "loader" not in [thread.name for thread in threading.enumerate()]
