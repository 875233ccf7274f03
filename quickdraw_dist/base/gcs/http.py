"""The HTTP side of gs://: gcsfs with every request tried once, checked and bounded in time.

Imported on first use of a store: gcsfs takes half a second to import.
"""

from __future__ import annotations

import asyncio
import threading
from functools import cache
from typing import Any

import aiohttp

# Not the package's default class, which first asks about each bucket over gRPC.
from gcsfs.core import GCSFileSystem, quote
from gcsfs.retry import HttpError, NonRetryableError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

from quickdraw_dist.base.gcs.request import RequestError, Timeouts, answer_error

_LOGIN = "gcloud auth application-default login"

_ANONYMOUS = (
    "The request was anonymous ({}). For a bucket that is not public, run "
    f"{_LOGIN}, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
)

_NO_PERMISSION = (
    "Grant this account roles/storage.objectUser on the bucket (objectViewer to read only), or "
    f"log in with another one: {_LOGIN}"
)


class Client(GCSFileSystem):  # type: ignore[misc]
    """gcsfs's session, credentials and names, without gcsfs's own hidden retries."""

    def __init__(self, *, timeouts: Timeouts, remedy: str, **options: Any) -> None:
        """`remedy` is what to do where the store denies a request; `options` are gcsfs's own."""
        super().__init__(use_listings_cache=False, **options)
        self.timeouts, self.remedy = timeouts, remedy
        self.limits = aiohttp.ClientTimeout(
            total=None, sock_connect=timeouts.connect_seconds, sock_read=timeouts.stall_seconds
        )

    def upload_url(self, bucket: str) -> str:
        """Return the address to which new objects of a bucket are sent."""
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
        """Send one request once; every call of gcsfs comes through here.

        Raises:
            FileNotFoundError: 404.
            RequestError: any other failure.
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
            # aiohttp's limits cover neither a stalled upload nor a body that trickles.
            async with asyncio.timeout(self.timeouts.seconds_for(len(data or b""))) as bound:
                async with request as answer:
                    size = answer.content_length or 0
                    bound.reschedule(clock.time() + self.timeouts.seconds_for(size))
                    contents = await answer.read()
        except TimeoutError as error:
            slow = f"stalled, or slower than {self.timeouts.min_bytes_per_second:,} bytes/s"
            raise RequestError("stall", str(error) or slow) from error
        except aiohttp.ClientPayloadError as error:
            raise RequestError("short", str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RequestError("connection", f"{type(error).__name__}: {error}") from error
        if answer.status == 404:
            raise FileNotFoundError(path)
        if answer.status >= 400:
            logged_in = self.credentials.credentials is not None
            raise answer_error(answer.status, contents, logged_in, self.remedy)
        return answer.status, answer.headers, answer.request_info, contents

    def _with_account(self, headers: dict[str, str] | None) -> dict[str, str]:
        """Headers with the account's token, fetched or renewed if need be."""
        try:
            return dict(self._get_headers(headers))
        except (HttpError, GoogleAuthError, NonRetryableError) as error:
            transient = not isinstance(error, NonRetryableError)
            text = f"{error}: {error.__cause__}. Log in again: {_LOGIN}"
            raise RequestError("credentials", text, transient) from error


_connecting = threading.Lock()


def connect(endpoint: str | None, timeouts: Timeouts) -> Client:
    """Return the process's client of GCS, or of the emulator at `endpoint`.

    Raises:
        RequestError: the credentials cannot be used now.
    """
    with _connecting:  # several threads may make the first request at once
        return _connect(endpoint, timeouts)


@cache
def _connect(endpoint: str | None, timeouts: Timeouts) -> Client:
    # Named arguments: fsspec adds options of its own configuration to them.
    def client(token: str, remedy: str) -> Client:
        return Client(
            timeouts=timeouts,
            remedy=remedy,
            token=token,
            skip_instance_cache=True,
            session_kwargs={"trust_env": True},  # http_proxy, https_proxy, no_proxy
        )

    if endpoint:
        return client("anon", _ANONYMOUS.format("STORAGE_EMULATOR_HOST is set"))
    # Not gcsfs's own search, which looks for a metadata server a second time: 14 seconds where
    # there is none.
    try:
        return client("google_default", _NO_PERMISSION)
    except DefaultCredentialsError as error:
        return client("anon", _ANONYMOUS.format(str(error).strip().rstrip(".")))
    except GoogleAuthError as error:
        raise RequestError("credentials", f"{error}. Log in again: {_LOGIN}") from error
