"""Find all processes of a run by a variable in their environment (Linux).

Unlike a process group or a parent, the variable also finds workers whose launcher was killed and
processes with a session of their own.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Process:
    """A running process."""

    pid: int
    command: str  # arguments, joined by spaces
    environment: dict[str, str]


def marked(variable: str, value: str) -> list[Process]:
    """Return the running processes with this environment variable. A zombie is not running."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            pairs = (folder / "environ").read_bytes().split(b"\0")
            if f"{variable}={value}".encode() not in pairs:
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (OSError, UnicodeDecodeError):
            continue  # of another user, or it has just ended
        texts = (pair.decode(errors="replace").partition("=") for pair in pairs)
        found.append(Process(int(folder.name), command, {name: text for name, _, text in texts}))
    return found


def wait_until_ended(variable: str, value: str, seconds: float) -> list[Process]:
    """Wait at most `seconds` until all marked processes have ended; return those still running."""
    deadline = time.monotonic() + seconds
    while running := marked(variable, value):
        for process in running:
            left = deadline - time.monotonic()
            if left <= 0 or not _ended(process.pid, left):
                return marked(variable, value)
    return []


def _ended(pid: int, seconds: float) -> bool:
    """Wait at most `seconds` for a process, which need not be a child; return whether it ended."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([file], [], [], seconds)[0])
    finally:
        os.close(file)


@dataclass
class Peak:
    """Largest memory that `memory_of` has seen so far."""

    bytes: int = 0


@contextmanager
def memory_of(variable: str, value: str) -> Iterator[Peak]:
    """Sample the memory of all marked processes every half second, in a thread, during a `with`
    block. A page that several processes share counts once."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            now = sum(_proportional_bytes(process.pid) for process in marked(variable, value))
            peak.bytes = max(peak.bytes, now)

    thread = threading.Thread(target=watch, daemon=True, name="memory")
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
