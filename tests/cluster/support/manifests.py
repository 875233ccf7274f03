"""The manifests as the cluster gets them: read, or rendered by kubectl."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]

PLAIN = sorted(path.name for path in (ROOT / "k8s").glob("*.yaml") if "kustom" not in path.name)
"""Files that one applies as they are."""

OVERLAYS = ["k8s", *(f"overlays/{path.name}" for path in sorted((ROOT / "overlays").iterdir()))]
"""Folders that one applies with -k."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A Job, or the one that a JobSet makes."""

    name: str
    spec: Object

    @property
    def pod(self) -> Object:
        """What its pods run."""
        return dict(self.spec["template"]["spec"])

    @property
    def containers(self) -> list[Object]:
        """In the order in which they start."""
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    def container(self, name: str) -> Object:
        """One of them."""
        return next(found for found in self.containers if found["name"] == name)


def load(source: str) -> list[Object]:
    """All objects of a plain manifest, or of an overlay, as kubectl sees them."""
    return list(yaml.safe_load_all(_text(source)))


@cache
def _text(source: str) -> str:
    if source.endswith(".yaml"):
        return (ROOT / "k8s" / source).read_text(encoding="utf-8")
    command = ["kubectl", "kustomize", str(ROOT / source)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def workloads(objects: list[Object]) -> Iterator[Workload]:
    """Everything that makes pods."""
    for found in objects:
        name = found["metadata"]["name"]
        if found["kind"] == "Job":
            yield Workload(name, found["spec"])
        if found["kind"] == "JobSet":
            for job in found["spec"]["replicatedJobs"]:
                yield Workload(f"{name}-{job['name']}-0", job["template"]["spec"])


def workload(objects: list[Object], name: str) -> Workload:
    """The one of that name."""
    return next(found for found in workloads(objects) if found.name == name)


def settings(objects: list[Object], name: str) -> Object:
    """The YAML settings in a ConfigMap, by section."""
    (text,) = [v for k, v in find(objects, "ConfigMap", name)["data"].items() if k != "bucket"]
    return dict(yaml.safe_load(text))


def option(container: Object, name: str) -> str:
    """Return the value of --NAME=VALUE among a container's arguments."""
    (value,) = [a.partition("=")[2] for a in container["args"] if a.startswith(f"--{name}=")]
    return str(value)


def variable(container: Object, name: str) -> str | None:
    """Return a plain value of a container's environment."""
    return next((e.get("value") for e in container.get("env", ()) if e["name"] == name), None)
