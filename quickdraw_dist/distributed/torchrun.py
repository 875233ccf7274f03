"""torchrun as the launcher's child, with the settings that a run needs and fewer messages."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

from quickdraw_dist.base.process.output import survive_lost_output
from quickdraw_dist.base.process.parent import PARENT_VARIABLE, die_with_parent
from quickdraw_dist.distributed.exits import report
from quickdraw_dist.distributed.signals import signals_to_answer

_SPARE_SECONDS = 5
"""Time between a rank's own end after `train.shutdown_seconds` and torchrun's SIGKILL."""


def main() -> int:
    """Start this node's ranks, wait for them, and return 0, 1, or 2 where they were refused."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from quickdraw_dist.base.errors import RefusedError

    parser = run.get_args_parser()
    parser.prog = "quickdraw_dist.launch"
    parser.add_argument("--restarts", type=int, default=0)
    arguments = parser.parse_args()
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.ERROR)  # 40 lines for an exit code; the ranks say what is wrong
    try:
        _check(arguments)
        _answer_once()
        arguments.signals_to_handle = "SIGALRM"  # one is needed; all that ask to end are ours
        run.run(arguments)  # type: ignore[no-untyped-call]
    except RefusedError as error:
        return report(error)
    except SignalException:
        return 1
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            if failure.exitcode < 0:
                name = failure.signal_name()
                print(f"rank {rank} (process {failure.pid}) was ended by {name}", file=sys.stderr)
        return 1
    return 0


def _answer_once() -> None:
    """Obey the first TERM or INT, which is the launcher's, and ignore all other signals.

    Slurm without cgroups signals a whole process tree: USR1, which would kill torchrun, and a TERM
    of its own, at which torchrun would drop its ranks in their last seconds. Before there are ranks
    the process ends at once, because torchrun waits for other nodes inside C++.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def stop(_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise SignalException("asked to stop", signal.SIGTERM)

    def leave_early(woken: socket.socket, _writer: socket.socket) -> None:
        answered = False
        while number := woken.recv(1):  # for ever: once it is closed, a later signal would complain
            if number[0] in (signal.SIGTERM, signal.SIGINT) and not answered:
                answered = True
                if not _has_children():
                    os._exit(1)

    from torch.distributed.elastic.multiprocessing import SignalException

    signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=leave_early, args=(reader, writer), daemon=True).start()
    for each in signals_to_answer():
        # Not SIG_IGN, which the ranks would inherit.
        signal.signal(each, stop if each in (signal.SIGTERM, signal.SIGINT) else lambda *_: None)


def _has_children() -> bool:
    """Whether this process has children, dead ones included. Unknown (true) on macOS before
    Python 3.13."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _check(arguments: Any) -> None:
    """Check the arguments before ranks are started, and fill in how long they may take to stop.

    Raises:
        RefusedError: torchrun's arguments or the training's settings cannot work.
    """
    from torch.distributed import run

    from quickdraw_dist.base.command_line import read_settings
    from quickdraw_dist.base.errors import RefusedError

    try:
        run.config_from_args(arguments)
        nodes = run.parse_min_max_nnodes(arguments.nnodes)[1]
    except (ValueError, RuntimeError) as error:
        problem = str(error).rstrip(".")
        raise RefusedError("torchrun's arguments", None, problem, "See torchrun --help") from None
    if nodes == 1 and arguments.local_addr is None:
        arguments.local_addr = "127.0.0.1"  # a machine need not know its own name
    if arguments.max_restarts:
        raise RefusedError(
            "--max-restarts",
            arguments.max_restarts,
            "torchrun takes a rank that saved after a signal for a crashed one",
            f"Use --restarts {arguments.max_restarts}",
        )
    if arguments.restarts and nodes > 1:
        raise RefusedError(
            "--restarts",
            arguments.restarts,
            f"one of {arguments.nnodes} nodes cannot start again alone",
            "Leave it out: on several nodes the scheduler restarts all of them",
        )
    if arguments.module and arguments.training_script == "quickdraw_dist.train":
        settings = read_settings(arguments.training_script_args)
        if arguments.shutdown_timeout is None:
            seconds = round(settings.train.shutdown_seconds) + _SPARE_SECONDS
            arguments.shutdown_timeout = seconds


if __name__ == "__main__":
    survive_lost_output()
    die_with_parent()
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    sys.exit(main())
