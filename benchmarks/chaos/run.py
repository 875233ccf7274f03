"""One start of the training command: its lines, its processes, and the blow that ends it."""

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

from benchmarks.chaos.plan import Blow, Report
from benchmarks.chaos.processes import Process, marked, wait_until_gone

MARK = "CHAOS_RUN"
_STEP = re.compile(r"epoch (\d+)/\d+  step ([\d,]+)/([\d,]+)")
_RESUMED = re.compile(r"resumed .*step-(\d+)")
_GONE_SECONDS = 60
"""After a SIGKILL all must be gone by then, and after a SIGTERM, which saves first."""


class Run:
    """Started when made. Lines are read by a thread, and looked at one by one."""

    def __init__(self, command: list[str]) -> None:
        """Start it, marked, in a session of its own."""
        self._mark = uuid.uuid4().hex
        self._output = Path(command[command.index("--output") + 1])
        scratch = self._output.parent / "tmp"  # what is killed cannot tidy up
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
        self.resumed: int | None = None  # step that it resumed from
        self._reached: int | None = None
        self._steps = 0  # of this start
        self._phase = "start-up"
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Run:
        """For the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever ended the block, no process of the run outlives it."""
        self._kill(marked(MARK, self._mark))

    def _read(self) -> None:
        assert self._process.stdout is not None, "it was asked for"
        for line in self._process.stdout:
            self._incoming.put(line)
        self._incoming.put(None)

    def _look(self, seconds: float | None = None) -> bool:
        """Take one line, waiting so long for it; False when none came."""
        try:
            line = self._incoming.get(timeout=seconds)
        except queue.Empty:
            return False
        if line is None:
            self._ended_alone()
        self._note(line)
        return True

    def _note(self, line: str) -> None:
        """What a line says of where the run is."""
        self._lines.append(line)
        if found := _RESUMED.search(line):
            self.resumed, self._phase = int(found[1]), "before the first step"
        elif found := _STEP.search(line):
            epoch, step, of = (int(text.replace(",", "")) for text in found.groups())
            self._reached = (epoch - 1) * of + step
            self._steps += 1
            self._phase = f"after step {self._reached}" + (", end of an epoch" * (step == of))
        elif line.startswith("validation"):
            self._phase = f"after step {self._reached} and its validation"

    def wait_for_step(self, steps: int) -> float:
        """Wait for so many steps of this start; returns the seconds since it began."""
        while self._steps < steps:
            self._look()
        return time.monotonic() - self._started

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._look(left):
            pass

    def _note_the_rest(self) -> None:
        """Lines up to the end of the last process that can write any."""
        while (line := self._incoming.get()) is not None:
            self._note(line)

    def finish(self) -> None:
        """Let it come to its end; it must end well and leave nobody behind."""
        self._note_the_rest()
        if self._process.wait() or wait_until_gone(MARK, self._mark, _GONE_SECONDS):
            self._ended_alone()

    def strike(self, blow: Blow, start_up_seconds: float, began_seconds: float) -> Report:
        """Wait for the blow's time, deal it, and wait until no process of the run is left."""
        if blow.start_up is not None:
            self._wait(blow.start_up * start_up_seconds)
        else:
            self.wait_for_step(blow.steps)
            self._wait(blow.delay_seconds)
        phase, lived = self._phase, time.monotonic() - self._started
        target = self._hit(blow.target)
        struck = time.monotonic()
        survivors = wait_until_gone(MARK, self._mark, _GONE_SECONDS)
        gone = time.monotonic() - struck
        for survivor in survivors:
            print(f"survivor: process {survivor.pid}: {survivor.command}", flush=True)
        self._kill(survivors)
        code = self._process.wait()
        self._note_the_rest()
        return Report(
            began_seconds, target, phase, self.resumed, self._reached, lived, code, gone,
            len(survivors), self._half_written(),
        )  # fmt: skip

    def _hit(self, target: str) -> str:
        """Send the signal; returns the target, another one where that is not there yet."""
        if target == "TERM":
            self._process.send_signal(signal.SIGTERM)
            return target
        living = marked(MARK, self._mark)
        victims = [p for p in living if target in ("everything", self._role(p))]
        if not victims:
            target, victims = "everything", living
        self._kill(victims)
        return target

    @staticmethod
    def _kill(processes: list[Process]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # it ended with one before it
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

    def _ended_alone(self) -> NoReturn:
        print("".join(self._lines[-40:]))
        sys.exit(f"error: the run ended by itself, exit code {self._process.wait()}; see above")
