"""What kubectl sends for the commands in the headers, to a server that keeps objects unchecked.
Whether a real server would accept them is tested by test_manifests.py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support.kube_api import Objects, serve
from tests.cluster.support.manifests import OVERLAYS, PLAIN, ROOT, load


class Kubectl:
    """kubectl with the address of a server."""

    def __init__(self, url: str, objects: Objects, home: Path) -> None:
        self.url, self.objects, self.home = url, objects, home

    def __call__(self, *arguments: str) -> str:
        """Run kubectl in the repository's folder; it must succeed."""
        options = [f"--server={self.url}", f"--cache-dir={self.home}", "--kubeconfig=/dev/null"]
        done = subprocess.run(
            ["kubectl", *options, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def kubectl(tmp_path: Path) -> Iterator[Kubectl]:
    with serve() as (url, objects):
        yield Kubectl(url, objects, tmp_path)


@pytest.mark.parametrize("source", [s for s in PLAIN if s != "monitoring.yaml"])
def test_apply_and_delete_a_plain_file(source: str, kubectl: Kubectl) -> None:
    kubectl("apply", "--validate=false", "-f", f"k8s/{source}")
    sent = load(source)
    assert kubectl.objects.keys() == {(o["kind"], o["metadata"]["name"]) for o in sent}
    for found in sent:
        there = kubectl.objects[found["kind"], found["metadata"]["name"]]
        for part in ("spec", "data"):
            assert there.get(part) == found.get(part), "anchors or not"
    kubectl("delete", "--wait=false", "-f", f"k8s/{source}")
    assert not kubectl.objects


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_apply_an_overlay_step_by_step(overlay: str, kubectl: Kubectl) -> None:
    """A label selects the Jobs of a step; the second Job of sharding starts suspended."""

    def jobs() -> set[str]:
        return {name for kind, name in kubectl.objects if kind == "Job"}

    def apply(step: str) -> None:
        label = f"app.kubernetes.io/component={step}"
        kubectl("apply", "--validate=false", "-k", overlay, "-l", label)

    apply("shard")
    assert jobs() == {"quickdraw-shard", "quickdraw-merge"}
    assert kubectl.objects["Job", "quickdraw-merge"]["spec"]["suspend"] is True
    kubectl("patch", "job", "quickdraw-merge", "--patch", '{"spec": {"suspend": false}}')
    assert kubectl.objects["Job", "quickdraw-merge"]["spec"]["suspend"] is False
    apply("train")
    assert jobs() == {"quickdraw-shard", "quickdraw-merge", "quickdraw-train"}
    apply("evaluate")
    assert len(jobs()) == 4
    assert len(kubectl.objects) == len(load(overlay))
    kubectl("delete", "--wait=false", "-k", overlay)
    assert not kubectl.objects
