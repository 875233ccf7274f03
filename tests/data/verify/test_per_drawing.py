"""A dataset in the per_drawing layout is proved as one in blocks, read the way external data is."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from quickdraw_dist.data.shards.blocks import Block
from tests.support.data.damage import NORMALISATION, found, read_blocks, write_blocks, write_bytes
from tests.support.data.datasets import Dataset


@pytest.fixture
def made(of_layout: Callable[[str], Dataset], copy_of: Callable[[Dataset], Dataset]) -> Dataset:
    """A copy for one test."""
    return copy_of(of_layout("per_drawing"))


@pytest.fixture
def contents(of_layout: Callable[[str], Dataset]) -> list[Block]:
    """The blocks of the first training shard: the same in every layout."""
    blocks = of_layout("gzip")
    return read_blocks(blocks, blocks.manifest.splits["train"][0])


def test_a_flipped_byte_in_a_picture(made: Dataset) -> None:
    """Lines about the shard and the block, not a traceback; the other drawings are read."""
    path = Path(made.folder) / made.manifest.splits["train"][2].name
    data = bytearray(path.read_bytes())
    data[512 + 3] ^= 0x10  # in the first png's signature
    path.write_bytes(data)
    shard, block = found(made)
    assert shard.startswith(f"{path}: crc32c ")
    assert block.startswith(f"{path}: block 0: ") and ".png: " in block


def test_a_wrong_cls(made: Dataset) -> None:
    """Readers of this layout take the label from the .cls file, not from the name."""
    shard = made.manifest.splits["train"][0]
    path = Path(made.folder) / shard.name
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        cls = next(member for member in tar if member.name.endswith(".cls"))
    label = data[cls.offset_data] = ord("0") + (data[cls.offset_data] - ord("0") + 1) % 5
    write_bytes(made, shard, bytes(data))
    (problem,) = found(made)
    assert problem.startswith(f"{path}: block 0: {cls.name.removesuffix('.cls')}: not the name of ")
    assert problem.endswith(f"class {chr(label)}")


def test_a_changed_pixel(made: Dataset, contents: list[Block]) -> None:
    """Right in itself, of a drawing that is not the source's."""
    shard = made.manifest.splits["train"][0]
    write_blocks(made, shard, contents)
    assert found(made, made.source) == [], "rewriting alone does no damage"
    contents[1].drawings[7, 13, 14] ^= 255
    write_blocks(made, shard, contents)
    problem, normalisation = found(made, made.source)
    name = made.manifest.classes[contents[1].labels[7]]
    where = f"{made.folder}/{shard.name}: block 1: pixels of class {name!r}"
    assert problem == f"{where} row {contents[1].rows[7]:,} are not the source's (1 such drawings)"
    assert normalisation.startswith(NORMALISATION)


def test_a_row_of_another_group(made: Dataset, contents: list[Block]) -> None:
    """Identities are those of the names."""
    shard = made.manifest.splits["train"][0]
    contents[0].rows[0] = 10**6
    write_blocks(made, shard, contents)
    assert found(made) == [f"{made.folder}/{shard.name}: block 0: holds rows of another group"]


def test_a_tar_that_ends_early(made: Dataset, contents: list[Block]) -> None:
    """The blocks that are not there are reported, their rows are not reported as missing, too."""
    shard = made.manifest.splits["train"][0]
    write_blocks(made, shard, contents)
    path = Path(made.folder) / shard.name
    data = path.read_bytes()
    last = shard.blocks[-1]
    write_bytes(made, shard, data[: last.offset] + bytes(1024))
    assert found(made) == [f"{path}: block {len(contents) - 1}: 0 drawings, not {last.drawings}"]
