"""A thread that ends a run which stands still, and says which rank is to blame, and where.

Ranks that wait for another one in a collective stand still as it does. So all ranks tell each
other where they are through the store in which they met; the one that is behind is the one that
the others wait for. A process that says nothing at all was stopped, or its node is gone.
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

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from quickdraw_dist.base import storage
from quickdraw_dist.base.telemetry import phases as whereabouts
from quickdraw_dist.base.telemetry.phases import PHASES, Here, Place
from quickdraw_dist.distributed.exits import leave

_PATIENT = {PHASES.index(name) for name in ("start", "compile", "checkpoint")}
"""Phases that may take long without an end in sight; a store that is down has its own limits."""

_LONGEST_INTERVAL_SECONDS = 5.0
_INTERVALS = 5
"""Reports of a rank within the time that it may stand still."""


@dataclass(frozen=True)
class Report:
    """What a rank tells the others."""

    serial: int  # of its reports: while it grows the process is alive
    step: int
    phase: int
    count: int
    quiet_seconds: float  # that it has been at this place
    overdue: bool  # whether that is longer than it may be
    process: str
    leaving: bool = False  # this is its last report

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.step, self.phase, self.count)


def blame(before: Mapping[int, Report | None], now: Mapping[int, Report | None]) -> dict[int, str]:
    """Ranks that hold up the others, with what is the matter; pure.

    Nobody (yet) where those that are behind still move, or have time left.

    Args:
        before, now: every rank's report, read twice, some report intervals apart; None: none yet.
    """
    silent = {
        rank: "has not come so far"
        if report is None
        else f"({report.process}) does not answer any more: stopped, or its node is gone; last "
        f"heard of in {report.place}"
        for rank, report in now.items()
        if report is None or (report == before[rank] and not report.leaving)
    }
    if silent:
        return silent
    reports = {rank: report for rank, report in now.items() if report is not None}
    last = min(report.place for report in reports.values())
    return {
        rank: f"({report.process}) has been in {report.place} for {report.quiet_seconds:.0f} s"
        for rank, report in reports.items()
        if report.place == last and report.overdue
    }


class Board:
    """Where the ranks put up their reports: the store that they met in."""

    def __init__(self, size: int, timeout_seconds: float) -> None:
        """Without a process group there is none, and nobody to read what is put up."""
        self._size, self._store = size, None
        if dist.is_initialized():
            # A connection of its own: the main thread may wait on the other one for long.
            mine = distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            mine.set_timeout(timedelta(seconds=timeout_seconds))
            self._store = distributed_c10d.PrefixStore("watchdog", mine)

    def put(self, rank: int, report: Report) -> None:
        """Put up this rank's report in the place of its last one."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # a store that is gone: others find out, too
                self._store.set(str(rank), json.dumps(asdict(report)))

    def read(self) -> dict[int, Report | None] | None:
        """Every rank's report; None where the store does not answer."""
        assert self._store is not None, "a rank alone has nobody to read"
        found: dict[int, Report | None] = {}
        try:
            for rank in range(self._size):
                there = self._store.check([str(rank)])
                text = self._store.get(str(rank)) if there else None
                found[rank] = Report(**json.loads(text)) if text is not None else None
        except RuntimeError:
            return None
        return found


class Watchdog:
    """Watches this process, and the other ranks when it stands still."""

    def __init__(
        self,
        rank: int,
        size: int,
        start_seconds: float,
        stall_seconds: float,
        end: Callable[[], object],
    ) -> None:
        """Begins at once.

        Args:
            rank, size: of this process among those that watch; all have a process group, or none.
            start_seconds: that it may stay at one place until its first step is done, and when it
                saves.
            stall_seconds: otherwise.
            end: ends the process, after everything has been said.
        """
        self._rank, self._size, self._end = rank, size, end
        self._start_seconds, self._stall_seconds = start_seconds, stall_seconds
        self._interval = min(_LONGEST_INTERVAL_SECONDS, stall_seconds / _INTERVALS)
        self._board = Board(size, timeout_seconds=max(1.0, stall_seconds / 2))
        self._serial = 0
        self._process = f"process {os.getpid()} on {socket.gethostname()}"
        self._closed = threading.Event()
        self._tell(whereabouts.here(), 0.0)
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def close(self) -> None:
        """The run is over."""
        self._closed.set()

    def _watch(self) -> None:
        quiet, here, ticked = 0.0, whereabouts.here(), time.monotonic()
        while not self._closed.wait(self._interval):
            before, here, now = here, whereabouts.here(), time.monotonic()
            # A process that was itself suspended meanwhile has not stood still all that time.
            awake, ticked = min(now - ticked, 2 * self._interval), now
            quiet = quiet + awake if here == before else 0.0
            mine = self._tell(here, quiet)
            if mine.overdue and (blamed := self._find(here, quiet)) and whereabouts.here() == here:
                self._tell(here, quiet, leaving=True)
                self._say(mine, blamed)
                self._end()

    def _tell(self, here: Here, quiet: float, leaving: bool = False) -> Report:
        """Put up where this rank is."""
        patient = not here.stepped or here.place.phase in _PATIENT
        limit = max(self._start_seconds, self._stall_seconds) if patient else self._stall_seconds
        overdue, place = quiet > limit, here.place
        self._serial += 1
        report = Report(self._serial, place.step, place.phase, place.count, quiet, overdue,
                        self._process, leaving)  # fmt: skip
        self._board.put(self._rank, report)
        return report

    def _find(self, here: Here, quiet: float) -> dict[int, str]:
        """Who is to blame for this rank's standing still."""
        if self._size == 1:
            return blame({0: None}, {0: self._tell(here, quiet)})
        before = self._board.read()
        for _ in range(3):
            self._closed.wait(self._interval)
            self._tell(here, quiet)
        now = self._board.read()
        if before is None or now is None:
            gone = "(which keeps the store that the ranks met in, or torchrun does) is gone"
            return {0: gone}
        return blame(before, now)

    def _say(self, mine: Report, blamed: Mapping[int, str]) -> None:
        lines = [f"rank {rank} {what}" for rank, what in blamed.items()]
        if self._rank not in blamed:
            lines.append(
                f"rank {self._rank} waits for it in {mine.place}, {mine.quiet_seconds:.0f} s so far"
            )
        lines.append(
            f"this process ends; the same command goes on from the last checkpoint. Patience: "
            f"--train.stall_seconds {self._stall_seconds:g}, at the start and for a checkpoint "
            f"--train.start_seconds {self._start_seconds:g}. Where rank {self._rank} is:"
        )
        # Past Python's buffers, whose locks the thread that hangs may hold.
        os.write(2, "".join(f"watchdog: {line}\n" for line in lines).encode())
        faulthandler.dump_traceback(2, all_threads=True)
        _dump_collectives(self._rank)


@contextlib.contextmanager
def watch(rank: int, size: int, start_seconds: float, stall_seconds: float) -> Iterator[None]:
    """Watch this process in the body; where it stands still it leaves with exit code 1."""
    dog = Watchdog(rank, size, start_seconds, stall_seconds, end=lambda: leave(1))
    try:
        yield
    finally:
        dog.close()


_TRACE = "TORCH_FR_DUMP_TEMP_FILE"


def record_collectives(run: str) -> None:
    """Have NCCL's last collectives written to the run's folder, or the temporary one where that is
    in a store, a file a rank, when one of them times out or the watchdog ends the run.

    Call it before the process group is made. The variables are those of PyTorch's flight
    recorder; its `torchfrtrace` reads the files.
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
