"""TERM to the first process of a container. The kernel drops signals for which the first process of
a PID namespace has no handler, so these tests run the commands as first processes, too."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cluster.support.hosts import require
from tests.cluster.support.manifests import MONITORS, PLAIN, Object, load, workloads

CONTAINERS = [
    pytest.param(container, id=f"{source}-{container['name']}")
    for source in PLAIN
    if source not in MONITORS
    for job in workloads(load(source))
    for container in job.containers
    if container["command"][0] == "sh"
]
"""All containers but the launcher, which answers signals from its first line on."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for PATH in which `python` and `getent` sleep and exit as files tell them to."""
    for name in ("python", "getent"):
        command = tmp_path / name
        command.write_text(
            f'#!/bin/sh\necho "$@" >{tmp_path}/{name}.said\n'
            f"sleep $(cat {tmp_path}/sleep)\nexit $(cat {tmp_path}/code)\n"
        )
        command.chmod(0o755)
    return tmp_path


def start(container: Object, folder: Path, seconds: int, code: int) -> subprocess.Popen[bytes]:
    """Run a container's command as the first process of a PID namespace."""
    require()
    (folder / "sleep").write_text(str(seconds))
    (folder / "code").write_text(str(code))
    command = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"]
    command += [*container["command"], *container["args"]]
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", "NODES": "2", "PODS": "quickdraw-train"}
    return subprocess.Popen(command, env=os.environ | variables)


def first(process: subprocess.Popen[bytes]) -> int:
    """Return the first process of the namespace that unshare made."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.parametrize("container", CONTAINERS)
def test_ends_with_143(container: Object, folder: Path) -> None:
    """TERM ends a container at once while Python starts or a name is looked up."""
    process = start(container, folder, 60, 0)
    while not list(folder.glob("*.said")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(first(process), signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=30) == 143
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("container", [c for c in CONTAINERS if "wait" not in str(c.id)])
def test_passes_on_arguments_and_exit_code(container: Object, folder: Path) -> None:
    process = start(container, folder, 0, 2)
    assert process.wait(timeout=30) == 2
    _, _, module, *arguments = (folder / "python.said").read_text().split()
    del module
    assert " ".join(arguments) in " ".join(container["args"])
