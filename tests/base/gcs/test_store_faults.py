"""Sharding and training against a store that fails one request in five give the same bytes, order
and weights as without faults. When every request fails, both end with a clear error."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs import shard, verify
from quickdraw_dist import train
from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, StorageError
from quickdraw_dist.base.telemetry import metrics as telemetry
from tests.support import runs
from tests.support.gcs.fault_proxy import FAULTS, STATUSES, FaultProxy
from tests.support.gcs.local import Store, use_store
from tests.support.gcs.server import GcsServer, Request

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset

SOURCE, DATASET = "gs://bucket/source", "gs://bucket/dataset"
SIZES = ["--shard.drawings_per_shard", "320", "--shard.block", "64", "--shard.group_shards", "2"]
SHARD = ["--source", SOURCE, "--dest", DATASET, "--processes", "1", *SIZES]
TRAIN = ["--train.epochs", "1", "--train.global_batch", "96", "--train.device", "cpu"]
TRAIN += ["--model.width", "4", "--metrics.port", "0", *runs.NO_PAGE]

pytestmark = pytest.mark.usefixtures("one_thread")

RETRIES = {
    "429": {"429"},
    "500": {"500"},
    "503": {"503"},
    "reset": {"connection"},
    "stall": {"stall"},
    "cut": {"short"},
    "short": {"short", "checksum"},
    "flip": {"checksum"},
    "trickle": set[str](),
}
"""The kinds of retries that each fault is counted as."""


def train_into(output: str, *more: str) -> int:
    """Train in this process; returns the exit code."""
    return train.main(["--data", DATASET, "--output", output, *TRAIN, *more])


def whole_run(cache: Path) -> None:
    """Shard, verify, and train twice: from a cache of whole shards and from ranges without one."""
    shard.main(SHARD)
    verify.main([DATASET, "--source", SOURCE])
    assert train_into("gs://bucket/cached", "--stream.cache_folder", str(cache)) == 0
    assert train_into("gs://bucket/ranges", "--stream.cache_bytes", "0") == 0


@dataclass(frozen=True)
class Result:
    """What a whole run has written, read from the server's memory."""

    dataset: dict[str, bytes] = field(repr=False)
    weights: list[str]  # checksums of those of the two trainings
    order_digests: list[str]

    @classmethod
    def of(cls, server: GcsServer) -> Result:
        kept = server.gcs.store
        objects = {name: bytes(kept.read("bucket", name, {})[1]) for name in kept.buckets["bucket"]}

        def checkpoints(file: str) -> list[bytes]:
            return [objects[name] for name in sorted(objects) if name.endswith(file)]

        return cls(
            {name: data for name, data in objects.items() if name.startswith("dataset/")},
            [sha256(weights).hexdigest() for weights in checkpoints("/model.safetensors")],
            [json.loads(meta)["order_digest"] for meta in checkpoints("/meta.json")],
        )


