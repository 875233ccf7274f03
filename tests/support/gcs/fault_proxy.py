"""A proxy in front of a server that does to a share of the requests what bad networks do.

Which request is hit follows from a hash of a seed and the request alone: method, address (without
generations, which are times), range, and how often the same request has come. So it does not
depend on the timing of threads, and the same tries of the same run meet the same faults.
"""

import hashlib
import http.client
import re
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import urlsplit

STATUSES = ("429", "500", "503")
FAULTS = (
    *STATUSES,
    "reset",  # the connection, before or after the server has done its work
    "stall",  # no answer, or half of a body and no more, until the client gives up
    "cut",  # the connection ends before the promised Content-Length
    "short",  # half a body with a Content-Length to match
    "flip",  # one bit of the bytes of an object
    "trickle",  # the whole reply, slowly
)

OF_A_BODY = {"cut", "short", "flip", "trickle"}

GOOD_TURN = 4
"""Every fourth try of a request succeeds unless all are hit: with a share of one in five, one
request in 15,000 would otherwise meet six faults in a row, and fail a test."""


@dataclass
class Reply:
    """An answer of the server."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client, and one to the server behind."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "FaultProxy"

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.server.upstream)

    def finish(self) -> None:
        self.upstream.close()
        with suppress(OSError):  # the client is gone
            super().finish()

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = re.sub(r"(?<=GenerationMatch=)[1-9]\d*", "N", self.path)
        identity = " ".join((self.command, path, self.headers.get("Range", "")))
        fault, dice = self.server.choose(identity)
        at_once = fault in STATUSES or (fault == "reset" and dice % 2)
        reply = Reply(0) if at_once else self.forward(body)
        if (fault in OF_A_BODY and not reply.body) or (fault == "flip" and not self.is_media()):
            fault = "none"
        with self.server.lock:
            self.server.did[fault] += 1
        if fault in STATUSES:
            self.none(Reply(int(fault), body=HTTPStatus(int(fault)).phrase.encode()))
        else:
            getattr(self, fault)(reply, dice)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond  # noqa: N815 the base class's names

    def is_media(self) -> bool:
        return "alt=media" in self.path

    def forward(self, body: bytes) -> Reply:
        """Send the request to the server and return its reply."""
        self.upstream.request(self.command, self.path, body, dict(self.headers))
        answer = self.upstream.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())

    def send_head(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()

    def none(self, reply: Reply, dice: int = 0) -> None:
        self.send_head(reply)
        self.wfile.write(reply.body)

    def reset(self, reply: Reply, dice: int) -> None:
        at_once = struct.pack("ii", 1, 0)  # no orderly end: what is under way is lost
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.close_connection = True

    def stall(self, reply: Reply, dice: int) -> None:
        # The head of a reply without a body would be all of it: the client would send its next
        # request on this connection and see that one fail.
        if reply.body and dice % 2:
            self.send_head(reply)
            self.wfile.write(reply.body[: len(reply.body) // 2])
        self.connection.recv(1)  # returns when the client closes
        self.close_connection = True

    def cut(self, reply: Reply, dice: int) -> None:
        self.send_head(reply)
        self.wfile.write(reply.body[: dice % len(reply.body)])
        self.close_connection = True

    def short(self, reply: Reply, dice: int) -> None:
        kept = dice % len(reply.body)
        reply.body = reply.body[:kept]
        reply.headers["Content-Length"] = str(kept)
        said = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        if said and kept and dice >> 32 & 1:  # a liar that is consistent
            start, size = int(said[1]), said[2]
            reply.headers["Content-Range"] = f"bytes {start}-{start + kept - 1}/{size}"
        self.none(reply)

    def flip(self, reply: Reply, dice: int) -> None:
        damaged = bytearray(reply.body)
        damaged[dice % len(damaged)] ^= 1 << (dice >> 32) % 8
        reply.body = bytes(damaged)
        self.none(reply)

    def trickle(self, reply: Reply, dice: int) -> None:
        self.send_head(reply)
        piece = -(-len(reply.body) // 8)
        for start in range(0, len(reply.body), piece):
            self.wfile.write(reply.body[start : start + piece])
            time.sleep(self.server.pause_seconds)

    def log_message(self, *args: Any) -> None:
        """Log nothing: clients report what went wrong."""


class FaultProxy(socketserver.ThreadingTCPServer):
    """A proxy on 127.0.0.1 at `url`. `did` counts what it did to requests, 'none' included."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128  # the standard library's 5 refuses parallel clients

    def __init__(
        self,
        upstream: str,
        faults: Sequence[str],
        share: float = 0.2,
        seed: int = 1,
        pause_seconds: float = 0.005,
    ) -> None:
        """Start a proxy for the server at the URL `upstream`.

        Args:
            faults: One of these hits a request.
            share: The share of requests that are hit.
            pause_seconds: A trickle's pause after each eighth of a body.
        """
        self.upstream, self.faults, self.share = urlsplit(upstream).netloc, faults, share
        self.seed, self.pause_seconds = seed, pause_seconds
        self.did: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()  # how often each request has come
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def choose(self, identity: str) -> tuple[str, int]:
        """Return the fault for a request, or 'none', and a random number for its details."""
        with self.lock:
            turn = self.turns[identity]
            self.turns[identity] += 1
        digest = hashlib.sha256(f"{self.seed} {turn} {identity}".encode()).digest()
        chance, which, dice = struct.unpack("<QQQ", digest[:24])
        if chance >= self.share * 2**64 or (self.share < 1 and turn % GOOD_TURN == GOOD_TURN - 1):
            return "none", 0
        return self.faults[which % len(self.faults)], dice

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without an orderly end before it, or no reset would be one

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # which is a client's right
            super().handle_error(request, client_address)
