"""Finding the processes of a run by their mark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from benchmarks.chaos.processes import marked, memory_of, wait_until_ended

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

MARK = "TEST_PROCESSES_MARK"
CHILD = "import sys, time; held = bytearray({bytes}); print('up', flush=True); sys.stdin.read()"


def _start(mark: str, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {MARK: mark, "MORE": "a=b"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_an_orphan_in_a_session_of_its_own_is_found() -> None:
    """A process whose parent is gone, out of the group: still the run's."""
    mark = uuid.uuid4().hex
    grandchild = "import os, subprocess, sys; os.setsid(); print(os.getpid(), flush=True); " + (
        "sys.stdin.read()"
    )
    code = (
        "import subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {grandchild!r}], stdin=0, "
        "stdout=subprocess.PIPE, text=True); child.stdout.readline(); print('up', flush=True); "
        "sys.stdin.read()"
    )
    parent = _start(mark, code)
    assert len(marked(MARK, mark)) == 2
    parent.kill()
    parent.wait()
    (orphan,) = marked(MARK, mark)
    assert orphan.pid != parent.pid
    assert orphan.environment["MORE"] == "a=b"
    assert "setsid" in orphan.command
    os.kill(orphan.pid, signal.SIGKILL)
    assert not marked(MARK, uuid.uuid4().hex)


def test_waiting_for_the_end_names_who_lives_on() -> None:
    mark = uuid.uuid4().hex
    assert wait_until_ended(MARK, mark, 0) == []
    process = _start(mark, CHILD.format(bytes=1))
    (survivor,) = wait_until_ended(MARK, mark, 0.01)
    assert survivor.pid == process.pid
    process.kill()  # it becomes a zombie, which is gone
    assert wait_until_ended(MARK, mark, 60) == []
    process.communicate()


def test_memory_counts_all_of_them() -> None:
    mark = uuid.uuid4().hex
    with memory_of(MARK, mark) as peak:
        started = [_start(mark, CHILD.format(bytes=10**8)) for _ in range(2)]
        deadline = time.monotonic() + 60
        while peak.bytes < 2 * 10**8:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for process in started:
            process.communicate()
    assert peak.bytes < 4 * 10**8
