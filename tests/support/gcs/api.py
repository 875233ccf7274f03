"""The JSON API of the local Cloud Storage: from a request to its reply."""

import email
import io
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.gcs.store import (
    EDITABLE,
    ApiError,
    Meta,
    ObjectStore,
    Params,
    require,
    without_none,
)

CHUNK_BYTES = 256 << 10  # every chunk of a resumable upload but the last is a multiple of this


@dataclass
class Response:
    """An answer. A `Content-Length` in its headers is sent as it is: a test's short read."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""


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
    """The calls on a store, and the resumable uploads that are under way."""

    def __init__(self, root: Path | None) -> None:
        self.store = ObjectStore(root)
        self.uploads: dict[str, tuple[str, Meta, Params, bytearray]] = {}
        self.uploaded: dict[str, Meta] = {}

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

    def create_bucket(self, request: Request) -> Meta:
        bucket = request.json()["name"]
        self.store.create_bucket(bucket)
        return self.get_bucket(request, bucket)

    def get_bucket(self, request: Request, bucket: str) -> Meta:
        self.store.bucket(bucket)
        return {"kind": "storage#bucket", "id": bucket, "name": bucket}

    def list_buckets(self, request: Request) -> Meta:
        items = [self.get_bucket(request, bucket) for bucket in list(self.store.buckets)]
        return {"kind": "storage#buckets", "items": items}

    def delete_bucket(self, request: Request, bucket: str) -> Response:
        self.store.delete_bucket(bucket)
        return Response(204)

    def list_objects(self, request: Request, bucket: str) -> Meta:
        params, metas = request.params, dict(self.store.bucket(bucket))
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

    def get_object(self, request: Request, bucket: str, name: str) -> Meta | Response:
        meta, data = self.store.read(bucket, name, request.params)
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
        return self.store.patch(bucket, name, fields, request.params)

    def delete_object(self, request: Request, bucket: str, name: str) -> Response:
        self.store.delete(bucket, name, request.params)
        return Response(204)

    def upload(self, request: Request, bucket: str) -> Meta | Response:
        params, kind = request.params, request.headers.get("Content-Type", "")
        if "upload_id" in params:
            return self.resume(request, params["upload_id"])
        fields = {"name": params["name"]} if "name" in params else {}
        if params.get("uploadType") == "resumable":
            fields |= {"contentType": request.headers.get("X-Upload-Content-Type")} | request.json()
            require(self.store.bucket(bucket).get(fields["name"]), params)
            upload_id = uuid.uuid4().hex
            self.uploads[upload_id] = bucket, fields, params, bytearray()
            here = f"http://{request.headers['Host']}{request.path}?uploadType=resumable"
            return Response(200, {"Location": f"{here}&upload_id={upload_id}"})
        if params.get("uploadType") == "multipart":
            more, data = split_related(request.read(), kind)
        else:
            more, data = {"contentType": kind}, request.read()
        return self.store.insert(bucket, fields | more, data, params)

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
        self.uploaded[upload_id] = self.store.insert(bucket, fields, memoryview(data), params)
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
            sources.append(self.store.read(bucket, source["name"], params))
        count = sum(meta.get("componentCount", 1) for meta, _ in sources)
        fields = order.get("destination", {}) | {"name": name, "componentCount": count}
        data = memoryview(b"".join(view for _, view in sources))
        return self.store.insert(bucket, fields, data, request.params)

    def copy(self, request: Request, bucket: str, name: str, to_bucket: str, to: str) -> Meta:
        params = request.params
        source = {key.replace("Source", ""): params[key] for key in params if "Source" in key}
        if "sourceGeneration" in params:
            source["generation"] = params["sourceGeneration"]
        meta, data = self.store.read(bucket, name, source)
        return self.store.insert(to_bucket, meta | request.json() | {"name": to}, data, params)

    def rewrite(self, *names: Any) -> Meta:
        meta = self.copy(*names)
        sizes = {"objectSize": meta["size"], "totalBytesRewritten": meta["size"]}
        return {"kind": "storage#rewriteResponse", "done": True, "resource": meta} | sizes

    def move(self, request: Request, bucket: str, name: str, to: str) -> Meta:
        with self.store.lock:
            meta = self.copy(request, bucket, name, bucket, to)
            if to != name:
                self.store.change(bucket, name, None)
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
