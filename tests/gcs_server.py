"""A small Google Cloud Storage on localhost: the JSON API as gcsfs and google-cloud-storage use it.

In a test, `with GcsServer() as server:` gives `server.url`; objects live in memory, or in a folder
that a later server can open again. As a process of its own, for benchmarks and trials:

    python -m tests.gcs_server --port 9123 --root /tmp/gcs

Clients need `endpoint_url=url` or `STORAGE_EMULATOR_HOST=url`, anonymous credentials, and gcsfs
`GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false`. Only the live version of an object is kept.
"""

import argparse
import base64
import email
import hashlib
import io
import json
import mmap
import re
import socket
import socketserver
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c

Meta = dict[str, Any]  # an object or bucket as the JSON API shows it
Params = dict[str, str]
EDITABLE = {"cacheControl", "contentDisposition", "contentEncoding", "contentType", "metadata"}
CHUNK_BYTES = 256 << 10  # every chunk of a resumable upload but the last is a multiple of this


@dataclass
class Response:
    """An answer. A `Content-Length` in its headers is sent as it is: a test's short read."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""


class ApiError(Exception):
    """An answer that is a failure. Arguments: HTTP status, message and, where needed, headers."""


class Request:
    """A call: the path still percent-encoded, `left` bytes of the body still unread."""

    def __init__(self, method: str, target: str, headers: Any, stream: Any) -> None:
        url = urlsplit(target)
        self.method, self.path, self.headers, self.stream = method, url.path, headers, stream
        self.params = dict(parse_qsl(url.query, keep_blank_values=True))
        self.left = int(headers.get("Content-Length") or 0)

    def read(self) -> memoryview:
        data = memoryview(bytearray(self.left))
        if self.stream.readinto(data) < self.left:
            raise ConnectionResetError("the client left in the middle of a body")
        self.left = 0
        return data

    def json(self) -> Meta:
        return dict(json.loads(bytes(self.read()) or b"{}"))


def as_json(value: Meta, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    headers = {"Content-Type": "application/json"} | (headers or {})
    return Response(status, headers, json.dumps(value).encode())


def without_none(fields: Meta) -> Meta:
    return {key: value for key, value in fields.items() if value is not None}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def require(meta: Meta | None, params: Params) -> None:
    """Raises 412 where a precondition does not hold; an absent object has generation 0."""
    for name in ("generation", "metageneration"):
        have, key = (meta[name] if meta else "0"), f"if{name.capitalize()}"
        if params.get(f"{key}Match", have) != have or params.get(f"{key}NotMatch") == have:
            raise ApiError(412, f"a precondition does not hold: {name} is {have}")


def checksums(data: memoryview) -> dict[str, str]:
    crc32c = 0
    for start in range(0, len(data), 1 << 20):  # it takes nothing but bytes: copy a little
        crc32c = google_crc32c.extend(crc32c, bytes(data[start : start + (1 << 20)]))
    digests = {"crc32c": crc32c.to_bytes(4, "big"), "md5Hash": hashlib.md5(data).digest()}
    return {name: base64.b64encode(digest).decode() for name, digest in digests.items()}


def byte_range(header: str, size: int) -> slice | None:
    """The range that a `Range` header asks for; None means all. Raises 416 for an empty one."""
    match = re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", header)
    if not match:
        return None
    first, last, suffix = match.groups()
    start = int(first) if first else max(0, size - int(suffix))
    stop = min(size, int(last) + 1) if last else size
    if start >= stop:
        raise ApiError(
            416, f"{header} is outside {size} bytes", {"Content-Range": f"bytes */{size}"}
        )
    return slice(start, stop)


def split_related(body: memoryview, content_type: str) -> tuple[Meta, memoryview]:
    """Metadata and bytes of a multipart upload. gcsfs ends its lines with LF, others with CRLF."""
    boundary = re.sub(r'.*boundary="?([^";]+).*', r"\1", content_type).encode()
    layout = rb"--@(\r?\n).*?\1\1(.*?)\1--@\1content-type:\s*(.*?)\1\1(.*)\1--@--\s*"
    layout = layout.replace(b"@", re.escape(boundary))
    if not (match := re.fullmatch(layout, body, re.DOTALL | re.IGNORECASE)):
        raise ApiError(400, "not a multipart/related body of metadata and content")
    return {"contentType": match[3].decode()} | json.loads(match[2]), body[slice(*match.span(4))]


class Gcs:
    """Buckets, objects and the calls on them. Every change is made under one lock.

    The bytes of a generation never change. They lie in memory or in `root/GENERATION`; with a root,
    every change of metadata is a line of `root/log`, and the next server reads that.
    """

    def __init__(self, root: Path | None) -> None:
        self.root: Path | None = None
        self.lock = threading.RLock()
        self.generation = 0
        self.buckets: dict[str, dict[str, Meta]] = {}
        self.contents: dict[str, memoryview] = {}
        self.uploads: dict[str, tuple[str, Meta, Params, bytearray]] = {}
        self.uploaded: dict[str, Meta] = {}
        if root:
            root.mkdir(parents=True, exist_ok=True)
            (root / "log").touch()
            for line in (root / "log").read_text().splitlines():
                self.change(*json.loads(line))
        self.root = root  # only now: what comes from the log does not go into it again

    def change(self, bucket: str, name: str, value: Meta | None) -> None:
        """Sets or (None) removes an object's metadata, or the whole bucket where `name` is empty.

        Nothing else changes a bucket or an object. The caller holds the lock.
        """
        place: dict[str, Any] = self.buckets[bucket] if name else self.buckets
        old = place.get(name or bucket)
        if value is None:
            del place[name or bucket]
        else:
            place[name or bucket] = value  # one step: readers without the lock see old or new
        if self.root:
            with (self.root / "log").open("a") as log:
                log.write(json.dumps([bucket, name, value]) + "\n")
        if name and old and (value is None or value["generation"] != old["generation"]):
            self.contents.pop(old["generation"], None)
            if self.root:
                (self.root / old["generation"]).unlink(missing_ok=True)

    def answer(self, request: Request) -> Response:
        try:
            if "Transfer-Encoding" in request.headers:
                raise ApiError(411, "a Content-Length is needed", {"Connection": "close"})
            for methods, pattern, call in ROUTES:
                match = re.fullmatch(pattern, request.path.rstrip("/"))
                if match and request.method in methods.split():
                    reply = call(self, request, *map(unquote, match.groups()))
                    return reply if isinstance(reply, Response) else as_json(reply)
            raise ApiError(404, f"no such call: {request.method} {request.path}")
        except ApiError as error:
            status, message, *headers = error.args
            return as_json({"error": {"code": status, "message": message}}, status, *headers)
        except (KeyError, ValueError) as error:
            return as_json({"error": {"code": 400, "message": f"malformed: {error!r}"}}, 400)

    def bucket(self, bucket: str) -> dict[str, Meta]:
        if bucket not in self.buckets:
            raise ApiError(404, f"No such bucket: {bucket}")
        return self.buckets[bucket]

    def create_bucket(self, request: Request) -> Meta:
        bucket = request.json()["name"]
        with self.lock:
            if bucket in self.buckets:
                raise ApiError(409, f"bucket {bucket} is there already")
            self.change(bucket, "", {})
        return self.get_bucket(request, bucket)

    def get_bucket(self, request: Request, bucket: str) -> Meta:
        self.bucket(bucket)
        return {"kind": "storage#bucket", "id": bucket, "name": bucket}

    def list_buckets(self, request: Request) -> Meta:
        items = [self.get_bucket(request, bucket) for bucket in list(self.buckets)]
        return {"kind": "storage#buckets", "items": items}

    def delete_bucket(self, request: Request, bucket: str) -> Response:
        with self.lock:
            if self.bucket(bucket):
                raise ApiError(409, f"bucket {bucket} is not empty")
            self.change(bucket, "", None)
        return Response(204)

    def list_objects(self, request: Request, bucket: str) -> Meta:
        params, metas = request.params, dict(self.bucket(bucket))
        prefix, delimiter = params.get("prefix", ""), params.get("delimiter", "")

        def folder(name: str) -> str:
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            return name[: end + len(delimiter)] if end >= 0 else ""

        low, high = params.get("startOffset", ""), params.get("endOffset") or "\U0010ffff"
        names = sorted(name for name in metas if name.startswith(prefix) and low <= name < high)
        # Folders and objects share a page, and entries ascend: the last one is the page token.
        entries = dict.fromkeys(folder(name) or name for name in names)
        rest = [entry for entry in entries if entry > params.get("pageToken", "")]
        page = rest[: min(1000, int(params.get("maxResults", 1000)))]
        result = {
            "kind": "storage#objects",
            "items": [metas[entry] for entry in page if not folder(entry)],
            "prefixes": [entry for entry in page if folder(entry)],
            "nextPageToken": page[-1] if len(page) < len(rest) else "",
        }
        return {key: value for key, value in result.items() if value}

    def find(self, bucket: str, name: str, params: Params) -> Meta:
        """The live object, if it is the generation asked for and the preconditions hold."""
        meta = self.bucket(bucket).get(name)
        if not meta or params.get("generation") not in (None, meta["generation"]):
            raise ApiError(404, f"No such object: {bucket}/{name}")
        require(meta, params)
        return meta

    def read(self, bucket: str, name: str, params: Params) -> tuple[Meta, memoryview]:
        """As `find`, with the bytes: they outlive an overwrite or delete of the object."""
        with self.lock:
            meta = self.find(bucket, name, params)
            if not self.root:
                return meta, self.contents[meta["generation"]]
            with (self.root / meta["generation"]).open("rb") as file:
                if meta["size"] == "0":  # mmap refuses an empty file
                    return meta, memoryview(b"")
                return meta, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def insert(self, bucket: str, fields: Meta, data: memoryview, params: Params) -> Meta:
        """Makes a new generation of `fields["name"]`, whole or not at all."""
        name, sums = fields["name"], checksums(data)
        if any(fields.get(key, value) != value for key, value in sums.items()):
            raise ApiError(400, f"{bucket}/{name} came with a checksum that is not its own")
        if "componentCount" in fields:  # as in GCS, what was composed has no MD5
            sums = {"crc32c": sums["crc32c"], "componentCount": fields["componentCount"]}
        with self.lock:
            require(self.bucket(bucket).get(name), params)
            self.generation = max(self.generation + 1, time.time_ns() // 1000)
            meta = {key: fields[key] for key in EDITABLE if fields.get(key)} | sums
            meta |= {"bucket": bucket, "name": name, "size": str(len(data)), "timeCreated": now()}
            meta |= {"generation": str(self.generation), "storageClass": "STANDARD"}
            if self.root:
                (self.root / meta["generation"]).write_bytes(data)
            else:
                self.contents[meta["generation"]] = data
            return self.update(meta, 1)

    def update(self, meta: Meta, metageneration: int) -> Meta:
        meta |= {"metageneration": str(metageneration), "updated": now()}
        meta["etag"] = f"{meta['generation']}/{metageneration}"
        self.change(meta["bucket"], meta["name"], meta)
        return meta

    def get_object(self, request: Request, bucket: str, name: str) -> Meta | Response:
        meta, data = self.read(bucket, name, request.params)
        if request.params.get("alt") != "media":
            return meta
        sums = {"crc32c": meta["crc32c"], "md5": meta.get("md5Hash")}
        headers = {
            "Content-Type": meta.get("contentType") or "application/octet-stream",
            "ETag": meta["etag"],
            "X-Goog-Generation": meta["generation"],
            "X-Goog-Hash": ",".join(f"{key}={value}" for key, value in sums.items() if value),
        }
        if "contentEncoding" in meta:
            headers["Content-Encoding"] = meta["contentEncoding"]
        part = byte_range(request.headers.get("Range", ""), len(data))
        if not part:
            return Response(200, headers, data)
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(data)}"
        return Response(206, headers, data[part])

    def patch_object(self, request: Request, bucket: str, name: str) -> Meta:
        fields = {key: value for key, value in request.json().items() if key in EDITABLE}
        with self.lock:
            old = self.find(bucket, name, request.params)
            if fields.get("metadata"):
                fields["metadata"] = without_none(old.get("metadata", {}) | fields["metadata"])
            return self.update(without_none(old | fields), int(old["metageneration"]) + 1)

    def delete_object(self, request: Request, bucket: str, name: str) -> Response:
        with self.lock:
            self.find(bucket, name, request.params)
            self.change(bucket, name, None)
        return Response(204)

    def upload(self, request: Request, bucket: str) -> Meta | Response:
        params, kind = request.params, request.headers.get("Content-Type", "")
        if "upload_id" in params:
            return self.resume(request, params["upload_id"])
        fields = {"name": params["name"]} if "name" in params else {}
        if params.get("uploadType") == "resumable":
            fields |= {"contentType": request.headers.get("X-Upload-Content-Type")} | request.json()
            require(self.bucket(bucket).get(fields["name"]), params)
            upload_id = uuid.uuid4().hex
            self.uploads[upload_id] = bucket, fields, params, bytearray()
            here = f"http://{request.headers['Host']}{request.path}?uploadType=resumable"
            return Response(200, {"Location": f"{here}&upload_id={upload_id}"})
        if params.get("uploadType") == "multipart":
            more, data = split_related(request.read(), kind)
        else:
            more, data = {"contentType": kind}, request.read()
        return self.insert(bucket, fields | more, data, params)

    def resume(self, request: Request, upload_id: str) -> Meta | Response:
        """Takes a chunk of a resumable upload, or a question (`bytes */...`) how much is there."""
        if upload_id in self.uploaded:
            return self.uploaded[upload_id]
        if upload_id not in self.uploads:
            raise ApiError(404, f"No such upload: {upload_id}")
        bucket, fields, params, data = self.uploads[upload_id]
        given = request.headers.get("Content-Range") or f"bytes 0-/{request.left}"
        match = re.fullmatch(r"bytes (?:(\d+)-\d*|\*)/(\d+|\*)", given)
        if not match or int(match[1] or 0) > len(data):
            raise ApiError(400, f"{given} does not go on from the {len(data)} bytes that are here")
        chunk, total = request.read(), match[2]
        if total == "*" and len(chunk) % CHUNK_BYTES:
            raise ApiError(400, f"a chunk of {len(chunk)} bytes is no multiple of {CHUNK_BYTES}")
        if match[1]:
            data += chunk[len(data) - int(match[1]) :]
        if total == "*" or len(data) < int(total):
            return Response(308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {})
        self.uploaded[upload_id] = self.insert(bucket, fields, memoryview(data), params)
        del self.uploads[upload_id]
        return self.uploaded[upload_id]

    def cancel_upload(self, request: Request, bucket: str) -> Response:
        self.uploads.pop(request.params["upload_id"], None)
        return Response(499)

    def compose(self, request: Request, bucket: str, name: str) -> Meta:
        order = request.json()
        if not 0 < len(order["sourceObjects"]) <= 32:
            raise ApiError(400, "a compose takes 1 to 32 source objects")
        sources = []
        for source in order["sourceObjects"]:
            asked = without_none(source | source.get("objectPreconditions", {}))
            params = {key: str(value) for key, value in asked.items()}
            sources.append(self.read(bucket, source["name"], params))
        count = sum(meta.get("componentCount", 1) for meta, _ in sources)
        fields = order.get("destination", {}) | {"name": name, "componentCount": count}
        data = memoryview(b"".join(view for _, view in sources))
        return self.insert(bucket, fields, data, request.params)

    def copy(self, request: Request, bucket: str, name: str, to_bucket: str, to: str) -> Meta:
        params = request.params
        source = {key.replace("Source", ""): params[key] for key in params if "Source" in key}
        if "sourceGeneration" in params:
            source["generation"] = params["sourceGeneration"]
        meta, data = self.read(bucket, name, source)
        return self.insert(to_bucket, meta | request.json() | {"name": to}, data, params)

    def rewrite(self, *names: Any) -> Meta:
        meta = self.copy(*names)
        sizes = {"objectSize": meta["size"], "totalBytesRewritten": meta["size"]}
        return {"kind": "storage#rewriteResponse", "done": True, "resource": meta} | sizes

    def move(self, request: Request, bucket: str, name: str, to: str) -> Meta:
        with self.lock:
            meta = self.copy(request, bucket, name, bucket, to)
            if to != name:
                self.change(bucket, name, None)
        return meta

    def batch(self, request: Request) -> Response:
        """Many calls in one multipart/mixed body, answered one by one in their order."""
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        parts: Any = email.message_from_bytes(head + request.read()).get_payload()
        text = ""
        for part in parts:
            line, _, rest = part.get_payload().lstrip().partition("\n")
            method, target, *_ = line.split()
            inner = email.message_from_string(rest)
            stream = io.BytesIO(str(inner.get_payload()).encode())
            reply = self.answer(Request(method, target, inner, stream))
            text += "--batch\r\nContent-Type: application/http\r\n\r\n"
            text += f"HTTP/1.1 {reply.status} -\r\nContent-Length: {len(reply.body)}\r\n"
            text += "Content-Type: application/json\r\n\r\n" + bytes(reply.body).decode() + "\r\n"
        headers = {"Content-Type": "multipart/mixed; boundary=batch"}
        return Response(200, headers, f"{text}--batch--\r\n".encode())


BUCKET, OBJECT = "/storage/v1/b/([^/]+)", "/o/([^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Meta | Response]]] = [
    ("GET", "/storage/v1/b", Gcs.list_buckets),
    ("POST", "/storage/v1/b", Gcs.create_bucket),
    ("GET", BUCKET, Gcs.get_bucket),
    ("DELETE", BUCKET, Gcs.delete_bucket),
    ("GET", f"{BUCKET}/o", Gcs.list_objects),
    ("GET", f"(?:/download)?{BUCKET}{OBJECT}", Gcs.get_object),
    ("PATCH", f"{BUCKET}{OBJECT}", Gcs.patch_object),
    ("DELETE", f"{BUCKET}{OBJECT}", Gcs.delete_object),
    ("POST PUT", f"/upload{BUCKET}/o", Gcs.upload),
    ("DELETE", f"/upload{BUCKET}/o", Gcs.cancel_upload),
    ("POST", f"{BUCKET}{OBJECT}/compose", Gcs.compose),
    ("POST", f"{BUCKET}{OBJECT}/rewriteTo/b/([^/]+){OBJECT}", Gcs.rewrite),
    ("POST", f"{BUCKET}{OBJECT}/copyTo/b/([^/]+){OBJECT}", Gcs.copy),
    ("POST", f"{BUCKET}{OBJECT}/moveTo{OBJECT}", Gcs.move),
    ("POST", "/batch(?:/storage/v1)?", Gcs.batch),
]


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
        """Says nothing: clients tell what went wrong."""


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
