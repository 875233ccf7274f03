"""Before any work: do all ranks mean the same run?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, leaves
from quickdraw_dist.distributed import ranks as distributed

_OWN = (
    "data", "stream.threads", "stream.memory_bytes", "stream.cache_folder", "stream.cache_bytes",
    "metrics.port", "metrics.host",
)  # fmt: skip
"""Settings that may be each node's own: neither the order nor the weights depend on them. (Where
`data` differs, the dataset's digest still has to be the same.)"""


def refuse_differences(settings: Settings, dataset_digest: str) -> None:
    """Compare what every rank is about to train on and with; all ranks call it.

    Raises:
        RefusedError: on every rank; names the first difference, and who has what.
    """
    facts = {"the code of quickdraw_dist": code_version(), "torch": torch.__version__}
    facts |= {"the dataset's digest": dataset_digest[:16]}
    facts |= {
        f"--{name}": str(value) for name, value in leaves(settings.model_dump()) if name not in _OWN
    }
    difference = first_difference(distributed.gather_objects(facts))
    if difference is not None:
        raise RefusedError(
            f"ranks do not agree: {difference}. The same code, command line, environment and "
            "--config file on every node are right"
        )


def code_version() -> str:
    """Names the source files of this package."""
    home, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home)} {path.stat().st_size} ".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def first_difference(facts: Sequence[Mapping[str, str]]) -> str | None:
    """The first fact that is not the same for all ranks, as 'x is 1 on rank 0, 2 on ranks 1-3';
    pure. `facts` are the ranks' by name, in the order in which they are to be looked at."""
    for name in dict.fromkeys(name for one in facts for name in one):
        holders: dict[str, list[int]] = {}
        for rank, one in enumerate(facts):
            holders.setdefault(one.get(name, "unknown"), []).append(rank)
        if len(holders) > 1:
            return f"{name} is " + ", ".join(f"{v} on {spell(r)}" for v, r in holders.items())
    return None


def spell(ranks: Iterable[int]) -> str:
    """'rank 3', 'ranks 0-2, 5'; pure. `ranks` in rising order."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    alone = len(runs) == 1 and len(runs[0]) == 1
    return ("rank " if alone else "ranks ") + ", ".join("-".join(map(str, run)) for run in runs)
