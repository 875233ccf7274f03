"""The line at the bottom of a terminal that follows a run, and how other lines get past it."""

from __future__ import annotations

import sys
import threading
from typing import Any, TextIO, cast

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

_FORMAT = "{percentage:3.0f}% {bar}"
"""Of the bar itself, as tqdm has it."""


class LiveLine:
    """A bar at the bottom; what this process prints stands above it, whole."""

    def __init__(self, drawings: int, total_drawings: int) -> None:
        """`drawings` of the run are done."""
        tqdm.set_lock(threading.RLock())  # its own is one between processes, which leaves traces
        self._streams = sys.stdout, sys.stderr
        self._bar: tqdm[Any] = tqdm(
            initial=drawings,
            total=total_drawings,
            file=sys.stdout,
            dynamic_ncols=True,
            mininterval=0.2,
            leave=False,
            bar_format=_FORMAT,
        )
        # Through the bar's own stream: only so does tqdm know that a line meets the bar.
        through = cast(TextIO, DummyTqdmFile(sys.stdout))
        sys.stderr = through if sys.stderr.isatty() else sys.stderr
        sys.stdout = through

    def advance(self, drawings: int) -> None:
        """So many more are done."""
        self._bar.update(drawings)

    def show(self, left: str, right: str) -> None:
        """New text on both sides of the bar, without braces; a narrow terminal cuts the right."""
        self._bar.bar_format = f"{left} {_FORMAT} {right}"
        self._bar.refresh()

    def close(self) -> None:
        """Remove the bar; lines are printed as before."""
        self._bar.close()
        sys.stdout, sys.stderr = self._streams


class PassingBy:
    """A stream of another process on the same terminal: its lines erase the bar that they meet,
    which is drawn again below them."""

    def __init__(self, stream: TextIO) -> None:
        """Everything but writing is the stream's."""
        self._stream = stream
        self._held: list[str] = []  # of a line that is not whole yet

    def write(self, text: str) -> int:
        """Write whole lines, each at once."""
        lines, newline, rest = text.rpartition("\n")
        if newline:
            self._stream.write("".join(["\r\x1b[K", *self._held, lines, newline]))
            self._held.clear()
        if rest:
            self._held.append(rest)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """The stream's."""
        return getattr(self._stream, name)


def pass_by() -> None:
    """Let what this process prints pass another one's bar."""
    if sys.stdout.isatty():
        sys.stdout = cast(TextIO, PassingBy(sys.stdout))
    if sys.stderr.isatty():
        sys.stderr = cast(TextIO, PassingBy(sys.stderr))
