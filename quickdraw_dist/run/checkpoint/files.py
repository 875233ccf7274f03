"""Checkpoints: save, find, verify, load, prune.

A checkpoint is a folder `checkpoints/step-000012345` of a run:

    model.safetensors   weights as `model.*`, their moving average as `ema.*`
    state.pt            optimizer and scaler; loaded with weights_only=True (no pickle)
    meta.json           position, order digest, validation, dataset, settings and versions
                        (collected in saver.py and trainer.py), with sizes and checksums of the
                        two; written last, so a folder without it is not a checkpoint
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from quickdraw_dist import models
from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.settings import Checkpoint as CheckpointSettings
from quickdraw_dist.base.settings import Model
from quickdraw_dist.models.input import NetworkInput, Normalisation, Raster

FORMAT_VERSION = 1

Tensors = Mapping[str, torch.Tensor]

_FILES = {"model.safetensors", "state.pt"}
_UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, EOFError),
    *(RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError),
)
"""What safetensors and torch.load raise for other bytes; crafted ones can cause any of them."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been verified and read."""

    url: str
    meta: dict[str, Any]
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]  # empty where the run keeps none
    state: dict[str, Any]


def folder(run: str) -> str:
    """Return the folder of a run's checkpoints."""
    return storage.join(run, "checkpoints")


def name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:09d}"


def versions() -> dict[str, str]:
    """Return the versions that a checkpoint is written with."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def save(
    run: str, step: int, weights: Tensors, average: Tensors, state: Any, meta: Mapping[str, Any]
) -> str:
    """Write a checkpoint and return its address; it exists once its meta.json does."""
    tensors = {f"model.{key}": value.detach().cpu().contiguous() for key, value in weights.items()}
    tensors |= {f"ema.{key}": value.detach().cpu().contiguous() for key, value in average.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    contents = {"model.safetensors": safetensors.torch.save(tensors), "state.pt": buffer.getvalue()}
    home = storage.join(folder(run), name(step))
    storage.remove_temporary_files(home)  # of a killed process: a run has one writer
    for file, data in contents.items():
        storage.publish(storage.join(home, file), data)
    sizes = {file: {"bytes": len(d), "crc32c": storage.crc32c(d)} for file, d in contents.items()}
    complete = {"format_version": FORMAT_VERSION, "step": step, **meta, "files": sizes}
    complete |= {"crc32c": _meta_crc32c(complete)}
    storage.publish(storage.join(home, "meta.json"), json.dumps(complete, indent=1).encode())
    return home


def _meta_crc32c(meta: Mapping[str, Any]) -> int:
    """Return the checksum of meta.json without its own entry."""
    rest = {key: value for key, value in meta.items() if key != "crc32c"}
    return storage.crc32c(json.dumps(rest, sort_keys=True).encode())


def read_meta(url: str) -> dict[str, Any]:
    """Return a checkpoint's meta.json.

    Raises:
        FileNotFoundError: there is none: not a checkpoint, or an incomplete one.
        CorruptError: it is unreadable.
        RefusedError: it has a newer format.
    """
    text = storage.read(storage.join(url, "meta.json"))
    try:
        meta = json.loads(text)
        version = meta["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{url}/meta.json", None, f"not a checkpoint's: {error}") from None
    if version != FORMAT_VERSION:
        raise RefusedError(
            url,
            None,
            f"checkpoint format {version}; this release reads {FORMAT_VERSION}",
            "Update quickdraw-dist",
        )
    if meta.get("crc32c") != _meta_crc32c(meta):
        raise CorruptError(f"{url}/meta.json", None, "contents differ from their crc32c")
    return dict(meta)


def load(url: str) -> Checkpoint:
    """Read a checkpoint after comparing both files with their checksums.

    Raises:
        FileNotFoundError: it is incomplete.
        CorruptError: a file, which the error names, is damaged.
        RefusedError: it has a newer format.
    """
    meta = read_meta(url)
    if set(meta["files"]) != _FILES:
        raise CorruptError(
            f"{url}/meta.json", None, f"lists other files than {', '.join(sorted(_FILES))}"
        )
    data = {file: storage.read(storage.join(url, file)) for file in sorted(_FILES)}
    for file, due in meta["files"].items():
        if (len(data[file]), storage.crc32c(data[file])) != (due["bytes"], due["crc32c"]):
            raise CorruptError(
                f"{url}/{file}",
                None,
                f"{len(data[file]):,} bytes with crc32c {storage.crc32c(data[file]):08x}; "
                f"meta.json says {due['bytes']:,} with {due['crc32c']:08x}",
            )
    tensors: dict[str, dict[str, torch.Tensor]] = {"model": {}, "ema": {}}
    try:
        for key, value in safetensors.torch.load(data["model.safetensors"]).items():
            kind, _, rest = key.partition(".")
            tensors[kind][rest] = value
        state = torch.load(io.BytesIO(data["state.pt"]), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # Without torch's message, which advises to load the file with weights_only=False.
        raise CorruptError(
            url, None, f"not a checkpoint's files ({type(error).__name__})"
        ) from None
    return Checkpoint(url, meta, tensors["model"], tensors["ema"], state)


def steps(run: str) -> list[int]:
    """Return the steps that have a checkpoint folder, complete or not, in order."""
    found = (entry.partition("step-") for entry in storage.folders(folder(run)))
    return sorted(int(rest) for head, mark, rest in found if mark and not head and rest.isdigit())


def newest(run: str) -> Checkpoint | None:
    """Load the newest checkpoint that verifies; damaged ones are reported and skipped.

    Raises:
        RefusedError: the newest has a newer format: resuming would overwrite its run.
    """
    for step in reversed(steps(run)):
        url = storage.join(folder(run), name(step))
        with _skipping_damaged(url):
            return load(url)
    return None


@contextlib.contextmanager
def _skipping_damaged(url: str) -> Iterator[None]:
    """End the body, with a line, where it finds the checkpoint incomplete or damaged."""
    try:
        yield
    except FileNotFoundError:
        print(f"checkpoint {url}: incomplete, skipped", file=sys.stderr)
    except CorruptError as error:
        print(f"checkpoint {error}; skipped", file=sys.stderr)


def score(meta: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric of the validation of exactly these weights; None where it was not measured.

    The higher the better: a loss is negated. A validation carried over from an earlier step does
    not count, nor one of no drawings.
    """
    validation = meta.get("validation") or {}
    value = validation.get(metric)
    if value is None or not validation.get("drawings", 1):
        return None
    if validation.get("step", meta["step"]) != meta["step"]:
        return None
    return -value if metric == "loss" else float(value)


