"""Processes that end with their parent: nobody could stop them any more, and they would go on
holding a run's folder, a GPU or a share of the work."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading
import time

PARENT = "QUICKDRAW_PARENT_PID"
"""Set by a parent for its children: one that was killed before they first asked is missed, too."""

_PARENT_POLL_SECONDS = 0.5
"""Where the kernel does not tell of a parent's death."""


def die_with_parent() -> None:
    """End this process when its parent does, however that ends."""
    parent = os.getppid()
    if platform.system() == "Linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent or _gone(os.environ.get(PARENT)):  # it died before the call
        os._exit(1)
    if platform.system() == "Linux":
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _gone(pid: str | None) -> bool:
    """Whether there is no such process. (It need not be the parent: a shell may be in between.)"""
    try:
        os.kill(int(pid or os.getpid()), 0)
    except ProcessLookupError:
        return True
    return False
