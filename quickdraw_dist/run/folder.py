"""A run's folder: one writer at a time, and its log `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, TrainingError
from quickdraw_dist.base.storage import StorageError
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.run.lease import Lease, who

LOG = "metrics.jsonl"
"""The log in a run's folder: one JSON record per line, in order of steps."""

_HOLDER = ".writer"
"""Names who writes a local run."""

_DYING_SECONDS = 5
"""A writer that was killed just now lets go within this time."""


def read_log(run: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the lines of a run's log, each with its record; none where there is no log.

    An incomplete line, of a writer that was killed or is still writing, is skipped.

    Raises:
        StorageError: the store failed.
    """
    try:
        text = storage.read(storage.join(run, LOG)).decode()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "step" in record:
                lines.append((line, record))
    return lines


class RunFolder:
    """Held by rank 0 of the one job that writes a run."""

    def __init__(self, url: str) -> None:
        """Take the lock of a local folder, or the lease of one in a store.

        Raises:
            RefusedError: another process holds it; says who.
            StorageError: the store failed.
        """
        self.url = url
        self._log = storage.join(url, LOG)
        self._lines: list[str] = []
        self._writing = threading.Lock()  # of the log: lines come from one thread, flush another
        self._behind = False  # the local file lacks lines, or has half of one
        self._said = False  # that it is
        self._lock = Lease(url) if storage.is_remote(url) else _lock(url)
        storage.sweep(url)  # of a killed writer

    def check(self) -> None:
        """Make sure that this process may still write the run.

        Raises:
            TrainingError: it may not.
            StorageError: the store failed.
        """
        if isinstance(self._lock, Lease):
            self._lock.check()

    def resume_log(self, step: int) -> list[dict[str, Any]]:
        """Keep the log's records up to a step, and return them; those after it will be written
        again."""
        kept = [(line, record) for line, record in read_log(self.url) if record["step"] <= step]
        self._lines = [line for line, _ in kept]
        self._behind = True
        if kept:
            self.flush()
        return [record for _, record in kept]

    def log(self, record: dict[str, Any]) -> None:
        """Add one line; on a local disk it is there at once, in a store after `flush`.

        A disk that does not take it is said and counted; the line goes with the next one.

        Raises:
            TrainingError: the run has another writer now.
        """
        if isinstance(self._lock, Lease):
            self._lock.refuse_if_lost()
        with self._writing:
            self._lines.append(json.dumps(record))
            if not storage.is_remote(self.url):
                self._write_lines()

    def _write_lines(self) -> None:
        """The last line, or all of them if some are missing in the local file."""
        try:
            if self._behind:
                storage.publish(self._log, self._text())
            else:
                with Path(self._log).open("a", encoding="utf-8") as file:
                    file.write(self._lines[-1] + "\n")
            self._behind = self._said = False
        except OSError as error:
            self._behind = True
            telemetry.LOG_FAILURES.inc()
            if not self._said:
                self._said = True
                print(f"{self._log}: {error}; training goes on without it", file=sys.stderr)

    def _text(self) -> bytes:
        return "".join(line + "\n" for line in self._lines).encode()

    def flush(self) -> None:
        """Have all lines in the log.

        Raises:
            OSError, StorageError: they could not be written.
        """
        if storage.is_remote(self.url):
            with self._writing:
                text = self._text()
            storage.publish(self._log, text)
            return
        with self._writing:
            if self._behind:
                storage.publish(self._log, self._text())
                self._behind = self._said = False

    def close(self) -> None:
        """Publish what can be of the last lines, and let the next writer in."""
        with contextlib.suppress(OSError, StorageError, TrainingError):
            self.check()
            self.flush()
        self._lock.release()


def _refuse_where_not_shared(url: str) -> None:
    """Nodes with a disk each would find no checkpoint when the first rank is another's."""
    holder = Path(url, _HOLDER)
    here = holder.read_text(encoding="utf-8") if holder.exists() else ""
    places = distributed.gather_objects((here, socket.gethostname()))
    elsewhere = sorted({node for seen, node in places if seen != places[0][0]})
    if elsewhere:
        raise RefusedError(
            f"--output {url}: not the folder of the first rank, on {places[0][1]}, but another one "
            f"on {', '.join(elsewhere)}; one that all nodes share, or gs://, is right"
        )


def _lock(url: str) -> FileLock:
    try:
        Path(url).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"--output {url}: {error.strerror}; a writable folder is right"
        ) from None
    holder, lock = Path(url, _HOLDER), FileLock(Path(url, ".lock"))
    try:
        lock.acquire(timeout=_DYING_SECONDS)
    except Timeout:
        name = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise RefusedError(
            f"--output {url}: {name} writes this run now; wait for it, or choose another"
        ) from None
    except OSError as error:
        raise RefusedError(f"--output {url}: {error}; a writable folder is right") from None
    holder.write_text(who(), encoding="utf-8")
    return lock


@contextlib.contextmanager
def locked(url: str) -> Iterator[RunFolder | None]:
    """The run's folder on rank 0, None on the others, all of which call it; let go of at the end.

    Raises:
        RefusedError: it cannot be had, or is not the same for all ranks; on every rank.
    """
    made: list[RunFolder] = []
    distributed.from_first_rank(lambda: made.append(RunFolder(url)))
    folder = made[0] if made else None
    try:
        if not storage.is_remote(url):
            _refuse_where_not_shared(url)
        yield folder
    finally:
        if folder is not None:
            folder.close()
