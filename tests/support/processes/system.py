"""What Linux tells of other processes, and namespaces to run commands in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PID_NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
"""A prefix for a command, which becomes process 1, as in a container."""

may_unshare = subprocess.run([*PID_NAMESPACE, "true"], capture_output=True).returncode == 0


def has_signal(pid: int, field: str, number: int) -> bool:
    """Whether a set of signals of a process has one: SigCgt (with handlers) or SigIgn."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition(f"{field}:")[2].split()[0], 16) >> (number - 1) & 1)


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> bytes:
    """Return the command line of a process, its parts ended by zero bytes."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def with_disk_of(size_bytes: int, folder: Path) -> list[str]:
    """Return a prefix for a command that sees the folder as an empty disk of this size.

    Skips the test where mounts are not allowed.
    """
    mount = f'mount -t tmpfs -o size={size_bytes} none "{folder}"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount"]
    prefix += ["sh", "-c", f'{mount} && exec "$@"', "sh"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespace here: {error}")
    return prefix
