"""Evaluate a checkpoint: python -m jobs.evaluate --checkpoint runs/quickdraw --split test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from jobs.command import run
from quickdraw_dist.base import storage
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.order.memory import default_threads
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.plan import SPLITS
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.distributed.ranks import World, choose_device
from quickdraw_dist.evaluation.metrics import MISTAKES, Evaluation, evaluate
from quickdraw_dist.evaluation.report import write_report
from quickdraw_dist.models.input import Normalisation
from quickdraw_dist.run.checkpoint import files as checkpoint

EPILOG = """\
Prints the metrics as one line of JSON and writes a folder with a report, index.html, that shows the
confusion matrix, the accuracy per class and the most confident mistakes.

examples:
  python -m jobs.evaluate --checkpoint runs/quickdraw --split test --data data/shards
  python -m jobs.evaluate --checkpoint gs://B/run/checkpoints/step-000012345 --data gs://B/quickdraw
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the checkpoint, write the report and print the metrics."""
    parser = Parser("python -m jobs.evaluate", "Evaluate a checkpoint on a whole split.", EPILOG)
    parser.add_argument("--checkpoint", help="checkpoint, or run (its best one) [--output]")
    parser.add_argument("--split", choices=SPLITS, default="test", help="split to use [test]")
    parser.add_argument(
        "--report", metavar="DIR", help="folder or gs:// address to write to [RUN/report-SPLIT]"
    )
    settings, arguments = load(parser, argv, ("data", "output", "evaluation"))
    saved = checkpoint.load_best(arguments.checkpoint or settings.output)
    url, dataset = saved.url, manifest.read_trainable(settings.data)
    if list(dataset.classes) != (trained := saved.meta["classes"]):
        problem = f"has {len(dataset.classes)} classes, {url} was trained on {len(trained)} others"
        raise RefusedError("--data", settings.data, problem, "Give the checkpoint's dataset")
    result = _evaluate(saved, dataset, arguments.split, settings)
    absolute = url.rstrip("/") if storage.is_remote(url) else str(Path(url).resolve())
    run_folder = absolute.rsplit("/", 2)[0]  # above checkpoints/step-...
    folder = arguments.report or storage.join(run_folder, f"report-{arguments.split}")
    with TemporaryDirectory() as scratch:
        page = write_report(
            result,
            Path(scratch if storage.is_remote(folder) else folder),
            title=f"{saved.meta['config']['model']['name']} on {len(dataset.classes)} classes",
            details={
                "checkpoint": url,
                "trained on": f"{saved.meta['drawings']:,} drawings, {saved.meta['epoch']} epochs",
                "dataset": f"{settings.data}, digest {dataset.digest[:16]}",
                "versions": ", ".join(f"{k} {v}" for k, v in checkpoint.versions().items()),
            },
        )
        if storage.is_remote(folder):
            for file in page.parent.iterdir():
                storage.publish(storage.join(folder, file.name), file.read_bytes())
    print(f"report: {storage.join(folder, page.name)}")
    print(json.dumps(result.metrics()))


def _evaluate(
    saved: checkpoint.Checkpoint, dataset: manifest.Manifest, split: str, settings: Settings
) -> Evaluation:
    """Evaluate a whole split in this process, with a progress bar."""
    gpus, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    device = torch.device(choose_device(settings.train.device, 0, 1, gpus, mps))
    reader = SplitReader(settings.data, dataset, split, settings.stream)
    threads, batch = settings.stream.threads or default_threads(1), settings.evaluation.batch
    batches = evaluation_batches(reader, rank=0, world_size=1, batch=batch, threads=threads)
    total = -(-dataset.drawings(split) // batch)
    return evaluate(
        checkpoint.build_model(saved).to(device),
        tqdm(batches, total=total, unit=" drawings", unit_scale=batch),
        split=split,
        classes=dataset.classes,
        normalisation=Normalisation(**saved.meta["normalisation"]),
        world=World(0, 1, 0, 1, device),
        autocast=torch.autocast(device.type, enabled=False),
        keep_mistakes=MISTAKES,
    )


if __name__ == "__main__":
    run(main)
