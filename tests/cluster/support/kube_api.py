"""As much of a Kubernetes API as kubectl needs: it keeps objects without checking them, makes the
pods of Jobs, and ends them some time after their Job is deleted."""

from __future__ import annotations

import copy
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KINDS = {
    "api/v1": {
        "configmaps": "ConfigMap",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apis/batch/v1": {"jobs": "Job"},
    "apis/jobset.x-k8s.io/v1alpha2": {"jobsets": "JobSet"},
    "apis/monitoring.coreos.com/v1": {"podmonitors": "PodMonitor"},
    "apis/monitoring.googleapis.com/v1": {"podmonitorings": "PodMonitoring"},
}
"""Path of group and version -> plural -> kind."""

_OBJECT = re.compile(r"/(api.*/[^/]+)/namespaces/[^/]+/([a-z]+)(?:/([^/]+))?(/log)?")

Object = dict[str, Any]
Objects = dict[tuple[str, str], Object]

STOPPING_SECONDS = 0.5
"""How long a pod takes to end after TERM."""


class Api:
    """The objects of a cluster, and what its controllers do with them."""

    def __init__(self, *, without: str = "") -> None:
        """Have all kinds but those whose group contains `without`."""
        self.kinds = {
            path: found for path, found in KINDS.items() if not without or without not in path
        }
        self.objects: Objects = {}
        self.most_pods = 0
        """Most pods of one index of one Job that ran at the same time."""
        self.condition = "Complete"
        """The condition that a Job gets as soon as it is created."""
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)

    def create(self, kind: str, found: Object) -> Object:
        """Keep an object; a Job gets pods and its condition at once."""
        number = next(self._numbers)
        found["metadata"] |= {"uid": f"uid-{number}", "resourceVersion": str(number)}
        found["metadata"] |= {"namespace": "default"}
        self.objects[kind, found["metadata"]["name"]] = found
        if kind == "JobSet":
            found["status"] = {"terminalState": self.condition.replace("Complete", "Completed")}
            for job in found["spec"]["replicatedJobs"]:
                meta = {"name": f"{found['metadata']['name']}-{job['name']}-0"}
                meta["labels"] = job["template"]["metadata"]["labels"]
                self._own(
                    found, self.create("Job", {"metadata": meta, "spec": job["template"]["spec"]})
                )
        if kind == "Job":
            found["status"] = {"conditions": [{"type": self.condition, "status": "True"}]}
            for index in range(found["spec"].get("completions", 1)):
                self.create_pod(found, index)
        return found

    def create_pod(self, job: Object, index: int, phase: str = "Running") -> None:
        """Make a pod of a Job."""
        template, name = copy.deepcopy(job["spec"]["template"]), job["metadata"]["name"]
        labels = template["metadata"]["labels"] | {
            "batch.kubernetes.io/job-name": name,
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        meta = {"name": f"{name}-{index}-{next(self._numbers)}", "labels": labels}
        pod = {"metadata": meta, "spec": template["spec"], "status": {"phase": phase}}
        self._own(job, self.create("Pod", pod))
        running = Counter(
            (p["metadata"]["labels"]["batch.kubernetes.io/job-name"],
             p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])
            for (kind, _), p in self.objects.items()
            if kind == "Pod" and p["status"]["phase"] == "Running"
        )  # fmt: skip
        self.most_pods = max(self.most_pods, *running.values())

    @staticmethod
    def _own(owner: Object, found: Object) -> None:
        found["metadata"]["ownerReferences"] = [{"uid": owner["metadata"]["uid"]}]

    def _owned(self, uid: str) -> list[tuple[str, str]]:
        return [
            key
            for key, found in self.objects.items()
            if any(o["uid"] == uid for o in found["metadata"].get("ownerReferences", ()))
        ]

    def delete(self, key: tuple[str, str], policy: str | None) -> None:
        """Delete an object and what it owns. With the policy Foreground it goes last, otherwise at
        once. A running pod goes after STOPPING_SECONDS."""
        found = self.objects[key]
        if "deletionTimestamp" in found["metadata"]:
            return
        found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        if key[0] == "Pod":
            seconds = STOPPING_SECONDS if found["status"]["phase"] == "Running" else 0
            threading.Timer(seconds, self._remove, [key]).start()
            return
        owned = self._owned(found["metadata"]["uid"])
        for each in owned:
            self.delete(each, policy)
        if not owned or policy != "Foreground":
            self._remove(key)

    def _remove(self, key: tuple[str, str]) -> None:
        with self.lock:
            gone = self.objects.pop(key, None)
            owners = [
                o["uid"] for o in (gone or {"metadata": {}})["metadata"].get("ownerReferences", ())
            ]
            for other, found in list(self.objects.items()):
                waiting = "deletionTimestamp" in found["metadata"] and other[0] != "Pod"
                if waiting and found["metadata"]["uid"] in owners and not self._owned(owners[0]):
                    self._remove(other)

    def patch(self, key: tuple[str, str], patch: Object) -> str | None:
        """Merge a patch into an object; return why the API server would refuse it."""
        found = self.objects[key]
        if found.get("immutable") and "data" in patch:
            return "data: Forbidden: field is immutable when `immutable` is set"
        if key[0] == "Job" and "template" in patch.get("spec", {}):
            return "spec.template: Invalid value: field is immutable"
        _merge(found, patch)
        return None

    def select(self, kind: str, query: dict[str, list[str]]) -> list[Object]:
        """Return the objects of a kind that a list or watch asks for."""
        wanted = dict(re.findall(r"([^=,]+)==?([^,]*)", query.get("labelSelector", [""])[0]))
        name = query.get("fieldSelector", ["="])[0].partition("=")[2]
        return [
            found
            for (each, own), found in self.objects.items()
            if each == kind and name in ("", own)
            and wanted.items() <= found["metadata"].get("labels", {}).items()
        ]  # fmt: skip


