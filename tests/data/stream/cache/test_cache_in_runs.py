"""Whole runs whose node cache is damaged or full. Each ends like the run from a local disk, bit for
bit, and fetches again only what it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from quickdraw_dist import train
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.order.content_bytes import BitmapBytes
from quickdraw_dist.data.order.memory import plan_memory
from quickdraw_dist.data.order.order import Order
from tests.support import runs
from tests.support.data.caching import URL, base, downloads, shards_of
from tests.support.data.datasets import Dataset
from tests.support.data.delivery import least_bytes
from tests.support.gcs.local import Store
from tests.support.processes.system import with_disk_of

pytestmark = pytest.mark.usefixtures("one_thread")

LANES, STEPS = 8, 18
TRAIN = ["--train.epochs", "2", "--train.global_batch", "96", "--train.device", "cpu"]
TRAIN += ["--stream.lanes", str(LANES), "--stream.window_blocks", "1", "--stream.threads", "1"]
TRAIN += ["--model.width", "4", "--metrics.port", "0", "--train.seed", "5", *runs.NO_PAGE]


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    weights: str  # their checksum
    order_digest: str

    @classmethod
    def of(cls, output: Path) -> Result:
        newest = max((output / "checkpoints").iterdir())
        meta = json.loads((newest / "meta.json").read_text())
        assert meta["step"] == 2 * STEPS
        weights = (newest / "model.safetensors").read_bytes()
        return cls(sha256(weights).hexdigest(), meta["order_digest"])


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The result of a run on local shards, which all other runs must have."""
    output = tmp_path_factory.mktemp("run")
    assert train.main(["--data", dataset.folder, "--output", str(output), *TRAIN]) == 0
    return Result.of(output)


def arguments(dataset: Dataset, tmp_path: Path, *more: str) -> list[str]:
    """Return arguments of a run from the store with the least memory, hence little prefetch."""
    order = Order(dataset.manifest.block_counts("train"), 96, LANES, 1, 5)
    largest = max(shard.bytes for shard in shards_of(dataset))
    with pytest.raises(RefusedError) as refused:
        plan_memory(
            order, order.share(0, 1), BitmapBytes(), memory_bytes=1, threads=1,
            shard_bytes=largest, pin=False,
        )  # fmt: skip
    settings = ["--data", URL, "--output", str(tmp_path / "run"), *TRAIN]
    settings += ["--stream.memory_bytes", str(least_bytes(refused.value))]
    return [*settings, "--stream.cache_folder", str(tmp_path / "cache"), *more]


def test_undisturbed_from_a_store(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two epochs download each shard once and print no warning."""
    assert train.main(arguments(dataset, tmp_path)) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))
    assert "cache:" not in capsys.readouterr().err


def flip(path: Path) -> None:
    """Flip a bit in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def replace(path: Path) -> None:
    """Replace the file by another one of the same length."""
    size, other = path.stat().st_size, path.with_name("other")
    donor = next(each for each in sorted(path.parent.glob("*.tar")) if each != path)
    other.write_bytes((donor.read_bytes() + bytes(size))[:size])
    other.replace(path)


@pytest.mark.parametrize(
    ("damage", "step", "phase"), [(flip, STEPS // 2, "forward"), (replace, STEPS, "evaluation")]
)
def test_a_damaged_shard_in_the_cache_is_fetched_again(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path, at: Callable[..., None],
    capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], step: int, phase: str,
) -> None:  # fmt: skip
    """Damage is never trained on: that shard alone is fetched again, and the log says so once."""
    damaged: list[Path] = []

    def do() -> None:
        path = next(iter(sorted((tmp_path / "cache").rglob("*-train-*.tar"))))
        damage(path)
        damaged.append(path)

    at(step=step, phase=phase, do=do)
    assert train.main(arguments(dataset, tmp_path)) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    (path,) = damaged
    assert downloads(remote, dataset) == [
        2 if base(shard) == path.name else 1 for shard in shards_of(dataset)
    ]
    said = capsys.readouterr().err
    assert said.count(f"cache: {path}: not what the manifest says; fetched again") == 1


@pytest.mark.slow
def test_the_disk_fills(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path
) -> None:
    """A real disk is full after some shards: the run streams without a cache, and says so once."""
    cache = tmp_path / "cache"
    cache.mkdir()
    prefix = with_disk_of(2 * shards_of(dataset)[0].bytes, cache)
    command = [*prefix, sys.executable, "-m", "quickdraw_dist.train", *arguments(dataset, tmp_path)]
    done = subprocess.run(command, text=True, capture_output=True, env=os.environ | runs.ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert Result.of(tmp_path / "run") == undisturbed
    lines = [line for line in done.stderr.splitlines() if line.startswith("cache: ")]
    assert len(lines) == 1
    for word in ("No space left on device", "streaming without it", "--stream.cache_bytes"):
        assert word in lines[0]


@pytest.mark.slow
def test_two_ranks_fetch_each_shard_once(
    remote: Store,
    dataset: Dataset,
    undisturbed: Result,
    tmp_path: Path,
    processes: ForkServerContext,
) -> None:
    """A node's ranks share its cache: two epochs ask the store once for each shard."""
    runs.run_forked(processes, 2, arguments(dataset, tmp_path), remote.server.url)
    assert Result.of(tmp_path / "run").order_digest == undisturbed.order_digest
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))
    names = [base(shard) for shard in dataset.manifest.splits["val"]]
    assert [remote.media_reads(name) for name in names] == [1] * len(names)
