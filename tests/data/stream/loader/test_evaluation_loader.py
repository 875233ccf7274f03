"""Evaluation sees every drawing of a split once, in batches of the requested size."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.order.order import evaluation_pieces
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from tests.support.data.datasets import Dataset, as_bytes
from tests.support.data.delivery import Identity, flip_a_byte, open_local, pairs

pytestmark = pytest.mark.usefixtures("no_thread_left")


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8, 150])
@pytest.mark.parametrize("batch", [1, 7, 32, 45, 2048])
def test_evaluation_sees_every_drawing_once(either: Dataset, world_size: int, batch: int) -> None:
    """Also where ranges are uneven, and with more ranks than drawings."""
    total = either.manifest.drawings("val")
    assert 50 < total < 150
    reader = open_local(either, "val")
    identities: list[Identity] = []
    drawings: list[bytes] = []
    for rank in range(world_size):
        own: list[Identity] = []
        sizes = []
        for number, got in enumerate(
            evaluation_batches(
                reader, rank=rank, world_size=world_size, batch=batch, threads=1 + rank % 3
            )
        ):
            assert got.step == number
            assert len(got.labels) == len(got.drawings) == len(got.rows)
            sizes.append(len(got.labels))
            own += pairs(got)
            drawings += as_bytes(got.drawings)
        assert total // world_size <= len(own) <= -(-total // world_size)
        rest = [len(own) % batch] if len(own) % batch else []
        assert sizes == [batch] * (len(own) // batch) + rest
        identities += own
    assert identities == list(either.stored("val").values())
    assert set(identities) == either.identities("val")
    assert drawings == either.drawings(identities)


def test_batches_are_kept_apart(either: Dataset) -> None:
    """A report keeps the drawings of several batches: none may be overwritten by a later one."""
    reader = open_local(either, "val")
    kept = list(evaluation_batches(reader, rank=0, world_size=1, batch=9, threads=2))
    drawings = [drawing for batch in kept for drawing in as_bytes(batch.drawings)]
    assert drawings == either.drawings(pair for batch in kept for pair in pairs(batch))


def test_evaluation_left_early_leaves_no_thread(dataset: Dataset) -> None:
    """A signal may come during evaluation, too."""
    reader = open_local(dataset, "val")
    batches = evaluation_batches(reader, rank=0, world_size=1, batch=4, threads=3)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_evaluation_of_a_damaged_shard_is_an_error(either: Dataset, tmp_path: Path) -> None:
    """A metric over the rest of the split would look like one over all of it."""
    folder = tmp_path / "copy"
    shutil.copytree(either.folder, folder)
    entry = either.manifest.splits["val"][-1]
    flip_a_byte(folder / entry.name)
    reader = open_local(Dataset(str(folder), either.manifest, either.source), "val")
    with pytest.raises(CorruptError, match=entry.name):
        list(evaluation_batches(reader, rank=0, world_size=1, batch=16, threads=2))


def test_a_rank_reads_its_own_blocks_only(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight ranks that each read the whole split would be eight times too slow."""
    reader = open_local(dataset, "val")
    requested: list[tuple[int, int]] = []
    read = reader.read

    def recorded(shard: int, number: int, scratch: Scratch | None = None) -> Block:
        requested.append((shard, number))
        return read(shard, number, scratch)

    monkeypatch.setattr(reader, "read", recorded)
    for rank in range(3):
        requested.clear()
        for _ in evaluation_batches(reader, rank=rank, world_size=3, batch=16, threads=1):
            pass
        pieces = evaluation_pieces(reader.block_counts, rank, 3)
        assert requested == [(piece.shard, piece.block) for piece in pieces]
