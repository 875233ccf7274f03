"""End a stalled run, and name the rank that stalled and the point it stalled at.

Ranks that wait for a stalled one in a collective stall, too. So every rank publishes its run point
in the store where the ranks met; the rank that is behind is the one that the others wait for. A
process that publishes nothing any more was stopped, or its node is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from quickdraw_dist.base import storage
from quickdraw_dist.base.process.output import print_unbuffered
from quickdraw_dist.base.settings import Train
from quickdraw_dist.base.telemetry.phases import PHASES, Current, Phases, RunPoint
from quickdraw_dist.distributed.exits import leave
from quickdraw_dist.distributed.ranks import World

T = TypeVar("T")

_SLOW_PHASES = {PHASES.index(name) for name in ("start", "compile", "checkpoint")}
"""Phases that may take `slow_phase_seconds`; requests to a store have limits of their own."""

_STACK_SECONDS = 5.0
"""How long printing the stack may take."""

_LONGEST_INTERVAL_SECONDS = 5.0
_INTERVALS = 5
"""Reports that a rank publishes within `stall_seconds`."""


@dataclass(frozen=True)
class Report:
    """What a rank publishes for the others."""

    serial: int  # grows with every report while the process lives
    step: int
    phase: int
    count: int
    quiet_seconds: float  # how long the rank has been at this point
    overdue: bool  # whether that is longer than allowed
    process: str
    leaving: bool = False  # this is its last report

    @property
    def point(self) -> RunPoint:
        """The point of the run that the rank is at."""
        return RunPoint(self.step, self.phase, self.count)


def blame(before: Mapping[int, Report | None], now: Mapping[int, Report | None]) -> dict[int, str]:
    """Return the ranks that hold up the others, and what is wrong with each; pure.

    Empty while those that are behind still move or have time left.

    Args:
        before, now: every rank's report, read twice, some report intervals apart; None: none yet.
    """
    silent = {
        rank: "has not started yet"
        if report is None
        else f"({report.process}) does not answer any more: stopped, or its node is gone; last "
        f"seen in {report.point}"
        for rank, report in now.items()
        if report is None or (report == before[rank] and not report.leaving)
    }
    if silent:
        return silent
    reports = {rank: report for rank, report in now.items() if report is not None}
    last = min(report.point for report in reports.values())
    return {
        rank: f"({report.process}) has been in {report.point} for {report.quiet_seconds:.0f} s"
        for rank, report in reports.items()
        if report.point == last and report.overdue
    }


class Board:
    """The reports of all ranks, in the store where they met.

    A store whose host is gone does not fail: its requests block until the kernel gives up, after
    minutes, whatever timeout they were given. So every request runs in a thread of its own, which
    nobody waits for beyond a deadline.
    """

    def __init__(self, size: int, timeout_seconds: float) -> None:
        """Open a connection to the store. Without a process group nothing is published."""
        self._size, self._timeout_seconds = size, timeout_seconds
        self._store: distributed_c10d.Store | None = None
        self._putting: threading.Thread | None = None
        if dist.is_initialized():
            # A connection of its own: the main thread may wait on the other one for long.
            mine = distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            mine.set_timeout(timedelta(seconds=timeout_seconds))
            self._store = distributed_c10d.PrefixStore("watchdog", mine)

    def put(self, rank: int, report: Report) -> None:
        """Publish this rank's report in place of its last one, without waiting for the store."""
        store = self._store
        if store is not None and not (self._putting and self._putting.is_alive()):
            text = json.dumps(asdict(report))
            self._putting, _ = _in_thread(lambda: store.set(str(rank), text))

    def read(self) -> dict[int, Report | None] | None:
        """Return every rank's report, None for a rank without one; None if the store is gone."""
        store = self._store
        assert store is not None, "a single rank has no peers to read"

        def ask() -> dict[int, Report | None]:
            found: dict[int, Report | None] = {}
            for rank in range(self._size):
                there = store.check([str(rank)])
                text = store.get(str(rank)) if there else None
                found[rank] = Report(**json.loads(text)) if text is not None else None
            return found

        asking, answer = _in_thread(ask)
        asking.join(self._timeout_seconds)
        return answer[0] if answer else None


def _in_thread(request: Callable[[], T]) -> tuple[threading.Thread, list[T]]:
    """Start a request to the store; its answer is appended to the list, unless the store fails."""
    answer: list[T] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: the reader sees no answer
            answer.append(request())

    thread = threading.Thread(target=run, daemon=True, name="watchdog store")
    thread.start()
    return thread, answer


