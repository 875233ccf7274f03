"""torchrun as the launcher's child: with the settings that a run needs, and fewer words."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

from quickdraw_dist.base.process import PARENT_VARIABLE, die_with_parent

_SPARE_SECONDS = 5
"""Between a rank's own end after `train.shutdown_seconds` and torchrun's SIGKILL."""


def main() -> int:
    """Start this node's ranks and wait for them; returns 0, 1, or 2 where that was refused."""
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
        _check(arguments, nodes=run.parse_min_max_nnodes(arguments.nnodes)[1])
        _answer_once()
        arguments.signals_to_handle = "SIGHUP,SIGQUIT"  # the others are ours
        run.run(arguments)  # type: ignore[no-untyped-call]
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    """Take the first TERM or INT for the launcher's word, and nothing after it.

    Slurm without cgroups signals a whole tree of processes: USR1, which torchrun would die of,
    and TERM beside the launcher's own, at which it would drop its ranks in their last seconds.
    Before there are ranks it is the end at once: torchrun waits for other nodes inside C++.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def stop(_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise SignalException("asked to stop", signal.SIGTERM)

    def leave_early(woken: socket.socket, _writer: socket.socket) -> None:
        woken.recv(1)
        if not _has_children():
            os._exit(1)

    from torch.distributed.elastic.multiprocessing import SignalException

    signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=leave_early, args=(reader, writer), daemon=True).start()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)


def _has_children() -> bool:
    """Whether this process has any, dead ones included. Unknown on macOS before Python 3.13."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _check(arguments: Any, nodes: int) -> None:
    """Refuse what cannot work before ranks are started, and fill in how long they may take.

    Raises:
        RefusedError: torchrun's arguments or the training's settings.
    """
    from quickdraw_dist.base.command_line import read_settings
    from quickdraw_dist.base.errors import RefusedError

    if arguments.max_restarts:
        raise RefusedError(
            f"--max-restarts {arguments.max_restarts}: torchrun takes a rank that saved after a "
            f"signal for a crashed one; --restarts {arguments.max_restarts} is right"
        )
    if arguments.restarts and nodes > 1:
        raise RefusedError(
            f"--restarts {arguments.restarts}: one of {arguments.nnodes} nodes cannot start again "
            "alone, the scheduler starts them all; leave it out here"
        )
    if arguments.module and arguments.training_script == "quickdraw_dist.train":
        settings = read_settings(arguments.training_script_args)
        if arguments.shutdown_timeout is None:
            seconds = round(settings.train.shutdown_seconds) + _SPARE_SECONDS
            arguments.shutdown_timeout = seconds


if __name__ == "__main__":
    die_with_parent()
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    sys.exit(main())
