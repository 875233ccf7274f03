"""Buckets and objects of the local Cloud Storage: generations, preconditions, memory or disk."""

import base64
import hashlib
import json
import mmap
import threading
import time
from pathlib import Path
from typing import Any

import google_crc32c

Meta = dict[str, Any]  # an object or bucket as the JSON API shows it
Params = dict[str, str]
EDITABLE = {"cacheControl", "contentDisposition", "contentEncoding", "contentType", "metadata"}


class ApiError(Exception):
    """An answer that is a failure. Arguments: HTTP status, message and, where needed, headers."""


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


class ObjectStore:
    """Buckets and the live version of each object. Every change is made under one lock.

    The bytes of a generation never change. They lie in memory or in `root/GENERATION`; with a root,
    every change of metadata is a line of `root/log`, and the next store there reads that.
    `params` are those of a call: the generation it asks for, and its preconditions.
    """

    def __init__(self, root: Path | None) -> None:
        self.root: Path | None = None
        self.lock = threading.RLock()
        self.generation = 0
        self.buckets: dict[str, dict[str, Meta]] = {}
        self.contents: dict[str, memoryview] = {}
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

    def bucket(self, bucket: str) -> dict[str, Meta]:
        if bucket not in self.buckets:
            raise ApiError(404, f"No such bucket: {bucket}")
        return self.buckets[bucket]

    def create_bucket(self, bucket: str) -> None:
        with self.lock:
            if bucket in self.buckets:
                raise ApiError(409, f"bucket {bucket} is there already")
            self.change(bucket, "", {})

    def delete_bucket(self, bucket: str) -> None:
        with self.lock:
            if self.bucket(bucket):
                raise ApiError(409, f"bucket {bucket} is not empty")
            self.change(bucket, "", None)

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

    def patch(self, bucket: str, name: str, fields: Meta, params: Params) -> Meta:
        """Changes editable fields; one that is None goes, as does a key of `metadata`."""
        with self.lock:
            old = self.find(bucket, name, params)
            if fields.get("metadata"):
                fields["metadata"] = without_none(old.get("metadata", {}) | fields["metadata"])
            return self.update(without_none(old | fields), int(old["metageneration"]) + 1)

    def update(self, meta: Meta, metageneration: int) -> Meta:
        meta |= {"metageneration": str(metageneration), "updated": now()}
        meta["etag"] = f"{meta['generation']}/{metageneration}"
        self.change(meta["bucket"], meta["name"], meta)
        return meta

    def delete(self, bucket: str, name: str, params: Params) -> None:
        with self.lock:
            self.find(bucket, name, params)
            self.change(bucket, name, None)
