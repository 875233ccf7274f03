"""Source integrity: what was read is what the source holds, or it is an error that says where."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import google_crc32c
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs import verify
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings import classes
from quickdraw_dist.data.drawings.classes import OfficialClass, OfficialFile
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import integrity, manifest, writer
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.verify import find_problems
from tests.support.data.datasets import of_both_contents
from tests.support.gcs.server import Request, Response

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset
    from tests.support.gcs.local import Store

    Tree = Callable[[str | Path], dict[str, bytes]]

BITMAPS = "gs://bucket/bitmaps"
Intercept = Callable[[Request], Response | None]


@settings(max_examples=80)
@given(parts=st.lists(st.binary(max_size=80), max_size=6))
@example(parts=[])
@example(parts=[b"", b""])
@example(parts=[bytes(1_000_003), b"x", bytes(range(256)) * 4099])
def test_a_concatenations_checksum_follows_from_its_parts(parts: list[bytes]) -> None:
    """Groups read ranges on different machines; their checksums must add up to the file's."""
    combined = reduce(
        lambda crc, part: integrity.combine_crc32c(crc, google_crc32c.value(part), len(part)),
        parts,
        0,
    )
    assert combined == google_crc32c.value(b"".join(parts))


@settings(max_examples=20)
@given(
    lengths=st.tuples(*[st.integers(1, 2**40)] * 3),
    crcs=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
)
def test_combining_is_associative_at_any_length(
    lengths: tuple[int, int, int], crcs: tuple[int, int, int]
) -> None:
    """Lengths beyond any test's memory: (a + b) + c and a + (b + c) are one file."""
    combine = integrity.combine_crc32c
    left = combine(combine(crcs[0], crcs[1], lengths[1]), crcs[2], lengths[2])
    right = combine(crcs[0], combine(crcs[1], crcs[2], lengths[2]), lengths[1] + lengths[2])
    assert left == right


# -- a store that flips bits -----------------------------------------------------------------------


