"""What the Job controller does with the Jobs of the manifests when their pods end: delays, limits,
reasons, and which pods run at the same time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.cluster.support.manifests import Workload, load, workload
from tests.cluster.support.pods import Controller, End, delay, next_delay, outcome

TRAIN = workload(load("train.yaml"), "quickdraw-train")
IN_JOBSET = workload(load("train-jobset.yaml"), "quickdraw-train-node-0")
SHARD = workload(load("shard.yaml"), "quickdraw-shard")
MERGE = workload(load("merge.yaml"), "quickdraw-merge")

REFUSED, SAVED, ENDED_BY_TERM = 2, 85, 143


def with_nodes(job: Workload, nodes: int, **spec: object) -> Workload:
    """Return the same Job for another number of nodes, with other fields."""
    changed = copy.deepcopy(job.spec) | {"completions": nodes, "parallelism": nodes} | spec
    return Workload(job.name, {k: v for k, v in changed.items() if v is not None})


def waits(job: Workload, preemptions: int) -> list[float]:
    """Return the seconds that pod 0 waits after each preemption of all pods."""
    ends, found = [], []
    for _ in range(preemptions):
        ends += [End(index, SAVED) for index in range(job.spec["completions"])]
        assert outcome(job, ends) is None, "no failure"
        found.append(next_delay(job, ends, 0))
    return found


def test_the_delay_doubles_up_to_ten_minutes() -> None:
    found = [delay(ended) for ended in range(10)]
    assert found == [0, 10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_with_backoff_limit_the_ended_pods_of_all_nodes_delay() -> None:
    """A real cluster waited 20, 79 and 320 s with two pods, ten minutes with eight."""
    by_pods = {"backoffLimit": 20, "backoffLimitPerIndex": None, "maxFailedIndexes": None}
    assert waits(with_nodes(TRAIN, 2, **by_pods), 3) == [20, 80, 320]
    assert waits(with_nodes(TRAIN, 8, **by_pods), 2) == [600, 600]


@pytest.mark.parametrize("nodes", [2, 8])
@pytest.mark.parametrize("job", [TRAIN, IN_JOBSET], ids=["Job", "JobSet"])
def test_training_waits_by_the_preemptions_of_a_pod(job: Workload, nodes: int) -> None:
    assert waits(with_nodes(job, nodes), 4) == [10, 20, 40, 80]


def test_a_success_resets_the_delay() -> None:
    ends = [End(0, 1), End(0, 1), End(0, 0)]
    assert next_delay(MERGE, ends, 0) == 0


@pytest.mark.parametrize("nodes", [2, 8])
def test_training_survives_ten_crashes_on_any_number_of_nodes(nodes: int) -> None:
    job = with_nodes(TRAIN, nodes)
    ends = [End(index, 1) for _ in range(10) for index in range(nodes)]
    assert outcome(job, ends) is None
    assert outcome(job, [*ends, End(0, 137)]) == "MaxFailedIndexesExceeded"


@pytest.mark.parametrize("end", [End(0, SAVED), End(0, ENDED_BY_TERM), End(0, 137, disrupted=True)])
def test_preemptions_are_no_failures(end: End) -> None:
    """Pods that saved, ended in an init container, or were drained do not count."""
    for job in (TRAIN, IN_JOBSET):
        assert outcome(job, [end] * 100) is None


def test_reasons() -> None:
    """Jobs fail for the reasons that docs/trouble.md explains."""
    for job in (TRAIN, IN_JOBSET, SHARD, MERGE):
        assert outcome(job, [End(0, REFUSED)]) == "PodFailurePolicy"
    assert outcome(IN_JOBSET, [End(1, 1)]) == "MaxFailedIndexesExceeded", "the JobSet restarts all"
    done = [End(index, 0) for index in range(7)]
    assert outcome(SHARD, [*done, *[End(7, 1)] * 3]) is None
    assert outcome(SHARD, [*[End(7, 1)] * 4]) is None, "the other workers finish"
    assert outcome(SHARD, [*[End(7, 1)] * 4, *done]) == "FailedIndexes"
    assert outcome(SHARD, [*done, End(7, 0)]) == "Complete"
    assert outcome(MERGE, [End(0, 1)] * 4) == "BackoffLimitExceeded"


class Pods:
    """Pods that run until the test ends them."""

    def __init__(self) -> None:
        self.running: set[tuple[str, int, int]] = set()
        self.most = 0
        self._told: dict[tuple[str, int, int], int] = {}
        self._changed = threading.Condition()

    def controller(self, uid: str) -> Controller:
        """Return the controller of a training Job of two such pods."""
        return Controller(
            with_nodes(TRAIN, 2),
            lambda index, life: self._run((uid, index, life)),
            second=0.001,
        )

    def _run(self, pod: tuple[str, int, int]) -> int:
        with self._changed:
            self.running.add(pod)
            self.most = max(self.most, sum(other[1] == pod[1] for other in self.running))
            self._changed.notify_all()
            self._changed.wait_for(lambda: pod in self._told)
            self.running.remove(pod)
            return self._told[pod]

    def end(self, uid: str, index: int, life: int, code: int) -> None:
        """End a pod with a code."""
        with self._changed:
            self._told[uid, index, life] = code
            self._changed.notify_all()

    def wait_for(self, *pods: tuple[str, int, int]) -> None:
        """Wait until these pods are running."""
        with self._changed:
            assert self._changed.wait_for(lambda: set(pods) <= self.running, timeout=10)


@contextmanager
def applied(pods: Pods, uid: str) -> Iterator[tuple[Controller, Future[bool]]]:
    """Apply a Job; its two pods run."""
    with ThreadPoolExecutor(1) as background:
        controller = pods.controller(uid)
        done = background.submit(controller.complete)
        pods.wait_for((uid, 0, 0), (uid, 1, 0))
        yield controller, done


def test_a_pod_is_replaced_when_it_has_ended() -> None:
    pods = Pods()
    with applied(pods, "a") as (controller, done):
        for index in range(2):
            pods.end("a", index, 0, SAVED)
        pods.wait_for(("a", 0, 1), ("a", 1, 1))
        for index in range(2):
            pods.end("a", index, 1, 0)
        assert done.result()
    assert controller.delays == {0: [10], 1: [10]}
    assert pods.most == 1


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_only_a_foreground_delete_waits_for_the_pods(cascade: str) -> None:
    """After a background delete the pods of a new Job run beside the old ones, which still save."""
    pods = Pods()
    with applied(pods, "old") as (controller, _), ThreadPoolExecutor(1) as background:
        deletion = background.submit(controller.delete, cascade)
        if cascade == "background":
            deletion.result(timeout=10)
        else:
            with pytest.raises(TimeoutError):
                deletion.result(timeout=0.2)
            for index in range(2):
                pods.end("old", index, 0, SAVED)
            deletion.result(timeout=10)
        with applied(pods, "new"):
            assert pods.most == (2 if cascade == "background" else 1)
            for index in range(2):
                pods.end("old", index, 0, SAVED)
                pods.end("new", index, 0, 0)


def test_the_pod_of_a_dead_node_is_replaced_when_its_node_is_deleted() -> None:
    """The pod is Terminating until then, and the other pod waits for it."""
    pods = Pods()
    with applied(pods, "a") as (controller, done):
        controller.lose_node(1)
        pods.end("a", 1, 0, 137)
        pods.end("a", 0, 0, 1)
        pods.wait_for(("a", 0, 1))
        assert ("a", 1, 1) not in pods.running and controller.codes == {0: [1], 1: []}
        controller.delete_node(1)
        pods.wait_for(("a", 0, 1), ("a", 1, 1))
        for index in range(2):
            pods.end("a", index, 1, 0)
        assert done.result()
    assert End(1, 137, disrupted=True) in controller.ends


def test_a_refused_pod_ends_the_others() -> None:
    pods = Pods()
    with applied(pods, "a") as (controller, done):
        controller.stop = lambda index, life: threading.Thread(
            target=pods.end, args=("a", index, life, SAVED)
        ).start()
        pods.end("a", 1, 0, REFUSED)
        assert not done.result()
    assert controller.outcome == "PodFailurePolicy"
    assert controller.codes == {0: [SAVED], 1: [REFUSED]}


def test_a_failed_worker_does_not_end_the_others() -> None:
    """The worker is not replaced again, and the Job fails when the others have finished."""
    lives: list[tuple[int, int]] = []

    def run(index: int, life: int) -> int:
        lives.append((index, life))
        return index == 1

    controller = Controller(with_nodes(SHARD, 2), run, second=0.001)
    assert not controller.complete()
    assert controller.outcome == "FailedIndexes"
    assert sorted(lives) == [(0, 0), *((1, life) for life in range(4))]
    assert controller.delays == {0: [], 1: [10, 20, 40]}
