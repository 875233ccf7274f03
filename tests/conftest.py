"""Fixtures that several tests share: small sharded datasets, real drawings, a store, processes."""

from __future__ import annotations

import os

# Before torch is loaded: several test processes share the cores, and threads of one that spin
# while they wait would take them from the others (a tiny training took ten times as long).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The many small runs do not draw their report page, which takes longer than the run.
os.environ.setdefault("QUICKDRAW_METRICS__REPORT", "false")

import multiprocessing
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path

import fsspec.config
import hypothesis
import pytest
import torch

from quickdraw_dist.base import storage
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.sources import open_source
from tests.support.data import datasets
from tests.support.data.datasets import Dataset, DatasetMaker
from tests.support.data.stroke_files import write_strokes
from tests.support.gcs.local import Store, serve, use_store
from tests.support.processes import faults

# A slow machine is no failure. Failing examples are printed, so none is lost with a runner.
hypothesis.settings.register_profile("quickdraw", deadline=None, print_blob=True)
hypothesis.settings.load_profile("quickdraw")


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetMaker:
    """Shards a folder, a `synthetic:` address or (default) the small bitmaps or strokes, with any
    settings."""
    made = tmp_path_factory.mktemp("source")
    datasets.write_bitmaps(made / "bitmaps", datasets.COUNTS)
    write_strokes(made / "strokes", datasets.COUNTS)

    def make(
        dest: str | Path | None = None, source: str | None = None, **settings: object
    ) -> Dataset:
        small = {"block": 32, "drawings_per_shard": 320, "group_shards": 2}
        shard = Shard.model_validate(small | settings)
        folder = source or str(made / shard.content)
        opened = open_source(folder, shard.classes, shard.content)
        return datasets.shard(opened, str(dest or tmp_path_factory.mktemp("dataset")), shard)

    return make


@pytest.fixture(scope="session")
def of_content(make_dataset: DatasetMaker) -> Callable[[str], Dataset]:
    """The small dataset of bitmaps and of strokes, made once each."""
    return cache(lambda content: make_dataset(content=content))


@pytest.fixture(scope="session")
def dataset(of_content: Callable[[str], Dataset], request: pytest.FixtureRequest) -> Dataset:
    """2,000 drawings of 5 classes in small shards, as `datasets.of_both_contents` says or bitmaps.
    Shared: never write to it, copy it first."""
    return of_content(getattr(request, "param", "bitmaps"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real drawings: `numpy_bitmap/`, `simplified/`, `raw/` and two lists of files."""
    root = Path(__file__).resolve().parents[1]
    default = root.parent / "shared" / "quickdraw"
    path = Path(os.environ.get("QUICKDRAW_REAL_DATA", default))
    if not (path / "numpy_bitmap").is_dir():
        pytest.skip(f"no real drawings at {path}; QUICKDRAW_REAL_DATA names their folder")
    return path


@pytest.fixture(autouse=True)
def cuda_device(request: pytest.FixtureRequest) -> None:
    """Skips a test that is marked `cuda` on a machine without a CUDA device."""
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """gs:// for the length of a test: a real server on this machine, nothing outside it.

    A process that the test starts begins with `use_store(store.server.url)`.
    """
    with serve() as opened:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", opened.server.url)  # puts back what was there
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setitem(fsspec.config.conf, "gs", {})
        use_store(opened.server.url)
        monkeypatch.setattr(storage, "BACKOFF_SECONDS", 0.001)
        yield opened


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Faults in runs of this process, as in `at(step=9, phase="forward", do=delete)`.

    `do` is called once, when the run first enters the phase after that many steps, and must have
    been called by the end of the test.
    """
    plain = getattr(faults.HOOKED, faults.ENTER)
    monkeypatch.setattr(faults.HOOKED, faults.ENTER, plain)  # put back at the end
    planned: list[faults.Fault] = []

    def plan(*, step: int, phase: str, do: Callable[[], None]) -> None:
        planned.append(faults.at(step=step, phase=phase, do=do))

    yield plan
    assert [fault for fault in planned if not fault.happened] == []


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Runs in this process use one thread of torch.

    A network this small is slower on two, ten times so beside other tests, and its weights would
    differ from those of runs on one.
    """
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        torch.set_num_threads(1)
        patch.setattr(torch, "set_num_threads", lambda _: None)
        yield
    torch.set_num_threads(before)


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
