"""The results as a page, and the README's table: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.record import Record
from benchmarks.gpu.smoke.checks import PASSED as CASE_PASSED
from benchmarks.measure import Metrics, table
from benchmarks.scale import full_size
from benchmarks.train_speed import page as train_speed
from quickdraw_dist.base.errors import RefusedError

PAGE = "gpu.md"
BEGIN = "<!-- gpu table: written by python -m benchmarks.gpu --page DIR -->"
END = "<!-- end of gpu table -->"

Records = Mapping[str, Record]


def text(records: Records) -> str:
    """Markdown of all steps. Pure.

    Args:
        records: by step; must have facts.

    Raises:
        RefusedError: it has no facts.
    """
    facts = facts_of(records)
    lines = ["# On a GPU", "", provenance(facts, records["facts"].cpu), "", _steps(records)]
    lines += ["", "## The machine", "", _machine(facts)]
    sections = {
        "smoke": ("Twenty steps, every way", _smoke),
        "tests": ("Tests that need a CUDA device", _tests),
        "slow-tests": ("The slow ones of these tests", _tests),
        "speed": ("How fast it trains", train_speed.body),
        "full-size": ("The full-size rehearsal", _full_size),
        "strokes": ("The full-size rehearsal, with pen strokes", _full_size),
    }
    for step, (title, body) in sections.items():
        if step in records and records[step].results:
            # A section's own headings are one level down.
            inner = (line.replace("## ", "### ", 1) for line in body(records[step].results))
            lines += ["", f"## {title}", "", *inner]
    return "\n".join(lines).rstrip("\n") + "\n"


def facts_of(records: Records) -> Metrics:
    """Return the results of the step facts.

    Raises:
        RefusedError: there are none.
    """
    if "facts" not in records or not records["facts"].results:
        raise RefusedError(
            "--page", None, "no results of the step facts there", "Give the --out of a run"
        )
    return records["facts"].results


def provenance(facts: Metrics, cpu: bool) -> str:
    """Command, date, hardware and versions."""
    command = f"make bench-gpu{' ARGS=--cpu' if cpu else ''}"
    card = f"{facts['device']}, driver {facts.get('driver')}"
    device = "No GPU, everything in miniature" if cpu else card
    versions = {**facts["versions"], "CUDA": facts["cuda"], "NCCL": facts.get("nccl")}
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"`{command}`, {facts['date']}, n = 1. {device}; {facts['cores']} cores of "
        f"{facts['processor']}, {facts['host_memory_bytes'] / 2**30:.0f} GiB. {named}."
    )


def _steps(records: Records) -> str:
    rows: list[tuple[str, ...]] = [("step", "outcome", "seconds", "limit", "")]
    for name, found in records.items():
        limit = "" if found.limit_seconds is None else f"{found.limit_seconds:,.0f}"
        rows.append((name, found.status, f"{found.seconds:,.0f}", limit, found.reason))
    return table(rows)


def _machine(facts: Metrics) -> str:
    """The measured rates, and what the card says of itself."""
    rows: list[tuple[str, ...]] = [("what", "value")]
    for key, value in facts.items():
        name = key.replace("_", " ")
        if key.endswith("_flops_per_second"):
            rows.append((f"matrix product, {key.split('_')[0]}", f"{value / 1e12:,.2f} TFLOP/s"))
        elif key.endswith("_bytes_per_second"):
            copied = name.removesuffix(" bytes per second")
            rows.append((f"{copied}, bytes copied", f"{value / 1e9:,.1f} GB/s"))
        elif key == "gpu_memory_bytes":
            rows.append(("memory of the GPU", f"{value / 2**30:.0f} GiB"))
        elif key in ("multiprocessors", "compute_capability", "cudnn"):
            rows.append((name, str(value)))
    return table(rows)


def _smoke(results: Metrics) -> list[str]:
    rows: list[tuple[str, ...]] = [("case", "outcome", "seconds", "steps", "last loss", "")]
    tails: list[str] = []
    for name, case in results["cases"].items():
        loss = case.get("loss")
        rows.append(
            (
                name,
                case["status"],
                f"{case['seconds']:,.0f}",
                str(case.get("steps", "")),
                "" if loss is None else f"{loss:.3f}",
                case["reason"],
            )
        )
        if case["status"] != CASE_PASSED and case["tail"]:
            tails += ["", f"The end of the log of *{name}*:", "", "```", case["tail"], "```"]
    about = (
        "A case is at least one process of its own, compilation included; several run at once. "
        "joined: one rank in a process group, with DDP. stopped and resumed: equal, bit for bit, "
        "to a run without a stop."
    )
    return [about, "", table(rows), *tails]


def _tests(results: Metrics) -> list[str]:
    if "passed" not in results:
        return [results["problem"]]
    counts = ", ".join(f"{results[key]} {key}" for key in ("passed", "failed", "skipped"))
    lines = [f"`pytest -m '{results['marker']}'`: {counts}, in {results['seconds']:,.0f} s."]
    for name, message in results["failures"].items():
        lines += ["", f"`{name}`:", "", "```", message.strip(), "```"]
    return lines


def _full_size(results: Metrics) -> list[str]:
    return full_size.body(results, results["phases"])


def readme_table(records: Records) -> str:
    """The README's lines about the GPU. Pure.

    Raises:
        RefusedError: the results are a miniature's, or those of a step that has to be in the table
            are missing.
    """
    facts = facts_of(records)
    if records["facts"].cpu:
        raise RefusedError(
            "--page", None, "measured on CPU in miniature, nothing for the README",
            "Give the --out of a run on a GPU",
        )  # fmt: skip
    rows = [*_speed_rows(records), *_full_size_rows(records)]
    if not rows:
        raise RefusedError(
            "--page", None, "neither the step speed nor full-size has a result",
            "Run them: make bench-gpu ARGS='--only speed full-size'",
        )  # fmt: skip
    return "\n".join(
        [
            f"On one GPU (`make bench-gpu`, {facts['date']}, n = 1, {facts['device']}, "
            f"{facts['cores']} cores, torch {facts['versions']['torch']}; "
            f"[page](benchmarks/results/{PAGE})):",
            "",
            table([("training", "drawings/s", ""), *rows]),
        ]
    )


def _speed_rows(records: Records) -> list[tuple[str, ...]]:
    if "speed" not in records:
        return []
    results = records["speed"].results
    cases, metrics = results.get("cases", {}), results.get("metrics", {})
    rows: list[tuple[str, ...]] = []
    if "ours" in cases:
        rate, share = cases["ours"]["per_second"], metrics["share_of_matrix_peak"]
        wait = metrics["data_wait_share"]
        note = f"{share:.0%} of the largest matrix product, data wait {wait:.2%}"
        rows.append(("SketchCNN, streamed from shards", f"**{rate:,}**", note))
    if "resident" in cases:
        ratio = metrics["resident_ratio"]
        note = "" if ratio is None else f"{ratio} of streamed"
        rows.append(("the same, resident", f"{cases['resident']['per_second']:,}", note))
    small = [case["per_second"] for name, case in cases.items() if name.startswith("small")]
    if small:
        ratio = metrics["baseline_ratio"]
        note = "" if ratio is None else f"streamed is {ratio} times as fast"
        rows.append(("a typical small project's loop", f"{max(small):,}", note))
    return rows


def _full_size_rows(records: Records) -> list[tuple[str, ...]]:
    """The epochs of the rehearsals that were trained to their end."""
    kinds = {full_size.STREAMED: "streamed", full_size.RESIDENT: "resident"}
    rows: list[tuple[str, ...]] = []
    for step, content in (("full-size", "drawings"), ("strokes", "drawings as strokes")):
        phases = records[step].results.get("phases", {}) if step in records else {}
        for name, result in phases.items():
            if name in kinds and result["exit_code"] == 0:
                what = f"an epoch of {result['drawings']:,} {content}, {kinds[name]}"
                note = f"{result['seconds']:,.0f} s, start-up and validation included"
                rows.append((what, f"{result['drawings_per_second']:,}", note))
    return rows


def filled(readme: str, block: str) -> str:
    """Replace what is between the markers. Pure.

    Raises:
        RefusedError: the markers are missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RefusedError(
            "README.md", None, "without the markers of the GPU's table", f"Add {BEGIN} and {END}"
        )
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def write_pages(records: Records, root: Path) -> None:
    """Write the page and fill the README's table; write neither if one of them is refused."""
    page, readme = text(records), root / "README.md"
    new = filled(readme.read_text(encoding="utf-8"), readme_table(records))
    (root / "benchmarks" / "results" / PAGE).write_text(page, encoding="utf-8")
    readme.write_text(new, encoding="utf-8")
