"""A pseudo-terminal for tests, and the text that a person sees on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from typing import TextIO


class Terminal:
    """A pseudo-terminal; `stream` is the end that programs write to."""

    def __init__(self, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.stream: TextIO = os.fdopen(theirs, "w", buffering=1)
        self.written = ""

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)

    def read(self, until: str) -> str:
        """Read until this text has been written; return everything written so far."""
        while until not in self.written:
            self.written += os.read(self._ours, 65536).decode()
        return self.written

    def read_to_the_end(self) -> str:
        """Read until every writer has closed the terminal, which Linux reports as an error."""
        self.stream.close()
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:
                return self.written
            if not data:
                return self.written
            self.written += data.decode()


def screen(written: str) -> list[str]:
    """Return the lines that a wide terminal shows after this output."""
    lines, column = [""], 0
    for piece in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+|\x1b", written):
        if piece == "\n":
            lines.append("")
        elif piece == "\r":
            column = 0
        elif piece == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            assert not piece.startswith("\x1b"), "an escape code that this terminal does not know"
            kept = lines[-1].ljust(column)
            lines[-1] = kept[:column] + piece + kept[column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in lines]
