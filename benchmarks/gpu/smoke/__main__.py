"""Step 2: does it train at all? Twenty steps in every precision and compile mode, and more.

Several cases run at once: this is no measurement of speed. A case that fails costs only itself.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

from benchmarks.gpu.smoke.cases import Case, cases
from benchmarks.gpu.smoke.checks import PASSED, STEPS, Bench, run_case
from benchmarks.measure import (
    CONTENTS,
    Metrics,
    add_limits,
    parser,
    run_module,
    synthetic_source,
    write_json,
)

_MOST_AT_ONCE = 6


def main() -> int:
    """Run all cases; return 1 if one did not pass."""
    began = time.monotonic()
    arguments = parser("bench-gpu", __doc__)
    add_limits(arguments)
    options = arguments.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    on_gpu, cores = torch.cuda.is_available(), os.cpu_count() or 1
    at_once = max(1, min(_MOST_AT_ONCE, cores // 2))
    batch, width = (1_024, 64) if on_gpu else (32, 4)
    bench = Bench(options.folder, batch, width, began + options.seconds, max(1, cores // at_once))
    source = synthetic_source((STEPS + 1) * batch)
    for content in CONTENTS:
        dest = str(bench.shards(content))
        run_module("jobs.shard", "--source", source, "--dest", dest, "--shard.content", content)
    todo, results = cases(on_gpu), dict[str, Metrics]()
    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(run_case, case, bench): case.name for case in todo}
        for future in as_completed(running):
            name, result = running[future], future.result()
            results[name] = result
            print(f"{name}: {result['status']}, {result['seconds']} s. {result['reason']}")
            print(result["tail"], end="\n" if result["tail"] else "", flush=True)
            write_json(options.results, summary(todo, results))
    return 1 if summary(todo, results)["problem"] else 0


def summary(todo: Sequence[Case], results: Mapping[str, Metrics]) -> Metrics:
    """Put the results in the cases' order, and name the cases that did not pass (so far). Pure."""
    running: Metrics = {"status": "running", "reason": "", "seconds": 0.0, "tail": ""}
    ordered = {case.name: results.get(case.name, running) for case in todo}
    bad = [f"{name} ({r['status']})" for name, r in ordered.items() if r["status"] != PASSED]
    problem = f"{len(bad)} of {len(todo)} cases did not pass: {', '.join(bad)}" if bad else ""
    return {"cases": ordered, "problem": problem}


if __name__ == "__main__":
    sys.exit(main())
