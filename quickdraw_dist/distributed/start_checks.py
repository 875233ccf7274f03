"""Check before any work that all ranks were started for the same run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from quickdraw_dist.base.errors import RefusedError, TrainingError
from quickdraw_dist.base.settings import Settings, leaves
from quickdraw_dist.distributed import ranks

_OWN = (
    "data", "stream.threads", "stream.memory_bytes", "stream.cache_folder", "stream.cache_bytes",
    "metrics.port", "metrics.host",
)  # fmt: skip
"""Settings that may differ per node: neither the order nor the weights depend on them. (Where
`data` differs, the dataset digest must still be equal.)"""

_START = "--rdzv-id"
"""What torchrun was given to tell this start of the run from others."""


def check_same(settings: Settings, dataset_digest: str) -> None:
    """Check that start, code, torch, dataset and settings are the same on all ranks, which all call
    it.

    Raises:
        RefusedError: on every rank; names the first difference and the ranks that have each value.
        TrainingError: some ranks are of an earlier start, whose end this one did not wait for.
    """
    own = {_START: os.environ.get("TORCHELASTIC_RUN_ID", "none")}
    own |= {"the code of quickdraw_dist": code_version(), "torch": torch.__version__}
    own |= {"the dataset's digest": dataset_digest[:16]}
    own |= {
        f"--{name}": str(value) for name, value in leaves(settings.model_dump()) if name not in _OWN
    }
    difference = first_difference(ranks.gather_objects(own))
    if difference is not None and difference.startswith(_START):
        raise TrainingError(f"ranks of two starts met: {difference}. End the earlier one first")
    if difference is not None:
        raise RefusedError(
            "ranks disagree",
            None,
            difference,
            "Start every node with the same code, command line, environment and --config file",
        )


def code_version() -> str:
    """Return a digest of the source files of this package."""
    home, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def first_difference(values: Sequence[Mapping[str, str]]) -> str | None:
    """Return the first difference as 'x is 1 on rank 0, 2 on ranks 1-3', or None; pure.

    Args:
        values: one mapping per rank, from name to value, compared in the order of the names.
    """
    for name in dict.fromkeys(name for one in values for name in one):
        holders: dict[str, list[int]] = {}
        for rank, one in enumerate(values):
            holders.setdefault(one.get(name, "unknown"), []).append(rank)
        if len(holders) > 1:
            return f"{name} is " + ", ".join(f"{v} on {spell(r)}" for v, r in holders.items())
    return None


def spell(numbers: Iterable[int]) -> str:
    """Return 'rank 3' or 'ranks 0-2, 5'; pure. `numbers` rise."""
    runs: list[list[int]] = []
    for rank in numbers:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    alone = len(runs) == 1 and len(runs[0]) == 1
    return ("rank " if alone else "ranks ") + ", ".join("-".join(map(str, run)) for run in runs)
