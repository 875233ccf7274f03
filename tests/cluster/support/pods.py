"""Pods without a cluster: podman runs the containers of the rendered YAML, one pod per host, and a
small Job controller restarts pods that have ended."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.support import images
from tests.cluster.support.manifests import Object, Workload, find


@dataclass(frozen=True)
class Pods:
    """The commands of a workload's containers."""

    objects: list[Object]
    job: Workload
    images: Mapping[str, str]
    """The image to run instead of a manifest's, by its name without registry and tag."""
    claims: Mapping[str, Path]
    """The folder of each persistent volume claim."""
    folder: Path
    """A folder for the volumes of the pods."""

    def script(self, index: int, options: Sequence[str], machine: Path | None = None) -> str:
        """Return a pod as a shell script, which ends with the first failing container's code or 0.

        `options` are further ones of podman's, which is that of `machine`.
        """
        folder = machine or self.folder / str(index)
        volumes = self._volumes(folder / "volumes")
        lines = ["set -e"]
        for container in self.job.containers:
            environment = self._environment(container, index)
            words = [expand(w, environment) for w in (*container["command"], *container["args"])]
            mounts = {
                volumes[m["name"]]: m["mountPath"] + (":ro" if m.get("readOnly") else "")
                for m in container.get("volumeMounts", ())
            }
            image = container["image"].rpartition("/")[2].partition(":")[0]
            command = images.command(
                self.images[image],
                entrypoint=words,
                volumes=mounts,
                environment=environment,
                options=options if machine is None else [f"--name={container['name']}", *options],
                machine=machine,
            )
            lines.append(shlex.join(command))
        return "\n".join(lines)

    def _volumes(self, folder: Path) -> dict[str, Path]:
        """Return a folder for every volume of one pod."""
        made = {}
        for volume in self.job.pod["volumes"]:
            name = volume["name"]
            if "persistentVolumeClaim" in volume:
                made[name] = self.claims[volume["persistentVolumeClaim"]["claimName"]]
                continue
            made[name] = folder / name
            made[name].mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                data = find(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
                for key, text in data.items():
                    (made[name] / key).write_text(text, encoding="utf-8")
            else:
                made[name].chmod(0o777)  # as an emptyDir is
        return made

    def _environment(self, container: Object, index: int) -> dict[str, str]:
        """Return a container's environment; variables may refer to earlier ones."""
        indexed = self.job.spec.get("completionMode") == "Indexed"
        known = {"JOB_COMPLETION_INDEX": str(index)} if indexed else {}
        for entry in container.get("env", ()):
            if "valueFrom" in entry:
                key = entry["valueFrom"]["configMapKeyRef"]
                value = find(self.objects, "ConfigMap", key["name"])["data"][key["key"]]
            else:
                value = expand(entry["value"], known)
            known[entry["name"]] = value
        return known


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace $(NAME) of known names and leave others, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda m: environment.get(m[1], m[0]), text)


def action(job: Workload, code: int) -> str:
    """Return what the pod failure policy does on an exit code: FailJob, Ignore or Count."""
    for rule in job.spec["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", ()):
            return str(rule["action"])
    return "Count"


@dataclass
class Controller:
    """Runs a Job's pods until it is complete or failed; a failed pod is restarted at once."""

    job: Workload
    run: Callable[[int, int], int]
    """Runs the pod of an index; gets the number of its earlier runs, returns its exit code."""
    codes: dict[int, list[int]] = field(default_factory=dict)
    """Exit codes of every index."""
    failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self) -> bool:
        """Run all pods; returns whether the Job is complete at the end."""
        with ThreadPoolExecutor(self.job.spec["completions"]) as pool:
            return all(list(pool.map(self._index, range(self.job.spec["completions"]))))

    def _index(self, index: int) -> bool:
        codes = self.codes.setdefault(index, [])
        while True:
            codes.append(self.run(index, len(codes)))
            if codes[-1] == 0:
                return True
            ruling = action(self.job, codes[-1])
            with self._lock:
                self.failures += ruling == "Count"
                if ruling == "FailJob" or self.failures > self.job.spec["backoffLimit"]:
                    return False