def flipping(store: Store, hit: Callable[[str, int], int | None]) -> Intercept:
    """Flips a bit of ranges of bitmaps: `hit` says which one, from the range and how many times
    it was requested before; None for none."""
    asked: Counter[str] = Counter()

    def intercept(request: Request) -> Response | None:
        wanted = request.headers.get("Range")
        if wanted is None or "bitmaps" not in request.path:
            return None
        key = f"{unquote(request.path).rpartition('/')[2]} {wanted}"
        asked[key] += 1
        reply = store.server.gcs.answer(request)
        bit = hit(key, asked[key] - 1)
        if bit is not None and reply.body:
            body = bytearray(reply.body)
            body[bit // 8 % len(body)] ^= 1 << bit % 8
            reply.body = bytes(body)
        return reply

    return intercept


def at_random(key: str, time: int) -> int | None:
    """One reading of five, by its name alone: not by the timing of threads."""
    dice = int.from_bytes(hashlib.blake2b(f"{key} {time}".encode(), digest_size=8).digest())
    return dice // 5 if dice % 5 == 0 else None


def shard(source: Source, made: Dataset, dest: str) -> Manifest:
    """What `jobs.shard` does, with the settings of that dataset."""
    plan = Plan(source.classes, source.counts, made.manifest.settings)
    writer.build(plan, list(range(plan.groups)), source, dest, 1, lambda _: None)
    merged = writer.merge_if_complete(plan, source, dest)
    assert merged is not None
    return merged


@of_both_contents
def test_one_flipped_range_in_five_makes_the_same_dataset(
    dataset: Dataset, store: Store, tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    """Headers, first readings, second readings and the readings of the rebuild alike."""
    store.upload(dataset.source.url, BITMAPS)
    flips: list[str] = []

    def hit(key: str, time: int) -> int | None:
        bit = at_random(key, time)
        flips.extend([key] if bit is not None else [])
        return bit

    store.intercept = flipping(store, hit)
    merged = shard(open_source(BITMAPS, (), dataset.source.content), dataset, str(tmp_path))
    assert len(flips) > 8
    assert "groups again" in capsys.readouterr().err, "no bit was flipped where it matters"
    assert merged.digest == dataset.manifest.digest
    whole = {name: data for name, data in tree(tmp_path).items() if name != manifest.NAME}
    assert whole == {n: d for n, d in tree(dataset.folder).items() if n != manifest.NAME}
    for ours, theirs in zip(merged.source_files, dataset.manifest.source_files, strict=True):
        assert ours == theirs


@of_both_contents
def test_the_proof_blames_no_drawing_for_a_bit_that_flipped_on_the_way(
    dataset: Dataset, own_source: Dataset, store: Store
) -> None:
    """A good dataset has no problems; a source that really is another has its one."""
    store.upload(dataset.source.url, BITMAPS)
    flips: list[str] = []

    def hit(key: str, time: int) -> int | None:
        bit = at_random(f"{key} now", time)
        flips.extend([key] if bit is not None and not key.endswith("=0-511") else [])
        return bit

    store.intercept = flipping(store, hit)
    content = dataset.source.content
    source = open_source(BITMAPS, (), content)
    assert list(find_problems(dataset.folder, dataset.manifest, source)) == []
    assert len(flips) > 2
    sun = own_source.source.classes.index("sun")
    path = Path(own_source.source.file_url(sun))
    data = bytearray(path.read_bytes())
    data[own_source.source.span(sun, 300, 301)[1] - 1] ^= 1
    path.write_bytes(data)
    store.upload(own_source.source.url, BITMAPS)
    source = open_source(BITMAPS, (), content)
    (problem,) = find_problems(dataset.folder, dataset.manifest, source)
    assert problem.endswith("class 'sun' row 300 are not the source's (1 such drawings)")


@pytest.mark.parametrize(
    ("bit", "message"),
    [
        (
            lambda time: 77,
            r"'dog': bytes 128 to 276,880 \(rows 0 to 353\): two readings of every range agree, "
            r"but with the header they have crc32c [0-9a-f]{8}, the file's own is [0-9a-f]{8}",
        ),
        (
            lambda time: 77 + time,
            r"'dog': bytes 69,120 to 138,112 \(rows 88 to 176\): read 13 times, every time with",
        ),
    ],
    ids=["always the same bit", "another bit each time"],
)
def test_a_range_that_never_comes_right_is_an_error(
    dataset: Dataset, store: Store, tmp_path: Path, bit: Callable[[int], int], message: str
) -> None:
    """Bounded, and with the class and the range in it; readers then find no dataset."""
    store.upload(dataset.source.url, BITMAPS)
    first = 128 + 784 * 88  # of the second of four groups
    store.intercept = flipping(
        store,
        lambda key, time: bit(time) if key.startswith(f"dog.npy bytes={first}-") else None,
    )
    with pytest.raises(CorruptError, match=message):
        shard(open_source(BITMAPS), dataset, str(tmp_path))
    assert not (tmp_path / manifest.NAME).exists()


def test_a_known_checksum_is_read_for_until_it_comes(dataset: Dataset, store: Store) -> None:
    """The rebuild takes no reading but the right one, and gives up in the end."""
    store.upload(dataset.source.url, BITMAPS)
    source, cat = open_source(BITMAPS), dataset.source.classes.index("cat")
    true = google_crc32c.value(dataset.source.read(cat, 100, 200).drawings.tobytes())
    store.intercept = flipping(store, lambda key, time: time if time < 7 else None)
    rows, crc = integrity.read(source, cat, 100, 200, true)
    assert crc == true
    assert rows.tobytes() == dataset.source.read(cat, 100, 200).drawings.tobytes()
    with pytest.raises(CorruptError, match=r"'cat': .*rows 100 to 200\): read 12 times"):
        integrity.read(source, cat, 100, 200, true ^ 1)


# -- official files --------------------------------------------------------------------------------


@pytest.fixture
def as_official(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[OfficialClass]]:
    """The small cat and dog are the official files; the other classes keep theirs."""

    def official(entry: OfficialClass) -> OfficialClass:
        if entry.name not in ("cat", "dog"):
            return entry
        data = (Path(dataset.source.url) / f"{entry.name}.npy").read_bytes()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        count = dataset.source.counts[dataset.source.classes.index(entry.name)]
        return replace(entry, drawings=count, npy=OfficialFile(len(data), md5))

    table = [official(entry) for entry in classes.official()]
    monkeypatch.setattr(classes, "official", lambda: tuple(table))
    yield table


def checked(made: Manifest) -> dict[str, tuple[str, ...]]:
    """What the manifest says every file was compared with."""
    return {file.name: file.checked for file in made.source_files}


ALL = ("crc32c", "official size", "official md5")


def test_official_files_are_checked_and_the_others_not(
    dataset: Dataset, tmp_path: Path, as_official: list[OfficialClass]
) -> None:
    """A part of an official file has the official name, but nothing official to compare with."""
    merged = shard(dataset.source, dataset, str(tmp_path))
    assert checked(merged) == {
        name: ALL if name in ("cat", "dog") else ("crc32c",) for name in merged.classes
    }
    assert checked(manifest.read(str(tmp_path))) == checked(merged)
    assert integrity.summary(merged.source_files) == (
        "of 5 source files: crc32c of 5, official size of 2, official md5 of 2"
    )
    assert merged.digest == dataset.manifest.digest


def test_drawings_without_files_are_compared_with_nothing(
    make_dataset: Callable[..., Dataset],
) -> None:
    """And the manifest says so."""
    made = make_dataset(source="synthetic:?classes=2&per_class=40").manifest
    assert set(checked(made).values()) == {()}
    assert integrity.summary(made.source_files) == "nothing: this source has no checksums"


@pytest.mark.parametrize("remote", [False, True], ids=["local", "gs"])
def test_an_official_file_with_another_md5_is_refused(
    own_source: Dataset, tmp_path: Path, request: pytest.FixtureRequest, remote: bool,
    as_official: list[OfficialClass],
) -> None:  # fmt: skip
    """Its name and both sums; by the sharding before it writes a manifest, and by the proof."""
    path = Path(own_source.source.url) / "dog.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    url = own_source.source.url
    if remote:
        url = request.getfixturevalue("store").upload(url, BITMAPS)
    official = next(entry for entry in as_official if entry.name == "dog").npy.md5
    mine = hashlib.md5(data, usedforsecurity=False).hexdigest()
    message = f"{url}/dog.npy: MD5 {mine}, the official file's is {official}. Fetch it again"
    with pytest.raises(CorruptError) as caught:
        shard(open_source(url), own_source, str(tmp_path / "new"))
    assert str(caught.value) == message
    assert not (tmp_path / "new" / manifest.NAME).exists()
    with pytest.raises(CorruptError) as caught:
        verify.main([own_source.folder, "--source", url])
    assert str(caught.value).startswith(message)


def test_a_store_is_asked_for_md5_not_read(
    dataset: Dataset, store: Store, tmp_path: Path, as_official: list[OfficialClass]
) -> None:
    """39.5 GB over the network a second time, for sums that the store keeps. Of objects composed
    of others it keeps none."""
    store.upload(dataset.source.url, BITMAPS)
    compose = HttpRequest(
        f"{store.server.url}/storage/v1/b/bucket/o/bitmaps%2Fdog.npy/compose",
        json.dumps({"sourceObjects": [{"name": "bitmaps/dog.npy"}]}).encode(),
    )
    urlopen(compose).close()
    source = open_source(BITMAPS)
    plan = Plan(source.classes, source.counts, dataset.manifest.settings)
    writer.build(plan, list(range(plan.groups)), source, str(tmp_path), 1, lambda _: None)
    reads, files = store.media_reads(""), []
    merged = writer.merge_if_complete(plan, source, str(tmp_path), progress=files.append)
    assert store.media_reads("") == reads > 0
    assert files == [1] * 5
    assert merged is not None
    assert checked(merged) == {
        "cat": ALL,
        "dog": ("crc32c", "official size"),
        **dict.fromkeys(("The Eiffel Tower", "sun", "zigzag"), ("crc32c",)),
    }
