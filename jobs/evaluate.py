"""Evaluate a checkpoint: python -m jobs.evaluate --checkpoint runs/quickdraw --split test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from jobs.command import run
from quickdraw_dist.base import storage
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.units import counted
from quickdraw_dist.data.external.feed import batches_in_order
from quickdraw_dist.data.external.shards import find_shards
from quickdraw_dist.data.feed import open_dataset
from quickdraw_dist.data.order.memory import default_threads
from quickdraw_dist.data.shards.plan import SPLITS
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.distributed.ranks import World, choose_device
from quickdraw_dist.evaluation.metrics import MISTAKES, Evaluation, evaluate
from quickdraw_dist.evaluation.report import write_report
from quickdraw_dist.models.input import Raster
from quickdraw_dist.run.checkpoint import files as checkpoint

EPILOG = """\
Prints the metrics as one line of JSON and writes a folder with a report, index.html, that shows the
confusion matrix, the accuracy per class and the most confident mistakes.

examples:
  python -m jobs.evaluate --checkpoint runs/quickdraw --split test --data data/shards
  python -m jobs.evaluate --checkpoint gs://B/run/checkpoints/step-000012345 --data gs://B/quickdraw
  python -m jobs.evaluate --stream.reader webdataset --data 'data/mine/val-*.tar' --split val
With --stream.reader webdataset the .tar files in --data are what is evaluated, or those of its
folder train, val or test.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the checkpoint, write the report and print the metrics."""
    parser = Parser("python -m jobs.evaluate", "Evaluate a checkpoint on a whole split.", EPILOG)
    checkpoint_help = "checkpoint, or run (its best one) [--output]"
    parser.add_argument("--checkpoint", type=storage.address, help=checkpoint_help)
    parser.add_argument("--split", choices=SPLITS, default="test", help="split to use [test]")
    parser.add_argument(
        "--report",
        type=storage.address,
        metavar="DIR",
        help="folder or gs:// address to write to [RUN/report-SPLIT]",
    )
    settings, arguments = load(parser, argv, ("data", "output", "stream", "evaluation"))
    saved = checkpoint.load_best(arguments.checkpoint or settings.output)
    url, trained = saved.url, tuple(saved.meta["classes"])
    external = settings.stream.reader == "webdataset"
    chosen = (
        _open_external(arguments.split, settings, trained)
        if external
        else _open_sharded(arguments.split, settings)
    )
    if chosen.classes != trained:
        problem = f"has {len(chosen.classes)} classes, {url} was trained on {len(trained)} others"
        raise RefusedError("--data", settings.data, problem, "Give the checkpoint's dataset")
    raster = Raster.parse(saved.meta["raster"])
    if not raster.fits(chosen.content):
        problem = f"holds {chosen.content}, and {url} was trained on {raster.name}"
        raise RefusedError("--data", settings.data, problem, "Give a dataset of strokes")
    result = _evaluate(saved, chosen, arguments.split, settings)
    if not result.drawings:
        problem = "no drawings in its .tar files"
        raise RefusedError("--data", settings.data, problem, "Give files with samples")
    absolute = url.rstrip("/") if storage.is_remote(url) else str(Path(url).resolve())
    run_folder = absolute.rsplit("/", 2)[0]  # above checkpoints/step-...
    folder = arguments.report or storage.join(run_folder, f"report-{arguments.split}")
    with TemporaryDirectory() as scratch:
        page = write_report(
            result,
            Path(scratch if storage.is_remote(folder) else folder),
            title=f"{saved.meta['config']['model']['name']} on {len(trained)} classes",
            details={
                "checkpoint": url,
                "trained on": f"{saved.meta['drawings']:,} drawings, "
                f"{counted(saved.meta['epoch'], 'epoch')}",
                "dataset": chosen.origin,
                "versions": ", ".join(f"{k} {v}" for k, v in checkpoint.versions().items()),
            },
        )
        if storage.is_remote(folder):
            for file in page.parent.iterdir():
                storage.publish(storage.join(folder, file.name), file.read_bytes())
    print(f"report: {storage.join(folder, page.name)}")
    print(json.dumps(result.metrics()))


class _Split(NamedTuple):
    """The drawings to evaluate."""

    classes: tuple[str, ...]
    content: str  # bitmaps or strokes
    origin: str  # for the report
    batches: Iterator[Batch]
    drawings: int | None  # where it is known


def _open_sharded(split: str, settings: Settings) -> _Split:
    dataset = open_dataset(settings)
    assert isinstance(dataset, Manifest), "stream.reader is not webdataset"
    if not dataset.drawings(split):
        others = " or ".join(name for name in SPLITS if dataset.drawings(name))
        remedy = f"Use --split {others}"
        if split != "train":
            remedy += f", or shard again with a larger --shard.{split}_fraction"
        raise RefusedError("--split", split, f"{settings.data} has no drawings in it", remedy)
    reader = SplitReader(settings.data, dataset, split, settings.stream)
    threads, batch = settings.stream.threads or default_threads(1), settings.evaluation.batch
    batches = evaluation_batches(reader, rank=0, world_size=1, batch=batch, threads=threads)
    origin = f"{settings.data}, digest {dataset.digest[:16]}"
    return _Split(dataset.classes, dataset.content, origin, batches, dataset.drawings(split))


def _open_external(split: str, settings: Settings, trained: tuple[str, ...]) -> _Split:
    """Open the tars of the split's own folder in --data, else those that --data names."""
    data, stream = settings.data, settings.stream
    if split == "val" and stream.validation_data:
        data = stream.validation_data
    elif not data.endswith(".tar") and split in storage.folders(data):
        data = storage.join(data, split)
    shards = find_shards(data)
    if not shards:
        remedy = "Give a folder of .tar files or a pattern, or the --split whose folder is there"
        raise RefusedError("--data", data, f"no .tar file there for --split {split}", remedy)
    classes = tuple(stream.class_names or trained)
    urls = [shard.url for shard in shards]
    batches = batches_in_order(urls, len(classes), settings.evaluation.batch)
    return _Split(classes, "bitmaps", f"{data}, {counted(len(urls), 'shard')}", batches, None)


def _evaluate(
    saved: checkpoint.Checkpoint, chosen: _Split, split: str, settings: Settings
) -> Evaluation:
    """Evaluate a whole split in this process, with a progress bar."""
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    device = torch.device(choose_device(settings.train.device, 0, 1, gpus, mps))
    with tqdm(total=chosen.drawings, unit=" drawings", unit_scale=True) as bar:
        return evaluate(
            checkpoint.build_model(saved).to(device),
            _counted(chosen.batches, bar),
            split=split,
            classes=chosen.classes,
            source=checkpoint.network_input(saved).to(device),
            world=World(0, 1, 0, 1, device),
            autocast=torch.autocast(device.type, enabled=False),
            keep_mistakes=MISTAKES,
        )


def _counted(batches: Iterator[Batch], bar: tqdm[Any]) -> Iterator[Batch]:
    """Yield the batches, and advance the bar by the drawings of each."""
    for batch in batches:
        yield batch
        bar.update(len(batch.labels))


if __name__ == "__main__":
    run(main)
