"""Signals that ask a rank to stop, seen by a thread whatever the main thread does.

    this rank is                signal           how it ends, with which exit code
    before the first step       nothing to save  the watching thread leaves at once: 85
    stepping                    sets `received`  all ranks agree within a step and save: 85
    evaluating                  sets `received`  all ranks abandon the evaluation and save: 85
    saving its last checkpoint  sets `received`  finishes saving: 85, or 0 at the end of the run
    in any state, INT again     -                the watching thread leaves at once: 1
    still stopping after        -                the timer leaves by force: 1; the last
      train.shutdown_seconds                       checkpoint stands
    in any state, a peer gone   TERM, torchrun's before the first step 85 if the peer had a
                                  answer           signal; later 1, and nothing is saved

The signals are those of SIGNALS.

Nothing heavy is imported here: torch alone takes seconds to load, and a rank watches from its
first lines on.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

from quickdraw_dist.base.process.output import print_unbuffered
from quickdraw_dist.distributed.exits import SAVED, leave

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")

SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Signals that ask a process to end: TERM; INT, HUP and QUIT of a terminal (Ctrl-C, a closed window
or connection, Ctrl-\\); USR1, USR2 and XCPU of batch systems that reach a limit."""

_TORCHRUN_ANSWER_SECONDS = 2.0
"""torchrun looks ten times per second whether a rank has left, and then sends the others TERM."""


def signals_to_answer() -> tuple[signal.Signals, ...]:
    """Return SIGNALS, without HUP if this process was started to ignore it (nohup)."""
    ignored = {
        number
        for number in SIGNALS
        if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN
    }
    return tuple(number for number in SIGNALS if number not in ignored)


class StopSignal:
    """Whether this process was asked to stop.

    Until `begin` there is nothing to save, and a signal ends the process at once. From then on a
    signal only sets `received`, which the ranks agree on (agreement.py). A process that still runs
    `train.shutdown_seconds` later leaves by force.
    """

    def __init__(self) -> None:
        self.abandoned: list[object] = []
        """What a stopped run does not close, because closing may wait for a store: kept until the
        process ends."""
        self._received = threading.Event()
        self._interrupted = False
        self._may_leave_alone, self._stepping = True, False
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._phase: Callable[[], str] = lambda: "start"

    @property
    def received(self) -> bool:
        """Whether this process got a signal, or was told of another rank's by `obey`."""
        return self._received.is_set()

    def watch(self) -> None:
        """Answer signals from now on; a second INT ends the process at once. Main thread only."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        # Written to by the C handler, also while the main thread is inside C++.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in signals_to_answer():
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
                if self._may_leave_alone:
                    _print("stopped by a signal before the first step: nothing to save")
                    leave(SAVED)
            self.obey()

    def obey(self) -> None:
        """Treat a signal to another rank as one to this rank, and start the shutdown timer."""
        with self._lock:
            if not self._received.is_set():
                self._received.set()
                timer = threading.Timer(self._seconds, self._leave_by_force)
                timer.daemon = True
                timer.start()

    def _leave_by_force(self) -> None:
        _print(
            f"error: rank {os.environ.get('RANK', '0')} was asked to stop {self._seconds:g} "
            f"seconds ago and is still busy with {self._phase()}. It leaves by force; the last "
            "checkpoint stands. More time: --train.shutdown_seconds",
            every_rank=True,
        )
        leave(1)

    def begin(self, meet: Callable[[], None], seconds: float, phase: Callable[[], str]) -> None:
        """Announce the first step: from now on ranks stop together. Later calls do nothing.

        Args:
            meet: waits for all ranks, so that none steps while another may still leave alone.
            seconds: how long a signal leaves them.
            phase: returns what this rank is busy with, for the message of the timer.
        """
        if self._stepping:
            return
        with self._lock:
            self._seconds, self._phase, self._may_leave_alone = seconds, phase, False
        meet()
        self._stepping = True

    def peer_stopped(self) -> bool:
        """Whether an error before the first step only means that a peer left because of a signal.

        torchrun answers a rank's end with TERM to the others within seconds; this waits for it.
        """
        torchrun_answers = not self._stepping and "TORCHELASTIC_RUN_ID" in os.environ
        return torchrun_answers and self._received.wait(_TORCHRUN_ANSWER_SECONDS)


def _print(line: str, every_rank: bool = False) -> None:
    if every_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        print_unbuffered(line)
