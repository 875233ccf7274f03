"""The manifests without a cluster: by the API's schemas and by rules that only a server checks."""

from __future__ import annotations

import copy
import re
import subprocess
from collections import Counter
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.cluster.support.manifests import (
    OVERLAYS,
    PLAIN,
    ROOT,
    Object,
    Workload,
    find,
    load,
    workloads,
)

VERSIONS = ["1.31", "1.37"]
"""The oldest Kubernetes that the manifests name, and the newest with schemas at hand."""

SOURCES = [*PLAIN, *OVERLAYS]

CUSTOM = yaml.safe_load((ROOT / "tests/cluster/support/custom_resources.yaml").read_text())

QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")

JOBS = [
    pytest.param(source, job, id=f"{source}-{job.name}")
    for source in SOURCES
    for job in workloads(load(source))
]
"""Every Job of every file and overlay."""


def check(found: Object, version: str) -> None:
    """Raise an error for what the API server of a version would refuse by its schema."""
    if found["kind"] not in CUSTOM:
        kubernetes_validate.validate(found, version, strict=True)
        return
    jsonschema.validate(found, CUSTOM[found["kind"]])
    for job in found["spec"].get("replicatedJobs", ()):
        spec = job["template"]["spec"]
        head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
        kubernetes_validate.validate(head | {"spec": spec}, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", SOURCES)
def test_valid_in_the_schemas_of_the_api(source: str, version: str) -> None:
    objects = load(source)
    assert objects
    for found in objects:
        check(found, version)


@pytest.mark.parametrize("source", ["train.yaml", "train-jobset.yaml"])
@pytest.mark.parametrize("version", VERSIONS)
def test_misspelt_fields_are_invalid(source: str, version: str) -> None:
    """The test above can fail, also for fields inside a JobSet."""
    job = next(o for o in load(source) if o["kind"] in ("Job", "JobSet"))
    for path in (["spec"], ["spec", "template", "spec"]):
        broken = copy.deepcopy(job)
        inner = broken["spec"]
        if broken["kind"] == "JobSet":
            inner = inner["replicatedJobs"][0]["template"]["spec"]
        for name in path[1:]:
            inner = inner[name]
        inner["misspelt"] = 1
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            check(broken, version)


@pytest.mark.parametrize("source", PLAIN)
def test_every_manifest_opens_with_how_to_use_it(source: str) -> None:
    head = (ROOT / "k8s" / source).read_text(encoding="utf-8").split("apiVersion")[0]
    for part in ("Prerequisites", "Apply", "Check", "Logs", "Clean"):
        assert re.search(rf"^# {part}\b", head, re.MULTILINE), part
    assert f"kubectl apply -f k8s/{source}" in head
    assert f"kubectl delete -f k8s/{source}" in head


@pytest.mark.parametrize("source", [s for s in PLAIN if s != "monitoring.yaml"])
def test_kubectl_reads_the_plain_files(source: str) -> None:
    """YAML anchors included; the JobSet is no kind that kubectl has built in."""
    command = ["kubectl", "label", "--local", "-o", "name", "-f", str(ROOT / "k8s" / source), "a=b"]
    done = subprocess.run(command, capture_output=True, text=True)
    named = [f"/{o['metadata']['name']}" for o in load(source) if o["kind"] != "JobSet"]
    assert [f"/{line.split('/')[1]}" for line in done.stdout.splitlines()][: len(named)] == named


@pytest.mark.parametrize("source", SOURCES)
def test_names_are_unique_and_valid(source: str) -> None:
    objects = load(source)
    for found in objects:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", found["metadata"]["name"])
        assert "namespace" not in found["metadata"], "the user's own"
    assert set(Counter((o["kind"], o["metadata"]["name"]) for o in objects).values()) == {1}


@pytest.mark.parametrize(("source", "job"), JOBS)
def test_references_of_a_pod_resolve(source: str, job: Workload) -> None:
    objects = load(source)
    pod = job.pod
    find(objects, "ServiceAccount", pod["serviceAccountName"])
    claims = set()
    for volume in pod["volumes"]:
        if "configMap" in volume:
            find(objects, "ConfigMap", volume["configMap"]["name"])
        if "persistentVolumeClaim" in volume:
            claims.add(volume["persistentVolumeClaim"]["claimName"])
    for claim in claims:
        find(objects, "PersistentVolumeClaim", claim)
    named = [volume["name"] for volume in pod["volumes"]]
    mounted = [m["name"] for c in job.containers for m in c.get("volumeMounts", ())]
    assert len(set(named)) == len(named)
    assert set(mounted) == set(named)
    for container in job.containers:
        known = {"JOB_COMPLETION_INDEX"} if job.spec.get("completionMode") == "Indexed" else set()
        for entry in container.get("env", ()):
            if "valueFrom" in entry:
                key = entry["valueFrom"]["configMapKeyRef"]
                assert key["key"] in find(objects, "ConfigMap", key["name"])["data"]
            used = set(re.findall(r"\$\((\w+)\)", entry.get("value", "")))
            assert used <= known, "defined before it is used, or it stays as it is"
            known.add(entry["name"])
        for argument in [*container["command"], *container["args"]]:
            # A shell's own $(...) stands in scripts only, and has blanks.
            assert set(re.findall(r"\$\((\w+)\)", argument)) <= known, argument
        names = [port["name"] for port in container.get("ports", ())]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z0-9-]{1,15}", name) for name in names)


@pytest.mark.parametrize(("source", "job"), JOBS)
def test_pods_are_restricted(source: str, job: Workload) -> None:
    """Pods meet the Pod Security Standard `restricted` and have a read-only root."""
    pod = job.pod
    assert pod["restartPolicy"] == "Never", "with podFailurePolicy, nothing else is allowed"
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in job.containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert {next(k for k in v if k != "name") for v in pod["volumes"]} <= {
        "configMap",
        "emptyDir",
        "persistentVolumeClaim",
    }


@pytest.mark.parametrize(("source", "job"), JOBS)
def test_resources_are_consistent(source: str, job: Workload) -> None:
    """Requests equal limits, all sizes are quantities, and volumes fit into what is asked for."""
    for container in job.containers:
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["limits"])
        for value in resources["limits"].values():
            assert QUANTITY.fullmatch(str(value)), value
    last = job.pod["containers"][0]["resources"]["limits"]
    for volume in job.pod["volumes"]:
        if "emptyDir" in volume:
            size = volume["emptyDir"]["sizeLimit"]
            room = "memory" if volume["emptyDir"].get("medium") == "Memory" else "ephemeral-storage"
            assert gibibytes(size) <= gibibytes(last[room]), f"{volume['name']} of {size}"


def gibibytes(quantity: str) -> int:
    """Return the number of a quantity in Gi, as all of the sizes are."""
    assert quantity.endswith("Gi"), quantity
    return int(quantity.removesuffix("Gi"))


@pytest.mark.parametrize(("source", "job"), JOBS)
def test_scripts_in_manifests(source: str, job: Workload, tmp_path: Path) -> None:
    for container in job.containers:
        if container["command"] == ["sh", "-c"]:
            script = tmp_path / "script.sh"
            script.write_text("#!/bin/sh\n" + container["args"][0])
            done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout


def test_yaml() -> None:
    done = subprocess.run(
        ["yamllint", "--strict", "k8s", "overlays", "configs", ".github", "tests/cluster"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
