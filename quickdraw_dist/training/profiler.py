"""Where the steps of a run go: a trace of some of them, and one page that sums it up."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, schedule

from quickdraw_dist.base import storage
from quickdraw_dist.base.telemetry.phases import PHASES
from quickdraw_dist.distributed.ranks import World

FOLDER = "profile"
"""Of a run: a trace and a page a rank."""

_FIRST_STEPS = 4
"""Steps before those that are traced: memory and clocks settle."""

_OPERATORS = 15
"""Rows of the page's last table."""


class StepProfiler:
    """torch's profiler over some steps of this process; nothing at all where that is 0."""

    def __init__(self, steps: int, world: World, output: str, say: Callable[[str], None]) -> None:
        """Writes rank-R.json.gz and rank-R.md into the run's folder `profile`, and says so."""
        self._world, self._output, self._say = world, output, say
        self._profile: profile | None = None
        if steps:
            kinds = [ProfilerActivity.CPU]
            if world.device.type == "cuda":
                kinds.append(ProfilerActivity.CUDA)
            plan = schedule(skip_first=_FIRST_STEPS, wait=0, warmup=1, active=steps, repeat=1)
            self._profile = profile(
                activities=kinds, schedule=plan, on_trace_ready=self._write, acc_events=True
            )
            self._profile.start()

    def step(self) -> None:
        """A step ends here and the next one begins, with the wait for its drawings."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """No more steps; those that were traced are written where they are fewer than wanted."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, done: profile) -> None:
        name = f"rank-{self._world.rank}"
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json.gz")
            done.export_chrome_trace(str(trace))
            self._publish(f"{name}.json.gz", trace.read_bytes())
        text = page(self._world, list(done.key_averages()))
        where = self._publish(f"{name}.md", text.encode())
        self._say(f"profile: {where}; the trace beside it opens in https://ui.perfetto.dev")

    def _publish(self, file: str, data: bytes) -> str:
        url = storage.join(self._output, FOLDER, file)
        storage.publish(url, data)
        return url


def page(world: World, averages: Iterable[FunctionEventAvg]) -> str:
    """The one page, Markdown; pure."""
    on_host, on_device = _rows(averages, on_device=False), _rows(averages, on_device=True)
    wall = next(row for row in on_host if row.name.startswith("ProfilerStep"))
    steps, step_us = wall.count, wall.total_us / wall.count

    def cells(us: float) -> str:
        return f"{us / 1000:.2f} | {us / step_us:.1%} |"

    parts = {row.name: row.total_us / steps for row in on_host if row.name in PHASES}
    parts["the rest: figures, log, agreement"] = step_us - sum(parts.values())
    lines = [
        f"# Rank {world.rank} of {world.size}: where {steps} steps went",
        "",
        f"torch {torch.__version__} on {world.device.type}; the profiler itself costs some time.",
        "",
        "| on the host | ms a step | share |",
        "|---|---|---|",
        *(f"| {name} | {cells(us)}" for name, us in parts.items()),
        f"| a step | {cells(step_us)}",
        "",
    ]
    if on_device:
        busy = cells(sum(row.own_us for row in on_device) / steps)
        lines += ["| on the device | ms a step | share |", "|---|---|---|", f"| busy | {busy}", ""]
    kind = "kernel" if on_device else "operator, without those inside it"
    lines += [f"| {kind} | ms a step | share | calls |", "|---|---|---|---|"]
    inner = on_device or [row for row in on_host if row.name not in PHASES and row is not wall]
    for row in sorted(inner, key=lambda row: row.own_us, reverse=True)[:_OPERATORS]:
        lines.append(f"| `{row.name[:70]}` | {cells(row.own_us / steps)} {row.count / steps:g} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Row:
    name: str
    count: int
    total_us: float
    own_us: float


def _rows(averages: Iterable[FunctionEventAvg], on_device: bool) -> list[_Row]:
    """What the host did, or the device's kernels."""
    found = []
    for event in averages:
        name = event.key or ""
        if on_device and event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            own_us = event.self_device_time_total
            found.append(_Row(name, event.count, event.device_time_total, own_us))
        elif not on_device and event.device_type == DeviceType.CPU:
            own_us = event.self_cpu_time_total
            found.append(_Row(name, event.count, event.cpu_time_total, own_us))
    return found
