"""torchrun for schedulers: signals in, exit codes out.

    python -m quickdraw_dist.launch --nproc_per_node=8 -m quickdraw_dist.train --train.epochs 2

torchrun itself returns 1 whatever its ranks return, ignores TERM or dies of it early as the first
process of a container, and leaves ranks behind after USR1. It runs as a child here
(distributed/torchrun.py). Nothing heavy is imported: signals count from the first line on.
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

from quickdraw_dist.base.process.output import survive_lost_output
from quickdraw_dist.base.process.parent import PARENT_VARIABLE
from quickdraw_dist.distributed.exits import EXIT_FILE, SAVED
from quickdraw_dist.distributed.signals import signals_to_answer

EPILOG = """\
All other arguments are torchrun's (torchrun --help), with --max-restarts 0 and a
--shutdown-timeout that follows --train.shutdown_seconds.

TERM, INT, HUP, QUIT, USR1, USR2 and XCPU make the ranks save and leave; a second INT ends
everything at once. Under nohup HUP is ignored.
Exit codes: 0 done, 2 refused (do not retry), 85 stopped by a signal and saved (requeue it),
otherwise 1. The same command again resumes.
"""


def outcome(torchrun: int, codes: Sequence[int], ranks: int, signalled: bool) -> int:
    """Return the launcher's exit code; pure.

    Args:
        torchrun: torchrun's exit code.
        codes: the exit codes that this node's ranks wrote; killed and crashed ranks write none.
        ranks: how many ranks this node has.
        signalled: whether the launcher got a signal.
    """
    if 2 in codes:
        return 2
    if torchrun in (0, 2):  # 2: refused before there was any rank
        return torchrun
    all_said = 0 < len(codes) == ranks
    if all_said and set(codes) == {0}:
        return 0
    if all_said and set(codes) <= {0, SAVED}:
        return SAVED
    early = not codes and torchrun != -signal.SIGKILL  # before there was any rank
    return SAVED if signalled and (SAVED in codes or early) else 1


class Launcher:
    """Runs torchrun as a child, and passes signals on to it."""

    def __init__(self) -> None:
        """Take signals from now on."""
        self.signals: list[int] = []
        self._torchrun: subprocess.Popen[bytes] | None = None
        for number in signals_to_answer():
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
        """Start torchrun, wait for it, and return the exit code of the run."""
        if self.signals:
            return SAVED
        with tempfile.TemporaryDirectory(prefix="quickdraw-") as folder:
            exit_file = Path(folder, "exit")
            self._torchrun = torchrun = subprocess.Popen(  # noqa: S603  what the user asks for
                [sys.executable, "-m", "quickdraw_dist.distributed.torchrun", *arguments],
                env=os.environ | {EXIT_FILE: str(exit_file), PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,  # the terminal's INT comes from here only, as TERM
            )
            if self.signals:  # while it was being started
                self._send(signal.SIGTERM)
            pid, status = 0, 0
            while pid != torchrun.pid:  # as a container's first process it reaps all orphans
                pid, status = os.waitpid(-1, 0)
            torchrun.returncode = os.waitstatus_to_exitcode(status)
            lines = exit_file.read_text().splitlines() if exit_file.exists() else []
        codes = [int(line.split()[0]) for line in lines]
        ranks = int(lines[0].split()[1]) if lines else 0
        return outcome(torchrun.returncode, codes, ranks, bool(self.signals))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun, restart it after a crash up to --restarts times, and return the exit code."""
    launcher = Launcher()
    parser = argparse.ArgumentParser(
        prog="quickdraw_dist.launch",
        usage="%(prog)s [--restarts N] TORCHRUN'S ARGUMENTS",
        description="torchrun for schedulers: signals in, exit codes out.",
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    restarts_help = "restart a crashed run up to N times; on one node only [0]"
    parser.add_argument("--restarts", type=_count, default=0, metavar="N", help=restarts_help)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    known, options = parser.parse_known_args(argv)
    if not known.command and not options:
        parser.error("nothing to run. Add: --nproc_per_node=8 -m quickdraw_dist.train")
    for again in range(known.restarts + 1):
        if again:
            print(f"crashed; restart {again} of {known.restarts}", file=sys.stderr, flush=True)
        arguments = [f"--restarts={known.restarts}", *options, *known.command]
        code = launcher.run(arguments)
        if code != 1 or launcher.signals:
            break
    return code


if __name__ == "__main__":
    survive_lost_output()
    sys.exit(main())
