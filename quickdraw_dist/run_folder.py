"""A run's folder: one writer at a time, and its log `metrics.jsonl`."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from quickdraw_dist import storage
from quickdraw_dist.errors import RefusedError

_DYING_SECONDS = 5
"""A writer that was killed just now lets go within this time."""


class RunFolder:
    """Held by rank 0 of the one job that writes a run."""

    def __init__(self, url: str) -> None:
        """Take the lock of a local folder.

        Raises:
            RefusedError: another process holds it; says who.
        """
        self.url = url
        self._log = storage.join(url, "metrics.jsonl")
        self._lines: list[str] = []
        self._lock: FileLock | None = None
        if storage.is_remote(url):
            return
        try:
            Path(url).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RefusedError(
                f"--output {url}: {error.strerror}; a writable folder is right"
            ) from None
        holder = Path(url, ".writer")
        self._lock = FileLock(Path(url, ".lock"))
        try:
            self._lock.acquire(timeout=_DYING_SECONDS)
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise RefusedError(
                f"--output {url}: {who} writes this run now; wait for it, or choose another"
            ) from None
        except OSError as error:
            raise RefusedError(f"--output {url}: {error}; a writable folder is right") from None
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def resume_log(self, step: int) -> list[dict[str, Any]]:
        """Keep the log's records up to a step, and return them; those after it will be written
        again."""
        try:
            text = storage.read(self._log).decode()
        except FileNotFoundError:
            return []
        kept = []
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if record["step"] <= step:
                    kept.append(record)
                    self._lines.append(line)
            except (ValueError, KeyError):
                continue  # the last line of a process that was killed while it wrote
        self.flush()
        return kept

    def log(self, record: dict[str, Any]) -> None:
        """Add one line; on a local disk it is there at once, in a store after `flush`."""
        self._lines.append(json.dumps(record))
        if not storage.is_remote(self.url):
            with Path(self._log).open("a", encoding="utf-8") as file:
                file.write(self._lines[-1] + "\n")

    def flush(self) -> None:
        """Publish the whole log."""
        storage.publish(self._log, "".join(line + "\n" for line in self._lines).encode())

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.release()
