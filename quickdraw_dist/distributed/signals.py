"""Stopping: a thread sees TERM, INT and USR1 whatever the main thread does, and how a rank leaves.

Nothing heavy is imported here, so that a rank watches from its first lines on: torch alone takes
seconds to load, and compiling or meeting the other ranks may hold the main thread for minutes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable

from quickdraw_dist.distributed.exits import SAVED_EXIT_CODE, leave

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_ANSWER_SECONDS = 2.0
"""torchrun looks ten times a second whether a rank has left, and then sends the others TERM."""


class StopSignal:
    """Whether this process was asked to stop.

    Until the first step there is nothing to save, and a signal ends the process there and then.
    From `begin` on it only sets `received`, which the ranks agree on (agreement.py); a process
    that is still there `train.shutdown_seconds` later leaves by force.
    """

    def __init__(self) -> None:
        """Watches nothing yet."""
        self._received = threading.Event()
        self._interrupted = False
        self._alone, self._stepping = True, False
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._phase: Callable[[], str] = lambda: "start"

    @property
    def received(self) -> bool:
        """Whether there was a signal, or `obey`."""
        return self._received.is_set()

    def watch(self) -> None:
        """Answer signals from now on; a second INT ends the process at once. Main thread only."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # Written to by the C handler, also while the main thread is inside C++.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        keep = (reader, writer)
        threading.Thread(target=self._watch, args=keep, daemon=True, name="signals").start()

    def _watch(self, reader: socket.socket, _writer: socket.socket) -> None:
        while True:
            number = reader.recv(1)[0]
            if number not in SIGNALS:
                continue  # some library's own
            if number == signal.SIGINT and self._interrupted:
                leave(1)
            self._interrupted |= number == signal.SIGINT
            with self._lock:
                if self._alone:
                    _say("stopped by a signal before the first step: nothing to save")
                    leave(SAVED_EXIT_CODE)
            self.obey()

    def obey(self) -> None:
        """Take a signal to another rank as one to this one: from now on the time counts."""
        with self._lock:
            if not self._received.is_set():
                self._received.set()
                clock = threading.Timer(self._seconds, self._give_up)
                clock.daemon = True
                clock.start()

    def _give_up(self) -> None:
        _say(
            f"error: rank {os.environ.get('RANK', '0')} was asked to stop {self._seconds:g} "
            f"seconds ago and is still busy with {self._phase()}; it leaves by force, and the last "
            "checkpoint stands. More time: --train.shutdown_seconds",
            every_rank=True,
        )
        leave(1)

    def begin(self, meet: Callable[[], None], seconds: float, phase: Callable[[], str]) -> None:
        """The first step comes next: from now on ranks leave together. Does nothing when repeated.

        Args:
            meet: waits for all ranks, so that none steps while another may still leave alone.
            seconds: the time a signal leaves them.
            phase: what this rank is busy with, for the message when that has passed.
        """
        if self._stepping:
            return
        with self._lock:
            self._seconds, self._phase, self._alone = seconds, phase, False
        meet()
        self._stepping = True

    def excuse(self) -> None:
        """What a rank does about an error before the first step: if it is only that another rank
        left because of a signal, torchrun sends this one TERM, and it leaves likewise."""
        answered = not self._stepping and "TORCHELASTIC_RUN_ID" in os.environ
        if answered and self._received.wait(_ANSWER_SECONDS):
            leave(SAVED_EXIT_CODE)


def _say(line: str, every_rank: bool = False) -> None:
    """To stderr, past Python's buffers: their locks may be held by a thread that hangs."""
    if every_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())
