"""torchrun for schedulers: signals in, exit codes out.

    python -m quickdraw_dist.launch --nproc_per_node=8 -m quickdraw_dist.train --train.epochs 2

torchrun itself returns 1 whatever its ranks do, is deaf or dies early where it is the first
process of a container, and leaves ranks behind after USR1. It runs as a child here (agent.py).
Nothing heavy is imported: signals count from the first line on.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from quickdraw_dist.base.process import PARENT_VARIABLE
from quickdraw_dist.distributed.exits import EXIT_FILE, SAVED_EXIT_CODE
from quickdraw_dist.distributed.signals import SIGNALS

EPILOG = """\
All other arguments are torchrun's (torchrun --help), with --max-restarts 0 and a
--shutdown-timeout that follows --train.shutdown_seconds.

TERM, INT and USR1 make the ranks save and leave; a second INT ends everything at once.
Exit codes: 0 done, 2 refused (do not retry), 85 stopped by a signal and saved (requeue it),
otherwise 1. The same command again resumes.
"""


def outcome(torchrun: int, codes: Sequence[int], ranks: int, signalled: bool) -> int:
    """What the launcher returns; pure.

    Args:
        torchrun: its exit code.
        codes: what this node's ranks said they leave with; the killed and crashed say nothing.
        ranks: how many this node has.
        signalled: whether the launcher had a signal.
    """
    if 2 in codes:
        return 2
    if torchrun in (0, 2):  # 2: refused before there was any rank
        return torchrun
    all_said = 0 < len(codes) == ranks
    if all_said and set(codes) == {0}:
        return 0
    if all_said and set(codes) <= {0, SAVED_EXIT_CODE}:
        return SAVED_EXIT_CODE
    early = not codes and torchrun != -signal.SIGKILL  # before there was any rank
    return SAVED_EXIT_CODE if signalled and (SAVED_EXIT_CODE in codes or early) else 1


class Launcher:
    """One torchrun after another, and the signals on their way to it."""

    def __init__(self) -> None:
        """Takes the signals from now on."""
        self.signals: list[int] = []
        self._torchrun: subprocess.Popen[bytes] | None = None
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.signals.count(signal.SIGINT) > 1:
            self._send(signal.SIGKILL)  # the ranks end with it
        elif len(self.signals) == 1:  # a second TERM would make torchrun drop its ranks
            self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        if self._torchrun is not None and self._torchrun.returncode is None:
            os.kill(self._torchrun.pid, number)

    def run(self, arguments: Sequence[str]) -> int:
        """Start torchrun, wait for it, and say how the run ended."""
        if self.signals:
            return SAVED_EXIT_CODE
        with tempfile.TemporaryDirectory(prefix="quickdraw-") as folder:
            said = Path(folder, "exit")
            self._torchrun = torchrun = subprocess.Popen(  # noqa: S603  what the user asks for
                [sys.executable, "-m", "quickdraw_dist.distributed.torchrun", *arguments],
                env=os.environ | {EXIT_FILE: str(said), PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,  # the terminal's INT comes from here only, as TERM
            )
            if self.signals:  # while it was being started
                self._send(signal.SIGTERM)
            pid, status = 0, 0
            while pid != torchrun.pid:  # as a container's first process: everybody's orphans, too
                pid, status = os.waitpid(-1, 0)
            torchrun.returncode = os.waitstatus_to_exitcode(status)
            lines = said.read_text().splitlines() if said.exists() else []
        codes = [int(line.split()[0]) for line in lines]
        ranks = int(lines[0].split()[1]) if lines else 0
        return outcome(torchrun.returncode, codes, ranks, bool(self.signals))


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun, again after a crash where that is wanted; returns the exit code."""
    launcher = Launcher()
    parser = argparse.ArgumentParser(
        prog="quickdraw_dist.launch",
        usage="%(prog)s [--restarts N] TORCHRUN'S ARGUMENTS",
        description="torchrun for schedulers: signals in, exit codes out.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    restarts_help = "start a crashed run again, so many times; on one node only [0]"
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help=restarts_help)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    known, options = parser.parse_known_args(argv)
    for again in range(known.restarts + 1):
        if again:
            print(f"crashed; restart {again} of {known.restarts}", file=sys.stderr, flush=True)
        arguments = [f"--restarts={known.restarts}", *options, *known.command]
        code = launcher.run(arguments)
        if code != 1 or launcher.signals:
            break
    return code


if __name__ == "__main__":
    sys.exit(main())
