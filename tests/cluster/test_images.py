"""Both Dockerfiles: linted, built for real, and run as the clusters run them."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.cluster.support import images
from tests.cluster.support.manifests import ROOT

TRAIN = ["--train.epochs=1", "--train.global_batch=64", "--model.width=4", "--train.device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume that user 10001 may write to."""
    made = tmp_path_factory.mktemp("volume")
    made.chmod(0o777)
    return made


def run(*command: str) -> str:
    """What a container says; it must end well."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dataset(built: dict[str, str], folder: Path) -> Path:
    """400 drawings, sharded by the image of jobs without a network."""
    said = run(
        *images.command(
            built["quickdraw-jobs"],
            *("jobs.shard", "--source=synthetic:?classes=4&per_class=100", "--dest=/data/shards"),
            *("--shard.block=64", "--processes=2"),
            volumes={folder: "/data"},
            options=["--network=none"],
        )
    )
    assert "/data/shards/manifest.json: complete" in said
    return folder / "shards"


@pytest.mark.parametrize("name", ["train", "jobs"])
def test_dockerfiles_are_clean(name: str) -> None:
    done = subprocess.run(
        ["hadolint", str(ROOT / "dockerfiles" / f"{name}.Dockerfile")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["train", "jobs"])
def test_what_an_image_says_of_itself(name: str, built: dict[str, str]) -> None:
    said = run(*images.PODMAN, "image", "inspect", built[f"quickdraw-{name}"])
    config = json.loads(said)[0]["Config"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.version"] == project["version"]
    assert config["Labels"]["org.opencontainers.image.revision"] == "test"
    assert config["Labels"]["org.opencontainers.image.licenses"] == project["license"]


@pytest.mark.parametrize("name", ["train", "jobs"])
def test_nothing_of_the_build_is_left_in_it(name: str, built: dict[str, str]) -> None:
    """No sources, no caches of pip or apt."""
    search = "find / -xdev -name .git -o -path '/root/.cache/*'"
    search += " -o -path '/var/lib/apt/lists/*' -o -path '/src/*'"
    command = images.command(
        built[f"quickdraw-{name}"], entrypoint=["sh", "-c", f"{search} 2>/dev/null || true"]
    )
    assert run(*command) == ""


@pytest.mark.parametrize("name", ["train", "jobs"])
def test_an_image_runs_without_arguments(name: str, built: dict[str, str]) -> None:
    said = run(*images.command(built[f"quickdraw-{name}"], options=["--network=none"]))
    assert ("345 classes" if name == "jobs" else "quickdraw_dist.launch") in said


@pytest.fixture(scope="module")
def scratch(
    built: dict[str, str],
    dataset: Path,
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The volume /scratch of a container that trained, with torch.compile, to /data/run."""
    made = tmp_path_factory.mktemp("scratch")
    made.chmod(0o777)
    command = images.command(
        built["quickdraw-train"],
        *("quickdraw_dist.launch", "--nproc-per-node=1", "-m", "quickdraw_dist.train", *TRAIN),
        *("--train.compile=default", "--data=/data/shards", "--output=/data/run"),
        volumes={folder: "/data", made: "/scratch"},
        options=["--network=none"],
    )
    assert "epoch 1/1" in run(*command)
    return made


def test_training_with_compile_under_a_read_only_root(scratch: Path, folder: Path) -> None:
    """As user 10001, with nothing to write to but /scratch and the run: the compiler is there, and
    its caches go where they may."""
    assert list((folder / "run" / "checkpoints").glob("step-*/meta.json"))
    assert list((scratch / "inductor").rglob("*.so")), "nothing was compiled"
    assert {path.stat().st_uid for path in scratch.rglob("*")} == {10001}


@pytest.mark.usefixtures("scratch")
def test_evaluation(built: dict[str, str], folder: Path) -> None:
    """By the image of jobs, of what the image of training left, pictures included."""
    command = images.command(
        built["quickdraw-jobs"],
        *("jobs.evaluate", "--data=/data/shards", "--output=/data/run", "--split=test"),
        volumes={folder: "/data"},
        options=["--network=none"],
    )
    assert json.loads(run(*command).splitlines()[-1])["drawings"] == 20
    assert (folder / "run" / "report-test" / "index.html").exists()


def test_term_reaches_a_job(built: dict[str, str], folder: Path) -> None:
    """As the first process of a container. podman would wait 60 seconds and then kill it: 137."""
    name = f"quickdraw-{os.getpid()}"
    source = "synthetic:?classes=20&per_class=200000&pool=4"
    job = images.command(
        built["quickdraw-jobs"],
        *("jobs.shard", f"--source={source}", "--dest=/data/term", "--processes=1"),
        *("--shard.drawings_per_shard=512", "--shard.block=512", "--shard.group_shards=1"),
        volumes={folder: "/data"},
        options=["--network=none", f"--name={name}"],
    )
    process = subprocess.Popen(job, stderr=subprocess.PIPE, text=True)
    while not list((folder / "term").glob("parts/*.json")):
        assert process.poll() is None
    run(*images.podman(), "stop", "--time=60", name)
    _, said = process.communicate()
    assert process.returncode == 143
    assert "error: ended by TERM. The same command continues from here" in said
