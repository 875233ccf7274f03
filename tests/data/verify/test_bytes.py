"""Damage to the bytes of shards is found, named and reported once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.verify import find_problems
from tests.support.data.damage import (
    NORMALISATION,
    alter,
    exact,
    found,
    publish,
    read_blocks,
    write_blocks,
    write_bytes,
)
from tests.support.data.datasets import Dataset, of_both_contents

OfLayout = Callable[[str, str], Dataset]

BLOCKS = [("gzip", "bitmaps"), ("none", "bitmaps"), ("gzip", "strokes"), ("none", "strokes")]
FORMS = [*BLOCKS, ("per_drawing", "bitmaps")]


@pytest.mark.parametrize(("layout", "content"), FORMS)
def test_a_good_dataset_has_no_problems(of_layout: OfLayout, layout: str, content: str) -> None:
    """In every layout, with and without its source, every drawing verified once."""
    made = of_layout(layout, content)
    for source in (None, made.source):
        verified: list[int] = []
        problems = find_problems(made.folder, made.manifest, source, verified.append)
        assert list(problems) == []
        assert sum(verified) == sum(made.source.counts)


@pytest.mark.parametrize(("layout", "content"), BLOCKS)
def test_rewriting_a_shard_does_no_damage(
    of_layout: OfLayout, copy_of: Callable[[Dataset], Dataset], layout: str, content: str
) -> None:
    """What the other tests find is what they changed, nothing that `damage` does."""
    made = copy_of(of_layout(layout, content))
    shard = made.manifest.splits["train"][0]
    before = (Path(made.folder) / shard.name).read_bytes()
    write_blocks(made, shard, read_blocks(made, shard))
    assert (Path(made.folder) / shard.name).read_bytes() == before
    assert manifest.read(made.folder) == made.manifest


@pytest.mark.parametrize(("layout", "content"), BLOCKS)
def test_a_flipped_byte_is_found(
    of_layout: OfLayout, copy_of: Callable[[Dataset], Dataset], layout: str, content: str
) -> None:
    """Bit rot: the shard is named, and the block in it, and no other block."""
    made = copy_of(of_layout(layout, content))
    shard = made.manifest.splits["train"][2]
    path = Path(made.folder) / shard.name
    data = bytearray(path.read_bytes())
    data[shard.blocks[1].offset + 512 + 300] ^= 0x10
    path.write_bytes(data)
    problems = found(made)
    assert problems[0] == (
        f"{path}: crc32c {storage.crc32c(bytes(data)):08x}, the manifest says {shard.crc32c:08x}"
    )
    assert problems[1].startswith(f"{path}: block 1: ")
    assert not any("block 0" in line or "block 2" in line for line in problems)
    if layout == "none":
        assert len(exact(problems)) == 2
        assert content == "strokes" or problems[2].startswith(NORMALISATION)
    else:  # a block that cannot be unpacked: its rows are not reported as missing
        assert len(problems) == 2


@of_both_contents
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_shard_is_found(own: Dataset, split: str) -> None:
    """By name, and that is all: a hundred lines about its rows would hide the next bad shard."""
    shard = own.manifest.splits[split][1]
    (Path(own.folder) / shard.name).unlink()
    assert found(own) == [f"{own.folder}/{shard.name}: missing"]


@pytest.mark.parametrize("cut", [1, 1024, 5000])
def test_a_truncated_shard_is_found(own: Dataset, cut: int) -> None:
    """Even if only the end of the tar is gone: a reader by range would not notice."""
    shard = own.manifest.splits["test"][0]
    path = Path(own.folder) / shard.name
    path.write_bytes(path.read_bytes()[:-cut])
    assert found(own) == [f"{path}: {shard.bytes - cut:,} bytes, the manifest says {shard.bytes:,}"]


@of_both_contents
def test_a_damaged_block_below_right_checksums_is_found(own: Dataset) -> None:
    """A shard that was written wrongly has the checksum of its wrong bytes."""
    shard = own.manifest.splits["train"][0]
    data = bytearray((Path(own.folder) / shard.name).read_bytes())
    at = shard.blocks[2].offset
    data[at + 600 : at + 620] = bytes(20)
    write_bytes(own, shard, bytes(data))
    (problem,) = found(own)
    assert problem.startswith(f"{own.folder}/{shard.name}: block 2: contents: not a block of 32 ")


@of_both_contents
def test_contents_that_are_not_the_manifests_are_found(own: Dataset) -> None:
    """Another pixel in a whole block: its content's checksum is the dataset's identity."""
    shard = own.manifest.splits["train"][0]
    contents = read_blocks(own, shard)
    alter(contents[1], 3)
    expected = [entry.crc32c for entry in shard.blocks]
    write_blocks(own, shard, contents)
    rewritten = manifest.read(own.folder).splits["train"][0]
    kept = tuple(b._replace(crc32c=c) for b, c in zip(rewritten.blocks, expected, strict=True))
    publish(own, {shard.name: rewritten.model_copy(update={"blocks": kept})})
    problems = found(own)
    assert exact(problems) == [
        f"{own.folder}/{shard.name}: block 1: contents crc32c {contents[1].crc:08x}, "
        f"not {expected[1]:08x}"
    ]
    assert (problems != exact(problems)) == (own.source.content == "bitmaps")
