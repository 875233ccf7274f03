"""The loader delivers what the order says, from real shards, with real threads and processes."""

from __future__ import annotations

import gc
import multiprocessing.context
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from quickdraw_dist.config import Stream
from quickdraw_dist.errors import CorruptError
from quickdraw_dist.shards import manifest
from quickdraw_dist.stream.loader import TrainLoader, evaluation_batches, reader_threads
from quickdraw_dist.stream.order import Order, Piece, mix_identities, rank_part
from quickdraw_dist.stream.reader import SplitReader
from tests.conftest import Dataset, DatasetMaker

WORLDS = (1, 2, 3, 4, 7, 8)

Identity = tuple[int, int]
"""(label, row)."""


@dataclass(frozen=True)
class Shape:
    """How an epoch of the small dataset's 1,800 training drawings is cut."""

    global_batch: int
    lanes: int
    window_blocks: int


USUAL = Shape(global_batch=96, lanes=8, window_blocks=2)
"""A step is a small part of a window of 64; the epoch leaves 72 drawings out."""

LONG_STEPS = Shape(global_batch=800, lanes=8, window_blocks=1)
"""A step takes 100 drawings of a lane, over several windows of at most 32."""

UNEVEN = Shape(global_batch=133, lanes=19, window_blocks=3)
"""Nothing divides: parts differ in size, and ranks share lanes."""


def open_reader(dataset: Dataset, split: str = "train") -> SplitReader:
    return SplitReader(dataset.folder, dataset.manifest, split, Stream())


def make_order(reader: SplitReader, shape: Shape, seed: int = 5) -> Order:
    return Order(reader.block_counts, shape.global_batch, shape.lanes, shape.window_blocks, seed)


def make_loader(
    reader: SplitReader, order: Order, rank: int = 0, world_size: int = 1, threads: int = 2,
    prefetch: int = 2,
) -> TrainLoader:  # fmt: skip
    return TrainLoader(
        reader, order, rank=rank, world_size=world_size, threads=threads, prefetch=prefetch,
        pin=False,
    )  # fmt: skip


@dataclass
class Delivered:
    """What ranks got in some steps of an epoch, copied out."""

    digest: int = 0
    identities: dict[tuple[int, int], list[Identity]] = field(default_factory=dict)
    pixels: dict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=dict)

    def in_order(self) -> list[Identity]:
        """Step after step, in each one rank after rank."""
        return [identity for key in sorted(self.identities) for identity in self.identities[key]]

    def pixels_in_order(self) -> NDArray[np.uint8]:
        return np.concatenate([self.pixels[key] for key in sorted(self.pixels)])


def deliver(
    dataset: Dataset, shape: Shape, world_size: int, epoch: int = 0, first_step: int = 0,
    last_step: int | None = None, threads: int = 2, prefetch: int = 2,
) -> Delivered:  # fmt: skip
    """Run all ranks of a world, one after the other, over steps of an epoch."""
    result = Delivered()
    for rank in range(world_size):
        reader = open_reader(dataset)
        order = make_order(reader, shape)
        loader = make_loader(reader, order, rank, world_size, threads, prefetch)
        start, stop = rank_part(shape.global_batch, rank, world_size)
        assert loader.part == (start, stop)
        step = first_step
        batches = loader.epoch(epoch, first_step)
        for batch in batches:
            assert batch.step == step
            assert batch.drawings.shape == (stop - start, 28, 28)
            assert batch.drawings.dtype == torch.uint8
            assert batch.labels.shape == (stop - start,)
            assert batch.labels.dtype == torch.int64
            pairs = zip(batch.labels.tolist(), batch.rows.tolist(), strict=True)
            result.identities[step, rank] = list(pairs)
            result.pixels[step, rank] = batch.drawings.numpy().copy()
            result.digest = (result.digest + batch.digest) % 2**64
            step += 1
            if step == last_step:
                batches.close()
                break
        assert step == (order.steps if last_step is None else last_step)
    return result


def expected(dataset: Dataset, shape: Shape, epoch: int = 0, first_step: int = 0) -> list[Identity]:
    """What `locate` says, looked up in shards that were read with tarfile and numpy alone."""
    order = make_order(open_reader(dataset), shape)
    stored = dataset.stored("train")
    positions = range(first_step * shape.global_batch, order.steps * shape.global_batch)
    return [stored[order.locate(epoch, position)] for position in positions]


def digest_of(identities: list[Identity], epoch: int, first: int = 0) -> int:
    labels, rows = zip(*identities, strict=True)
    return mix_identities(epoch, first, np.array(labels, np.uint16), np.array(rows, np.uint32))


