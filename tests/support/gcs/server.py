"""A small Google Cloud Storage on localhost: the JSON API as gcsfs and google-cloud-storage use it.

In a test, `with GcsServer() as server:` gives `server.url`; objects live in memory, or in a folder
that a later server can open again. As a process of its own, for benchmarks and trials:

    python -m tests.support.gcs.server --port 9123 --root /tmp/gcs

Clients need `endpoint_url=url` or `STORAGE_EMULATOR_HOST=url`, anonymous credentials, and gcsfs
`GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false`. Only the live version of an object is kept.
"""

import argparse
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self

from tests.support.gcs.api import Gcs, Request, Response


class Handler(BaseHTTPRequestHandler):
    """One connection: its requests, one after another."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "GcsServer"

    def respond(self) -> None:
        request = Request(self.command, self.path, self.headers, self.rfile)
        reply = self.server.intercept(request) or self.server.gcs.answer(request)
        request.read()  # what a refusal left unread would pass for the next request
        self.send_response(reply.status)
        for key, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond  # noqa: N815 the base class's names

    def log_message(self, *args: Any) -> None:
        """Log nothing: clients report what went wrong."""


class GcsServer(socketserver.ThreadingTCPServer):
    """A server on 127.0.0.1 at `url`. Leaving the `with` also cuts the connections still open.

    `intercept` sees each request first: an answer of its own (503, a short body) is sent instead,
    and a ConnectionResetError from it drops the connection.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128  # the standard library's 5 refuses parallel clients

    def __init__(
        self,
        root: Path | None = None,
        port: int = 0,
        intercept: Callable[[Request], Response | None] = lambda request: None,
    ) -> None:
        self.gcs, self.intercept = Gcs(root), intercept
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # which is a client's right
            super().handle_error(request, client_address)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A small Google Cloud Storage on localhost.")
    parser.add_argument("--port", type=int, default=9123)
    parser.add_argument("--root", type=Path, help="folder for the objects; default: memory")
    options = parser.parse_args()
    with GcsServer(options.root, options.port) as server, suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        threading.Event().wait()
