"""The commands in docs and headers, as far as they can run without a cloud."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.support.commands import HEADERS, blocks
from tests.cluster.support.manifests import OVERLAYS, PLAIN, ROOT, Object, load, workloads

TROUBLE = (ROOT / "docs" / "trouble.md").read_text(encoding="utf-8")
TEXTS = [(ROOT / "docs" / "clusters.md").read_text(encoding="utf-8"), TROUBLE, *HEADERS.values()]


def test_one_edit_fills_in_all_placeholders(tmp_path: Path) -> None:
    """Runs step 6 of the page on a copy."""
    for folder in ("k8s", "overlays"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (edit,) = (block for block in blocks("clusters.md") if "sed -i" in block)
    values = {"PROJECT": "one-2", "REGION": "europe-west4", "BUCKET": "some-bucket"}
    subprocess.run(["bash", "-euc", edit], cwd=tmp_path, env=os.environ | values, check=True)
    command = ["kubectl", "kustomize", str(tmp_path / "overlays" / "gke-spot")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "gs://BUCKET" not in text and "PROJECT" not in text and "REGION" not in text
    assert text.count("bucket: gs://some-bucket\n") == 3
    assert "image: europe-west4-docker.pkg.dev/one-2/quickdraw/train:0.1.0\n" in text
    assert "image: europe-west4-docker.pkg.dev/one-2/quickdraw/jobs:0.1.0\n" in text


def test_names_in_commands_exist() -> None:
    """Files, folders, Jobs and labels that the commands name exist."""
    objects = [o for source in [*PLAIN, *OVERLAYS] for o in load(source)]
    jobs = {job.name for job in workloads(objects)}
    sets = {o["metadata"]["name"] for o in objects if o["kind"] == "JobSet"}
    components = {o["metadata"]["labels"]["app.kubernetes.io/component"] for o in objects}
    for text in TEXTS:
        for path in re.findall(
            r"kubectl (?:apply|delete) (?:--cascade=foreground )?-[fk] (\S+?)(?:`| |$)", text, re.M
        ):
            assert (ROOT / path).exists(), path
        assert set(re.findall(r"(?<![a-z])job[ /](quickdraw-[a-z0-9-]+)", text)) <= jobs
        assert set(re.findall(r"jobset/(quickdraw-[a-z-]+)", text)) <= sets
        assert set(re.findall(r"io/component=([a-z]+)", text)) <= components


@pytest.mark.parametrize("component", ["shard", "merge", "train", "evaluate"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_label_selects_a_step(overlay: str, component: str) -> None:
    """`kubectl apply -k ... -l` applies what the step needs and no Job of another step."""

    def labelled(*components: str) -> list[Object]:
        name = "app.kubernetes.io/component"
        return [o for o in load(overlay) if o["metadata"]["labels"][name] in components]

    (job,) = workloads(labelled(component))
    assert job.name == f"quickdraw-{component}"
    chosen = labelled("shard", component) if component == "merge" else labelled(component)
    found = {o["metadata"]["name"] for o in chosen if o["kind"] == "ConfigMap"}
    assert {v["configMap"]["name"] for v in job.pod["volumes"] if "configMap" in v} <= found
    accounts = {o["metadata"]["name"] for o in chosen if o["kind"] == "ServiceAccount"}
    assert job.pod["serviceAccountName"] in accounts


def test_when_it_goes_wrong_has_what_can_be_seen() -> None:
    """Reasons of failed Jobs, and every line by which the scripts of slurm/ refuse."""
    for reason in ("PodFailurePolicy", "MaxFailedIndexesExceeded", "FailedIndexes",
                   "BackoffLimitExceeded"):  # fmt: skip
        assert f"`{reason}`" in TROUBLE, reason
    known = re.findall(r"`([^`]+)`", TROUBLE)
    for script in (ROOT / "slurm").glob("*.sh"):
        for line in re.findall(r'(?:refuse|echo) "(.+?)"', script.read_text(encoding="utf-8")):
            if line.startswith(("error:", "$0:")) or re.match(r"[A-Z]+=", line):
                assert any(words in line for words in known if " " in words), line
