"""Numbers and names that stand in several places of the manifests, and follow from one another."""

from __future__ import annotations

import tomllib

import pytest
import yaml

from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.settings import Settings
from tests.cluster.support.manifests import (
    JOB_UID,
    MONITORS,
    OVERLAYS,
    PLAIN,
    ROOT,
    Object,
    Workload,
    find,
    option,
    settings,
    variable,
    workload,
    workloads,
)
from tests.cluster.support.manifests import load as load_manifest

RESTARTS = 10
"""Crashes that a training run survives."""

TRAININGS = [
    (source, "quickdraw-train-node-0" if "jobset" in source else "quickdraw-train")
    for source in [*(s for s in PLAIN if s.startswith("train")), *OVERLAYS]
]

CONFIGS = [
    (source, found["metadata"]["name"])
    for source in [*PLAIN, *OVERLAYS]
    for found in load_manifest(source)
    if found["kind"] == "ConfigMap"
]


def training(source: str, name: str) -> tuple[list[Object], Workload, Settings]:
    """All objects, the training Job, and the settings that its ranks have."""
    objects = load_manifest(source)
    job = workload(objects, name)
    tree = settings(objects, "quickdraw-train")
    for entry in job.container("train")["env"]:
        section, nested, setting = entry["name"].removeprefix("QUICKDRAW_").partition("__")
        if nested:
            tree.setdefault(section.lower(), {})[setting.lower()] = entry["value"]
    return objects, job, Settings(**tree)


