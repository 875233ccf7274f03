"""A run's folder: one writer at a time, and its log `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import BusyError, RefusedError, StorageError, TrainingError
from quickdraw_dist.base.process.lock import FileLock, UnlockableError
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.distributed import ranks
from quickdraw_dist.run.lease import (
    EXPIRY_SECONDS,
    RENEW_SECONDS,
    Lease,
    in_use,
    lease_url,
    process_name,
)

LOG = "metrics.jsonl"
"""The log in a run's folder: one JSON record per line, in order of steps."""

_HOLDER = ".writer"
"""File that names the process that writes a local run."""

_LOCK_TIMEOUT_SECONDS = 5
"""How long to wait for the lock of a writer that was just killed."""


_TRANSIENT = {errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT, errno.EINTR}
"""Errors of a folder that a later start may not meet."""


def read_log(run: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the lines of a run's log, each with its record; none where there is no log.

    An incomplete line, of a writer that was killed or is still writing, is skipped.

    Raises:
        StorageError: the store failed.
    """
    try:
        data = storage.read(storage.join(run, LOG))
    except FileNotFoundError:
        return []
    lines = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):  # also of bytes that are no text
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                lines.append((line.decode(), record))
    return lines


class RunFolder:
    """The folder of a run that this process writes, locked against other writers."""

    def __init__(self, url: str) -> None:
        """Acquire the lock of a local folder, or the lease of one that has no locks, as in a store.

        Raises:
            BusyError: another process, which the error names, writes the run.
            RefusedError: the folder cannot be written.
            StorageError: the store failed.
        """
        self.url = url
        self._log_url = storage.join(url, LOG)
        self._lines: list[str] | None = None  # None: the log is not read yet, so never written
        self._writing = threading.Lock()  # one thread appends lines, another one flushes them
        self._incomplete = False  # the local file lacks lines, or ends in half a line
        self._warned = False
        self._closed = False
        self._lock = Lease(url) if storage.is_remote(url) else _lock(url)
        try:
            storage.remove_temporary_files(url)  # of a killed writer
        except BaseException:
            self._lock.release()
            raise

    def check(self) -> None:
        """Check that this process may still write the run.

        Raises:
            TrainingError: the run has another writer now.
            StorageError: the store failed.
        """
        if isinstance(self._lock, Lease):
            self._lock.check()
        elif Path(lease_url(self.url)).exists():  # of a host on which the folder cannot be locked
            raise in_use(self.url, "a process with a lease")

    def resume_log(self, step: int) -> list[dict[str, Any]]:
        """Keep the log's records up to `step` and return them; later ones will be repeated."""
        kept = [(line, record) for line, record in read_log(self.url) if record["step"] <= step]
        self._lines, self._incomplete = [line for line, _ in kept], True
        if kept:
            self.flush()
        return [record for _, record in kept]

    def log(self, record: dict[str, Any]) -> None:
        """Append a record: at once on a local disk, at the next `flush` in a store.

        A failed local write is reported and counted; the next one writes the missing lines, too.
        Without `resume_log` before it, all records that are there are kept.

        Raises:
            TrainingError: the run has another writer now.
            StorageError: the records that are there could not be read.
        """
        if isinstance(self._lock, Lease):
            self._lock.check_not_lost()
        with self._writing:
            if self._lines is None:
                self._lines, self._incomplete = [line for line, _ in read_log(self.url)], True
            self._lines.append(json.dumps(record))
            if not storage.is_remote(self.url):
                self._write_lines(self._lines)

    def _write_lines(self, lines: list[str]) -> None:
        """Append the last line, or write all lines if the local file lacks some."""
        try:
            if self._incomplete:
                storage.publish(self._log_url, _text(lines))
            else:
                with Path(self._log_url).open("a", encoding="utf-8") as file:
                    file.write(lines[-1] + "\n")
            self._incomplete = self._warned = False
        except OSError as error:
            self._incomplete = True
            metrics.LOG_FAILURES.inc()
            if not self._warned:
                self._warned = True
                print(f"{self._log_url}: {error}. Training continues without it", file=sys.stderr)

    def flush(self) -> None:
        """Write all lines that the log lacks; nothing before `resume_log` or `log` has read it.

        Raises:
            OSError, StorageError: they could not be written.
        """
        with self._writing:
            if self._lines is None:
                return
            text = _text(self._lines)
            if not storage.is_remote(self.url):
                if self._incomplete:
                    storage.publish(self._log_url, text)
                    self._incomplete = self._warned = False
                return
        storage.publish(self._log_url, text)

    def close(self) -> None:
        """Flush the log if possible, and release the lock or lease. Later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError, StorageError, TrainingError):
            self.check()
            self.flush()
        self._lock.release()


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _lock(url: str) -> FileLock | Lease:
    """Lock a local folder; where its file system has no locks, acquire a lease."""
    holder, lock = Path(url, _HOLDER), FileLock(Path(url, ".lock"))
    held: FileLock | Lease = lock
    try:
        Path(url).mkdir(parents=True, exist_ok=True)
        try:
            if not lock.acquire(_LOCK_TIMEOUT_SECONDS):
                name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
                raise in_use(url, name)
            if Path(lease_url(url)).exists():  # of a host on which it cannot be locked
                Lease(url).release()
        except UnlockableError as error:
            print(
                f"--output {url}: its file system has no locks ({error.strerror}). A lease, "
                f"renewed every {RENEW_SECONDS:.0f} s and expired after {EXPIRY_SECONDS:.0f} s, "
                "keeps other processes from writing this run",
                file=sys.stderr,
            )
            held = Lease(url)
        holder.write_text(process_name(), encoding="utf-8")
    except OSError as error:
        held.release()
        if error.errno in _TRANSIENT:
            raise
        raise RefusedError("--output", url, str(error), "Use a writable folder") from None
    except BusyError:
        held.release()
        raise
    return held


def _check_shared(url: str) -> None:
    """Check that every node sees the folder that rank 0 has locked.

    Otherwise a restart whose first rank is on another node would find no checkpoint.
    """
    holder = Path(url, _HOLDER)
    seen = holder.read_text(encoding="utf-8") if holder.exists() else ""
    everyone = ranks.gather_objects((seen, socket.gethostname()))
    first_seen, first_host = everyone[0]
    others = sorted({host for seen, host in everyone if seen != first_seen})
    if others:
        raise RefusedError(
            "--output",
            url,
            f"on {', '.join(others)} this is not the folder of the first rank, on {first_host}",
            "Use a folder that all nodes share, or gs://",
        )


@contextlib.contextmanager
def locked(url: str) -> Iterator[RunFolder | None]:
    """Lock the run's folder on rank 0 and yield it, None on the other ranks; release it at the end.

    All ranks call it.

    Raises:
        BusyError: another process writes the run; on every rank.
        RefusedError: the folder cannot be written, or is not the same on all nodes; on every rank.
    """
    made: list[RunFolder] = []
    ranks.from_first_rank(lambda: made.append(RunFolder(url)))
    folder = made[0] if made else None
    try:
        if not storage.is_remote(url):
            _check_shared(url)
        yield folder
    finally:
        if folder is not None:
            folder.close()
