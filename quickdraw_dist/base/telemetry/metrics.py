"""Prometheus metrics of this process: one registry and one endpoint per rank.

After a restart drawings, steps, skipped steps, restarts and goodput seconds (phases.py) continue
from the checkpoint; all others start at zero. Drawings, steps, loss and accuracies are those of the
whole run, the same on every rank; all others are the rank's own.
"""

from __future__ import annotations

import os
import sys

# Another program's, which would make every command read and write its folder: the metrics here are
# this process's own. prometheus_client looks at it when it is imported.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
os.environ.pop("prometheus_multiproc_dir", None)

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
    """Return the OpenMetrics unit: the last word of the name, if it is one."""
    last = name.rpartition("_")[2]
    return last if last in ("seconds", "bytes", "ratio") else ""


def _counter(name: str, text: str, **known: tuple[str, ...]) -> Counter:
    """Register a counter whose label values exist from the start, at zero: `increase()` does not
    see the event that a series begins with."""
    made = Counter(f"quickdraw_{name}", text, tuple(known), unit=_unit(name), registry=REGISTRY)
    for label, values in known.items():
        for value in values:
            made.labels(**{label: value})
    return made


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"quickdraw_{name}", text, labels, unit=_unit(name), registry=REGISTRY)


DRAWINGS = _counter("drawings", "Drawings trained on, over all ranks.")
STEPS = _counter("steps", "Optimizer steps.")
SKIPPED_STEPS = _counter(
    "skipped_steps", "Steps skipped by all ranks because loss or gradient was NaN or inf."
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
    "Time that training paused to copy the state of a checkpoint written in the background.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
    unit="seconds",
    registry=REGISTRY,
)
CHECKPOINTS = _counter("checkpoints", "Checkpoints written.")
CHECKPOINT_FAILURES = _counter("checkpoint_failures", "Checkpoints that could not be written.")
CHECKPOINTS_SKIPPED = _counter(
    "checkpoints_skipped", "Checkpoints skipped: the one before was still being written."
)
LOG_FAILURES = _counter("log_failures", "Lines of metrics.jsonl that could not be written at once.")
EVALUATION_ACCURACY = _gauge("evaluation_accuracy_ratio", "Last evaluation.", "split", "metric")

CAUSES = ("train", "data_wait", "compile", "evaluation", "checkpoint", "restart")
"""Goodput: every second of a run is charged to one of these, by the clock in phases.py."""

GOODPUT_SECONDS = _counter("goodput_seconds", "Wall time of the run by cause.", cause=CAUSES)


def serve(host: str, port: int) -> bool:
    """Open this rank's endpoint and return whether it is open. Where the port is taken, warn once
    and train without an endpoint."""
    try:
        start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        print(
            f"metrics: no endpoint on {host}:{port} ({error.strerror or error}); training "
            "continues. Use another --metrics.port, or 0 for none",
            file=sys.stderr,
        )
        return False
    return True
