"""overlays/cpu as a cluster would run it: shard, merge, train on two hosts, evaluate."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pytest

from quickdraw_dist.run.checkpoint import files as checkpoint
from tests.cluster.support import images
from tests.cluster.support.hosts import Host, Network, require
from tests.cluster.support.manifests import Object, find, load, workload
from tests.cluster.support.pods import Controller, End, Pods, action
from tests.support.runs import records

OBJECTS = load("overlays/cpu")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the claim `quickdraw` is bound to."""
    folder = tmp_path_factory.mktemp("volume")
    folder.chmod(0o777)
    return folder


@pytest.fixture
def pods(
    request: pytest.FixtureRequest, built: dict[str, str], volume: Path, tmp_path: Path
) -> Pods:
    """Pods of the Job that the test is parametrized with."""
    return Pods(OBJECTS, workload(OBJECTS, request.param), built, {"quickdraw": volume}, tmp_path)


def run(pods: Pods, index: int = 0) -> tuple[int, str]:
    """Run a pod without a network; returns its exit code and output."""
    script = pods.script(index, ["--network=none"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dataset(built: dict[str, str], volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset that the Jobs quickdraw-shard and quickdraw-merge write into the volume."""
    folder = tmp_path_factory.mktemp("shard")
    workers, merge = (
        Pods(OBJECTS, workload(OBJECTS, name), built, {"quickdraw": volume}, folder)
        for name in ("quickdraw-shard", "quickdraw-merge")
    )
    with ThreadPoolExecutor(2) as pool:
        for code, said in pool.map(lambda index: run(workers, index), range(2)):
            assert code == 0, said
    code, said = run(merge)
    assert code == 0, said
    assert "20,000 drawings of 20 classes" in said
    assert "every row exactly once" in said
    return volume / "quickdraw"


@pytest.mark.parametrize("pods", ["quickdraw-train"], indirect=True)
def test_a_missing_dataset_fails_the_check(pods: Pods, built: dict[str, str]) -> None:
    """The init container fails with exit code 2 and names what is missing."""
    empty = pods.folder / "empty"
    empty.mkdir(mode=0o755)
    code, said = run(Pods(OBJECTS, pods.job, built, {"quickdraw": empty}, pods.folder))
    assert (code, action(pods.job, End(0, code))) == (2, "FailJob")
    assert "/data/quickdraw: no dataset there" in said


@pytest.mark.parametrize("pods", ["quickdraw-train"], indirect=True)
def test_a_misspelt_setting_fails_the_check(pods: Pods) -> None:
    objects: list[Object] = json.loads(json.dumps(OBJECTS))
    data = find(objects, "ConfigMap", "quickdraw-train")["data"]
    data["train.yaml"] = data["train.yaml"].replace("global_batch", "globl_batch")
    broken = Pods(objects, pods.job, pods.images, pods.claims, pods.folder)
    code, said = run(broken)
    assert (code, action(pods.job, End(0, code))) == (2, "FailJob")
    assert "train.globl_batch 512: unknown setting. Did you mean 'train.global_batch'" in said


def test_an_unedited_bucket_fails_the_check(built: dict[str, str], tmp_path: Path) -> None:
    """k8s/train.yaml without edits fails with the name of the placeholder."""
    objects = load("train.yaml")
    code, said = run(Pods(objects, workload(objects, "quickdraw-train"), built, {}, tmp_path))
    assert (code, action(workload(objects, "quickdraw-train"), End(0, code))) == (2, "FailJob")
    assert "gs://BUCKET/quickdraw/manifest.json: no bucket is called 'BUCKET'" in said


SECOND = 0.05
"""Seconds that a second of the controller's delays takes here."""


class Cluster:
    """Two hosts with pods of the training Job, and their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network(folder, {})
        self.pod: dict[int, Host] = {}
        self._started, self._closed = 0, False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for host in self.pod.values():
            host.close()
        self.network.close()

    def apply(self, pods: Pods) -> Controller:
        """Return the controller of a Job of these pods; its `complete` starts them."""
        grace = pods.job.pod["terminationGracePeriodSeconds"]

        def run(index: int, life: int) -> int:
            return self.run(pods, index, life)

        def stop(index: int, life: int) -> None:
            self.end(pods, index, life, "stop", "--all", f"--time={grace}")

        return Controller(pods.job, run, stop, second=SECOND)

    def log(self, index: int) -> Path:
        """Where the output of the pods of an index goes."""
        return self.folder / f"log-{index}"

    def machine(self, pods: Pods, index: int, life: int) -> Path:
        """Where podman keeps the containers of a pod's life."""
        return self.folder / f"{pods.uid}{index}-{life}"

    def named(self, *names: str) -> None:
        """Let only these pods' names resolve, to their present addresses."""
        lines = [f"{self.network.addresses[n]} {n}.quickdraw-train {n}\n" for n in names]
        self.network.hosts_file.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def run(self, pods: Pods, index: int, life: int) -> int:
        """Run a pod on a new host with a new address; returns its exit code."""
        name = f"quickdraw-train-{index}"
        with self._lock:
            self._started += 1
            self.network.addresses[name] = f"10.77.0.{self._started}"
            if self._started > pods.job.spec["completions"]:  # the test names the first ones
                self.named(*self.network.addresses)
        options = ["--network=host", "--uts=host", "--no-hosts"]
        options += [f"--volume={self.network.hosts_file}:/etc/hosts:ro"]
        script = pods.script(index, options, self.machine(pods, index, life))
        host = Host(self.network, name, ["bash", "-c", script], log=self.log(index))
        self.pod[index] = host
        code = host.process.wait()
        host.close()
        return 2 if self._closed else code  # nothing comes back when a test has given up

    def end(self, pods: Pods, index: int, life: int, *command: str) -> None:
        """Have podman end containers of a pod's life."""
        words = shlex.join([*images.podman(self.machine(pods, index, life)), *command])
        # Not waited for: the host, and with it this command, ends when the container has.
        self.pod[index].run("sh", "-c", f"{words} >/dev/null 2>&1 &", folder=Path("/"))

    def wait_for(self, complete: Future[bool], condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; the Job must not end before."""
        while not condition():
            assert not complete.done(), [self.output(index) for index in self.pod]
            time.sleep(0.1)

    def output(self, index: int) -> str:
        """Return what the pods of an index have printed."""
        log = self.log(index)
        return log.read_text(errors="replace") if log.exists() else ""


EPOCHS = 3


@dataclass(frozen=True)
class Trained:
    """The results of a training Job and of the Job that replaced it."""

    run: Path
    settings: Path
    first: Controller
    second: Controller


@pytest.fixture(scope="module")
def trained(
    built: dict[str, str],
    dataset: Path,
    volume: Path,
) -> Iterator[Trained]:
    """A Job in which a name resolves five seconds late, a pod is ended by TERM, one is killed, and
    which is then replaced by one with another setting.

    Each pod that comes back does so on a new host, with another address.
    """
    require("podman")
    objects: list[Object] = json.loads(json.dumps(OBJECTS))
    data = find(objects, "ConfigMap", "quickdraw-train")["data"]
    assert "epochs: 5" in data["train.yaml"]
    data["train.yaml"] = data["train.yaml"].replace("epochs: 5", f"epochs: {EPOCHS}")
    changed: list[Object] = json.loads(json.dumps(objects))
    settings = find(changed, "ConfigMap", "quickdraw-train")["data"]
    settings["train.yaml"] = settings["train.yaml"].replace("log_every: 10", "log_every: 5")
    job, output = workload(objects, "quickdraw-train"), volume / "runs" / "quickdraw"
    with (
        TemporaryDirectory() as short,  # than pytest's, for podman
        ThreadPoolExecutor(1) as background,
        Cluster(Path(short)) as cluster,
    ):
        pods = Pods(objects, job, built, {"quickdraw": volume}, Path(short), "a")
        first = cluster.apply(pods)
        complete = background.submit(first.complete)
        check_is_done = "ranks     4"
        cluster.wait_for(
            complete, lambda: all(check_is_done in cluster.output(index) for index in range(2))
        )
        cluster.named("quickdraw-train-1")
        time.sleep(5)  # the fault, not a synchronisation
        assert records(output) == []
        cluster.named("quickdraw-train-0", "quickdraw-train-1")

        cluster.wait_for(complete, lambda: bool(records(output, "train")))
        first.stop(0, 0)

        cluster.wait_for(complete, lambda: any(r["epoch"] > 1 for r in records(output, "train")))
        cluster.end(pods, 1, 1, "kill", "--signal=KILL", "train")

        cluster.wait_for(complete, lambda: any(r["epoch"] > 2 for r in records(output, "train")))
        first.delete("foreground")
        assert not complete.result(), "deleted"
        replacement = Pods(changed, job, built, {"quickdraw": volume}, Path(short), "b")
        second = cluster.apply(replacement)
        assert second.complete(), second.codes
        settings_file = cluster.machine(pods, 0, 0) / "volumes" / "settings" / "train.yaml"
        yield Trained(output, settings_file, first, second)


def test_pods_come_back(trained: Trained) -> None:
    """Pods that save within the grace period are no failures; a crash of one ends both. A deleted
    Job saves, and its replacement finishes the run."""
    assert trained.first.codes == {0: [85, 1, 85], 1: [85, 137, 85]}
    assert trained.first.delays == {0: [10, 20], 1: [10, 20]}
    assert trained.second.codes == {0: [0], 1: [0]}


def test_the_order_is_that_of_an_undisturbed_run(
    trained: Trained, dataset: Path, tmp_path: Path
) -> None:
    """The order digest equals that of the same settings in one process."""
    command = [sys.executable, "-m", "quickdraw_dist.train", "--config", str(trained.settings)]
    command += ["--data", str(dataset), "--output", str(tmp_path), "--metrics.port", "0"]
    command += ["--model.width", "4", "--augment.affine", "true"]  # no part of the order
    subprocess.run(command, check=True, capture_output=True)
    assert order_digest(trained.run) == order_digest(tmp_path)


def order_digest(run: Path) -> str:
    """Return the order digest of a finished run."""
    meta = checkpoint.read_meta(str(max((run / "checkpoints").iterdir())))
    assert meta["epoch"] == EPOCHS
    return str(meta["order_digest"])


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("pods", ["quickdraw-evaluate"], indirect=True)
def test_evaluate(pods: Pods, volume: Path) -> None:
    code, said = run(pods)
    assert code == 0, said
    figures = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert figures["drawings"] == 1000
    assert figures["top1"] > 0.2, "20 classes"
    assert (volume / "runs" / "quickdraw" / "report-test" / "index.html").exists()
