"""Who may write a run in an object store: a lease, kept by rewriting one small object.

A store has no locks, but it replaces an object only if that is still of the generation that one
has seen. Whoever makes the object holds the lease, and replaces it every few seconds. Another
process that finds it watches it: a new generation proves that the holder lives; none for
EXPIRY_SECONDS, by the watcher's own clock, that it does not, and the watcher replaces it. No clock
is ever compared with another's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import ChangedError, RefusedError, StorageError, TrainingError

RENEW_SECONDS = 5.0
"""Between two signs of life of a holder."""

EXPIRY_SECONDS = 20.0
"""Without a sign of life for so long, a holder is taken for dead."""


class Lease:
    """Held by this process until `release`, or until another one took it for dead."""

    def __init__(self, run: str) -> None:
        """Take the lease of a run, that of a dead holder, too.

        Raises:
            RefusedError: another process holds it, and lives; says who.
            StorageError: the store failed.
        """
        self._run, self._url = run, storage.join(run, ".writer")
        self._holder = {
            "id": uuid.uuid4().hex,
            "who": who(),
            "process": os.getpid(),
            "process_table": _process_table(),
        }
        self._renewed = 0.0  # on the monotonic clock
        self._lost_to = ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._generation = self._take()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lease is held now, by asking the store if the last answer is old.

        Raises:
            TrainingError: another process has it.
            StorageError: the store failed.
        """
        self.refuse_if_lost()
        if time.monotonic() > self._renewed + EXPIRY_SECONDS / 2:
            self._renew()

    def refuse_if_lost(self) -> None:
        """The same by what is known already; asks nobody."""
        if self._lost_to:
            raise TrainingError(
                f"--output {self._run}: {self._lost_to} writes this run now, as this process gave "
                f"no sign of life for {EXPIRY_SECONDS:.0f} s; nothing more is written by it"
            )

    def release(self) -> None:
        """Let the next process in at once."""
        self._done.set()
        self._thread.join(RENEW_SECONDS)
        if self._thread.is_alive():
            return  # the store does not answer; the lease will run out
        with contextlib.suppress(StorageError, OSError):
            storage.remove_version(self._url, self._generation)

    def _take(self) -> int:
        data, seen = storage.read_version(self._url)
        if seen and not _is_dead(_parse(data)):
            seen = self._watch(_parse(data), seen)
        try:
            return self._write(seen)
        except ChangedError:
            raise self._refusal(_parse(storage.read_version(self._url)[0])) from None
        except FileNotFoundError:
            raise RefusedError(
                f"--output {self._run}: no such bucket; an existing one is right"
            ) from None

    def _watch(self, holder: dict[str, Any], seen: int) -> int:
        """The generation of a dead holder's object, 0 where it let go of it."""
        print(
            f"{self._run}: {holder['who']} writes it, or did until it died; waiting for a sign of "
            f"life, {EXPIRY_SECONDS:.0f} s",
            file=sys.stderr,
        )
        started = time.monotonic()
        while time.monotonic() < started + EXPIRY_SECONDS:
            time.sleep(RENEW_SECONDS / 5)
            data, now = storage.read_version(self._url)
            if now not in (0, seen):
                raise self._refusal(_parse(data))
            if not now:
                return 0
        return seen

    def _refusal(self, holder: dict[str, Any]) -> RefusedError:
        return RefusedError(
            f"--output {self._run}: {holder['who']} writes this run now; wait for it, or choose "
            "another"
        )

    def _write(self, generation: int) -> int:
        """Replace the object of this generation; returns the new one."""
        asked = time.monotonic()
        try:
            written = storage.publish_version(
                self._url, json.dumps(self._holder).encode(), generation
            )
        except ChangedError:
            data, written = storage.read_version(self._url)
            if _parse(data)["id"] != self._holder["id"]:
                raise
            # By a try of this process whose answer was lost.
        self._renewed = asked
        return written

    def _renew(self) -> None:
        with self._lock:
            self.refuse_if_lost()
            try:
                self._generation = self._write(self._generation)
            except ChangedError:
                self._lost_to = str(_parse(storage.read_version(self._url)[0])["who"])
                self.refuse_if_lost()

    def _keep(self) -> None:
        """The thread: a sign of life every few seconds, also while the store is in trouble."""
        while not self._done.wait(RENEW_SECONDS):
            try:
                self._renew()
            except (StorageError, OSError):
                continue  # counted and said where requests are made
            except TrainingError:
                return


def who() -> str:
    """This process, as a person can find it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _parse(data: bytes) -> dict[str, Any]:
    """What a holder says of itself; nobody where the object is gone or something else's."""
    holder: dict[str, Any] = {
        "id": "",
        "who": "another process",
        "process": 0,
        "process_table": "",
    }
    with contextlib.suppress(ValueError, TypeError):
        holder |= json.loads(data)
    return holder


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it is known at once: a process of this very system that is there no more."""
    if not holder["process_table"] or holder["process_table"] != _process_table():
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _process_table() -> str:
    """Names what process numbers are unique in: this boot of this machine, and this container of
    it; empty where that is not to be had."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {socket.gethostname()}"
    except OSError:
        return ""
