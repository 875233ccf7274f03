"""One process and its signals, also while its main thread is inside C++ and hears nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quickdraw_dist.distributed.exits import EXIT_FILE

BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
"""Half an hour inside C without a look at Python's signal handlers, as compiling may be."""

BEGIN = """
import hashlib, signal, sys, time
from quickdraw_dist.distributed.signals import StopSignal, leave
stop = StopSignal()
stop.watch()
"""

SIGNALS = [
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGXCPU,
]  # fmt: skip


def start(said: Path, *lines: str, **variables: str) -> subprocess.Popen[str]:
    """A process that watches and then does these lines; it has printed 'ready' on return."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + "\n".join(lines)],
        env=os.environ | {EXIT_FILE: str(said)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ready(*lines: str) -> tuple[str, ...]:
    """Say so, and then do the lines."""
    return ("print('ready', flush=True)", *lines)


def begin(seconds: float) -> str:
    """The first step comes next."""
    return f"stop.begin(lambda: None, {seconds}, lambda: 'evaluation')"


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_step_it_leaves_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """Nothing is lost; and nobody waits for a compiler to return."""
    process = start(tmp_path / "exit", *ready(BUSY))
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 85
    assert "before the first step: nothing to save" in said
    assert (tmp_path / "exit").read_text() == "85 1\n"


def test_nohup_keeps_its_meaning(tmp_path: Path) -> None:
    """A process that was started to ignore HUP ignores it."""
    check = BEGIN + "import os; os.kill(os.getpid(), signal.SIGHUP); time.sleep(0.2); leave(7)"
    done = subprocess.run(["nohup", sys.executable, "-c", check], capture_output=True)
    assert done.returncode == 7


def test_from_the_first_step_on_it_is_only_noted(tmp_path: Path) -> None:
    """The ranks have to agree, and to save."""
    wait = "while not stop.received: time.sleep(0.001)"
    process = start(tmp_path / "exit", begin(3_600), *ready(wait, "leave(7)"))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 7
    assert (tmp_path / "exit").read_text() == "7 1\n"


@pytest.mark.parametrize("obeyed", ["", "stop.obey()"])
def test_who_is_still_there_leaves_by_force(obeyed: str, tmp_path: Path) -> None:
    """Also a rank that only knows of it from another; it says what it was busy with."""
    lines = begin(0.2), *ready(obeyed, BUSY)
    process = start(tmp_path / "exit", *lines, RANK="3", LOCAL_RANK="3", LOCAL_WORLD_SIZE="4")
    if not obeyed:
        process.send_signal(signal.SIGUSR1)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "rank 3 was asked to stop 0.2 seconds ago and is still busy with evaluation" in said
    assert (tmp_path / "exit").read_text() == "1 4\n"


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice is in a hurry. A second TERM is not: torchrun sends one, too."""
    wait = "while not stop.received: time.sleep(0.001)"
    process = start(
        tmp_path / "exit", begin(3_600), *ready(wait, "print('noted', flush=True)", BUSY)
    )
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 1


PEER_LEFT = """
def meet():
    print('ready', flush=True)
    raise RuntimeError('Connection closed by peer')
try:
    stop.begin(meet, 3600, lambda: '')
except RuntimeError:
    if stop.peer_stopped():
        leave(85)
    raise
"""


def test_a_rank_whose_peer_left_before_the_first_step(tmp_path: Path) -> None:
    """torchrun tells it with TERM, and it leaves like the other; an error of its own stays one."""
    process = start(tmp_path / "exit", PEER_LEFT, TORCHELASTIC_RUN_ID="x")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 85
    process = start(tmp_path / "none", PEER_LEFT, TORCHELASTIC_RUN_ID="x")
    _, said = process.communicate()
    assert process.returncode == 1
    assert "Connection closed by peer" in said and not (tmp_path / "none").exists()


@pytest.mark.parametrize("module", ["launch", "distributed.torchrun", "train"])
def test_watching_begins_before_anything_heavy_is_imported(module: str) -> None:
    """torch takes seconds, in which TERM would be the end of a rank without a code."""
    check = f"import sys, quickdraw_dist.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    loaded = done.stdout.split()
    assert f"quickdraw_dist.{module}" in loaded
    assert not {"torch", "numpy", "pydantic", "yaml", "asyncio"} & set(loaded)