@pytest.mark.parametrize("shape", [USUAL, LONG_STEPS, UNEVEN], ids=["usual", "long", "uneven"])
@pytest.mark.parametrize("world_size", WORLDS)
def test_every_world_delivers_what_locate_says(
    dataset: Dataset, world_size: int, shape: Shape
) -> None:
    """The promise of the design: the same drawings at the same steps, whoever delivers them."""
    for epoch in (0, 1):
        want = expected(dataset, shape, epoch)
        got = deliver(dataset, shape, world_size, epoch, threads=1 + world_size % 3)
        assert got.in_order() == want
        assert got.digest == digest_of(want, epoch)
        assert len(set(want)) == len(want)


def test_pixels_are_the_sources(dataset: Dataset) -> None:
    """A drawing that arrives under another's label or row would be trained on in silence."""
    for world_size, shape in ((1, USUAL), (3, LONG_STEPS), (7, UNEVEN)):
        got = deliver(dataset, shape, world_size, epoch=2)
        labels, rows = np.array(got.in_order()).T
        assert np.array_equal(got.pixels_in_order(), dataset.pixels(labels, rows))


@pytest.mark.parametrize("threads", range(1, 9))
def test_threads_and_prefetch_change_nothing(dataset: Dataset, threads: int) -> None:
    """The order must not depend on how fast anything is."""
    for prefetch in range(1, 5):
        got = deliver(dataset, USUAL, 1, epoch=3, threads=threads, prefetch=prefetch)
        assert got.in_order() == expected(dataset, USUAL, 3)


