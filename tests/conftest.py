"""Fixtures that several tests share: small sharded datasets, real drawings, a store, processes."""

from __future__ import annotations

import os

# Before torch is loaded: several test processes share the cores, and threads of one that spin
# while they wait would take them from the others (a tiny training took ten times as long).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Nor does each of the many small runs draw its page, which takes longer than the run.
os.environ.setdefault("QUICKDRAW_METRICS__REPORT", "false")

import gzip
import io
import multiprocessing
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import fsspec.config
import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.drawing import PIXELS, Source
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import manifest, writer
from quickdraw_dist.data.shards.manifest import Manifest
from quickdraw_dist.data.shards.plan import Plan
from tests.support.gcs.server import GcsServer, Request, Response

# A slow machine is no failure. Examples that fail are printed, so none is lost with a runner.
hypothesis.settings.register_profile("quickdraw", deadline=None, print_blob=True)
hypothesis.settings.load_profile("quickdraw")

COUNTS = {"cat": 601, "dog": 353, "The Eiffel Tower": 89, "sun": 700, "zigzag": 257}
"""Drawings of the small dataset: sizes that divide by nothing."""


Place = tuple[int, int, int]
"""Shard, block and index in the block: where a drawing is stored."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A sharded dataset and the source that it was made from."""

    folder: str
    manifest: Manifest
    source: Source

    def pixels(self, labels: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray[np.uint8]:
        """What the source holds for these identities, (n, 28, 28)."""
        whole = [self.source.read(at, 0, count) for at, count in enumerate(self.source.counts)]
        return np.stack([whole[label][row] for label, row in zip(labels, rows, strict=True)])

    @cache  # noqa: B019 a dataset lives as long as the tests
    def stored(self, split: str) -> dict[Place, tuple[int, int]]:
        """(label, row) of every drawing of a split by its place, not read by the product."""
        found: dict[Place, tuple[int, int]] = {}
        for shard, entry in enumerate(self.manifest.splits[split]):
            arrays = {}
            with tarfile.open(Path(self.folder, entry.name)) as tar:
                for member in tar:
                    key, kind, *_ = member.name.split(".")
                    file = tar.extractfile(member)
                    if kind in ("labels", "rows") and file is not None:
                        data = io.BytesIO(gzip.decompress(file.read()))
                        arrays[int(key.split("-")[1]), kind] = np.load(data).tolist()
            for block, kind in arrays:
                if kind == "labels":
                    pairs = zip(arrays[block, "labels"], arrays[block, "rows"], strict=True)
                    found |= {(shard, block, at): pair for at, pair in enumerate(pairs)}
        return found

    def identities(self, split: str) -> set[tuple[int, int]]:
        """(label, row) of every drawing that the plan puts in a split."""
        plan = Plan(self.manifest.classes, self.source.counts, self.manifest.settings)
        found: set[tuple[int, int]] = set()
        for group in range(plan.groups):
            labels, rows = plan.identities(group)
            for place in plan.shards(group):
                if place.split == split:
                    members = plan.members(group, place)
                    found |= set(zip(labels[members].tolist(), rows[members].tolist(), strict=True))
        return found


def _write_bitmaps(folder: Path, counts: dict[str, int]) -> None:
    """Official-looking `.npy` files. A drawing's pixels follow from its class and row alone, and
    no two are alike, so that one in another's place is seen."""
    folder.mkdir(parents=True)
    for name, count in counts.items():
        values = random64(key64("test", name), count * PIXELS).reshape(count, PIXELS)
        ink = np.where(values % 5 == 0, values >> np.uint64(8) & np.uint64(255), 0)
        np.save(folder / f"{name}.npy", ink.astype(np.uint8))


def _shard(source: Source, dest: str, settings: Shard) -> Dataset:
    plan = Plan(source.classes, source.counts, settings)
    writer.build(plan, list(range(plan.groups)), source, dest, 1, lambda _: None)
    merged = writer.merge_if_complete(plan, source, dest)
    assert merged is not None
    return Dataset(dest, manifest.read(dest), source)


DatasetMaker = Callable[..., Dataset]


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetMaker:
    """Shards a folder, a `synthetic:` address or (default) the small bitmaps, with any settings."""
    bitmaps = tmp_path_factory.mktemp("bitmaps") / "numpy_bitmap"
    _write_bitmaps(bitmaps, COUNTS)

    def make(
        dest: str | Path | None = None, source: str | None = None, **settings: object
    ) -> Dataset:
        small = {"block": 32, "drawings_per_shard": 320, "group_shards": 2}
        shard = Shard.model_validate(small | settings)
        opened = open_source(source or str(bitmaps), shard.classes)
        return _shard(opened, str(dest or tmp_path_factory.mktemp("dataset")), shard)

    return make


@pytest.fixture(scope="session")
def dataset(make_dataset: DatasetMaker) -> Dataset:
    """2,000 drawings of 5 classes in small shards. Shared: never write to it, copy it first."""
    return make_dataset()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real drawings: `numpy_bitmap/`, `simplified/`, `raw/` and two lists of files."""
    root = Path(__file__).resolve().parents[1]
    default = root.parent / "shared" / "quickdraw"
    path = Path(os.environ.get("QUICKDRAW_REAL_DATA", default))
    if not (path / "numpy_bitmap").is_dir():
        pytest.skip(f"no real drawings at {path}; QUICKDRAW_REAL_DATA names their folder")
    return path


@dataclass
class Store:
    """A local Cloud Storage with an empty bucket `bucket`, and what it was asked for."""

    server: GcsServer
    requests: list[tuple[str, str]]  # method and path, still percent-encoded
    intercept: Callable[[Request], Response | None] | None = None  # sees every request first

    def media_reads(self, part_of_name: str) -> int:
        """Requests for the bytes of objects whose name has this in it."""
        return sum(part_of_name in path for method, path in self.requests if method == "MEDIA")

    def upload(self, folder: str | Path, url: str) -> str:
        """Copy a folder of files below an address; returns the address."""
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                storage.publish(storage.join(url, name), path.read_bytes())
        return url


def use_store(url: str) -> None:
    """Point this process's gs:// at a local server, without anybody's real credentials."""
    os.environ["STORAGE_EMULATOR_HOST"] = url
    fsspec.config.conf["gs"] = {"token": "anon"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """gs:// for the length of a test: a real server on this machine, nothing outside it.

    A process that the test starts begins with `use_store(store.server.url)`.
    """
    seen: list[tuple[str, str]] = []

    def intercept(request: Request) -> Response | None:
        media = request.params.get("alt") == "media"
        seen.append(("MEDIA" if media else request.method, request.path))
        return opened.intercept(request) if opened.intercept is not None else None

    with GcsServer(intercept=intercept) as server:
        opened = Store(server, seen)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)  # puts back what was there
        monkeypatch.setitem(fsspec.config.conf, "gs", {})
        use_store(server.url)
        monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.001)
        bucket = HttpRequest(f"{server.url}/storage/v1/b?project=p", b'{"name": "bucket"}')
        urlopen(bucket).close()
        yield opened


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts real processes in milliseconds: torch is imported once, in a server without threads.

    They have the environment of the first one that started: pass in what a test sets.
    """
    context = multiprocessing.get_context("forkserver")
    # The last one's two seconds are otherwise spent by every process that makes an optimizer.
    context.set_forkserver_preload(
        ["torch.distributed", "gcsfs", "quickdraw_dist.training.trainer", "torch._dynamo"]
    )
    return context
