"""Shard a source of drawings into a dataset: python -m jobs.shard --source A --dest B."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from tqdm import tqdm

from jobs.command import run, whole_number, worker_share
from quickdraw_dist.base import storage
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.process.cpus import processors
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.sources import count_drawings, open_source, source_address
from quickdraw_dist.data.shards import integrity, manifest, writer
from quickdraw_dist.data.shards.plan import Plan, describe
from quickdraw_dist.data.shards.schema import Manifest, PartFile

OFFICIAL = "gs://quickdraw_dataset/full/numpy_bitmap"

EPILOG = """\
A finished group is skipped, so the same command again continues; the bytes do not depend on how
many workers and processes write them. On a cluster every worker runs the same command: --worker and
--of default to JOB_COMPLETION_INDEX (give --of) or to the variables of a Slurm array, which may
start at any number and have a step.
The worker that finishes last writes manifest.json.
Sources: gs://quickdraw_dataset/full/numpy_bitmap (.npy, 39.5 GB), binary (.bin, 5.9 GB), simplified
and raw (.ndjson, 24 and 195 GB). The last three hold strokes: --shard.content strokes keeps them,
bitmaps draws them as the official bitmaps were. Stroke files are first read once for their records,
which DEST/parts keeps.
Exit codes: 0 done, 2 refused (do not retry), 130 interrupted, 143 ended by TERM, otherwise 1.

examples:
  python -m jobs.shard --source 'synthetic:?classes=20&per_class=1000' --dest data/try
  python -m jobs.shard --source gs://quickdraw_dataset/full/numpy_bitmap --dest gs://B/quickdraw
  python -m jobs.shard --source gs://quickdraw_dataset/full/binary --dest gs://B/strokes \
    --shard.content strokes
  python -m jobs.shard --source DIR --dest DIR --worker 0 --of 3 --shard.drawings_per_shard 8192
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Build this worker's groups that are not done, and merge when all groups are done."""
    parser = Parser("python -m jobs.shard", "Write drawings into shards.", EPILOG)
    parser.add_argument("--source", type=source_address, default=OFFICIAL, help="folder or gs:// "
                        "address of .npy, .bin or .ndjson files, or "
                        "synthetic:?classes=&per_class=&seed= "
                        f"[{OFFICIAL}]")  # fmt: skip
    dest_help = "folder or gs:// address of the dataset [--data]"
    parser.add_argument("--dest", type=storage.address, help=dest_help)
    parser.add_argument("--worker", type=int, metavar="I", help="number of this worker, from 0 [0]")
    parser.add_argument("--of", type=int, metavar="N", help="number of workers [1]")
    parser.add_argument("--processes", type=whole_number, metavar="N", help="processes [all CPUs]")
    parser.add_argument("--merge", action="store_true", help="build nothing, write manifest.json")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; keeps "
                        "nothing, but reads files of strokes whole to count them, except Google's "
                        "own and those with records in DEST/parts")  # fmt: skip
    settings, arguments = load(parser, argv, ("data", "shard"))
    dest = arguments.dest or settings.data
    worker, of = worker_share(arguments.worker, arguments.of)
    if not storage.is_remote(dest) and Path(dest).exists() and not Path(dest).is_dir():
        raise RefusedError("--dest", dest, "is a file", "Give a folder or a gs:// address")

    shard, records = settings.shard, storage.join(dest, "parts")
    processes = arguments.processes or processors()
    if arguments.dry_run:  # leaves nothing behind
        counts = count_drawings(arguments.source, shard.classes, shard.content, records)
        plan = Plan(counts.classes, counts.counts, shard, counts.identity)
        _print_plan(plan, arguments.source, dest, processes)
        return
    source = open_source(arguments.source, shard.classes, shard.content, records)
    plan = Plan(source.classes, source.counts, shard, source.identity)
    done = writer.finished_groups(plan, dest)
    dataset = None if arguments.merge else writer.finished_dataset(plan, dest, done)
    if dataset is None:
        processes = _print_plan(plan, arguments.source, dest, processes)
        share = range(worker, plan.groups, of)
        if not arguments.merge and any(group not in done for group in share):
            _build(plan, share, source, dest, processes, done)
            done = writer.finished_groups(plan, dest)
        dataset = _merge(plan, source, dest, done)
    if dataset is not None:
        files = dataset.source_files
        blank = {file.name: file.blank for file in files}
        if text := integrity.blank_summary(blank, {file.name: file.drawings for file in files}):
            print(f"blank     {text}")
        print(f"checked   {integrity.summary(dataset.source_files)}")
        print(f"{storage.join(dest, manifest.NAME)}: complete, digest {dataset.digest[:16]}")
        return
    missing = [group for group in range(plan.groups) if group not in done]
    left = f"{len(missing)} of {plan.groups} groups are not done yet, the first {missing[0]}"
    if arguments.merge:
        raise RefusedError(dest, None, left, "Run their workers, then --merge again")
    print(f"{dest}: {left}; the worker that finishes last merges")


def _print_plan(plan: Plan, source: str, dest: str, processes: int) -> int:
    """Print the plan; returns the number of processes, not more than there are groups."""
    processes = max(min(processes, plan.groups), 1)
    print(f"{source} -> {dest}\n{describe(plan, processes)}")
    return processes


def _build(
    plan: Plan, share: range, source: Source, dest: str, processes: int, done: Collection[int]
) -> None:
    """Build the groups of this worker's share that are not done, with a progress bar."""
    mine = [group for group in share if group not in done]
    left = plan.estimated_bytes * len(mine) // plan.groups
    storage.check_free_space(dest, left, "Free some, or give another --dest")
    total, to_do = (int(plan.split_sizes[groups].sum()) for groups in (share, mine))
    with tqdm(total=total, initial=total - to_do, unit=" drawings", unit_scale=True) as bar:
        writer.build(plan, mine, source, dest, processes, bar.update)


def _merge(plan: Plan, source: Source, dest: str, done: dict[int, PartFile]) -> Manifest | None:
    """If all groups are done, check the source, write the manifest and return it."""
    if len(done) < plan.groups:
        return None
    with tqdm(total=len(plan.classes), unit=" files", desc="checksums of the source") as bar:
        return writer.merge_if_complete(plan, source, dest, done, bar.update)


if __name__ == "__main__":
    run(main)
