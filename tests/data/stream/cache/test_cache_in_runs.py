"""Whole runs while something happens to the node's cache: deleted, full, damaged, too small. Each
is the run from a local disk, bit for bit, and fetches again only what it must."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from quickdraw_dist import train
from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.order.memory import plan_memory
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.distributed.exits import leave
from quickdraw_dist.training.learner import Learner
from quickdraw_dist.training.trainer import Trainer
from tests.conftest import Dataset, Store
from tests.support import runs
from tests.support.caching import URL, base, downloads, held, shards_of
from tests.support.delivery import least_bytes

LANES, STEPS = 8, 18
TRAIN = ["--train.epochs", "2", "--train.global_batch", "96", "--train.device", "cpu"]
TRAIN += ["--stream.lanes", str(LANES), "--stream.window_blocks", "1", "--stream.threads", "1"]
TRAIN += ["--model.width", "4", "--metrics.port", "0", "--train.seed", "5", *runs.NO_PAGE]


def keep_to_one_thread(patch: pytest.MonkeyPatch) -> None:
    """A network this small is slower on two, much so beside other tests; and bits would differ."""
    torch.set_num_threads(1)
    patch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        keep_to_one_thread(patch)
        yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Result:
    """What a run leaves."""

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
    """What every run here has to leave: that of a run on local shards."""
    output = tmp_path_factory.mktemp("run")
    assert train.main(["--data", dataset.folder, "--output", str(output), *TRAIN]) == 0
    return Result.of(output)


def arguments(dataset: Dataset, tmp_path: Path, *more: str) -> list[str]:
    """A run from the store with the least memory: most blocks are read when their turn comes."""
    order = Order(dataset.manifest.block_counts("train"), 96, LANES, 1, 5)
    largest = max(shard.bytes for shard in shards_of(dataset))
    with pytest.raises(RefusedError) as refused:
        plan_memory(
            order, order.share(0, 1), memory_bytes=1, threads=1, shard_bytes=largest, pin=False
        )
    settings = ["--data", URL, "--output", str(tmp_path / "run"), *TRAIN]
    settings += ["--stream.memory_bytes", str(least_bytes(refused.value))]
    return [*settings, "--stream.cache_folder", str(tmp_path / "cache"), *more]


@dataclass
class Moments:
    """What happens in a run, and when."""

    at_step: dict[int, Callable[[], None]]
    after_epoch: dict[int, Callable[[], None]]

    def happen(self, due: dict[int, Callable[[], None]], moment: int) -> None:
        if moment in due:
            due.pop(moment)()


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Iterator[Moments]:
    """Things to be done in this process's run, before a step or between epochs."""
    planned = Moments({}, {})
    step, validate = Learner.step, Trainer.validate

    def step_then(self: Learner, drawings: object, labels: object, number: int) -> None:
        planned.happen(planned.at_step, number)
        step(self, drawings, labels, number)  # type: ignore[arg-type]

    def validate_after(self: Trainer) -> None:
        planned.happen(planned.after_epoch, self.epoch)
        validate(self)

    monkeypatch.setattr(Learner, "step", step_then)
    monkeypatch.setattr(Trainer, "validate", validate_after)
    yield planned
    assert not planned.at_step and not planned.after_epoch


