"""The commands in docs and headers, as far as they can run without a cloud."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.support.manifests import OVERLAYS, PLAIN, ROOT, load, workloads

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
TEXTS = [
    PAGE,
    *((ROOT / "k8s" / name).read_text(encoding="utf-8") for name in PLAIN),
    *((ROOT / name / "kustomization.yaml").read_text(encoding="utf-8") for name in OVERLAYS),
]


def blocks(words: str) -> list[str]:
    """Return the page's blocks of commands that contain these words."""
    return [block for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if words in block]


def test_one_edit_fills_in_all_placeholders(tmp_path: Path) -> None:
    """Runs step 6 of the page on a copy."""
    for folder in ("k8s", "overlays"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (edit,) = blocks("sed -i")
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
        for place in re.findall(r"kubectl (?:apply|delete) -[fk] (\S+?)(?:`| |$)", text, re.M):
            assert (ROOT / place).exists(), place
        assert set(re.findall(r"(?<![a-z])job[ /](quickdraw-[a-z0-9-]+)", text)) <= jobs
        assert set(re.findall(r"jobset/(quickdraw-[a-z-]+)", text)) <= sets
        assert set(re.findall(r"io/component=([a-z]+)", text)) <= components


@pytest.mark.parametrize("component", ["shard", "train", "evaluate"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_label_selects_a_step(overlay: str, component: str) -> None:
    """`kubectl apply -k ... -l` applies what the step needs and no Job of another step."""
    chosen = [o for o in load(overlay)
              if o["metadata"]["labels"]["app.kubernetes.io/component"] == component]  # fmt: skip
    names = {job.name for job in workloads(chosen)}
    own = {"shard": {"quickdraw-shard", "quickdraw-merge"}}
    assert names == own.get(component, {f"quickdraw-{component}"})
    for job in workloads(chosen):
        found = {o["metadata"]["name"] for o in chosen if o["kind"] == "ConfigMap"}
        assert {v["configMap"]["name"] for v in job.pod["volumes"] if "configMap" in v} <= found
        accounts = {o["metadata"]["name"] for o in chosen if o["kind"] == "ServiceAccount"}
        assert job.pod["serviceAccountName"] in accounts
