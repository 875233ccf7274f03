"""The Grafana dashboard, from one list of panels: python -m monitoring.dashboard writes the JSON.

Import monitoring/dashboard.json (Dashboards, New, Import), or let a sidecar find it:
kubectl create configmap quickdraw-dashboard --from-file=monitoring/dashboard.json, and label it
grafana_dashboard=1. It asks for a Prometheus and for a run, which is the label `job`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")

COLUMNS, HEIGHT = 24, 8  # of Grafana's grid; the height is a graph's


@dataclass(frozen=True)
class Panel:
    """Queries that are seen together. In a query, `{run` begins a selector of the chosen run."""

    title: str
    help: str
    unit: str  # Grafana's name: s, percentunit, Bps ...
    queries: dict[str, str]  # legend, as Grafana writes it, to PromQL
    number: bool = False  # the last value in large type, not a graph
    stacked: bool = False


def number(title: str, text: str, unit: str, query: str) -> Panel:
    """A panel that is one number."""
    return Panel(title, text, unit, {title: query}, number=True)


# A start after a checkpoint sets the counters of the run to where they were, which is no progress.
_RESUMED = "increase(quickdraw_restarts_total{run}[$__rate_interval]) > 0"


def _rate(counter: str) -> str:
    """Of a counter that goes on from the checkpoint."""
    return f"rate({counter}{{run}}[$__rate_interval]) unless {_RESUMED}"


PANELS = [
    number("Epoch", "Passes over the training split.", "none", "max(quickdraw_epoch{run})"),
    number("Validation top-1", "Of the averaged weights, last evaluation.", "percentunit",
           'max(quickdraw_evaluation_accuracy_ratio{run, split="val", metric="top1"})'),
    number("Last step", "Time since then; an alert after ten minutes.", "s",
           "time() - max(quickdraw_last_step_timestamp_seconds{run})"),
    number("Goodput", "Share of the run's whole time, over all its starts, spent in steps.",
           "percentunit", 'sum(quickdraw_goodput_seconds_total{run, cause="train"})'
           " / sum(quickdraw_goodput_seconds_total{run})"),
    number("Restarts", "Starts after the first one.", "none",
           "max(quickdraw_restarts_total{run})"),
    number("Skipped steps", "Left out for a loss or gradient that was not finite.", "none",
           "max(quickdraw_skipped_steps_total{run})"),
    Panel("Drawings a second", "Of the whole run.", "none",
          {"drawings/s": f"max({_rate('quickdraw_drawings_total')})"}),
    Panel("Where the time goes", "Seconds of a second by cause, a mean over the ranks.",
          "percentunit", {"{{cause}}": f"avg by (cause) ({_rate('quickdraw_goodput_seconds_total')}"
          .replace(" unless ", " unless on (job, instance) ") + ")"}, stacked=True),
    Panel("Loss", "Mean over the training drawings since the last log line, nats.", "none",
          {"train": "max(quickdraw_loss{run})"}),
    Panel("Accuracy", "On training drawings with augmentation, and at the last evaluation.",
          "percentunit", {"train top1": "max(quickdraw_train_accuracy_ratio{run})",
          "{{split}} {{metric}}":
          "max by (split, metric) (quickdraw_evaluation_accuracy_ratio{run})"}),
    Panel("Learning rate", "Of the last step.", "none",
          {"learning rate": "max(quickdraw_learning_rate{run})"}),
    Panel("Gradient norm", "Before clipping, last logged step.", "none",
          {"norm": "max(quickdraw_gradient_norm{run})"}),
    Panel("Step time", "On the device, other ranks' gradients included; over all ranks.", "s", {
        "median": "histogram_quantile(0.5, sum by (le) "
                  "(rate(quickdraw_step_seconds_bucket{run}[$__rate_interval])))",
        "99 %": "histogram_quantile(0.99, sum by (le) "
                "(rate(quickdraw_step_seconds_bucket{run}[$__rate_interval])))"}),
    Panel("Data wait", "Share of a rank's time that it waits for a batch.", "percentunit",
          {"{{instance}}": "rate(quickdraw_data_wait_seconds_total{run}[$__rate_interval])"}),
    Panel("Copies to the device", "Share of the time, beside the steps.", "percentunit", {
        "{{instance}}": "rate(quickdraw_host_to_device_seconds_total{run}[$__rate_interval])"}),
    Panel("Device memory", "The most that was allocated.", "bytes",
          {"{{instance}}": "quickdraw_device_memory_bytes{run}"}),
    Panel("Checkpoints", "Written and failed since the last start.", "none", {
        "written": "sum(quickdraw_checkpoints_total{run})",
        "failed": "sum(quickdraw_checkpoint_failures_total{run})"}),
    Panel("Time of writing a checkpoint", "A mean since the last start.", "s", {
        "write": "sum(quickdraw_checkpoint_seconds_total{run})"
                 " / sum(quickdraw_checkpoints_total{run})"}),
    Panel("Store: bytes", "Of all ranks, by operation.", "Bps", {
        "{{operation}}":
        "sum by (operation) (rate(quickdraw_store_bytes_total{run}[$__rate_interval]))"}),
    Panel("Store: requests", "Of all ranks, by operation.", "reqps", {
        "{{operation}}":
        "sum by (operation) (rate(quickdraw_store_requests_total{run}[$__rate_interval]))"}),
    Panel("Store: trouble", "Requests repeated, and failed for good, by kind.", "reqps", {
        "repeated {{kind}}":
        "sum by (kind) (rate(quickdraw_store_retries_total{run}[$__rate_interval]))",
        "failed {{kind}}":
        "sum by (kind) (rate(quickdraw_store_errors_total{run}[$__rate_interval]))"}),
    Panel("Node cache", "Reads answered from it, and shards fetched into it.", "ops", {
        "hits": "sum(rate(quickdraw_cache_hits_total{run}[$__rate_interval]))",
        "fetches": "sum(rate(quickdraw_cache_misses_total{run}[$__rate_interval]))"}),
    Panel("Size of the node cache", "After the last fetch of a rank.", "bytes",
          {"{{instance}}": "quickdraw_cache_bytes{run}"}),
]  # fmt: skip
"""All of the dashboard."""


def expression(query: str) -> str:
    """A query as Grafana has it."""
    return query.replace("{run", '{job="$job"')


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels, x, y = [], 0, 0
    for position, panel in enumerate(PANELS):
        width, height = (4, 4) if panel.number else (8, HEIGHT)
        targets = [
            {"refId": chr(65 + at), "datasource": source, "expr": expression(query),
             "legendFormat": legend}
            for at, (legend, query) in enumerate(panel.queries.items())
        ]  # fmt: skip
        custom = {"stacking": {"mode": "normal"}, "fillOpacity": 60} if panel.stacked else {}
        panels.append(
            {
                "id": position + 1,
                "type": "stat" if panel.number else "timeseries",
                "title": panel.title,
                "description": panel.help,
                "datasource": source,
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {
                    "defaults": {"unit": panel.unit, "custom": custom},
                    "overrides": [],
                },
                "targets": targets,
            }
        )
        x += width
        if x >= COLUMNS:
            x, y = 0, y + height
    run = {"query": "label_values(quickdraw_steps_total, job)", "refId": "run"}
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {"name": "job", "type": "query", "label": "Run", "datasource": source, "query": run,
         "refresh": 2, "sort": 2},
    ]  # fmt: skip
    return {
        "uid": "quickdraw-dist",
        "title": "Quick, Draw! training",
        "tags": ["quickdraw"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE}: {len(PANELS)} panels")
