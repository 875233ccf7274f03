"""Profile some steps of a run with torch's profiler: a trace and a table for every rank."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import StorageError
from quickdraw_dist.distributed.ranks import World

FOLDER = "profile"
"""Folder of traces and tables within a run's output."""

_SKIPPED_STEPS = 4
"""Steps before the profiled ones, in which allocators and clocks settle."""

_TABLE_ROWS = 100


class StepProfiler:
    """Record consecutive steps of this process; with `steps` 0, do nothing.

    Writes profile/rank-R.json.gz (trace) and profile/rank-R.txt (table of phases and operators by
    total time) into the run's `output`, and passes a line about them to `say`.
    """

    def __init__(self, steps: int, world: World, output: str, say: Callable[[str], None]) -> None:
        self._world, self._output, self._say = world, output, say
        self._profile: profile | None = None
        if steps:
            activities = [ProfilerActivity.CPU]
            if world.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            plan = schedule(skip_first=_SKIPPED_STEPS, wait=0, warmup=1, active=steps, repeat=1)
            self._profile = profile(
                activities=activities, schedule=plan, on_trace_ready=self._write, acc_events=True
            )
            self._profile.start()

    def step(self) -> None:
        """End a step and begin the next one, which includes the wait for its drawings."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """Stop, and write the steps recorded so far if they are fewer than asked for."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, done: profile) -> None:
        """Publish the trace and the table; a failure is no reason to end a run."""
        try:
            self._publish(done)
        except (OSError, StorageError) as error:
            self._say(f"profile: not written: {error}")

    def _publish(self, done: profile) -> None:
        url = storage.join(self._output, FOLDER, f"rank-{self._world.rank}")
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json.gz")
            done.export_chrome_trace(str(trace))
            storage.publish(f"{url}.json.gz", trace.read_bytes())
        kind = "cuda" if self._world.device.type == "cuda" else "cpu"
        table = done.key_averages().table(sort_by=f"{kind}_time_total", row_limit=_TABLE_ROWS)
        storage.publish(f"{url}.txt", table.encode())
        self._say(f"profile: {url}.txt; open the trace beside it in https://ui.perfetto.dev")
