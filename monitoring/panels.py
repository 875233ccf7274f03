"""The panels of the Grafana dashboard; dashboard.py writes their JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """Queries shown in one panel. In a query, `{run` begins a selector of the chosen run."""

    title: str
    help: str
    unit: str  # Grafana's name: s, percentunit, Bps ...
    queries: dict[str, str]  # from legend, in Grafana's format, to PromQL
    number: bool = False  # show the last value instead of a graph
    stacked: bool = False


def number(title: str, text: str, unit: str, query: str) -> Panel:
    """A panel that shows one number."""
    return Panel(title, text, unit, {title: query}, number=True)


def rate(counter: str, by: str) -> str:
    """Rate per second of a counter that starts at 0 with the process, summed by a label."""
    return f"sum by ({by}) (rate(quickdraw_{counter}{{run}}[$__rate_interval]))"


def run_rate(counter: str) -> str:
    """Rate per second and rank of a counter that resumes from the checkpoint, without the jump that
    restores its value at a start."""
    restarted = "increase(quickdraw_restarts_total{run}[$__rate_interval]) > 0"
    increase = f"rate(quickdraw_{counter}{{run}}[$__rate_interval])"
    return f"({increase} unless on (job, instance) {restarted})"


def quantile(q: float) -> str:
    """Quantile of the step time over all ranks."""
    return f"histogram_quantile({q}, {rate('step_seconds_bucket', 'le')})"


ACCURACY = "quickdraw_evaluation_accuracy_ratio"
TRAINING = 'sum(quickdraw_goodput_seconds_total{run, cause="train"})'

PANELS = [
    number("Epoch", "Passes over the training split.", "none", "max(quickdraw_epoch{run})"),
    number(
        "Validation top-1",
        "Averaged weights, last evaluation.",
        "percentunit",
        f'max({ACCURACY}{{run, split="val", metric="top1"}})',
    ),
    number(
        "Last step",
        "Time since the last step; an alert after ten minutes.",
        "s",
        "time() - max(quickdraw_last_step_timestamp_seconds{run})",
    ),
    number(
        "Goodput",
        "Share of the run's time, over all its starts, spent in steps.",
        "percentunit",
        f"{TRAINING} / sum(quickdraw_goodput_seconds_total{{run}})",
    ),
    number("Restarts", "Starts after the first one.", "none", "max(quickdraw_restarts_total{run})"),
    number(
        "Skipped steps",
        "Skipped because loss or gradient was NaN or inf.",
        "none",
        "max(quickdraw_skipped_steps_total{run})",
    ),
    Panel(
        "Drawings per second",
        "All ranks together.",
        "none",
        {"drawings/s": f"max({run_rate('drawings_total')})"},
    ),
    Panel(
        "Where the time goes",
        "Share of time by cause, mean over the ranks.",
        "percentunit",
        {"{{cause}}": f"avg by (cause) ({run_rate('goodput_seconds_total')})"},
        stacked=True,
    ),
    Panel(
        "Loss",
        "Mean over the training drawings since the last log line, nats.",
        "none",
        {"train": "max(quickdraw_loss{run})"},
    ),
    Panel(
        "Accuracy",
        "On training drawings with augmentation, and at the last evaluation.",
        "percentunit",
        {
            "train top1": "max(quickdraw_train_accuracy_ratio{run})",
            "{{split}} {{metric}}": f"max by (split, metric) ({ACCURACY}{{run}})",
        },
    ),
    Panel(
        "Learning rate",
        "At the last step.",
        "none",
        {"learning rate": "max(quickdraw_learning_rate{run})"},
    ),
    Panel(
        "Gradient norm",
        "Before clipping, last logged step.",
        "none",
        {"norm": "max(quickdraw_gradient_norm{run})"},
    ),
    Panel(
        "Step time",
        "On the device, all-reduce included; over all ranks.",
        "s",
        {"median": quantile(0.5), "99 %": quantile(0.99)},
    ),
    Panel(
        "Data wait",
        "Share of a rank's time spent waiting for a batch.",
        "percentunit",
        {"{{instance}}": rate("data_wait_seconds_total", "instance")},
    ),
    Panel(
        "Copies to the device",
        "Share of a rank's time; copies overlap the steps.",
        "percentunit",
        {"{{instance}}": rate("host_to_device_seconds_total", "instance")},
    ),
    Panel(
        "Device memory",
        "Peak of allocated memory.",
        "bytes",
        {"{{instance}}": "quickdraw_device_memory_bytes{run}"},
    ),
    Panel(
        "Checkpoints",
        "Since the last start; skipped: the previous one was still being written.",
        "none",
        {
            "written": "sum(quickdraw_checkpoints_total{run})",
            "failed": "sum(quickdraw_checkpoint_failures_total{run})",
            "skipped": "sum(quickdraw_checkpoints_skipped_total{run})",
        },
    ),
    Panel(
        "Time per checkpoint",
        "Writing in the background, and the pause of training; means since the start.",
        "s",
        {
            "writing": "sum(quickdraw_checkpoint_seconds_total{run})"
            " / sum(quickdraw_checkpoints_total{run})",
            "pause": "sum(quickdraw_checkpoint_pause_seconds_sum{run})"
            " / sum(quickdraw_checkpoint_pause_seconds_count{run})",
        },
    ),
    Panel(
        "Store: bytes",
        "All ranks, by operation.",
        "Bps",
        {"{{operation}}": rate("store_bytes_total", "operation")},
    ),
    Panel(
        "Store: requests",
        "All ranks, by operation.",
        "reqps",
        {"{{operation}}": rate("store_requests_total", "operation")},
    ),
    Panel(
        "Store: failures",
        "Requests retried, and failed after all retries, by kind.",
        "reqps",
        {
            "retried {{kind}}": rate("store_retries_total", "kind"),
            "failed {{kind}}": rate("store_errors_total", "kind"),
        },
    ),
    Panel(
        "Node cache",
        "Reads served from the cache, and shards fetched into it.",
        "ops",
        {"hits": rate("cache_hits_total", "job"), "fetches": rate("cache_misses_total", "job")},
    ),
    Panel(
        "Size of the node cache",
        "After each rank's last fetch.",
        "bytes",
        {"{{instance}}": "quickdraw_cache_bytes{run}"},
    ),
]
"""All panels, in the dashboard's order."""


def expression(query: str) -> str:
    """Return a query with Grafana's variable for the run."""
    return query.replace("{run", '{job="$job"')
