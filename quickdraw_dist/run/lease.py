"""The lease of a run where there are no locks: only its holder may write the run.

That is an object store, or a disk whose file system cannot lock. An object is replaced only if it
still has the generation that the writer has seen (versions.py). Whichever process creates the
object holds the lease, and replaces it every few seconds. Another process that finds the object
watches it: a new generation proves that the holder is alive; none for EXPIRY_SECONDS, by the
watcher's own clock, that it is dead, and the watcher replaces the object. Clocks of different hosts
are never compared.
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
from quickdraw_dist.base.errors import (
    BusyError,
    ChangedError,
    RefusedError,
    StorageError,
    TrainingError,
)
from quickdraw_dist.run import versions

RENEW_SECONDS = 5.0
"""How often the holder renews the lease."""

EXPIRY_SECONDS = 20.0
"""How long without a renewal until the holder counts as dead."""


class Lease:
    """A lease that this process holds until `release`, or until it expires and is taken over."""

    def __init__(self, run: str) -> None:
        """Acquire the lease of a run, also that of a dead holder.

        Raises:
            BusyError: another process, which the error names, holds it.
            RefusedError: no such bucket.
            StorageError: the store failed.
        """
        self._run, self._url = run, lease_url(run)
        self._holder = {
            "id": uuid.uuid4().hex,
            "who": process_name(),
            "process": os.getpid(),
            "process_table": _pid_namespace(),
        }
        self._renewed = 0.0  # monotonic clock
        self._lost_to = ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._generation = self._acquire()
        self._thread = threading.Thread(target=self._renew_regularly, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that this process still holds the lease; renews it if the last renewal is old.

        Raises:
            TrainingError: another process holds it.
            StorageError: the store failed.
        """
        self.check_not_lost()
        if time.monotonic() > self._renewed + EXPIRY_SECONDS / 2:
            self._renew()

    def check_not_lost(self) -> None:
        """Check without a request to the store, by the last renewal."""
        if self._lost_to:
            raise BusyError(
                f"--output {self._run}: {self._lost_to} writes this run now, because this process "
                f"did not renew its lease for {EXPIRY_SECONDS:.0f} s. It writes nothing more"
            )

    def release(self) -> None:
        """Remove the object, so that the next process need not wait."""
        self._done.set()
        self._thread.join(RENEW_SECONDS)
        if self._thread.is_alive():
            return  # the store does not answer; the lease will expire
        with contextlib.suppress(StorageError, OSError):
            versions.remove(self._url, self._generation)

    def _acquire(self) -> int:
        """Return the generation of the object that this process has written."""
        data, seen = versions.read(self._url)
        if seen and not _is_dead(_parse(data)):
            seen = self._wait_for_expiry(_parse(data), seen)
        try:
            return self._write(seen)
        except ChangedError:
            raise in_use(self._run, _parse(versions.read(self._url)[0])["who"]) from None
        except FileNotFoundError:
            raise RefusedError(
                "--output", self._run, "no such bucket", "Create it, or use another one"
            ) from None

    def _wait_for_expiry(self, holder: dict[str, Any], seen: int) -> int:
        """Return the generation of a dead holder's object, 0 where the holder released it."""
        print(
            f"{self._run}: {holder['who']} holds the lease of this run. Waiting up to "
            f"{EXPIRY_SECONDS:.0f} s for a renewal, to see whether it is alive",
            file=sys.stderr,
        )
        started = time.monotonic()
        while time.monotonic() < started + EXPIRY_SECONDS:
            time.sleep(RENEW_SECONDS / 5)
            data, now = versions.read(self._url)
            if now not in (0, seen):
                raise in_use(self._run, _parse(data)["who"])
            if not now:
                return 0
        return seen

    def _write(self, generation: int) -> int:
        """Replace the object of this generation (0: create it) and return its new generation."""
        asked = time.monotonic()
        try:
            written = versions.publish(self._url, json.dumps(self._holder).encode(), generation)
        except ChangedError:
            data, written = versions.read(self._url)
            if _parse(data)["id"] != self._holder["id"]:
                raise
            # Written by an attempt of this process whose response was lost.
        self._renewed = asked
        return written

    def _renew(self) -> None:
        with self._lock:
            self.check_not_lost()
            try:
                self._generation = self._write(self._generation)
            except ChangedError:
                self._lost_to = str(_parse(versions.read(self._url)[0])["who"])
                self.check_not_lost()

    def _renew_regularly(self) -> None:
        """Run in the thread; a renewal that fails is retried at the next one."""
        while not self._done.wait(RENEW_SECONDS):
            try:
                self._renew()
            except (StorageError, OSError):
                continue  # counted and reported where requests are made
            except TrainingError:
                return


def lease_url(run: str) -> str:
    """Return the address of a run's lease. (`.writer` of a local run names the lock's holder.)"""
    return storage.join(run, ".writer" if storage.is_remote(run) else ".lease")


def in_use(run: str, holder: str) -> BusyError:
    """Return the error of a second writer, which names the first."""
    return BusyError(
        f"--output {run}: {holder} writes this run now. Wait for it, or use another --output"
    )


def process_name() -> str:
    """Return this process's number and host, for a person to find it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _parse(data: bytes) -> dict[str, Any]:
    """Return the holder stored in the object; an unnamed one where it holds something else."""
    holder: dict[str, Any] = {"id": "", "who": "another process", "process": 0, "process_table": ""}
    with contextlib.suppress(ValueError, TypeError):
        holder |= json.loads(data)
    return holder


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is surely dead: it ran in this PID namespace and its process is gone."""
    if not holder["process_table"] or holder["process_table"] != _pid_namespace():
        return False
    try:
        os.kill(holder["process"], 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _pid_namespace() -> str:
    """Return what identifies the PID namespace: boot, namespace and host; '' without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {socket.gethostname()}"
    except OSError:
        return ""
