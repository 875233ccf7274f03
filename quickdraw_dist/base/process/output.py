"""Standard output and error that may be lost."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any

_PRINT_SECONDS = 2.0
"""How long `print_unbuffered` waits for a reader that reads nothing."""


_STREAMS = {1: ("stdout", "standard output"), 2: ("stderr", "standard error")}


def survive_lost_output() -> None:
    """Make a standard stream that can no longer be written to (a closed pipe or terminal, a full
    disk) cost what is printed to it, never the run. Call it first in a process.

    The loss is reported once, on the other stream. A stream that was closed from the start drops
    what is printed; one that has no file descriptor of its own is left as it is.
    """
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= max(_STREAMS):
        pass  # else the next file that is opened would be taken for a standard stream
    os.close(nowhere)
    for descriptor, (name, _) in _STREAMS.items():
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False)))
        stream: Any = getattr(sys, name)
        with contextlib.suppress(AttributeError, OSError):  # without a descriptor
            if stream.fileno() == descriptor:
                stream.flush()
                raw: Any = _Output(descriptor, "w", closefd=False)
                setattr(sys, name, io.TextIOWrapper(
                    raw if stream.write_through else io.BufferedWriter(raw),  # python -u
                    stream.encoding, stream.errors, "\n", stream.line_buffering,
                    stream.write_through,
                ))  # fmt: skip


class _Output(io.FileIO):
    """A standard stream whose writes never fail."""

    _lost = False

    def write(self, data: Any) -> int:
        """Write all of it, waiting for a reader; drop the rest where that is impossible."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # a terminal that was set to non-blocking
                    select.select((), (self.fileno(),), ())
                left = left[written or 0 :]
        except OSError as error:
            self._lose(error)
        return size

    def _lose(self, error: OSError) -> None:
        descriptor = self.fileno()
        if not self._lost:
            self._lost = True
            if os.environ.get("LOCAL_RANK", "0") == "0":
                lost = f"{_STREAMS[descriptor][1]} is lost ({error.strerror})"
                print_unbuffered(f"{lost}: the command continues without it", 3 - descriptor)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a disk may have room again later
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)  # for what is written past Python, and by children
                os.close(nowhere)


def print_unbuffered(line: str, descriptor: int = 2) -> None:
    """Write a line to standard error (or to output: 1) past Python's buffers, whose locks a
    stalled thread may hold. Never fails, and gives up on a reader that reads nothing."""
    data = f"{line}\n".encode()
    with contextlib.suppress(OSError):
        # A stream that is ready takes this many bytes without blocking.
        while data and select.select((), (descriptor,), (), _PRINT_SECONDS)[1]:
            data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]
