"""The local Cloud Storage behaves as gcsfs and google-cloud-storage expect of the real one."""

import base64
import hashlib
import http.client
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import google_crc32c
import pytest
from fsspec import asyn

# Not `gcsfs.GCSFileSystem`: which class that is, the environment at the first import decides, and
# the extended one asks a gRPC service of the real cloud about each bucket.
from gcsfs.core import GCSFileSystem

from tests.support.gcs.server import GcsServer, Request, Response

MIB = 1 << 20


@pytest.fixture(params=["memory", "disk"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GcsServer]:
    with GcsServer(tmp_path / "store" if request.param == "disk" else None) as server:
        call(server, "POST", "/storage/v1/b?project=p", b'{"name": "bucket"}')
        yield server


@pytest.fixture
def fs(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GCSFileSystem]:
    yield from connect(server, monkeypatch)


def connect(server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GCSFileSystem]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    GCSFileSystem.clear_instance_cache()
    yield GCSFileSystem(token="anon", project="p", use_listings_cache=False)
    GCSFileSystem.clear_instance_cache()


def call(
    server: GcsServer, method: str, path: str, data: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One plain HTTP call: status, headers (names in lower case) and body."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        reply = urlopen(HttpRequest(server.url + path, data, names, method=method))
    except HTTPError as error:
        reply = error
    with reply:
        return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()


def test_small_objects_and_their_metadata(fs: GCSFileSystem) -> None:
    contents = {f"bucket/a b+c%20ü/{i}=.tar": f"drawing {i}".encode() for i in range(3)}
    fs.pipe(contents | {"bucket/empty": b""})
    assert fs.cat(list(contents)) == contents
    assert fs.cat_file("bucket/empty") == b""
    assert sorted(fs.find("bucket")) == sorted([*contents, "bucket/empty"])
    path, data = next(iter(contents.items()))
    info = fs.info(path)
    assert info["size"] == len(data)
    assert info["md5Hash"] == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert info["crc32c"] == base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
    fs.setxattrs(path, owner="me")
    assert fs.getxattr(path, "owner") == "me"
    assert fs.info(path)["metageneration"] == "2"
    assert fs.info(path)["generation"] == info["generation"]


@pytest.mark.parametrize("size", [0, 6 * MIB + 17])
def test_chunked_write_and_ranges(fs: GCSFileSystem, size: int) -> None:
    data = os.urandom(size)
    with fs.open("bucket/big", "wb", block_size=MIB) as file:
        for start in range(0, size, 700_001):
            file.write(data[start : start + 700_001])
    assert fs.cat_file("bucket/big") == data
    if size:
        assert fs.cat_file("bucket/big", start=12345, end=54321) == data[12345:54321]
        assert fs.cat_file("bucket/big", start=-100) == data[-100:]
        assert fs.cat_file("bucket/big", start=size - 5, end=size + 10) == data[-5:]


def test_range_headers(server: GcsServer, fs: GCSFileSystem) -> None:
    fs.pipe("bucket/ten", b"0123456789")
    media = "/download/storage/v1/b/bucket/o/ten?alt=media"
    status, headers, body = call(server, "GET", media)
    assert (status, body) == (200, b"0123456789")
    assert "crc32c=" in headers["x-goog-hash"] and "md5=" in headers["x-goog-hash"]
    for asked, expected, span in [
        ("bytes=2-4", b"234", "2-4"),
        ("bytes=7-", b"789", "7-9"),
        ("bytes=-3", b"789", "7-9"),
        ("bytes=-99", b"0123456789", "0-9"),
        ("bytes=8-99", b"89", "8-9"),
    ]:
        status, headers, body = call(server, "GET", media, Range=asked)
        assert (status, body, headers["content-range"]) == (206, expected, f"bytes {span}/10")
    for asked in ("bytes=10-", "bytes=-0"):
        status, headers, _ = call(server, "GET", media, Range=asked)
        assert (status, headers["content-range"]) == (416, "bytes */10")


def test_resumable_upload_tells_how_far_it_is(server: GcsServer) -> None:
    data = os.urandom(MIB)
    start = "/upload/storage/v1/b/bucket/o?uploadType=resumable&name=r"
    _, headers, _ = call(server, "POST", start, b"{}")
    there = headers["location"].removeprefix(server.url)

    def send(part: bytes, given: str) -> tuple[int, str | None]:
        status, headers, _ = call(server, "PUT", there, part, Content_Range=f"bytes {given}")
        return status, headers.get("range")

    assert send(b"", "*/*") == (308, None)
    assert send(data[: MIB // 2], f"0-{MIB // 2 - 1}/*") == (308, f"bytes=0-{MIB // 2 - 1}")
    assert send(b"", f"*/{MIB}") == (308, f"bytes=0-{MIB // 2 - 1}")
    assert send(data[:1000], f"{MIB // 2}-{MIB // 2 + 999}/*")[0] == 400  # not 256 KiB
    assert send(data[MIB - 9 :], f"{MIB - 9}-{MIB - 1}/{MIB}")[0] == 400  # a gap
    assert call(server, "GET", "/storage/v1/b/bucket/o/r")[0] == 404
    # The client did not see the first answer, and sends from a point that the server has passed.
    assert send(data[MIB // 4 :], f"{MIB // 4}-{MIB - 1}/{MIB}") == (200, None)
    assert send(b"", f"*/{MIB}") == (200, None)
    assert call(server, "GET", "/storage/v1/b/bucket/o/r?alt=media")[2] == data


def test_cancelled_upload_leaves_nothing(fs: GCSFileSystem) -> None:
    with pytest.raises(RuntimeError, match="stop"), fs.transaction:
        with fs.open("bucket/t", "wb", block_size=MIB) as file:
            file.write(b"x" * (2 * MIB))
        raise RuntimeError("stop")
    assert not fs.exists("bucket/t")


def test_preconditions_guard_every_write(server: GcsServer, fs: GCSFileSystem) -> None:
    fs.pipe({"bucket/x": b"one", "bucket/y": b"two"})
    generation = fs.info("bucket/x")["generation"]
    upload, objects = "/upload/storage/v1/b/bucket/o", "/storage/v1/b/bucket/o"
    compose = b'{"sourceObjects": [{"name": "y"}]}'
    stale_source = b'{"sourceObjects": [{"name": "y", "objectPreconditions": {"%s": "1"}}]}'
    writes = [
        ("POST", f"{upload}?uploadType=media&name=x", b"zz"),
        ("POST", f"{upload}?uploadType=resumable&name=x", b"{}"),
        ("POST", f"{objects}/x/compose?", compose),
        ("POST", f"{objects}/y/rewriteTo/b/bucket/o/x?", b""),
        ("PATCH", f"{objects}/x?", b"{}"),
        ("DELETE", f"{objects}/x?", None),
    ]
    for method, path, body in writes:
        for condition in ("GenerationMatch=0", "MetagenerationMatch=9"):
            assert call(server, method, f"{path}&if{condition}", body)[0] == 412, path
        assert call(server, method, f"{path}&ifGenerationNotMatch={generation}", body)[0] == 412
    body = stale_source % b"ifGenerationMatch"
    assert call(server, "POST", f"{objects}/x/compose", body)[0] == 412
    rewrite = f"{objects}/y/rewriteTo/b/bucket/o/x?ifSourceGenerationMatch=1"
    assert call(server, "POST", rewrite, b"")[0] == 412
    assert fs.cat_file("bucket/x") == b"one"
    assert fs.info("bucket/x")["generation"] == generation
    for size in (2, 6 * MIB):  # a multipart and a resumable upload
        with pytest.raises(FileExistsError):
            fs.pipe_file("bucket/x", b"z" * size, mode="create", chunksize=MIB)
    matching = f"{upload}?uploadType=media&name=x&ifGenerationMatch={generation}"
    assert call(server, "POST", matching, b"three")[0] == 200
    assert int(fs.info("bucket/x")["generation"]) > int(generation)
    assert call(server, "GET", f"{objects}/x?generation={generation}")[0] == 404


def test_one_of_many_parallel_creates_wins(server: GcsServer, fs: GCSFileSystem) -> None:
    path = "/upload/storage/v1/b/bucket/o?uploadType=media&name=lock&ifGenerationMatch=0"
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda i: call(server, "POST", path, b"%d" % i)[0], range(16)))
    assert sorted(replies) == [200] + [412] * 15
    assert fs.cat_file("bucket/lock") == b"%d" % replies.index(200)


def test_listing_pages_through_objects_and_folders(server: GcsServer, fs: GCSFileSystem) -> None:
    names = [f"m/{i // 10}/{i:03d}" for i in range(40)] + ["m/0", "m/1.txt", "n"]
    fs.pipe({f"bucket/{name}": b"" for name in names})

    def pages(query: str) -> list[dict[str, Any]]:
        found, token = [], ""
        while not found or token:
            path = f"/storage/v1/b/bucket/o?{query}&pageToken={token}"
            found.append(json.loads(call(server, "GET", path)[2]))
            token = found[-1].get("nextPageToken", "")
        return found

    flat = pages("prefix=m/&maxResults=10")
    assert [len(page["items"]) for page in flat] == [10, 10, 10, 10, 2]
    assert [item["name"] for page in flat for item in page["items"]] == sorted(names)[:-1]
    folded = pages("prefix=m/&delimiter=/&maxResults=2")
    assert [prefix for page in folded for prefix in page.get("prefixes", [])] == [
        f"m/{i}/" for i in range(4)
    ]
    items = [item["name"] for page in folded for item in page.get("items", [])]
    assert items == ["m/0", "m/1.txt"]
    assert len(folded) == 3
    assert len(fs.glob("bucket/m/1/*")) == 10
    assert fs.isdir("bucket/m/2")


def test_copy_move_compose(fs: GCSFileSystem) -> None:
    fs.pipe({"bucket/a": b"aa", "bucket/b": b"bb"})
    fs.merge("bucket/c", ["bucket/a", "bucket/b"])
    assert fs.cat_file("bucket/c") == b"aabb"
    assert "md5Hash" not in fs.info("bucket/c")
    fs.cp("bucket/c", "bucket/d")
    fs.mv("bucket/d", "bucket/e")
    assert fs.cat_file("bucket/e") == b"aabb"
    assert not fs.exists("bucket/d")
    fs.merge("bucket/a", ["bucket/a", "bucket/e"])  # into one of the sources
    assert fs.cat_file("bucket/a") == b"aaaabb"
    with pytest.raises(FileNotFoundError):
        fs.merge("bucket/f", ["bucket/a", "bucket/nothing"])


def test_buckets_and_deletion(server: GcsServer, fs: GCSFileSystem) -> None:
    fs.mkdir("second")
    assert sorted(path.rstrip("/") for path in fs.ls("")) == ["bucket", "second"]
    assert call(server, "POST", "/storage/v1/b", b'{"name": "second"}')[0] == 409
    fs.pipe("second/a/b", b"x")
    assert call(server, "DELETE", "/storage/v1/b/second")[0] == 409
    fs.rm("second/a", recursive=True)
    with pytest.raises(FileNotFoundError):
        fs.rm_file("second/a/b")
    with pytest.raises(FileNotFoundError):
        fs.cat_file("second/a/b")
    fs.rmdir("second")
    assert call(server, "GET", "/storage/v1/b/second")[0] == 404


def test_readers_see_whole_objects(fs: GCSFileSystem) -> None:
    versions = [bytes([letter]) * MIB for letter in b"AB"]
    fs.pipe("bucket/x", versions[0])

    def write() -> None:
        for i in range(20):
            fs.pipe_file("bucket/x", versions[i % 2])

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not writer.done():
            assert fs.cat_file("bucket/x") in versions
        writer.result()


def test_parallel_ranges(fs: GCSFileSystem) -> None:
    data = os.urandom(4 * MIB)
    fs.pipe("bucket/x", data)
    starts = list(range(0, 4 * MIB - 4096, 65_537))
    parts = fs.cat_ranges(["bucket/x"] * len(starts), starts, [start + 4096 for start in starts])
    assert parts == [data[start : start + 4096] for start in starts]


def test_google_cloud_storage(server: GcsServer) -> None:
    storage = pytest.importorskip("google.cloud.storage")
    from google.api_core.exceptions import NotFound, PreconditionFailed
    from google.auth.credentials import AnonymousCredentials

    client = storage.Client(
        project="p",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": server.url},
    )
    bucket = client.bucket("bucket")
    data = os.urandom(3 * MIB)
    for name, chunk_bytes in (("multipart", None), ("resumable", MIB)):
        blob = bucket.blob(name, chunk_size=chunk_bytes)
        blob.upload_from_string(data)
        assert bucket.blob(name).download_as_bytes() == data  # it compares the checksum
        assert bucket.blob(name).download_as_bytes(start=5, end=9) == data[5:10]
        with pytest.raises(PreconditionFailed):
            blob.upload_from_string(b"x", if_generation_match=0)
    bucket.blob("composed").compose([bucket.blob("multipart"), bucket.blob("resumable")])
    bucket.copy_blob(bucket.blob("composed"), bucket, "copied")
    assert bucket.blob("copied").download_as_bytes() == data + data
    assert len(list(client.list_blobs("bucket", page_size=1))) == 4
    with client.batch():
        bucket.blob("multipart").delete()
        bucket.blob("resumable").delete()
    with pytest.raises(NotFound), client.batch():
        bucket.blob("multipart").delete()
    assert sorted(blob.name for blob in client.list_blobs("bucket")) == ["composed", "copied"]


def test_batch_as_gcsfs_sends_it(server: GcsServer, fs: GCSFileSystem) -> None:
    fs.pipe({"bucket/a/1": b"", "bucket/a/ü 2": b""})
    paths = ["bucket/a/1", "bucket/a/ü 2", "bucket/a/3"]
    replies = asyn.sync(fs.loop, fs._rm_files, paths)
    assert replies[:2] == paths[:2]
    assert "No such object" in str(replies[2])
    assert fs.find("bucket") == []


def test_a_folder_can_be_opened_again(tmp_path: Path) -> None:
    path = "/storage/v1/b/bucket/o/x"
    with GcsServer(tmp_path) as server:
        call(server, "POST", "/storage/v1/b", b'{"name": "bucket"}')
        for name, data in (("x", b"old"), ("x", b"new"), ("gone", b"")):
            upload = f"/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
            call(server, "POST", upload, data, Content_Type="text/plain")
        call(server, "DELETE", "/storage/v1/b/bucket/o/gone")
        before = call(server, "GET", path)[2]
    with GcsServer(tmp_path) as server:
        assert call(server, "GET", path)[2] == before
        assert call(server, "GET", f"{path}?alt=media")[2] == b"new"
        assert call(server, "GET", "/storage/v1/b/bucket/o/gone")[0] == 404
    assert len(list(tmp_path.iterdir())) == 2  # the log and one generation


def test_faults_on_demand_are_retried_by_gcsfs(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [Response(503), None]
    seen = []

    def intercept(request: Request) -> Response | None:
        seen.append(request.method)
        if request.params.get("alt") == "media" and faults:
            return faults.pop(0)
        return None

    with GcsServer(intercept=intercept) as server:
        for fs in connect(server, monkeypatch):
            fs.mkdir("bucket")
            fs.pipe("bucket/x", b"data")
            assert fs.cat_file("bucket/x") == b"data"
    assert not faults
    assert seen[-2:] == ["GET", "GET"]


def test_a_closed_server_is_gone(server: GcsServer) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", "/storage/v1/b")
    connection.getresponse().read()
    server.__exit__()
    with pytest.raises(OSError):
        connection.request("GET", "/storage/v1/b")
        connection.getresponse()
    connection.close()