class Watchdog:
    """Watches this process in a thread, and the other ranks once this one stalls."""

    def __init__(
        self, world: World, phases: Phases, train: Train, end: Callable[[], object]
    ) -> None:
        """Start watching.

        Args:
            world: the ranks that watch; all have a process group, or none has.
            phases: where the main thread is.
            train: `stall_seconds` and `slow_phase_seconds` are the limits.
            end: ends the process, after everything has been printed.
        """
        self._rank, self._size, self._phases, self._end = world.rank, world.size, phases, end
        self._train = train
        self._interval = min(_LONGEST_INTERVAL_SECONDS, train.stall_seconds / _INTERVALS)
        self._board = Board(world.size, timeout_seconds=max(1.0, train.stall_seconds / 2))
        self._serial = 0
        self._process = f"process {os.getpid()} on {socket.gethostname()}"
        self._closed = threading.Event()
        self._publish(phases.current, 0.0)
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        quiet, seen, ticked = 0.0, self._phases.current, time.monotonic()
        while not self._closed.wait(self._interval):
            before, seen, now = seen, self._phases.current, time.monotonic()
            # A process that was itself suspended in the meantime has not stalled all that time.
            awake, ticked = min(now - ticked, 2 * self._interval), now
            quiet = quiet + awake if seen == before else 0.0
            own = self._publish(seen, quiet)
            if not own.overdue or not (blamed := self._find_stalled(seen, quiet)):
                continue
            if self._phases.current == seen:
                self._publish(seen, quiet, leaving=True)
                self._tell(own, blamed)
                if self._rank not in blamed:  # torchrun ends a stalled rank before it has told
                    self._closed.wait(2 * self._interval)
                self._end()

    def _publish(self, seen: Current, quiet: float, leaving: bool = False) -> Report:
        """Publish, and return, this rank's report."""
        point = seen.point
        slow = not seen.stepped or point.phase in _SLOW_PHASES
        limit = self._train.slow_phase_seconds if slow else self._train.stall_seconds
        self._serial += 1
        report = Report(self._serial, point.step, point.phase, point.count, quiet, quiet > limit,
                        self._process, leaving)  # fmt: skip
        self._board.put(self._rank, report)
        return report

    def _find_stalled(self, seen: Current, quiet: float) -> dict[int, str]:
        """Return the ranks that make this one stall, and what is wrong with each."""
        if self._size == 1:
            return blame({0: None}, {0: self._publish(seen, quiet)})
        before = self._board.read()
        for _ in range(3):
            self._closed.wait(self._interval)
            self._publish(seen, quiet)
        now = self._board.read()
        if before is None or now is None:
            return {0: "(which keeps the store where the ranks met, or torchrun does) is gone"}
        return blame(before, now)

    def _tell(self, own: Report, blamed: Mapping[int, str]) -> None:
        lines = [f"rank {rank} {problem}" for rank, problem in blamed.items()]
        if self._rank not in blamed:
            lines.append(
                f"rank {self._rank} waits for it in {own.point}, {own.quiet_seconds:.0f} s so far"
            )
        lines.append(
            "this process ends; the same command continues from the last checkpoint. Limit: "
            f"--train.stall_seconds {self._train.stall_seconds:g}, six times that in start-up, "
            f"compilation and checkpoints. Stack of rank {self._rank}:"
        )
        print_unbuffered("\n".join(f"watchdog: {line}" for line in lines))
        # In a thread: a reader that reads nothing would block this one.
        stack = threading.Thread(target=faulthandler.dump_traceback, args=(2, True), daemon=True)
        stack.start()
        stack.join(_STACK_SECONDS)
        _dump_collectives(self._rank)


@contextlib.contextmanager
def watch(world: World, phases: Phases, train: Train) -> Iterator[None]:
    """Watch this process in the body; if it stalls it leaves with exit code 1."""
    dog = Watchdog(world, phases, train, end=lambda: leave(1))
    try:
        yield
    finally:
        dog.close()


_TRACE = "TORCH_FR_DUMP_TEMP_FILE"


def record_collectives(run: str) -> None:
    """Have NCCL's last collectives written, one file per rank, when one of them times out or the
    watchdog ends the run: to the run's folder, or to the temporary folder for a run on gs://.

    Call it before the process group is created. The variables are those of PyTorch's flight
    recorder, whose `torchfrtrace` reads the files.
    """
    folder = Path(tempfile.gettempdir() if storage.is_remote(run) else run)
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault(_TRACE, str(folder / "nccl_trace_rank_"))


def _dump_collectives(rank: int) -> None:
    dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace", None)  # in builds with NCCL
    if dump is not None and _TRACE in os.environ:
        with contextlib.suppress(OSError, RuntimeError):
            Path(f"{os.environ[_TRACE]}{rank}").write_bytes(dump())