@pytest.mark.parametrize("world_size", [1, 3, 8])
@pytest.mark.parametrize("shape", [USUAL, LONG_STEPS, UNEVEN], ids=["usual", "long", "uneven"])
def test_resuming_anywhere(dataset: Dataset, world_size: int, shape: Shape) -> None:
    """A run that stops at any step and goes on with other ranks sees what it would have seen."""
    steps = make_order(open_reader(dataset), shape).steps
    want = expected(dataset, shape, 1)
    for first in sorted({1, steps // 2, steps - 1, steps} - {0}):
        before = deliver(dataset, shape, 2, 1, last_step=first)
        after = deliver(dataset, shape, world_size, 1, first_step=first)
        assert before.in_order() + after.in_order() == want
        assert (before.digest + after.digest) % 2**64 == digest_of(want, 1)


def test_one_loader_serves_epoch_after_epoch(dataset: Dataset) -> None:
    """The trainer keeps one loader, and its buffers, for the whole run."""
    reader = open_reader(dataset)
    loader = make_loader(reader, make_order(reader, USUAL))
    for epoch, first in ((0, 0), (1, 0), (1, 7), (0, 3)):
        got: list[Identity] = []
        for batch in loader.epoch(epoch, first):
            got += zip(batch.labels.tolist(), batch.rows.tolist(), strict=True)
        assert got == expected(dataset, USUAL, epoch, first)


@pytest.mark.parametrize("prefetch", [1, 2, 4])
def test_a_batch_is_valid_until_the_next(dataset: Dataset, prefetch: int) -> None:
    """Copies to the device read the buffer while the loader is already ahead."""
    reader = open_reader(dataset)
    loader = make_loader(reader, make_order(reader, USUAL), prefetch=prefetch)
    addresses = []
    ahead = deliver(dataset, USUAL, 1)
    for batch in loader.epoch(0):
        addresses.append(batch.drawings.data_ptr())
        for _ in range(3):  # look again and again while the producer fills the other buffers
            assert np.array_equal(batch.drawings.numpy(), ahead.pixels[batch.step, 0])
    assert len(set(addresses)) == prefetch + 1
    for at in range(len(addresses) - prefetch):
        assert len(set(addresses[at : at + prefetch + 1])) == prefetch + 1


class Slow(SplitReader):
    """A reader in which one piece takes long: until another one has been read, at most a second.

    The second is no limit on the test: a loader that waits for the first piece before it asks for
    the other one lets it pass, and is right.
    """

    held: Piece
    until: Piece
    released: threading.Event
    late: threading.Event

    def read(
        self, piece: Piece, drawings: NDArray[np.uint8], labels: NDArray[np.uint16],
        rows: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        if piece == self.held:
            self.released.wait(1.0)
        super().read(piece, drawings, labels, rows)
        if piece == self.held:
            self.late.set()
        if piece == self.until:
            self.released.set()
            self.late.wait(1.0)


def test_a_window_passed_over_is_not_written_into_a_later_one(dataset: Dataset) -> None:
    """Two ranks share a lane whose steps are long: rank 0 prefetches a window it never delivers,
    and four windows on its slot is needed again. If that read is slow, its drawings must not
    come out as the later window's."""
    shape = Shape(global_batch=900, lanes=3, window_blocks=1)
    reader = Slow(dataset.folder, dataset.manifest, "train", Stream())
    reader.released, reader.late = threading.Event(), threading.Event()
    order = make_order(reader, shape)
    windows = order.windows(0, 1)
    loader = make_loader(reader, order, rank=0, world_size=2, threads=4)
    at_step = [order.segments(step, *loader.part)[1] for step in (0, 1)]
    starts = [window.start for window in windows]
    delivered_last = int(np.searchsorted(starts, at_step[0][2] - 1, "right")) - 1
    later = int(np.searchsorted(starts, at_step[1][1], "right")) - 1
    passed_over = delivered_last + 1
    later += (later - passed_over) % 2  # the same slot
    assert later - passed_over >= 4
    (reader.held,), (reader.until,) = windows[passed_over].pieces, windows[later].pieces
    got: list[Identity] = []
    for batch in loader.epoch(0):
        got += zip(batch.labels.tolist(), batch.rows.tolist(), strict=True)
    want = expected(dataset, shape)
    half, whole = loader.part[1], shape.global_batch
    assert got == want[:half] + want[whole : whole + half]


# -- the end of an epoch -----------------------------------------------------------------------


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """A thread that outlives its epoch holds buffers and the store's connections."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("taken", [0, 1, 5, 18])
@pytest.mark.parametrize("how", ["close", "drop", "throw"])
def test_an_epoch_left_early_leaves_no_thread(dataset: Dataset, taken: int, how: str) -> None:
    """A signal ends an epoch in its middle; the process must be able to leave."""
    reader = open_reader(dataset)
    loader = make_loader(reader, make_order(reader, USUAL), threads=4, prefetch=3)
    batches = loader.epoch(0)
    for _ in range(taken):
        next(batches)
    if how == "close":
        batches.close()
    elif how == "throw":
        with pytest.raises(KeyboardInterrupt):
            batches.throw(KeyboardInterrupt())
    del batches


@pytest.mark.usefixtures("no_thread_left")
def test_an_epoch_can_start_again_after_one_left_early(dataset: Dataset) -> None:
    """Buffers and windows are kept over epochs: nothing of the one given up may show."""
    reader = open_reader(dataset)
    loader = make_loader(reader, make_order(reader, UNEVEN), threads=4, prefetch=4)
    for taken in (1, 2, 3, 8):
        batches = loader.epoch(1)
        for _ in range(taken):
            next(batches)
        batches.close()
    got: list[Identity] = []
    for batch in loader.epoch(2):
        got += zip(batch.labels.tolist(), batch.rows.tolist(), strict=True)
    assert got == expected(dataset, UNEVEN, 2)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (flip_a_byte, CorruptError),
        (truncate, CorruptError),
        (empty, CorruptError),
        (Path.unlink, CorruptError),
    ],
    ids=["flipped", "truncated", "emptied", "deleted"],
)
def test_a_damaged_shard_is_an_error_that_names_it(
    dataset: Dataset, tmp_path: Path, damage: object, error: type[Exception], threads: int,
    world_size: int,
) -> None:  # fmt: skip
    """Never trained on, never skipped in silence, and never a hang."""
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    entry = dataset.manifest.splits["train"][2]
    damage(folder / entry.name)  # type: ignore[operator]
    copy = Dataset(str(folder), dataset.manifest, dataset.source)
    want = expected(dataset, USUAL)
    failed = 0
    for rank in range(world_size):
        reader = open_reader(copy)
        order = make_order(reader, USUAL)
        loader = make_loader(reader, order, rank, world_size, threads)
        start, stop = loader.part
        try:
            for batch in loader.epoch(0):
                first = batch.step * 96
                pairs = list(zip(batch.labels.tolist(), batch.rows.tolist(), strict=True))
                assert pairs == want[first + start : first + stop]
        except error as raised:
            assert entry.name in str(raised)
            failed += 1
    assert failed >= 1


# -- real processes ------------------------------------------------------------------------------


def stream_one_rank(
    rank: int, world_size: int, meeting: str, folder: str, epoch: int, results: str
) -> None:
    """A rank as in training: its own process, its own reader, digests added up over gloo."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    reader = SplitReader(folder, manifest.read(folder), "train", Stream())
    loader = make_loader(reader, make_order(reader, USUAL), rank, world_size)
    digest = 0
    for batch in loader.epoch(epoch):
        digest = (digest + batch.digest) % 2**64
    total = torch.tensor([digest - (digest >> 63 << 64)])
    dist.all_reduce(total)
    Path(results, str(rank)).write_text(str(int(total) % 2**64))
    dist.destroy_process_group()


def test_real_processes_deliver_the_same_order(
    dataset: Dataset, processes: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """1, 2 and 4 processes with a process group of their own agree on the order digest."""
    want = digest_of(expected(dataset, USUAL, 1), 1)
    for world_size in (1, 2, 4):
        results = tmp_path / str(world_size)
        results.mkdir()
        ranks = [
            processes.Process(
                target=stream_one_rank,
                args=(
                    rank, world_size, str(tmp_path / f"meeting-{world_size}"), dataset.folder, 1,
                    str(results),
                ),
            )
            for rank in range(world_size)
        ]  # fmt: skip
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0] * world_size
        assert {int(path.read_text()) for path in results.iterdir()} == {want}
        assert len(list(results.iterdir())) == world_size


# -- evaluation ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_thread_left")
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 150])
@pytest.mark.parametrize("batch", [1, 7, 32, 2048])
def test_evaluation_sees_every_drawing_once(dataset: Dataset, world_size: int, batch: int) -> None:
    """Also where parts are uneven, and where there are more ranks than drawings."""
    total = dataset.manifest.drawings("val")
    assert 50 < total < 150
    reader = open_reader(dataset, "val")
    identities: list[Identity] = []
    pixels = []
    for rank in range(world_size):
        part: list[Identity] = []
        batches = evaluation_batches(
            reader, rank=rank, world_size=world_size, batch=batch, threads=1 + rank % 3
        )
        for got in batches:
            assert 1 <= len(got.labels) <= batch
            part += zip(got.labels.tolist(), got.rows.tolist(), strict=True)
            pixels.append(got.drawings.numpy())
        assert total // world_size <= len(part) <= -(-total // world_size)
        identities += part
    assert identities == list(dataset.stored("val").values())
    assert set(identities) == dataset.identities("val")
    labels, rows = np.array(identities).T
    assert np.array_equal(np.concatenate(pixels), dataset.pixels(labels, rows))


@pytest.mark.usefixtures("no_thread_left")
def test_evaluation_left_early_leaves_no_thread(dataset: Dataset) -> None:
    """A signal may come during evaluation, too."""
    reader = open_reader(dataset, "val")
    batches = evaluation_batches(reader, rank=0, world_size=1, batch=4, threads=3)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_thread_left")
def test_evaluation_of_a_damaged_shard_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    """A metric over the rest of the split would pass for one over all of it."""
    folder = tmp_path / "copy"
    shutil.copytree(dataset.folder, folder)
    entry = dataset.manifest.splits["val"][-1]
    flip_a_byte(folder / entry.name)
    reader = open_reader(Dataset(str(folder), dataset.manifest, dataset.source), "val")
    with pytest.raises(CorruptError, match=entry.name):
        list(evaluation_batches(reader, rank=0, world_size=1, batch=16, threads=2))


# -- the rest --------------------------------------------------------------------------------


def test_real_drawings_arrive_as_they_are(make_dataset: DatasetMaker, real_data: Path) -> None:
    """The official files have other headers, sizes and names than ours: the pixels must survive."""
    classes = ("The Eiffel Tower", "ambulance", "aircraft carrier")
    dataset = make_dataset(
        source=str(real_data / "numpy_bitmap"), classes=classes, drawings_per_shard=256
    )
    reader = open_reader(dataset)
    loader = make_loader(reader, make_order(reader, Shape(64, 16, 2)))
    files = [np.load(real_data / "numpy_bitmap" / f"{name}.npy") for name in classes]
    seen = set()
    for batch in loader.epoch(0):
        for drawing, label, row in zip(batch.drawings, batch.labels, batch.rows, strict=True):
            assert np.array_equal(drawing.numpy().ravel(), files[int(label)][int(row)])
            seen.add((int(label), int(row)))
    assert len(seen) == loader.order.steps * 64
    assert seen <= dataset.identities("train")


def test_reader_threads_share_the_processors() -> None:
    """Eight ranks with a thread a processor each would be eight times too many."""
    assert reader_threads(5, 8) == 5
    assert 1 <= reader_threads(0, 1) <= 8
    assert reader_threads(0, 10_000) == 1