def _merge(into: Object, patch: Object) -> None:
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _discovery(path: str, kinds: dict[str, dict[str, str]]) -> Object | None:
    """Return the reply to kubectl's question for API groups and kinds, None for other paths."""
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "apis":
        groups = []
        for place in kinds:
            if place != "api/v1":
                _, name, version = place.split("/")
                found = {"groupVersion": f"{name}/{version}", "version": version}
                groups.append({"name": name, "versions": [found], "preferredVersion": found})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path in kinds:
        verbs = ["create", "delete", "get", "list", "patch", "watch"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True,
             "verbs": verbs}
            for plural, kind in kinds[path].items()
        ]  # fmt: skip
        version = path.removeprefix("apis/").removeprefix("api/")
        return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    return None


class _Handler(BaseHTTPRequestHandler):
    api: Api

    def reply(self, status: int, body: Object | str) -> None:
        """Send JSON, or a log's text."""
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header(
            "Content-Type", "text/plain" if isinstance(body, str) else "application/json"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, code: int, reason: str, message: str = "") -> None:
        """Send an error as the API server does."""
        body = {"apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
        self.reply(code, body | {"kind": "Status", "code": code})

    def respond(self) -> None:
        """Answer any request."""
        sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        url = urlsplit(self.path)
        if (found := _discovery(url.path.strip("/"), self.api.kinds)) is not None:
            return self.reply(200, found)
        match = _OBJECT.fullmatch(url.path)
        kind = self.api.kinds.get(match[1], {}).get(match[2]) if match else None
        if match is None or kind is None:
            return self.fail(404, "NotFound")
        version = match[1].removeprefix("apis/").removeprefix("api/")
        query = parse_qs(url.query)
        if "watch" in query:
            return self.watch(kind, query)
        with self.api.lock:
            head = {"apiVersion": version, "kind": kind}
            if self.command == "POST":
                return self.reply(201, self.api.create(kind, head | sent))
            if match[3] is None:
                items = [head | each for each in self.api.select(kind, query)]
                listed = {"apiVersion": version, "kind": f"{kind}List", "items": items}
                return self.reply(200, listed | {"metadata": {"resourceVersion": "1"}})
            key = (kind, match[3])
            if (there := self.api.objects.get(key)) is None:
                return self.fail(404, "NotFound", f"{kind} {match[3]} not found")
            if match[4]:
                return self.log(there, query["container"][0])
            if self.command == "DELETE":
                self.api.delete(key, sent.get("propagationPolicy"))
            if self.command == "PATCH" and (refusal := self.api.patch(key, sent)) is not None:
                return self.fail(422, "Invalid", refusal)
            return self.reply(200, head | there)

    def log(self, pod: Object, container: str) -> None:
        """Send a container's log; a pod with init containers that runs is still in them."""
        first = container in [c["name"] for c in pod["spec"].get("initContainers", ())]
        if pod["status"]["phase"] == "Running" and "initContainers" in pod["spec"] and not first:
            name = f'container "{container}" in pod "{pod["metadata"]["name"]}"'
            return self.fail(400, "BadRequest", f"{name} is waiting to start: PodInitializing")
        return self.reply(200, f"{container} of {pod['metadata']['name']}\n")

    def watch(self, kind: str, query: dict[str, list[str]]) -> None:
        """Send every object, its changes and its end, until kubectl has seen enough."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        known: dict[str, Object] = {}
        path = next(p for p, kinds in self.api.kinds.items() if kind in kinds.values())
        head = {"apiVersion": path.removeprefix("apis/").removeprefix("api/"), "kind": kind}
        end = time.monotonic() + 30
        bookmark = "sendInitialEvents" in query  # of kubectl 1.35 and newer
        with suppress(OSError):
            while time.monotonic() < end:
                with self.api.lock:
                    now = {
                        o["metadata"]["uid"]: copy.deepcopy(o) for o in self.api.select(kind, query)
                    }
                for uid in now | known:
                    if now.get(uid) != known.get(uid):
                        event = "ADDED" if uid not in known else "MODIFIED"
                        event = event if uid in now else "DELETED"
                        self.send_event(event, head | (now.get(uid) or known[uid]))
                if bookmark:
                    note = {"annotations": {"k8s.io/initial-events-end": "true"}}
                    self.send_event(
                        "BOOKMARK", head | {"metadata": note | {"resourceVersion": "1"}}
                    )
                known, bookmark = now, False
                time.sleep(0.02)

    def send_event(self, event: str, found: Object) -> None:
        """Send a line of a watch."""
        self.wfile.write(json.dumps({"type": event, "object": found}).encode() + b"\n")
        self.wfile.flush()

    do_GET = do_POST = do_PATCH = do_DELETE = respond  # noqa: N815 the base class's names

    def log_message(self, *_: object) -> None:
        """Log nothing: kubectl reports what went wrong."""


@contextmanager
def serve(api: Api) -> Iterator[str]:
    """Run the server; yields its address."""
    handler = type("Handler", (_Handler,), {"api": api})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
