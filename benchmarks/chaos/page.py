"""The results of `chaos` as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks.chaos.plan import EXIT_CODES, Report, repeated_steps
from benchmarks.measure import Metrics, environment, table


def summary(reports: Sequence[Report], last_resumed: int | None) -> str:
    """A table with a row for every target; the last start resumed from that step."""
    resumed = [*(report.resumed for report in reports), last_resumed]
    repeated = repeated_steps(resumed, [report.reached for report in reports])
    rows = [("target", "blows", "in start-up", "exit codes", "all gone within", "steps done again")]
    for target in EXIT_CODES:
        pairs = zip(reports, repeated, strict=True)
        chosen = [(report, again) for report, again in pairs if report.target == target]
        if not chosen:
            continue
        codes = sorted({report.exit_code for report, _ in chosen})
        rows.append(
            (
                "SIGTERM to the launcher" if target == "TERM" else f"SIGKILL {target}",
                str(len(chosen)),
                str(sum(report.phase == "start-up" for report, _ in chosen)),
                ", ".join(map(str, codes)),
                f"{max(report.gone_seconds for report, _ in chosen):.2f} s",
                str(sum(again for _, again in chosen)),
            )
        )
    return table(rows)


def page(about: str, reports: Sequence[Report], last_resumed: int | None, metrics: Metrics) -> str:
    """Markdown with every blow of the run."""
    known = environment("torch", "numpy")
    return "\n".join(
        [
            "# A hundred kills" if metrics["kills"] == 100 else f"# {metrics['kills']} kills",
            "",
            f"`make chaos ARGS=--page`, {known['date']}, n = 1. {known['hardware']}. "
            f"{known['versions']}.",
            "",
            f"{about}; `deterministic`, gradient accumulation, augmentation, a moving average and "
            "an evaluation an epoch; started again with the same command after every blow.",
            "",
            "```json",
            json.dumps(metrics),
            "```",
            "",
            summary(reports, last_resumed),
            "",
            "## The log",
            "",
            "```",
            *(f"{number:3}  {report}" for number, report in enumerate(reports, 1)),
            "```",
            "",
        ]
    )
