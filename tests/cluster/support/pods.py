"""Pods without a cluster: their containers, as the rendered YAML has them, run by podman."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.support import images
from tests.cluster.support.manifests import JOB_UID, Object, Workload, find


@dataclass(frozen=True)
class Pods:
    """Makes the commands of a workload's containers."""

    objects: list[Object]
    job: Workload
    images: Mapping[str, str]
    """The image that stands for one of the manifests', by its name without registry and tag."""
    claims: Mapping[str, Path]
    """Folders that persistent volume claims are."""
    folder: Path
    """For the volumes of the pods."""
    uid: str = "uid"
    """The Job's."""

    def script(self, index: int, options: Sequence[str], machine: Path | None = None) -> str:
        """A pod's whole life in shell: ends with the code of the container that failed, or 0.

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
        """Every volume of one pod as a folder here."""
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
        """As the kubelet resolves it: in order, each from those before."""
        indexed = self.job.spec.get("completionMode") == "Indexed"
        known = {"JOB_COMPLETION_INDEX": str(index)} if indexed else {}
        for entry in container.get("env", ()):
            source = entry.get("valueFrom", {})
            if (key := source.get("configMapKeyRef")) is not None:
                value = find(self.objects, "ConfigMap", key["name"])["data"][key["key"]]
            elif source:
                value = {f"metadata.labels['{JOB_UID}']": self.uid}[source["fieldRef"]["fieldPath"]]
            else:
                value = expand(entry["value"], known)
            known[entry["name"]] = value
        return known


def expand(text: str, environment: Mapping[str, str]) -> str:
    """$(NAME) of known names replaced, others left, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda m: environment.get(m[1], m[0]), text)
