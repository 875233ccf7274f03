"""Every kubectl command of headers and docs, run as written, against an API that keeps objects
unchecked. Whether a real one would accept them is tested by test_manifests.py."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support.commands import HEADERS, after, blocks, kubectl_commands
from tests.cluster.support.kube_api import Api, serve
from tests.cluster.support.manifests import MONITORS, OVERLAYS, PLAIN, ROOT, SHARED, load

KUBECTL = """#!/bin/sh
PATH={path}
verb=$1
shift
case $verb in apply) set -- --validate=false "$@" ;; esac
exec kubectl "$verb" "$@"
"""
"""The kubectl on PATH: does not ask for schemas, which this API lacks."""


class Shell:
    """A reader's shell in the repository's folder, with a cluster."""

    def __init__(self, api: Api, url: str, home: Path) -> None:
        self.api, self.objects = api, api.objects
        (home / "kubectl").write_text(KUBECTL.format(path=os.environ["PATH"]))
        (home / "kubectl").chmod(0o755)
        config = f"""{{apiVersion: v1, kind: Config, current-context: c,
            clusters: [{{name: c, cluster: {{server: "{url}"}}}}],
            contexts: [{{name: c, context: {{cluster: c}}}}]}}"""
        (home / "config").write_text(config)
        variables = {"HOME": str(home), "KUBECONFIG": str(home / "config")}
        self._environment = os.environ | variables | {"PATH": f"{home}:{os.environ['PATH']}"}

    def __call__(self, *commands: str) -> str:
        """Run commands one after the other; all must succeed."""
        done = self.run(*commands)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *commands: str) -> subprocess.CompletedProcess[str]:
        """Run commands up to the first that fails."""
        script = "\n".join(["set -euo pipefail", *commands])
        return subprocess.run(
            ["bash", "-c", script], env=self._environment, cwd=ROOT, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip

    def names(self, kind: str) -> set[str]:
        """Return the names of all objects of a kind."""
        return {name for each, name in self.objects if each == kind}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    api = Api()
    with serve(api) as url:
        yield Shell(api, url, tmp_path)


@pytest.mark.parametrize(
    ("source", "condition"),
    [*((s, "Complete") for s in HEADERS if s != "k8s"),
     *((s, "FailureTarget") for s in PLAIN if s not in MONITORS)],
)  # fmt: skip
def test_the_commands_of_a_header(source: str, condition: str, shell: Shell) -> None:
    """All commands from Apply to Clean succeed, whether the Jobs are complete or have failed; no
    two pods of an index run at the same time, and no object is left."""
    shell.api.condition = condition
    commands = kubectl_commands(after(HEADERS[source], "Apply"))
    assert any(command.startswith("kubectl apply") for command in commands)
    shell(*commands)
    assert shell.api.most_pods <= 1
    assert not shell.objects


@pytest.mark.parametrize("source", [s for s in PLAIN if s not in MONITORS])
def test_a_plain_file_arrives_as_written(source: str, shell: Shell) -> None:
    """The server receives what the file says, YAML anchors expanded."""
    shell(f"kubectl apply -f k8s/{source}")
    for found in load(source):
        there = shell.objects[found["kind"], found["metadata"]["name"]]
        for part in ("spec", "data"):
            assert there.get(part) == found.get(part)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_apply_an_overlay_step_by_step(overlay: str, shell: Shell) -> None:
    """A label selects the one Job of a step."""
    steps = ("shard", "merge", "train", "evaluate")
    for number, step in enumerate(steps, 1):
        shell(f"kubectl apply -k {overlay} -l app.kubernetes.io/component={step}")
        assert shell.names("Job") == {f"quickdraw-{each}" for each in steps[:number]}
    sent = [key for key in shell.objects if key[0] != "Pod"]
    assert len(sent) == len(load(overlay))


def test_the_commands_of_the_page(shell: Shell) -> None:
    """The commands of docs/clusters.md succeed in their order, on an empty cluster."""
    commands = kubectl_commands("\n".join(blocks("clusters.md")))
    assert len(commands) > 10
    shell(*commands, "kubectl delete --cascade=foreground -k overlays/gke-spot")
    assert shell.api.most_pods == 1


def test_the_commands_of_when_it_goes_wrong(shell: Shell) -> None:
    """The commands of docs/trouble.md succeed while a Job exists, but those that name a node."""
    commands = kubectl_commands("\n".join(blocks("trouble.md")))
    commands = [c for c in commands if "node" not in c]
    assert len(commands) > 5
    shell("kubectl apply -f k8s/train.yaml", *commands)
    assert shell.api.most_pods == 1


def test_an_apply_after_a_background_delete_overlaps(shell: Shell) -> None:
    """The tests above can fail: kubectl returns while the old pods still save."""
    again = "kubectl apply -f k8s/train.yaml"
    shell(again, "kubectl delete -f k8s/train.yaml", again)
    assert shell.api.most_pods == 2


def test_a_changed_setting_is_refused_at_apply(shell: Shell, tmp_path: Path) -> None:
    """Running pods would keep the old value, and a replaced pod would disagree with them."""
    shell("kubectl apply -f k8s/train.yaml")
    changed = tmp_path / "train.yaml"
    text = (ROOT / "k8s" / "train.yaml").read_text(encoding="utf-8")
    changed.write_text(text.replace("epochs: 4", "epochs: 8"))
    done = shell.run(f"kubectl apply -f {changed}")
    assert done.returncode == 1
    assert "field is immutable when `immutable` is set" in done.stderr
    again = [c for c in kubectl_commands(after(HEADERS["train.yaml"], "Again")) if "job/" in c]
    shell(*again, f"kubectl apply -f {changed}")
    assert "epochs: 8" in shell.objects["ConfigMap", "quickdraw-train"]["data"]["train.yaml"]


@pytest.mark.parametrize("source", ["train.yaml", "train-jobset.yaml", "shard.yaml"])
def test_logs_of_a_job_that_was_restarted_often(source: str, shell: Shell) -> None:
    """Logs are shown with more ended pods than kubectl follows by default, and one in its init
    containers."""
    shell(f"kubectl apply -f k8s/{source}")
    (job,) = (found for (kind, _), found in shell.objects.items() if kind == "Job")
    for _ in range(7):
        shell.api.create_pod(job, 0, "Failed")
    logs = [c for c in kubectl_commands(HEADERS[source]) if c.startswith("kubectl logs")]
    assert len(logs) == 2
    for command in logs:
        lines = shell(command).splitlines()
        assert len([line for line in lines if line.startswith("[pod/")]) >= 7, lines


def test_wait_returns_when_a_job_ends(shell: Shell) -> None:
    """`wait` times out while the Job runs, and returns when it has a condition."""
    shell("kubectl apply -f k8s/evaluate.yaml")
    job = shell.objects["Job", "quickdraw-evaluate"]
    (wait,) = (c for c in kubectl_commands(HEADERS["evaluate.yaml"]) if " wait " in c)
    status, job["status"] = job["status"], {"active": 1}
    assert shell.run(wait.replace("--timeout=2h", "--timeout=1s")).returncode == 1

    threading.Timer(0.5, job.update, kwargs={"status": status}).start()
    shell(wait)


@pytest.mark.parametrize("source", MONITORS)
def test_monitors_where_only_one_kind_is_installed(source: str, tmp_path: Path) -> None:
    missing = "googleapis" if source == "podmonitor.yaml" else "coreos"
    api = Api(without=missing)
    with serve(api) as url:
        Shell(api, url, tmp_path)(*kubectl_commands(after(HEADERS[source], "Apply")))
    assert not api.objects


def test_files_that_need_another_one() -> None:
    """A file that needs objects of another one names it in its header."""
    for source, needed in SHARED.items():
        assert f"k8s/{needed}" in HEADERS[source]
