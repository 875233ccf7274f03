"""One request to GCS: how long a try may take, how it can fail, and how often it is retried."""

from __future__ import annotations

import errno
import http
import json
import random
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from quickdraw_dist.base.errors import ChangedError, DeniedError, StorageError
from quickdraw_dist.base.telemetry import metrics

T = TypeVar("T")


class RequestError(Exception):
    """One try that failed.

    Attributes:
        kind: label of the failure in the metrics: an HTTP status, connection, stall, short,
            checksum or credentials.
        transient: whether the same request may succeed later.
        remedy: how this account gets the permission it lacks; empty for any other failure.
    """

    def __init__(self, kind: str, text: str, transient: bool = True, remedy: str = "") -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.transient, self.remedy = kind, transient, remedy


def answer_error(status: int, contents: bytes, logged_in: bool, remedy: str) -> RequestError:
    """Return what an HTTP answer of 400 or more means; pure. `logged_in`: the request carried a
    token, which may have expired; `remedy`: what to do where the account lacks the permission."""
    text = _message(contents) or http.HTTPStatus(status).phrase
    transient = (
        status in (408, 429)
        or status >= 500
        or (status == 403 and b"ateLimitExceeded" in contents)
        or (status == 401 and logged_in)  # the next try has a new token
    )
    denied = status in (401, 403) and not transient
    return RequestError(str(status), text, transient, remedy if denied else "")


def _message(contents: bytes) -> str:
    """The error message in an answer's body."""
    text = contents.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]


class Timeouts(NamedTuple):
    """When a try is given up."""

    connect_seconds: float
    stall_seconds: float
    """Longest time without a byte."""
    min_bytes_per_second: int
    """Slowest transfer, over the whole length and beyond stall_seconds."""

    def seconds_for(self, size: int) -> float:
        """Return the longest time that sending or receiving `size` bytes may take."""
        return self.stall_seconds + size / self.min_bytes_per_second


class Retries(NamedTuple):
    """How often a request is tried, and the mean wait before the first retry."""

    attempts: int
    backoff_seconds: float
    """Doubles with each retry."""

    def run(
        self, operation: str, url: str, attempt: Callable[[], T], conditional: bool = False
    ) -> T:
        """Call `attempt` until it succeeds; count tries, retries and failures in the metrics.

        A `conditional` request names a generation, so that 412 is an answer, not a failure.

        Raises:
            FileNotFoundError: there is no such object or bucket.
            ChangedError: a conditional request found another generation.
            DeniedError: the account lacks the permission.
            StorageError: a failure that is not transient, or the last try failed.
        """
        for number in range(1, self.attempts + 1):
            metrics.STORE_REQUESTS.labels(operation).inc()
            try:
                return attempt()
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "no such object or bucket", url) from None
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                failure = RequestError("short", f"the answer is not JSON: {error}")
            except RequestError as error:
                if conditional and error.kind == "412":
                    raise ChangedError(f"{url}: {operation}: {error}") from error
                failure = error
            if number == self.attempts or not failure.transient:
                metrics.STORE_ERRORS.labels(failure.kind).inc()
                tries = f"{number} {'try' if number == 1 else 'tries'}"
                problem = f"{operation} failed after {tries}: {failure}"
                if failure.remedy:
                    raise DeniedError(url, None, problem, failure.remedy) from failure
                raise StorageError(f"{url}: {problem}") from failure
            metrics.STORE_RETRIES.labels(failure.kind).inc()
            if number > 1:  # a single failure is not worth a line
                retry = f"try {number + 1} of {self.attempts}"
                print(f"store: {url}: {operation}: {failure}; {retry}", file=sys.stderr)
            # Jitter keeps the ranks of a large job from retrying at the same moment.
            jitter = 0.5 + random.random()  # noqa: S311
            time.sleep(self.backoff_seconds * 2 ** (number - 1) * jitter)
        raise AssertionError("the loop returns or raises")
