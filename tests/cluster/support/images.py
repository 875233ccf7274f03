"""Container images built and run on this machine by buildah and podman, without a daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.cluster.support.manifests import ROOT

BASE = "localhost/quickdraw-base:bookworm"
"""The base image where no registry is reachable: plain Debian with Python."""

_SUITE, _PACKAGES = "bookworm", "python3,python3-venv,ca-certificates"

_OWN_MOUNTS = ("unshare", "--mount")
"""A prefix for a command whose mounts end with it: podman and buildah leave theirs behind."""

PODMAN = (*_OWN_MOUNTS, "podman", "--runtime=runc", "--cgroup-manager=cgroupfs")

_STORE = "/var/lib/containers/storage"
"""Where a machine has its images."""


def podman(folder: Path | None = None) -> list[str]:
    """Return podman's command; a folder for its containers makes it another machine's.

    For use in a mount namespace (hosts.Host) only: podman mounts the folder on itself. The folder's
    name has to be short: podman takes 50 characters for its sockets.
    """
    if folder is None:
        return list(PODMAN)
    own = [f"--root={folder}/root", f"--runroot={folder}/run"]
    return [*PODMAN, *own, f"--storage-opt=additionalimagestore={_STORE}"]


def _run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(  # type: ignore[call-overload]
        list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        **options,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-4000:]}"
    return str(done.stdout)


def build(name: str, scratch: Path) -> str:
    """Build dockerfiles/NAME.Dockerfile with a cache of layers; returns the image's name.

    The base is made here, or is what BASE_IMAGE names. Where PIP_EXTRA_INDEX_URL is set, torch
    comes from there.
    """
    for command in ("buildah", "podman", "runc"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    base = os.environ.get("BASE_IMAGE") or _base(scratch)
    image = f"localhost/quickdraw-{name}:test"
    arguments = {
        "BASE_IMAGE": base,
        "PIP_EXTRA_INDEX_URL": os.environ.get("PIP_EXTRA_INDEX_URL", ""),
        "REVISION": "test",
    }
    _run(
        *(*_OWN_MOUNTS, "buildah", "build", "--isolation=chroot", "--network=host"),
        *("--layers", "--force-rm"),
        *(f"--build-arg={key}={value}" for key, value in arguments.items()),
        *(f"--volume={source}:{target}:ro" for source, target in _pip_settings(scratch).items()),
        *("--file", ROOT / "dockerfiles" / f"{name}.Dockerfile", "--tag", image, ROOT),
    )
    return image


def _base(scratch: Path) -> str:
    """Return an image of Debian's own packages, made once per machine."""
    if subprocess.run([*PODMAN, "image", "exists", BASE]).returncode:
        if shutil.which("debootstrap") is None:
            pytest.skip("debootstrap is not installed, and BASE_IMAGE names no base image")
        root = scratch / "base"
        _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, root)
        tar = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
        _run(*PODMAN, "import", "-", BASE, stdin=tar.stdout)
        assert tar.wait() == 0
        shutil.rmtree(root)
    return BASE


def _pip_settings(scratch: Path) -> dict[str, str]:
    """Return this machine's settings of pip as one file, and the files that they name."""
    mounts, settings = {}, {}
    for line in _run(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        for word in value.strip("'").split():
            place = Path(word.removeprefix("file://"))
            if place.is_absolute() and place.is_dir():
                # An index names files beside it.
                folder = str(place.parent if word.startswith("file://") else place)
                mounts[folder] = folder
            elif place.is_absolute() and place.is_file():
                # Not where the build itself puts a file of that name.
                mounts[word] = f"/mnt{word}"
                value = value.replace(word, f"/mnt{word}")
        settings[key.split(".", 1)[1]] = value.strip("'")
    if not settings:
        return {}
    file = scratch / "pip.conf"
    text = "".join(f"{key} = {value}\n" for key, value in settings.items())
    file.write_text(f"[global]\n{text}", encoding="utf-8")
    return mounts | {str(file): "/etc/pip.conf"}


def command(
    image: str,
    *arguments: str,
    entrypoint: Sequence[str] = (),
    volumes: Mapping[Path | str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    machine: Path | None = None,
) -> list[str]:
    """The command that runs a container as the manifests want it: as user 10001, without rights,
    with a root that cannot be written to.

    Args:
        image: its name.
        arguments: of the entry point.
        entrypoint: instead of the image's.
        volumes: host's folder or file to the path in the container.
        environment: its variables.
        options: further ones of podman.
        machine: as in `podman`.
    """
    entry = [f"--entrypoint={entrypoint[0]}"] if entrypoint else []
    return [
        *podman(machine),
        *("run", "--rm", "--user=10001:10001", "--read-only", "--read-only-tmpfs=false"),
        *("--cap-drop=all", "--security-opt=no-new-privileges"),
        *("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"),
        *(f"--volume={source}:{target}" for source, target in (volumes or {}).items()),
        *(f"--env={key}={value}" for key, value in (environment or {}).items()),
        *options,
        *entry,
        image,
        *entrypoint[1:],
        *arguments,
    ]
