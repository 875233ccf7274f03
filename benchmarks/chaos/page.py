"""The results of `chaos` as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence

from benchmarks.chaos.plan import EXIT_CODES, Outcome, repeated_steps
from benchmarks.measure import Metrics, provenance, table


def summary(outcomes: Sequence[Outcome], last_resumed: int | None) -> str:
    """A table with a row per target; the last start resumed from step `last_resumed`."""
    resumed = [*(outcome.resumed for outcome in outcomes), last_resumed]
    repeated = repeated_steps(resumed, [outcome.reached for outcome in outcomes])
    rows: list[tuple[str, ...]] = [
        ("target", "faults", "in start-up", "exit codes", "all ended within", "steps repeated")
    ]
    for target in EXIT_CODES:
        pairs = zip(outcomes, repeated, strict=True)
        chosen = [(outcome, steps) for outcome, steps in pairs if outcome.target == target]
        if not chosen:
            continue
        codes = sorted({outcome.exit_code for outcome, _ in chosen})
        rows.append(
            (
                "SIGTERM to the launcher" if target == "TERM" else f"SIGKILL {target}",
                str(len(chosen)),
                str(sum(outcome.phase == "start-up" for outcome, _ in chosen)),
                ", ".join(map(str, codes)),
                f"{max(outcome.end_seconds for outcome, _ in chosen):.2f} s",
                str(sum(steps for _, steps in chosen)),
            )
        )
    return table(rows)


def page(
    about: str, outcomes: Sequence[Outcome], last_resumed: int | None, metrics: Metrics
) -> str:
    """Markdown with the summary and every fault of the run."""
    return "\n".join(
        [
            "# A hundred kills" if metrics["kills"] == 100 else f"# {metrics['kills']} kills",
            "",
            provenance("make chaos ARGS=--page", "n = 1", "torch", "numpy"),
            "",
            f"{about}; `deterministic`, gradient accumulation, augmentation, a moving average and "
            "an evaluation per epoch; started again with the same command after every fault.",
            "",
            "```json",
            json.dumps(metrics),
            "```",
            "",
            summary(outcomes, last_resumed),
            "",
            "## The log",
            "",
            "```",
            *(f"{number:3}  {outcome}" for number, outcome in enumerate(outcomes, 1)),
            "```",
            "",
        ]
    )