@pytest.fixture(scope="module")
def without_faults(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The result that every run of this module must have."""
    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        server.gcs.store.create_bucket("bucket")
        Store(server).upload(dataset.source.url, SOURCE)
        whole_run(tmp_path_factory.mktemp("cache"))
        return Result.of(server)


@pytest.fixture
def bucket(store: Store, dataset: Dataset) -> Store:
    """A store with 2,000 drawings of 5 classes in `source/`."""
    store.upload(dataset.source.url, SOURCE)
    return store


def retries() -> dict[str, float]:
    """Count the repeated requests of this process by kind."""
    families = telemetry.STORE_RETRIES.collect()
    samples = (sample for family in families for sample in family.samples)
    return {sample.labels["kind"]: sample.value for sample in samples}


ALONE = [pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS]


@pytest.mark.parametrize("fault", [*ALONE, "all of them"])
def test_one_request_in_five(
    bucket: Store,
    without_faults: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """A run whose requests fail leaves the same bytes as any other and counts the failures."""
    faults = [fault] if fault in FAULTS else FAULTS
    if "stall" in faults:
        monkeypatch.setattr(storage, "STALL_SECONDS", 0.15)
    before = retries()
    with FaultProxy(bucket.server.url, faults) as proxy:
        use_store(proxy.url)
        whole_run(tmp_path)
    result = Result.of(bucket.server)
    assert result.dataset.keys() == without_faults.dataset.keys()
    assert [n for n, data in result.dataset.items() if data != without_faults.dataset[n]] == []
    assert result.order_digests == without_faults.order_digests
    assert result.weights == without_faults.weights
    assert all(proxy.did[fault] for fault in faults)
    counted = {kind for kind, count in retries().items() if count > before.get(kind, 0)}
    due = set[str]().union(*(RETRIES[fault] for fault in faults))
    if len(faults) == 1:
        assert counted == due
    else:  # aiohttp itself repeats what a closed connection has lost, uploads excepted
        assert counted >= due - {"connection"}


ALWAYS = {
    **{status: f"{status}: " for status in STATUSES},
    "reset": "connection: ",
    "stall": "stall: ",
    "cut": "short: ",
    "short": "(short|checksum): ",
    "flip": "checksum: ",
}
"""How the error reads when a fault hits every request."""


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are tried three times instead of six."""
    monkeypatch.setattr(storage, "ATTEMPTS", 3)


@pytest.mark.usefixtures("few_tries")
@pytest.mark.parametrize("fault", ALWAYS)
def test_every_request(
    bucket: Store,
    without_faults: Result,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """Both commands end after three tries, name object and cause, and leave nothing half-made."""
    if fault == "stall":
        monkeypatch.setattr(storage, "STALL_SECONDS", 0.3)
    with FaultProxy(bucket.server.url, [fault], share=1.0) as proxy:
        use_store(proxy.url)
        # Ranges of the source have no checksum of their own: there, readings never agree.
        corrupt = (CorruptError, rf"^{SOURCE}/.*\.npy: no two readings")
        failed = (StorageError, rf"^{SOURCE}: list failed after 3 tries: {ALWAYS[fault]}")
        kind, said = corrupt if fault == "flip" else failed
        with pytest.raises(kind, match=said):
            shard.main(SHARD)
        assert not [name for name in bucket.server.gcs.store.buckets["bucket"] if "dataset" in name]
        for name, data in without_faults.dataset.items():
            bucket.server.gcs.store.insert("bucket", {"name": name}, memoryview(data), {})
        assert train_into("gs://bucket/run") == 1  # trouble of the moment: worth another start
        error = capsys.readouterr().err.strip().splitlines()[-1]
        said = rf"error: {DATASET}/manifest\.json: read failed after 3 tries: {ALWAYS[fault]}"
        assert re.match(said, error)


@pytest.mark.usefixtures("few_tries")
@pytest.mark.slow
def test_a_store_that_goes_away_in_the_middle(
    bucket: Store, without_faults: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error occurs in a thread of the loader; the run still ends with the name of the shard,
    and the same command later ends like any other run."""
    for name, data in without_faults.dataset.items():
        bucket.server.gcs.store.insert("bucket", {"name": name}, memoryview(data), {})
    no_cache = ["--stream.cache_bytes", "0"]
    with FaultProxy(bucket.server.url, ["503"], share=0.0) as proxy:
        use_store(proxy.url)

        def intercept(request: Request) -> None:
            if bucket.media_reads("quickdraw-train") == 15:
                proxy.share = 1.0

        bucket.intercept = intercept
        assert train_into("gs://bucket/ranges", *no_cache) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: {DATASET}/train/quickdraw-train-0")
        assert "read_range failed after 3 tries: 503: " in error
        proxy.share, bucket.intercept = 0.0, None
        assert train_into("gs://bucket/ranges", *no_cache) == 0
    result = Result.of(bucket.server)
    assert result.order_digests == without_faults.order_digests[1:]
    assert result.weights == without_faults.weights[1:]


@pytest.mark.slow
def test_all_commands_on_a_store(bucket: Store, without_faults: Result, tmp_path: Path) -> None:
    """Source, dataset and run are in gs://; each command is a process, one of them killed."""
    said = runs.finish(runs.start(runs.ALONE, SHARD, "jobs.shard"))
    assert f"{DATASET}/manifest.json: complete" in said
    proof = [DATASET, "--source", SOURCE]
    said = runs.finish(runs.start(runs.ALONE, proof, "jobs.verify"))
    assert "every pixel equal to the source's" in said
    settings = ["--data", DATASET, "--output", "gs://bucket/run", *TRAIN]
    settings += ["--checkpoint.every_drawings", "192"]
    settings += ["--stream.cache_folder", str(tmp_path)]
    killed = runs.start_with_fault(runs.ALONE, settings, step=9, phase="data wait", action="kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert "resumed" in runs.finish(runs.start(runs.ALONE, settings))
    result = Result.of(bucket.server)
    assert result.dataset == without_faults.dataset
    assert result.order_digests[-1] == without_faults.order_digests[0]
    assert result.weights[-1] == without_faults.weights[0]
