"""One start of the training command: its output, its processes, and the fault that ends it."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import NoReturn

from benchmarks.chaos.plan import Fault, Outcome
from benchmarks.chaos.processes import Process, marked, wait_until_ended

MARK = "CHAOS_RUN"
_STEP = re.compile(r"epoch (\d+)/\d+  step ([\d,]+)/([\d,]+)")
_RESUMED = re.compile(r"resumed .*step-(\d+)")
_END_SECONDS = 60
"""All processes must have ended this long after a SIGKILL or a SIGTERM, which saves first."""


class Run:
    """A start of the command, marked, in a session of its own. A thread reads its output; at the
    end of the `with` block all its processes are killed."""

    def __init__(self, command: list[str]) -> None:
        self._mark = uuid.uuid4().hex
        self._output = Path(command[command.index("--output") + 1])
        scratch = self._output.parent / "tmp"  # a killed process leaves its temporary files
        scratch.mkdir(exist_ok=True)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {MARK: self._mark, "TMPDIR": str(scratch.resolve())},
        )
        self._incoming: queue.Queue[str | None] = queue.Queue()
        self._lines: list[str] = []
        self.resumed: int | None = None  # step that this start resumed from
        self._reached: int | None = None
        self._steps = 0  # made by this start
        self._phase = "start-up"
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill(marked(MARK, self._mark))

    def _read(self) -> None:
        assert self._process.stdout is not None, "stdout=PIPE"
        for line in self._process.stdout:
            self._incoming.put(line)
        self._incoming.put(None)

    def _take_line(self, seconds: float | None = None) -> bool:
        """Wait at most `seconds` for a line and parse it; return whether one came."""
        try:
            line = self._incoming.get(timeout=seconds)
        except queue.Empty:
            return False
        if line is None:
            self._fail()
        self._parse(line)
        return True

    def _parse(self, line: str) -> None:
        """Update step and phase from a line of the log."""
        self._lines.append(line)
        if found := _RESUMED.search(line):
            self.resumed, self._phase = int(found[1]), "before the first step"
        elif found := _STEP.search(line):
            epoch, step, steps = (int(text.replace(",", "")) for text in found.groups())
            self._reached = (epoch - 1) * steps + step
            self._steps += 1
            self._phase = f"after step {self._reached}" + (", end of an epoch" * (step == steps))
        elif line.startswith("validation"):
            self._phase = f"after step {self._reached} and its validation"

    def wait_for_step(self, steps: int) -> float:
        """Wait until this start has made `steps` steps; return the seconds since it began."""
        while self._steps < steps:
            self._take_line()
        return time.monotonic() - self._started

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._take_line(left):
            pass

    def _parse_to_end(self) -> None:
        """Parse all lines until the last process that can write one has ended."""
        while (line := self._incoming.get()) is not None:
            self._parse(line)

    def finish(self) -> None:
        """Wait for the end of the run; exit if it fails or leaves a process behind."""
        self._parse_to_end()
        if self._process.wait() or wait_until_ended(MARK, self._mark, _END_SECONDS):
            self._fail()

    def inject(self, fault: Fault, start_up_seconds: float, began_seconds: float) -> Outcome:
        """Wait for the fault's time, send its signal, and wait until all processes have ended."""
        if fault.start_up is not None:
            self._wait(fault.start_up * start_up_seconds)
        else:
            self.wait_for_step(fault.steps)
            self._wait(fault.delay_seconds)
        phase, lived = self._phase, time.monotonic() - self._started
        target = self._send_signal(fault.target)
        sent = time.monotonic()
        survivors = wait_until_ended(MARK, self._mark, _END_SECONDS)
        end = time.monotonic() - sent
        for survivor in survivors:
            print(f"survivor: process {survivor.pid}: {survivor.command}", flush=True)
        self._kill(survivors)
        code = self._process.wait()
        self._parse_to_end()
        return Outcome(
            began_seconds, target, phase, self.resumed, self._reached, lived, code, end,
            len(survivors), self._half_written(),
        )  # fmt: skip

    def _send_signal(self, target: str) -> str:
        """Send the signal and return its target: everything, if the target does not run yet."""
        if target == "TERM":
            self._process.send_signal(signal.SIGTERM)
            return target
        running = marked(MARK, self._mark)
        victims = [p for p in running if target in ("everything", self._role(p))]
        if not victims:
            target, victims = "everything", running
        self._kill(victims)
        return target

    @staticmethod
    def _kill(processes: list[Process]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it ended with one killed before it
                os.kill(process.pid, signal.SIGKILL)

    def _role(self, process: Process) -> str:
        if process.pid == self._process.pid:
            return "launcher"
        rank = process.environment.get("RANK")
        return f"rank {rank}" if rank is not None else "torchrun"

    def _half_written(self) -> int:
        folder = self._output / "checkpoints"
        if not folder.exists():
            return 0
        return sum(not (step / "meta.json").exists() for step in folder.iterdir())

    def _fail(self) -> NoReturn:
        print("".join(self._lines[-40:]))
        sys.exit(f"error: the run ended by itself, exit code {self._process.wait()}; see above")
