"""Prometheus metrics and goodput: what this process did, and where its time went.

Each rank has one registry and one endpoint. Drawings, steps, skipped steps, restarts and goodput
seconds go on from the checkpoint after a restart; everything else starts at zero. Drawings, steps,
loss and accuracies are the whole run's, the same on every rank; all others are the rank's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series for each, of no use here

REGISTRY = CollectorRegistry()


def _unit(name: str) -> str:
    """What OpenMetrics calls the unit: the last word of the name, if it is one."""
    last = name.rpartition("_")[2]
    return last if last in ("seconds", "bytes", "ratio") else ""


def _counter(name: str, text: str, **known: tuple[str, ...]) -> Counter:
    """A counter; of a label, the values given are there from the start, at zero: of a series that
    only comes with its first event, `increase()` does not see that event."""
    counter = Counter(f"quickdraw_{name}", text, tuple(known), unit=_unit(name), registry=REGISTRY)
    for label, values in known.items():
        for value in values:
            counter.labels(**{label: value})
    return counter


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"quickdraw_{name}", text, labels, unit=_unit(name), registry=REGISTRY)


DRAWINGS = _counter("drawings", "Drawings trained on, over all ranks.")
STEPS = _counter("steps", "Optimizer steps.")
SKIPPED_STEPS = _counter(
    "skipped_steps", "Steps left out by all ranks, for a loss or gradient that was not finite."
)
RESTARTS = _counter("restarts", "Starts after the first one.")
EPOCH = _gauge("epoch", "Passes over the training split so far, with the fraction of this one.")
LOSS = _gauge("loss", "Mean training loss since the last log line, nats.")
ACCURACY = _gauge("train_accuracy_ratio", "Top-1 on training drawings since the last log line.")
LEARNING_RATE = _gauge("learning_rate", "Learning rate of the last step.")
GRADIENT_NORM = _gauge("gradient_norm", "Norm of the gradient before clipping, last logged step.")
STEP_SECONDS = Histogram(
    "quickdraw_step_seconds",
    "Time of a step on the device: forward, backward, optimizer, other ranks' gradients.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
    unit="seconds",
    registry=REGISTRY,
)
RANK_STEP_SECONDS = _gauge(
    "rank_step_seconds",
    "A rank's own work in a step, without waiting for others, mean since the last log line.",
    "rank",
)
SLOWEST_RANK = _gauge("slowest_rank", "Number of the rank with the most work of its own.")
DATA_WAIT_SECONDS = _counter("data_wait_seconds", "Time the loop waited for a batch.")
HOST_TO_DEVICE_SECONDS = _counter(
    "host_to_device_seconds", "Time of copying batches to the device, beside the steps."
)
LAST_STEP_TIMESTAMP = _gauge("last_step_timestamp_seconds", "Unix time of the last step.")
DEVICE_MEMORY_BYTES = _gauge("device_memory_bytes", "Most device memory allocated so far.")

_OPERATIONS = ("read", "read_range", "write", "stat", "list", "remove")
_TROUBLE = ("connection", "stall", "short", "checksum", "429", "500", "502", "503", "504")
STORE_REQUESTS = _counter("store_requests", "Requests to the store.", operation=_OPERATIONS)
STORE_BYTES = _counter("store_bytes", "Bytes from and to the store.", operation=_OPERATIONS[:3])
STORE_RETRIES = _counter("store_retries", "Requests that were repeated.", kind=_TROUBLE)
STORE_ERRORS = _counter("store_errors", "Requests that failed for good.", kind=_TROUBLE)
CACHE_HITS = _counter("cache_hits", "Reads answered from the node cache.")
CACHE_MISSES = _counter("cache_misses", "Shards fetched into the node cache.")
CACHE_BYTES = _gauge("cache_bytes", "Bytes in the node cache after the last fetch.")

CHECKPOINT_SECONDS = _counter(
    "checkpoint_seconds", "Time spent writing checkpoints, in the background."
)
CHECKPOINT_PAUSE_SECONDS = Histogram(
    "quickdraw_checkpoint_pause_seconds",
    "Time that training stood still for a checkpoint which is written in the background.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
    unit="seconds",
    registry=REGISTRY,
)
CHECKPOINTS = _counter("checkpoints", "Checkpoints written.")
CHECKPOINT_FAILURES = _counter("checkpoint_failures", "Checkpoints that could not be written.")
CHECKPOINTS_LEFT_OUT = _counter(
    "checkpoints_left_out", "Checkpoints left out: the one before was still being written."
)
LOG_FAILURES = _counter("log_failures", "Lines of metrics.jsonl that could not be written at once.")
EVALUATION_ACCURACY = _gauge("evaluation_accuracy_ratio", "Last evaluation.", "split", "metric")
CAUSES = ("train", "data_wait", "compile", "evaluation", "checkpoint", "restart")
"""Every second of a run is charged to one of these."""

GOODPUT_SECONDS = _counter("goodput_seconds", "Wall time of the run by cause.", cause=CAUSES)


class Goodput:
    """A stopwatch that always runs for exactly one cause, so that the causes add up to the wall:
    of this process, and with what `resume` brings, of the run since its first start."""

    def __init__(self) -> None:
        """Start on `restart`: everything before the first step is lost to starting."""
        self.started = time.time()
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self._cause = "restart"
        self._since = time.monotonic()

    @property
    def cause(self) -> str:
        """What the time is charged to now."""
        return self._cause

    def switch(self, cause: str) -> float:
        """Charge the time since the last switch and go on with `cause`; returns that time."""
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        self.seconds[self._cause] += elapsed
        GOODPUT_SECONDS.labels(self._cause).inc(elapsed)
        self._cause = cause
        return elapsed

    def now(self) -> dict[str, float]:
        """Seconds of every cause up to this moment."""
        self.switch(self._cause)
        return dict(self.seconds)

    @contextmanager
    def during(self, cause: str) -> Iterator[None]:
        """Charge the body to `cause`, then go back to what ran before."""
        before = self._cause
        self.switch(cause)
        try:
            yield
        finally:
            self.switch(before)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the seconds of every cause, and the Unix time up to which they go."""
        return {"until": time.time(), "seconds": self.now()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier process's state. The time between it and this process's start
        (nobody ran, or what ran was lost and is done again) is lost to the restart."""
        past = dict(state["seconds"])
        past["restart"] = past.get("restart", 0.0) + max(0.0, self.started - state["until"])
        for cause in CAUSES:
            self.seconds[cause] += past.get(cause, 0.0)
            GOODPUT_SECONDS.labels(cause).inc(past.get(cause, 0.0))


def serve(host: str, port: int) -> bool:
    """Open this rank's endpoint; when the port is taken, one warning and no endpoint."""
    try:
        start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        print(
            f"metrics: no endpoint on {host}:{port} ({error.strerror or error}); training goes on."
            " Another one: --metrics.port; none: --metrics.port 0",
            file=sys.stderr,
        )
        return False
    return True
