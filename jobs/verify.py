"""Check a dataset byte by byte: python -m jobs.verify DATA [--source SOURCE]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

from tqdm import tqdm

from jobs.command import run
from quickdraw_dist.base import storage
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings.sources import open_source, source_address
from quickdraw_dist.data.shards import integrity, manifest
from quickdraw_dist.data.verify import find_problems

EPILOG = """\
Reads every shard and checks the checksums of shards and blocks, that every (class, row) of the
source is there exactly once over all splits, and labels and counts. With --source it also compares
every pixel, or every point of strokes, with the source, and the MD5 of every source file that has
an official name and size.
Exit codes: 0 no problem found, 2 problems found (printed), 130 interrupted, 143
ended by TERM, otherwise 1.

examples:
  python -m jobs.verify data/shards
  python -m jobs.verify gs://BUCKET/quickdraw --source gs://quickdraw_dataset/full/numpy_bitmap
"""

_SHOWN = 20
"""Most problems to print: a wrong folder would fill the screen."""


def main(argv: Sequence[str] | None = None) -> None:
    """Check the dataset and print its size and digest.

    Raises:
        CorruptError: problems were found; lists them.
    """
    parser = Parser("python -m jobs.verify", "Check a dataset byte by byte.", EPILOG)
    folder_help = "dataset folder or gs:// address [--data]"
    parser.add_argument("dataset", nargs="?", type=storage.address, help=folder_help)
    source_help = "compare every drawing with this source, as in jobs.shard"
    parser.add_argument("--source", type=source_address, help=source_help)
    settings, arguments = load(parser, argv, ("data",))
    folder = arguments.dataset or settings.data
    dataset = manifest.read(folder)
    source = None
    if arguments.source:
        content, records = dataset.settings.content, storage.join(folder, "parts")
        source = open_source(arguments.source, dataset.classes, content, records, keep=False)
    blank: Counter[str] = Counter()
    total = sum(file.drawings for file in dataset.source_files)
    with tqdm(total=total, unit=" drawings", unit_scale=True) as bar:
        problems = find_problems(folder, dataset, source, bar.update, blank)
        found = list(islice(problems, _SHOWN + 1))
    if found:
        if len(found) > _SHOWN:
            found[_SHOWN] = "and more; repair these and verify again"
        raise CorruptError("\n       ".join(found), problems=found)
    counts = {file.name: file.drawings for file in dataset.source_files}
    text = integrity.blank_summary(blank, counts)
    unit = "pixel" if dataset.settings.content == "bitmaps" else "point"
    shards = sum(len(entries) for entries in dataset.splits.values())
    print(
        f"{folder}: {total:,} drawings of {len(dataset.classes)} classes in {shards} shards: "
        f"checksums right, every row exactly once, labels right"
        + (f", every {unit} equal to the source's" if source else "")
        + (f"\nblank: {text}" if text else "")
        + f"\ndigest {dataset.digest}"
    )


if __name__ == "__main__":
    run(main)