@pytest.mark.parametrize(("source", "name"), CONFIGS)
def test_settings_are_known(
    source: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = settings(load_manifest(source), name)
    file = tmp_path_factory.mktemp("settings") / "settings.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    load(Parser("test", "A test."), ["--config", str(file)])


@pytest.mark.parametrize(("source", "name"), TRAININGS)
def test_nodes_and_ranks_agree(source: str, name: str) -> None:
    _, job, tree = training(source, name)
    train, check = job.container("train"), job.container("check")
    nodes, ranks = job.spec["completions"], int(option(train, "nproc-per-node"))
    assert job.spec["completionMode"] == "Indexed"
    assert job.spec["parallelism"] == nodes
    for container in job.containers:
        assert variable(container, "NODES") == str(nodes)
        assert variable(container, "PODS") == name
    assert option(check, "world-size") == str(nodes * ranks)
    assert option(check, "nodes") == option(train, "nnodes") == "$(NODES)"
    assert option(train, "node-rank") == "$(JOB_COMPLETION_INDEX)"
    assert option(train, "config") == option(check, "config")
    assert train["resources"]["limits"].get("nvidia.com/gpu", ranks) == ranks
    assert option(train, "rdzv-id") == "$(START)"
    (start,) = [e for e in train["env"] if e["name"] == "START"]
    assert start["valueFrom"]["fieldRef"]["fieldPath"] == f"metadata.labels['{JOB_UID}']"
    # The name of pod 0, which the Service of that name gives it.
    assert option(train, "master-addr") == "$(PODS)-0.quickdraw-train"
    assert job.pod["subdomain"] == "quickdraw-train"
    assert "$PODS-$index.quickdraw-train" in job.container("wait-for-pods")["args"][0]
    ports = [port["containerPort"] for port in train["ports"]]
    assert ports == [tree.metrics.port + rank for rank in range(ranks)]
    assert tree.metrics.host == "0.0.0.0"


@pytest.mark.parametrize(("source", "name"), TRAININGS)
def test_failures_are_told_apart(source: str, name: str) -> None:
    objects, job, _ = training(source, name)
    refused, saved, disrupted = job.spec["podFailurePolicy"]["rules"]
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailJob", [2])
    assert (saved["action"], saved["onExitCodes"]["values"]) == ("Ignore", [85, 143])
    assert disrupted["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert "backoffLimit" not in job.spec, "it counts the ended pods of all nodes"
    assert job.spec["maxFailedIndexes"] == 0
    if source == "train-jobset.yaml":
        assert job.spec["backoffLimitPerIndex"] == 0, "any crash is the JobSet's"
        policy = find(objects, "JobSet", "quickdraw-train")["spec"]["failurePolicy"]
        assert policy["maxRestarts"] == RESTARTS
    else:
        assert job.spec["backoffLimitPerIndex"] == RESTARTS


@pytest.mark.parametrize(("source", "name"), TRAININGS)
def test_time_to_stop_in(source: str, name: str) -> None:
    _, job, tree = training(source, name)
    grace = job.pod["terminationGracePeriodSeconds"]
    assert grace == tree.train.shutdown_seconds + 5
    if "spot" in source:
        assert grace <= 15, "what GKE gives a pod on a Spot node"


@pytest.mark.parametrize(("source", "name"), TRAININGS)
def test_the_cache_fits_its_volume(source: str, name: str) -> None:
    _, job, tree = training(source, name)
    (scratch,) = [v for v in job.pod["volumes"] if v["name"] == "scratch"]
    if "overlays/cpu" not in source:  # its data is no store's
        room = int(scratch["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
        assert tree.stream.cache_bytes < 0.6 * room


def test_the_jobset_runs_the_same_pods() -> None:
    job, replicated = (
        workload(load_manifest(source), name)
        for source, name in TRAININGS[:2][::-1]
    )  # fmt: skip
    text = yaml.safe_dump(replicated.pod).replace(replicated.name, job.name)
    assert yaml.safe_load(text) == job.pod
    assert replicated.spec["podFailurePolicy"] == job.spec["podFailurePolicy"]


def test_the_jobset_has_the_same_settings() -> None:
    first, second = (load_manifest(source) for source, _ in TRAININGS[:2])
    assert find(first, "ConfigMap", "quickdraw-train") == find(
        second, "ConfigMap", "quickdraw-train"
    )


@pytest.mark.parametrize("source", ["shard.yaml", *OVERLAYS])
def test_workers_agree(source: str) -> None:
    objects = load_manifest(source)
    if source == "shard.yaml":
        objects += load_manifest("merge.yaml")
    shard, merge = workload(objects, "quickdraw-shard"), workload(objects, "quickdraw-merge")
    worker, last = shard.container("shard"), merge.container("merge")
    assert shard.spec["parallelism"] == shard.spec["completions"] == int(option(worker, "of"))
    assert option(worker, "source") == option(last, "source")
    assert option(worker, "config") == option(last, "config")
    for job in (shard, merge):
        codes = {tuple(r.get("onExitCodes", {}).get("values", ())): r["action"]
                 for r in job.spec["podFailurePolicy"]["rules"]}  # fmt: skip
        assert codes == {(2,): "FailJob", (143,): "Ignore", (): "Ignore"}


@pytest.mark.parametrize("source", OVERLAYS)
def test_all_jobs_use_one_place(source: str) -> None:
    objects = load_manifest(source)
    buckets = {o["data"]["bucket"] for o in objects if o["kind"] == "ConfigMap"}
    assert len(buckets) == 1
    for job in workloads(objects):
        for container in job.containers:
            assert variable(container, "QUICKDRAW_DATA") == "$(BUCKET)/quickdraw"


def test_what_is_scraped_is_served() -> None:
    (operator,), (managed,) = (load_manifest(source) for source in MONITORS)
    _, job, _ = training("train.yaml", "quickdraw-train")
    ports = [port["name"] for port in job.container("train")["ports"]]
    assert [e["port"] for e in operator["spec"]["podMetricsEndpoints"]] == ports
    assert [e["port"] for e in managed["spec"]["endpoints"]] == ports
    labels = job.spec["template"]["metadata"]["labels"]
    for monitor in (operator, managed):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_one_version() -> None:
    """The images' tags and labels are the package's version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for source in [*PLAIN, *OVERLAYS]:
        for job in workloads(load_manifest(source)):
            assert {c["image"].rpartition(":")[2] for c in job.containers} == {version}
    for file in (ROOT / "dockerfiles").iterdir():
        assert f'org.opencontainers.image.version="{version}"' in file.read_text()


@pytest.mark.parametrize("source", PLAIN)
def test_lines_to_edit_are_marked(source: str) -> None:
    """Every line that the header names is there, and every one that must change has its mark."""
    head, _, body = (ROOT / "k8s" / source).read_text().partition("\napiVersion")
    for line in body.splitlines():
        for word, mark in {
            "image: ": "[image]", "gs://BUCKET": "[bucket]", "completions: ": "[nodes]",
            "--nproc-per-node": "[gpus]", "--source=": "[source]",
        }.items():  # fmt: skip
            if word in line and "*image" not in line and source != "shard.yaml":
                assert mark in line, line
    for mark in ("[image]", "[bucket]", "[nodes]", "[gpus]", "[source]", "[workers]"):
        assert (mark in body) <= (mark in head or mark == "[workers]"), mark


@pytest.mark.parametrize("source", [*PLAIN, *OVERLAYS])
def test_settings_of_a_job_are_not_changed_under_it(source: str) -> None:
    """A pod that is replaced would read other settings than those beside it."""
    for found in load_manifest(source):
        assert found.get("immutable", False) is (found["kind"] == "ConfigMap")


def test_only_training_goes_to_gpu_nodes() -> None:
    for job in workloads(load_manifest("overlays/gke-spot")):
        tolerated = {each["key"] for each in job.pod["tolerations"]}
        gpus = {"nvidia.com/gpu"} if job.name == "quickdraw-train" else set()
        assert tolerated == {"cloud.google.com/gke-spot"} | gpus
