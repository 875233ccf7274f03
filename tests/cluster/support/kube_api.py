"""As much of a Kubernetes API as kubectl needs: it keeps objects without checking them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KINDS = {
    "api/v1": {
        "configmaps": "ConfigMap",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apis/batch/v1": {"jobs": "Job"},
    "apis/jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
}
"""Path of group and version -> plural -> kind."""

_OBJECT = re.compile(r"/(api.*/[^/]+)/namespaces/[^/]+/([a-z]+)(?:/([^/]+))?")

Objects = dict[tuple[str, str], dict[str, Any]]


def _discovery(path: str) -> dict[str, Any] | None:
    """Return the reply to kubectl's question for API groups and kinds, None for other paths."""
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "apis":
        groups = []
        for place in KINDS:
            if place != "api/v1":
                _, name, version = place.split("/")
                found = {"groupVersion": f"{name}/{version}", "version": version}
                groups.append({"name": name, "versions": [found], "preferredVersion": found})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path in KINDS:
        verbs = ["create", "delete", "get", "list", "patch", "watch"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True,
             "verbs": verbs}
            for plural, kind in KINDS[path].items()
        ]  # fmt: skip
        version = path.removeprefix("apis/").removeprefix("api/")
        return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return None


@contextmanager
def serve() -> Iterator[tuple[str, Objects]]:
    """Run the server; yields its address and its objects by kind and name."""
    objects: Objects = {}

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def respond(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            if (found := _discovery(path.strip("/"))) is not None:
                return self.reply(200, found)
            match = _OBJECT.fullmatch(path)
            kind = KINDS.get(match[1], {}).get(match[2]) if match else None
            if match is None or kind is None:
                return self.reply(404, {"kind": "Status", "reason": "NotFound", "code": 404})
            if self.command == "POST":
                made = json.loads(sent)
                objects[kind, made["metadata"]["name"]] = made
                return self.reply(201, made)
            if (there := objects.get((kind, match[3]))) is None:
                return self.reply(404, {"kind": "Status", "reason": "NotFound", "code": 404})
            if self.command == "PATCH":
                there["spec"] |= json.loads(sent)["spec"]
            if self.command == "DELETE":
                del objects[kind, match[3]]
            return self.reply(200, there)

        do_GET = do_POST = do_PATCH = do_DELETE = respond  # noqa: N815 the base class's names

        def log_message(self, *_: object) -> None:
            """Log nothing: kubectl reports what went wrong."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", objects
        server.shutdown()
