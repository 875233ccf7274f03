"""The HTTP side of gs://: gcsfs, with every request tried once, checked, and bounded in time.

Imported only where a store is asked: with gcsfs comes half a second of imports.
"""

from __future__ import annotations

import asyncio
import http
import json
import threading
from functools import cache
from typing import Any

import aiohttp

# Not the package's default class, which first asks about each bucket over gRPC.
from gcsfs.core import GCSFileSystem, quote
from gcsfs.retry import HttpError, NonRetryableError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

from quickdraw_dist.base.gcs.store import Pace, RequestError

_LOGIN = "gcloud auth application-default login"

_ANONYMOUS = (
    "It was asked without an account ({}). Public buckets need none; for others: "
    f"{_LOGIN}, or a key file named by GOOGLE_APPLICATION_CREDENTIALS"
)

_WITHOUT_RIGHTS = (
    "The account that asked has no right to it: roles/storage.objectUser on the bucket is right, "
    f"objectViewer to read only. Another account: {_LOGIN}"
)


class Client(GCSFileSystem):  # type: ignore[misc]
    """gcsfs's session, credentials and names; its own repetitions, out of sight, are left out."""

    def __init__(self, *, pace: Pace, remedy: str, **options: Any) -> None:
        """`remedy` is what to do when this client is refused; options are gcsfs's own."""
        super().__init__(use_listings_cache=False, **options)
        self.pace, self.remedy = pace, remedy
        self.limits = aiohttp.ClientTimeout(
            total=None, sock_connect=pace.connect_seconds, sock_read=pace.stall_seconds
        )

    def upload_url(self, bucket: str) -> str:
        """Where new objects of a bucket are sent."""
        return f"{self._location}/upload/storage/v1/b/{quote(bucket)}/o"

    async def _request(
        self,
        method: str,
        path: str,
        *names: str,
        headers: dict[str, str] | None = None,
        json: object = None,
        data: bytes | None = None,
        **params: Any,
    ) -> tuple[int, Any, Any, bytes]:
        """One try of one request; every call of gcsfs comes through here.

        Raises:
            FileNotFoundError: 404.
            RequestError: anything else that is no good answer.
        """
        await self._set_session()
        request = self.session.request(
            method,
            self._format_path(path, names),
            params=self._get_params(params),
            headers=self._with_account(headers),
            json=json,
            data=data,
            timeout=self.limits,
        )
        clock = asyncio.get_running_loop()
        try:
            # aiohttp's own limits see neither an upload that stands still nor a body that trickles.
            async with asyncio.timeout(self.pace.seconds_for(len(data or b""))) as bound:
                async with request as answer:
                    size = answer.content_length or 0
                    bound.reschedule(clock.time() + self.pace.seconds_for(size))
                    contents = await answer.read()
        except TimeoutError as error:
            slow = (
                f"it stood still, or was slower than {self.pace.slowest_bytes_a_second:,} bytes/s"
            )
            raise RequestError("stall", str(error) or slow) from error
        except aiohttp.ClientPayloadError as error:
            raise RequestError("short", str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RequestError("connection", f"{type(error).__name__}: {error}") from error
        if answer.status == 404:
            raise FileNotFoundError(path)
        if answer.status >= 400:
            self._refuse(answer.status, contents)
        return answer.status, answer.headers, answer.request_info, contents

    def _with_account(self, headers: dict[str, str] | None) -> dict[str, str]:
        """Headers with the account's token, fetched or renewed if need be."""
        try:
            return dict(self._get_headers(headers))
        except (HttpError, GoogleAuthError, NonRetryableError) as error:
            passing = not isinstance(error, NonRetryableError)
            text = f"{error}: {error.__cause__}. Log in again: {_LOGIN}"
            raise RequestError("credentials", text, passing) from error

    def _refuse(self, status: int, contents: bytes) -> None:
        """Raises what an answer of 400 or more means."""
        text = _message(contents) or http.HTTPStatus(status).phrase
        passing = status in (408, 429) or status >= 500
        if status == 403 and b"ateLimitExceeded" in contents:
            passing = True
        if status == 401 and self.credentials.credentials is not None:
            passing = True  # a token that ended just now: the next one is fresh
        if status in (401, 403) and not passing:
            raise RequestError(str(status), f"{text}. {self.remedy}", passing=False, denied=True)
        raise RequestError(str(status), text, passing)


def _message(contents: bytes) -> str:
    """What the store says in words."""
    text = contents.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]


_connecting = threading.Lock()


def connect(endpoint: str | None, pace: Pace) -> Client:
    """The process's client of GCS, or of the server at `endpoint`.

    Raises:
        RequestError: credentials are there, but cannot be used now.
    """
    with _connecting:  # many threads come first at the same moment
        return _connect(endpoint, pace)


@cache
def _connect(endpoint: str | None, pace: Pace) -> Client:
    # Options by name: those that fsspec's own configuration sets are added to them.
    def client(token: str, remedy: str) -> Client:
        return Client(pace=pace, remedy=remedy, token=token, skip_instance_cache=True)

    if endpoint:
        return client("anon", _ANONYMOUS.format("STORAGE_EMULATOR_HOST is set"))
    # Not gcsfs's own search: it asks for a metadata server a second time, 14 seconds long where
    # there is none.
    try:
        return client("google_default", _WITHOUT_RIGHTS)
    except DefaultCredentialsError as error:
        return client("anon", _ANONYMOUS.format(str(error).strip().rstrip(".")))
    except GoogleAuthError as error:
        raise RequestError("credentials", f"{error}. Log in again: {_LOGIN}") from error
