"""Run a command with a time limit, and leave none of its processes behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.processes import marked, wait_until_ended

_DEPTH = "GPU_BENCHMARK_DEPTH"
_MARK = "GPU_BENCHMARK_MARK_{}"
"""Variable that all processes of a command inherit; it has the depth in its name, because a command
may run others with limits of their own."""

_END_SECONDS = 5.0
"""How long a killed process may take to end before it is killed again."""

_TAIL_LINES = 30


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    exit_code: int | None  # None: killed at its limit
    seconds: float

    @property
    def problem(self) -> str | None:
        """What went wrong, in a few words."""
        if self.exit_code is None:
            return f"killed at its limit, after {self.seconds:.0f} s"
        return f"exit code {self.exit_code}" if self.exit_code else None


def run_limited(
    command: Sequence[str],
    log: Path,
    limit_seconds: float,
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a command and append its output to `log`; kill all its processes at the limit.

    Args:
        command: with its arguments.
        log: of both output streams; its folder is created.
        limit_seconds: may be inf.
        variables: added to the environment.
    """
    began = time.monotonic()
    with started(command, log, variables) as process:
        try:
            code: int | None = process.wait(max(0, limit_seconds))
        except subprocess.TimeoutExpired:
            code = None
    return Outcome(code, round(time.monotonic() - began, 1))


@contextlib.contextmanager
def started(
    command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a process group of its own; at the end of the block, kill what still runs
    of it: the group, and processes that left it, as torchrun's ranks do."""
    depth, value = int(os.environ.get(_DEPTH, "0")) + 1, uuid.uuid4().hex
    mark = _MARK.format(depth)
    environment = os.environ | dict(variables or {}) | {_DEPTH: str(depth), mark: value}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True, env=environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while left := marked(mark, value):
            for other in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other.pid, signal.SIGKILL)
            wait_until_ended(mark, value, _END_SECONDS)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