def test_undisturbed_from_a_store(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two epochs, one download a shard, and nothing to say about it."""
    assert train.main(arguments(dataset, tmp_path)) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))
    assert "cache:" not in capsys.readouterr().err


def test_the_folder_is_deleted_in_the_middle_of_epochs(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path, moments: Moments
) -> None:
    """Somebody cleans up a disk: what comes after is fetched again, and kept again."""
    left: list[int] = []

    def delete() -> None:
        left.append(len(held(tmp_path / "cache")))
        shutil.rmtree(tmp_path / "cache")

    moments.at_step = {STEPS // 2: delete, STEPS + STEPS // 2: delete}
    assert train.main(arguments(dataset, tmp_path)) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    assert min(left) > 0
    again = downloads(remote, dataset)
    assert max(again) <= 3 and min(again) >= 2  # all once for epoch 2 at least, none twice between
    assert set(held(tmp_path / "cache")) & {base(shard) for shard in shards_of(dataset)}


def flip(path: Path) -> None:
    """A bit in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def replace(path: Path) -> None:
    """Another file of the same length in its place."""
    size, other = path.stat().st_size, path.with_name("other")
    donor = next(each for each in sorted(path.parent.glob("*.tar")) if each != path)
    other.write_bytes((donor.read_bytes() + bytes(size))[:size])
    other.replace(path)


def cut(path: Path) -> None:
    """The same file, shorter."""
    os.truncate(path, path.stat().st_size // 3)


@pytest.mark.parametrize("when", ["between epochs", "in an epoch"])
@pytest.mark.parametrize("damage", [flip, replace, cut])
def test_a_cached_shard_is_damaged(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path, moments: Moments,
    capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], when: str,
) -> None:  # fmt: skip
    """Never trained on: that shard is fetched again, and only that one, and the log has it."""
    damaged: list[Path] = []

    def do() -> None:
        path = next(iter(sorted((tmp_path / "cache").rglob("*-train-*.tar"))))
        damage(path)
        damaged.append(path)

    if when == "in an epoch":
        moments.at_step = {STEPS // 2: do}
    else:
        moments.after_epoch = {0: do}
    assert train.main(arguments(dataset, tmp_path)) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    (path,) = damaged
    assert downloads(remote, dataset) == [
        2 if base(shard) == path.name else 1 for shard in shards_of(dataset)
    ]
    said = capsys.readouterr().err
    assert said.count(f"cache: {path}: not what the manifest says; fetched again") == 1


def test_a_cache_smaller_than_what_lanes_need_at_once(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It would throw out each shard before it is used up: not used, and said once, with what would
    be enough; blocks come by range."""
    largest = max(shard.bytes for shard in shards_of(dataset))
    assert len(shards_of(dataset)) == LANES  # each of which is at one of them
    limit = LANES * largest - 1
    assert train.main(arguments(dataset, tmp_path, "--stream.cache_bytes", str(limit))) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    said = capsys.readouterr().err
    assert said.count("--stream.cache_bytes") == 1
    for word in (f"{limit:,}", f"{limit + 1:,} bytes", "streaming without it"):
        assert word in said
    assert not [name for name in held(tmp_path / "cache") if "train" in name]
    assert min(downloads(remote, dataset)) >= 2 * min(len(s.blocks) for s in shards_of(dataset))


def test_a_cache_that_just_holds_them(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path
) -> None:
    """One more byte, and it is used: there is nothing to spare for shards ahead, and what makes
    room for the validation's shards is fetched once more."""
    limit = LANES * max(shard.bytes for shard in shards_of(dataset))
    assert train.main(arguments(dataset, tmp_path, "--stream.cache_bytes", str(limit))) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    assert sum(held(tmp_path / "cache").values()) <= limit
    assert max(downloads(remote, dataset)) <= 2


# -- a disk that fills -----------------------------------------------------------------------------


def with_full_disk(cache: Path, size_bytes: int) -> list[str]:
    """A prefix for a command: in namespaces of its own, the folder is a disk of that size."""
    mount = f'mount -t tmpfs -o size={size_bytes} none "{cache}"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$@"',
            "sh"]  # fmt: skip


def test_the_disk_fills(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path
) -> None:
    """A real disk, full after some shards: the run goes on without a cache and says so once, with
    the setting that would help."""
    cache = tmp_path / "cache"
    cache.mkdir()
    prefix = with_full_disk(cache, 2 * shards_of(dataset)[0].bytes)
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of a certain size to be had: {error}")
    run = [
        sys.executable,
        "-m",
        "tests.data.stream.cache.test_cache_in_runs",
        *arguments(dataset, tmp_path),
    ]
    done = subprocess.run([*prefix, *run], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert Result.of(tmp_path / "run") == undisturbed
    lines = [line for line in done.stderr.splitlines() if line.startswith("cache: ")]
    assert len(lines) == 1
    for word in ("No space left on device", "streaming without it", "--stream.cache_bytes"):
        assert word in lines[0]


def test_the_disk_fills_at_a_moment(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path, moments: Moments,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same in the middle of an epoch, after a clean-up: what was cached is gone, and nothing
    can be written any more."""

    def fill() -> None:
        shutil.rmtree(tmp_path / "cache")
        monkeypatch.setattr(storage, "replace_file", no_space)

    write = storage.replace_file

    def no_space(path: Path, data: bytes, durable: bool = True) -> None:
        if path.suffix == ".tar":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data, durable)

    moments.at_step = {STEPS + STEPS // 2: fill}
    assert train.main(arguments(dataset, tmp_path)) == 0
    assert Result.of(tmp_path / "run") == undisturbed
    said = capsys.readouterr().err
    assert "No space left on device; streaming without it from now on" in said
    assert held(tmp_path / "cache") == {}


# -- two ranks -------------------------------------------------------------------------------------


def test_two_ranks_fetch_each_shard_once(
    remote: Store, dataset: Dataset, undisturbed: Result, tmp_path: Path
) -> None:
    """A node's ranks share its cache: the store is asked once for each shard, two epochs long."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, "-m", "quickdraw_dist.train"]
    command += arguments(dataset, tmp_path)
    done = subprocess.run(
        command, text=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert Result.of(tmp_path / "run").order_digest == undisturbed.order_digest
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))
    names = [base(shard) for shard in dataset.manifest.splits["val"]]
    assert [remote.media_reads(name) for name in names] == [1] * len(names)


if __name__ == "__main__":
    keep_to_one_thread(pytest.MonkeyPatch())
    leave(train.main(sys.argv[1:]))
