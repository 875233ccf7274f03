"""Prove a dataset: python -m jobs.verify DATA [--source SOURCE]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from tqdm import tqdm

from jobs.command import run
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.verify import find_problems

EPILOG = """\
Checks the checksum of every shard and block, that every (class, row) of the source is there
exactly once over all splits, and labels and counts; with --source every pixel, too, and the
MD5 of every file there that has an official name and size.

  python -m jobs.verify data/shards --source ../shared/quickdraw/numpy_bitmap
"""

_SHOWN = 20
"""Problems printed before giving up: a wrong folder would fill the screen."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, check, say what is wrong."""
    parser = Parser("python -m jobs.verify", "Prove a dataset.", EPILOG)
    parser.add_argument("dataset", nargs="?", help="dataset folder or gs:// [the setting data]")
    parser.add_argument("--source", help="compare every pixel with this source")
    settings, arguments = load(parser, argv, ("data",))
    folder = arguments.dataset or settings.data
    dataset = manifest.read(folder)
    source = open_source(arguments.source, dataset.classes) if arguments.source else None
    total = sum(file.drawings for file in dataset.source_files)
    with tqdm(total=total, unit=" drawings", unit_scale=True) as bar:
        found = list(islice(find_problems(folder, dataset, source, bar.update), _SHOWN + 1))
    if found:
        if len(found) > _SHOWN:
            found[_SHOWN] = "and more; verify again when these are repaired"
        raise CorruptError("\n       ".join(found))
    shards = sum(len(entries) for entries in dataset.splits.values())
    print(
        f"{folder}: {total:,} drawings of {len(dataset.classes)} classes in {shards} shards: "
        f"checksums right, every row exactly once, labels right"
        + (", every pixel equal to the source's" if source else "")
        + f"\ndigest {dataset.digest}"
    )


if __name__ == "__main__":
    run(main)
