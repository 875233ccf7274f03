"""Write dashboard.json for Grafana from the list in panels.py: python -m monitoring.dashboard.

Import monitoring/dashboard.json (Dashboards, New, Import), or let a sidecar find it:
kubectl create configmap quickdraw-dashboard --from-file=monitoring/dashboard.json, and label it
grafana_dashboard=1. It asks for a Prometheus and for a run, which is the label `job`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monitoring.panels import PANELS, expression

FILE = Path(__file__).with_suffix(".json")

COLUMNS, HEIGHT = 24, 8  # of Grafana's grid; the height of a graph


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's JSON model."""
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
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        {"name": "job", "type": "query", "label": "Run", "datasource": source,
         "query": "label_values(quickdraw_steps_total, job)", "refresh": 2, "sort": 2},
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
    """Return the contents of dashboard.json."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"{FILE}: {len(PANELS)} panels")
