"""The progress bar at the bottom of a terminal, and how other lines are printed above it."""

from __future__ import annotations

import sys
import threading
from typing import Any, TextIO, cast

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

_BAR = "{percentage:3.0f}% {bar}"
"""tqdm's format of the bar itself."""


class LiveLine:
    """A progress bar of drawings; until `close`, what this process prints appears above it."""

    def __init__(self, drawings: int, total_drawings: int) -> None:
        """Show the bar on standard output, with `drawings` of `total_drawings` done."""
        _use_thread_lock()
        self._streams = sys.stdout, sys.stderr
        self._bar: tqdm[Any] = tqdm(
            initial=drawings,
            total=total_drawings,
            file=sys.stdout,
            dynamic_ncols=True,
            mininterval=0.2,
            leave=False,
            bar_format=_BAR,
        )
        # Both go through the bar's own stream: tqdm knows only then that a line meets the bar.
        above = cast(TextIO, DummyTqdmFile(sys.stdout))
        sys.stderr = above if sys.stderr.isatty() else sys.stderr
        sys.stdout = above

    def advance(self, drawings: int) -> None:
        """Count further drawings as done."""
        self._bar.update(drawings)

    def show(self, left: str, right: str) -> None:
        """Set the text on both sides, without braces; a narrow terminal cuts the right one."""
        self._bar.bar_format = f"{left} {_BAR} {right}"
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar and restore the standard streams."""
        self._bar.close()
        sys.stdout, sys.stderr = self._streams


class _ErasingFile(DummyTqdmFile):
    """A terminal on which another process shows a bar: whole lines, which first erase it."""

    def write(self, x: str, nolock: bool = False) -> None:
        if "\n" in x:
            self._buf.insert(0, "\r\x1b[K")
        super().write(x, nolock)


def print_above_bar() -> None:
    """Make this process's lines erase the bar of another one, which redraws it below them."""
    _use_thread_lock()
    if sys.stdout.isatty():
        sys.stdout = cast(TextIO, _ErasingFile(sys.stdout))
    if sys.stderr.isatty():
        sys.stderr = cast(TextIO, _ErasingFile(sys.stderr))


def _use_thread_lock() -> None:
    """Replace tqdm's default lock, which works across processes and takes a system semaphore."""
    tqdm.set_lock(threading.RLock())
