"""How a rank ends and who is told: exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

SAVED_EXIT_CODE = 85
"""'Saved, requeue me': what a rank leaves with after a signal."""


EXIT_FILE = "QUICKDRAW_EXIT_FILE"
"""Where ranks tell the launcher, torchrun being deaf to it: a line a rank, its exit code and how
many ranks its node has."""


_leaving = threading.Lock()


def leave(code: int) -> NoReturn:
    """End this process at once, without taking the process group and the interpreter apart.

    Files are closed and locks go with the process. Taking apart was seen to abort a rank now and
    then ('terminate called without an active exception'), and would wait for fetches under way.
    """
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    _leaving.acquire()  # never released: two threads may want to, and the first one's code counts
    with contextlib.suppress(KeyError, OSError), Path(os.environ[EXIT_FILE]).open("a") as file:
        file.write(f"{code} {os.environ.get('LOCAL_WORLD_SIZE', '1')}\n")
    os._exit(code)


_PATIENCE_SECONDS = 5.0
"""That a rank leaves the node's first one to say the same."""


def complain(error: object, code: int, alone: bool = False) -> int:
    """Say it once a node, not once a rank; what a rank may be `alone` to see, each of them says.

    Bare torchrun prints 40 lines about an exit code; what stands in its error file is among them.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # of this rank: FOLDER/LOCAL_RANK/error.json
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if alone or first or (file and not _first_has_said(Path(file))):
        print(f"error: {error}", file=sys.stderr, flush=True)
    if file:
        told = {"message": f"error: {error}", "timestamp": int(time.time())}
        Path(file).write_text(json.dumps(told), encoding="utf-8")
    return code


def _first_has_said(own: Path) -> bool:
    """Whether the node's first rank has said what is wrong; waits for it, since torchrun ends the
    ranks that are left as soon as one has."""
    firsts, until = own.parent.parent / "0" / own.name, time.monotonic() + _PATIENCE_SECONDS
    while not (said := firsts.exists()) and time.monotonic() < until:
        time.sleep(0.01)
    return said
