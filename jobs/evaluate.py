"""Measure a checkpoint: python -m jobs.evaluate --checkpoint runs/quickdraw --split test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from jobs.command import run
from quickdraw_dist.base import storage
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.order.memory import processor_share
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.plan import SPLITS
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.distributed.ranks import World, choose_device
from quickdraw_dist.evaluation.metrics import MISTAKES, Evaluation, evaluate
from quickdraw_dist.evaluation.report import write_report
from quickdraw_dist.run.checkpoint import files as checkpoint

EPILOG = """\
Prints the figures as one line of JSON and writes a folder of pictures with an index.html.
--checkpoint is a run's folder (its best checkpoint is taken) or one checkpoints/step-... of it.

  python -m jobs.evaluate --checkpoint runs/quickdraw --split test --data data/shards
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, evaluate, report."""
    parser = Parser("python -m jobs.evaluate", "Measure a checkpoint.", EPILOG)
    parser.add_argument("--checkpoint", help="run or checkpoint [the setting output]")
    parser.add_argument("--split", choices=SPLITS, default="test", help="what to measure on [test]")
    parser.add_argument(
        "--report", metavar="DIR", help="folder of the report, or gs:// [RUN/report-SPLIT]"
    )
    settings, arguments = load(parser, argv, ("data", "output", "evaluation"))
    url = checkpoint.find(arguments.checkpoint or settings.output)
    saved = checkpoint.load(url)
    dataset = manifest.read_trainable(settings.data)
    if list(dataset.classes) != saved.meta["classes"]:
        raise RefusedError(
            f"{settings.data}: has {len(dataset.classes)} classes, {url} was trained on "
            f"{len(saved.meta['classes'])}, other ones; its own dataset is right: --data"
        )
    result = _measure(saved, dataset, arguments.split, settings)
    place = arguments.report or storage.join(_run_folder(url), f"report-{arguments.split}")
    with TemporaryDirectory() as scratch:
        page = write_report(
            result,
            Path(scratch if storage.is_remote(place) else place),
            title=f"{saved.meta['config']['model']['name']} on {len(dataset.classes)} classes",
            facts={
                "checkpoint": url,
                "trained on": f"{saved.meta['drawings']:,} drawings, {saved.meta['epoch']} epochs",
                "dataset": f"{settings.data}, digest {dataset.digest[:16]}",
                "versions": ", ".join(f"{k} {v}" for k, v in checkpoint.versions().items()),
            },
        )
        if storage.is_remote(place):
            for file in page.parent.iterdir():
                storage.publish(storage.join(place, file.name), file.read_bytes())
    print(f"report: {storage.join(place, page.name)}")
    print(json.dumps(result.figures()))


def _measure(
    saved: checkpoint.Checkpoint, dataset: manifest.Manifest, split: str, settings: Settings
) -> Evaluation:
    """The figures of a whole split in this one process, with a progress bar."""
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    device = torch.device(choose_device(settings.train.device, 0, 1, gpus, mps))
    batches = evaluation_batches(
        SplitReader(settings.data, dataset, split, settings.stream),
        rank=0,
        world_size=1,
        batch=settings.evaluation.batch,
        threads=settings.stream.threads or processor_share(1),
    )
    with tqdm(total=dataset.drawings(split), unit=" drawings", unit_scale=True) as bar:
        return evaluate(
            checkpoint.build_model(saved).to(device),
            _counted(batches, bar),
            split=split,
            classes=dataset.classes,
            mean=saved.meta["normalisation"]["mean"],
            std=saved.meta["normalisation"]["std"],
            world=World(0, 1, 0, 1, device),
            autocast=torch.autocast(device.type, enabled=False),
            keep_mistakes=MISTAKES,
        )


def _run_folder(checkpoint_url: str) -> str:
    """What a checkpoint belongs to."""
    if storage.is_remote(checkpoint_url):
        return checkpoint_url.rstrip("/").rsplit("/", 2)[0]
    return str(Path(checkpoint_url).resolve().parents[1])


def _counted(batches: Iterator[Batch], bar: tqdm[Any]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        bar.update(len(batch.labels))


if __name__ == "__main__":
    run(main)
