"""Faults at a point of a training run, in this process or in a rank that a test starts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quickdraw_dist.base.telemetry.phases import Phases

HOOKED, ENTER, FIRST = Phases, "enter", 1
"""Where the function is that is called with every phase and step that a run enters, its name, and
the index of the phase among its arguments."""


@dataclass
class Fault:
    """Something that happens once in a run."""

    step: int
    """Steps done before."""
    phase: str
    do: Callable[[], None]
    happened: bool = False


def at(*, step: int, phase: str, do: Callable[[], None]) -> Fault:
    """Call `do` when this process first enters a phase after `step` steps.

    A test that trains in its own process uses the fixture of the same name, which undoes it.
    """
    fault, enter = Fault(step, phase, do), getattr(HOOKED, ENTER)

    def enter_and_fail(*arguments: Any) -> None:
        enter(*arguments)
        if arguments[FIRST : FIRST + 2] == (phase, step) and not fault.happened:
            fault.happened = True
            do()

    setattr(HOOKED, ENTER, enter_and_fail)
    return fault


def hang() -> None:
    """Wait for ever, as for a store that does not answer."""
    threading.Event().wait()


def kill(after: Path | None = None) -> None:
    """End this process as the kernel does when memory runs out, after a file has appeared."""
    while after is not None and not after.exists():
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)
