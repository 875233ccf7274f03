"""An exclusive lock of a file."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from pathlib import Path
from typing import Self

_LOCK_POLL_SECONDS = 0.05
"""Interval at which a lock that another process holds is tried again."""


_UNLOCKABLE = {
    errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES,
    errno.EPERM,
}  # fmt: skip
"""Errors of a file system without locks. Others, as of a server that is away, may pass."""


class UnlockableError(OSError):
    """A file on a file system without locks, such as NFS without lockd, some CIFS and FUSE."""


class FileLock:
    """An exclusive lock of a file, which the kernel releases when the process dies. Threads of one
    process need an object each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def acquire(self, timeout_seconds: float = math.inf) -> bool:
        """Create the file if need be and lock it; return whether that worked in time.

        Raises:
            UnlockableError: the file can be opened, but not locked.
            OSError: it cannot be opened.
        """
        until = time.monotonic() + timeout_seconds
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            if _lock(handle, str(self._path)):
                self._handle = handle
                return True
            os.close(handle)
            if time.monotonic() >= until:
                return False
            time.sleep(_LOCK_POLL_SECONDS)

    def release(self) -> None:
        """Release the lock, if it is held; the file stays."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _lock(handle: int, path: str) -> bool:
    """Lock an open file; return False if another process holds it, or the file was removed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_nlink > 0
    except BlockingIOError:
        return False
    except OSError as error:
        os.close(handle)
        kind = UnlockableError if error.errno in _UNLOCKABLE else OSError
        raise kind(error.errno, error.strerror, path) from None