def surplus(scores: Mapping[int, float | None], keep_last: int, keep_best: int) -> list[int]:
    """Return the steps whose checkpoints are neither among the newest nor among the best; pure.

    Args:
        scores: by step, of every checkpoint; None where it was not measured.
    """
    newest_first = sorted(scores, reverse=True)
    measured = [(score, step) for step, score in scores.items() if score is not None]
    best = [step for _, step in sorted(measured, reverse=True)[:keep_best]]
    return sorted(set(scores) - set(newest_first[:keep_last]) - set(best))


def prune(run: str, saved: int, keep: CheckpointSettings) -> None:
    """Remove the surplus checkpoints after step `saved` was saved, and those of later steps.

    A later one did not verify when the run resumed from an earlier one.
    """
    scores: dict[int, float | None] = {}
    for step in steps(run):
        if step > saved:
            storage.remove_folder(storage.join(folder(run), name(step)))
            continue
        try:
            meta = read_meta(storage.join(folder(run), name(step)))
        except (FileNotFoundError, RefusedError):
            scores[step] = None
            continue
        scores[step] = score(meta, keep.best_metric)
    for step in surplus(scores, keep.keep_last, keep.keep_best):
        storage.remove_folder(storage.join(folder(run), name(step)))


def load_best(path: str) -> Checkpoint:
    """Load the checkpoint that a user means: `path`, or the best one of a run.

    The best is by the run's own checkpoint.best_metric. Damaged ones of a run are reported and
    skipped, as when it is resumed.

    Raises:
        RefusedError: `path` is neither a checkpoint nor a run that has one that verifies.
    """
    if storage.exists(storage.join(path, "meta.json")):
        return load(path)
    metas = {}
    for step in steps(path):
        url = storage.join(folder(path), name(step))
        with _skipping_damaged(url):
            metas[url] = read_meta(url)
    for url in sorted(metas, key=_rank(metas), reverse=True):
        with _skipping_damaged(url):
            return load(url)
    raise RefusedError(
        path,
        None,
        "no checkpoint there" if not steps(path) else "no checkpoint there that verifies",
        "Give a run's folder or one of its checkpoints/step-..., or train one with: "
        "torchrun --nproc_per_node=2 -m quickdraw_dist.train",
    )


def _rank(metas: Mapping[str, dict[str, Any]]) -> Callable[[str], tuple[float, int]]:
    """Return the key by which checkpoints are sorted: the best last, of equal ones the newest."""
    configs = {int(meta["step"]): meta["config"] for meta in metas.values()}
    newest = configs[max(configs)] if configs else {}
    metric = newest.get("checkpoint", {}).get("best_metric", "top1")

    def rank(url: str) -> tuple[float, int]:
        value = score(metas[url], metric)
        return (-math.inf if value is None else value), metas[url]["step"]

    return rank


def build_model(checkpoint: Checkpoint) -> nn.Module:
    """Return a checkpoint's network in evaluation mode, with the averaged weights if it has any."""
    settings = Model.model_validate(checkpoint.meta["config"]["model"])
    raster = Raster.parse(checkpoint.meta["raster"])
    classes = len(checkpoint.meta["classes"])
    model = models.build(settings, classes, raster.channels, raster.side)
    model.load_state_dict(checkpoint.average or checkpoint.weights)
    return model.eval()


def network_input(checkpoint: Checkpoint) -> NetworkInput:
    """Return what makes the input of a checkpoint's network from stored drawings.

    Raises:
        RefusedError: this release cannot make these pictures.
    """
    normalisation = Normalisation(**checkpoint.meta["normalisation"])
    return NetworkInput(Raster.parse(checkpoint.meta["raster"]), normalisation)
