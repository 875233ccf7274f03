"""Pods without a cluster: podman runs the containers of the rendered YAML, one pod per host, under
the Job controller of Kubernetes 1.31 to 1.36, its decisions as pure functions."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.support import images
from tests.cluster.support.manifests import JOB_UID, Object, Workload, find

_FIRST_SECONDS, _LONGEST_SECONDS = 10.0, 600.0


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
    uid: str = "uid"
    """The uid of the Job."""

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
    """Replace $(NAME) of known names and leave others, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda m: environment.get(m[1], m[0]), text)


@dataclass(frozen=True)
class End:
    """The end of a pod."""

    index: int
    code: int
    disrupted: bool = False
    """Whether the pod has the condition DisruptionTarget: preempted, drained, its Node deleted."""


def action(job: Workload, end: End) -> str:
    """Return what the pod failure policy does with a failed pod: FailJob, Ignore or Count; pure."""
    for rule in job.spec["podFailurePolicy"]["rules"]:
        by_code = end.code in rule.get("onExitCodes", {}).get("values", ())
        if by_code or ("onPodConditions" in rule and end.disrupted):
            return str(rule["action"])
    return "Count"


def delay(ended: int) -> float:
    """Return the seconds that a pod waits after `ended` failed ones, with ignored ones; pure."""
    return min(_FIRST_SECONDS * 2 ** (ended - 1), _LONGEST_SECONDS) if ended else 0.0


def next_delay(job: Workload, ends: Sequence[End], index: int) -> float:
    """Return the seconds that the next pod of an index waits; pure.

    With backoffLimitPerIndex the failed pods of the index count, otherwise those of the whole Job
    since one succeeded. Ignored ones count, too.
    """
    if "backoffLimitPerIndex" in job.spec:
        ends = [end for end in ends if end.index == index]
    successes = [position for position, end in enumerate(ends) if end.code == 0]
    return delay(len(ends) - (successes[-1] + 1 if successes else 0))


def failed_indexes(job: Workload, ends: Sequence[End]) -> set[int]:
    """Return the indexes with more counted failures than backoffLimitPerIndex allows; pure."""
    limit = job.spec.get("backoffLimitPerIndex")
    counted = [end.index for end in ends if end.code and action(job, end) == "Count"]
    return {i for i in counted if limit is not None and counted.count(i) > limit}


def outcome(job: Workload, ends: Sequence[End]) -> str | None:
    """Return 'Complete', the reason why the Job failed, or None while it has not ended; pure."""
    actions = [action(job, end) for end in ends if end.code]
    if "FailJob" in actions:
        return "PodFailurePolicy"
    if actions.count("Count") > job.spec.get("backoffLimit", float("inf")):
        return "BackoffLimitExceeded"
    completions = job.spec.get("completions", 1)
    succeeded, failed = {end.index for end in ends if end.code == 0}, failed_indexes(job, ends)
    if len(failed) > job.spec.get("maxFailedIndexes", completions):
        return "MaxFailedIndexesExceeded"
    if len(failed | succeeded) < completions:
        return None
    return "FailedIndexes" if failed else "Complete"


@dataclass
class Controller:
    """Starts, replaces and ends a Job's pods as the controller and the kubelets do.

    A pod is replaced when it has ended, not when it was told to (podReplacementPolicy Failed, the
    only one beside a podFailurePolicy), and after its delay.
    """

    job: Workload
    run: Callable[[int, int], int]
    """Runs the pod of an index and life (0, 1 ...) and returns its exit code."""
    stop: Callable[[int, int], None] = lambda _index, _life: None
    """Sends TERM to a pod, and KILL after its grace period."""
    second: float = 1.0
    """Seconds that a second of a delay takes here."""
    ends: list[End] = field(default_factory=list)
    delays: dict[int, list[float]] = field(default_factory=dict)
    """Delays of every index, in seconds of the cluster."""
    deleted: bool = False
    _running: dict[int, int] = field(default_factory=dict)
    _dead_nodes: set[int] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def codes(self) -> dict[int, list[int]]:
        """Exit codes of every index."""
        return {index: [e.code for e in self.ends if e.index == index] for index in self.delays}

    @property
    def outcome(self) -> str | None:
        """'Complete', the reason why the Job failed, or None while it has not ended."""
        return outcome(self.job, self.ends)

    def complete(self) -> bool:
        """Run all pods until the Job has ended; returns whether it is complete."""
        completions = self.job.spec.get("completions", 1)
        self.delays = {index: [] for index in range(completions)}
        with ThreadPoolExecutor(completions) as pool:
            list(pool.map(self._serve, range(completions)))
        return self.outcome == "Complete"

    def _over(self) -> bool:
        return self.deleted or self.outcome is not None

    def _serve(self, index: int) -> None:
        for life in range(100):
            with self._changed:
                if self._over():
                    return
                self._running[index] = life
            code = self.run(index, life)
            with self._changed:
                dead = index in self._dead_nodes
                self._changed.wait_for(lambda: index not in self._dead_nodes)
                del self._running[index]
                self.ends.append(End(index, code, disrupted=dead))
                self._changed.notify_all()
                if self.outcome not in (None, "Complete"):
                    self._stop_all()
                if code == 0 or index in failed_indexes(self.job, self.ends) or self._over():
                    return
                self.delays[index].append(next_delay(self.job, self.ends, index))
                wait = self.delays[index][-1] * self.second
                self._changed.wait_for(self._over, timeout=wait)

    def _stop_all(self) -> None:
        for index, life in self._running.items():
            self.stop(index, life)

    def delete(self, cascade: str = "background") -> None:
        """Delete the Job, as kubectl delete does: its pods get TERM. With the cascade 'foreground'
        return when they have ended, otherwise at once."""
        with self._changed:
            self.deleted = True
            self._stop_all()
            self._changed.notify_all()
            if cascade == "foreground":
                self._changed.wait_for(lambda: not self._running)

    def lose_node(self, index: int) -> None:
        """Stop hearing from a pod's node: the pod is Terminating from now on, and not replaced."""
        with self._changed:
            self._dead_nodes.add(index)

    def delete_node(self, index: int) -> None:
        """Delete a pod's Node, or taint it out-of-service: the pod is disrupted, and replaced."""
        with self._changed:
            self._dead_nodes.discard(index)
            self._changed.notify_all()
