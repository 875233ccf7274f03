"""Estimate what a run needs: python -m jobs.plan --data D --world-size 16 --nodes 2."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields

from jobs.command import real_number, run, whole_number
from jobs.shard import OFFICIAL
from quickdraw_dist.base import storage
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.capacity import outline
from quickdraw_dist.data.capacity.estimate import SHARD_DRAWINGS_PER_SECOND, Cluster, capacity
from quickdraw_dist.data.capacity.text import format_capacity
from quickdraw_dist.data.drawings.sources import count_drawings, source_address
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.plan import Plan

EPILOG = """\
Prints steps, shards, memory, cache, store requests and durations: from the manifest of a dataset,
or before there is one from a source or the official counts (assuming shards in a bucket that
compress like the official drawings). Refuses what a run would refuse.

examples:
  python -m jobs.plan --official --world-size 16 --nodes 2 --drawings-per-second 40000
  python -m jobs.plan --data gs://B/quickdraw --world-size 8 --stream.resident true --gpu-bytes 80e9
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Compute and print the estimate."""
    parser = Parser("python -m jobs.plan", "Estimate what a run needs.", EPILOG)
    before = parser.add_mutually_exclusive_group()
    before.add_argument("--official", action="store_true", help="plan for the official drawings")
    source_help = (
        "plan for these drawings, as in jobs.shard; files of strokes are read whole to count them, "
        "except Google's own"
    )
    before.add_argument("--source", type=source_address, help=source_help)
    rates = " or ".join(f"{rate:,.0f} {of}" for of, rate in SHARD_DRAWINGS_PER_SECOND.items())
    numbers = {
        "--world-size": (whole_number, 1, "ranks, one per GPU [1]"),
        "--nodes": (whole_number, 1, "machines that the ranks run on [1]"),
        "--gpu-bytes": (whole_number, None, "memory of one GPU in bytes, such as 80e9"),
        "--drawings-per-second": (real_number, None, "training rate of one rank"),
        "--shard-workers": (whole_number, 1, "processes that shard, over all workers [1]"),
        "--shard-drawings-per-second": (real_number, None, f"rate of one of them [{rates}]"),
    }
    for name, (kind, default, text) in numbers.items():
        parser.add_argument(name, type=kind, default=default, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print all numbers as one line of JSON")
    settings, given = load(parser, argv, ("data", "shard", "stream", "train", "evaluation"))
    dataset, where = _outline(settings, given)
    planned = given.official or given.source is not None
    own = {f.name: getattr(given, f.name) for f in fields(Cluster) if f.name in given}
    cluster = Cluster(remote=planned or storage.is_remote(settings.data), **own)
    needs = capacity(dataset, cluster, settings)
    if given.json:
        print(json.dumps(asdict(needs)))
    else:
        print(f"dataset   {len(dataset.plan.classes):,} classes, {where}\n{format_capacity(needs)}")


def _outline(settings: Settings, given: argparse.Namespace) -> tuple[outline.Outline, str]:
    """The dataset to plan for, and where its sizes come from."""
    if given.official:
        plan = outline.official_plan(settings.shard)
        return outline.of_plan(plan, OFFICIAL), "planned from the official counts"
    if given.source is not None:
        source = count_drawings(given.source, settings.shard.classes, settings.shard.content)
        plan = Plan(source.classes, source.counts, settings.shard, source.identity)
        return outline.of_plan(plan, given.source), f"planned from {given.source}"
    if settings.stream.reader == "webdataset":
        problem = "external data has no manifest that says how many drawings are in which block"
        remedy = "Remove it, and plan for the same drawings as shards of ours with --source"
        raise RefusedError("--stream.reader", "webdataset", problem, remedy)
    try:
        dataset = manifest.read_trainable(settings.data)
    except RefusedError as error:
        remedy = f"{error.remedy}. To plan before that, give --official or --source".lstrip(". ")
        raise RefusedError(error.subject, error.value, error.problem, remedy) from None
    return outline.of_manifest(dataset), f"as sharded in {settings.data}"


if __name__ == "__main__":
    run(main)
