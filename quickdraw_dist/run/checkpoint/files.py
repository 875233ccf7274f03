"""Checkpoints: save, find, verify, load, prune.

A checkpoint is a folder `checkpoints/step-000012345` of a run:

    model.safetensors   weights as `model.*`, their moving average as `ema.*`
    state.pt            optimizer and scaler; loaded without pickle's powers
    meta.json           everything else, with sizes and checksums of the two; written last, so a
                        folder without it is not a checkpoint
"""

from __future__ import annotations

import io
import json
import math
import pickle
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from quickdraw_dist import models
from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.settings import Checkpoint as Keep
from quickdraw_dist.base.settings import Model

FORMAT_VERSION = 1
RASTER = "quickdraw-28x28"
"""How drawings become pixels: the official 28x28 bitmaps' geometry."""

Tensors = Mapping[str, torch.Tensor]

_FILES = {"model.safetensors", "state.pt"}
_UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError, EOFError),
    *(RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError),
)
"""What the two readers raise at bytes that are no such file; a crafted one may find any of them."""


@dataclass(frozen=True)
class Checkpoint:
    """One that has been verified and read."""

    url: str
    meta: dict[str, Any]
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]  # empty when none was kept
    state: dict[str, Any]


def folder(run: str) -> str:
    """Where a run keeps its checkpoints."""
    return storage.join(run, "checkpoints")


def name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:09d}"


def versions() -> dict[str, str]:
    """What wrote a checkpoint."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def save(
    run: str, step: int, weights: Tensors, average: Tensors, state: Any, meta: Mapping[str, Any]
) -> str:
    """Write one checkpoint; it exists from the moment its meta.json does. Returns its address."""
    tensors = {f"model.{key}": value.detach().cpu().contiguous() for key, value in weights.items()}
    tensors |= {f"ema.{key}": value.detach().cpu().contiguous() for key, value in average.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files = {"model.safetensors": safetensors.torch.save(tensors), "state.pt": buffer.getvalue()}
    home = storage.join(folder(run), name(step))
    storage.remove_temporary_files(home)  # of a killed process: a run has one writer
    for file, data in files.items():
        storage.publish(storage.join(home, file), data)
    facts = {file: {"bytes": len(d), "crc32c": storage.crc32c(d)} for file, d in files.items()}
    complete = {"format_version": FORMAT_VERSION, "step": step, **meta, "files": facts}
    complete |= {"crc32c": _meta_crc32c(complete)}
    storage.publish(storage.join(home, "meta.json"), json.dumps(complete, indent=1).encode())
    return home


def _meta_crc32c(meta: Mapping[str, Any]) -> int:
    """Checksum of all of meta.json but itself."""
    rest = {key: value for key, value in meta.items() if key != "crc32c"}
    return storage.crc32c(json.dumps(rest, sort_keys=True).encode())


def read_meta(url: str) -> dict[str, Any]:
    """A checkpoint's meta.json.

    Raises:
        FileNotFoundError: there is none: not a checkpoint, or a half-written one.
        CorruptError: it is not readable.
        RefusedError: it is of a newer format.
    """
    text = storage.read(storage.join(url, "meta.json"))
    try:
        meta = json.loads(text)
        version = meta["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{url}/meta.json: not a checkpoint's: {error}") from None
    if version != FORMAT_VERSION:
        raise RefusedError(
            f"{url}: checkpoint format {version}; this release reads {FORMAT_VERSION}. "
            "Update quickdraw-dist"
        )
    if meta.get("crc32c") != _meta_crc32c(meta):
        raise CorruptError(f"{url}/meta.json: its contents are not what its crc32c says")
    return dict(meta)


def load(url: str) -> Checkpoint:
    """Read a checkpoint, comparing both files with their checksums first.

    Raises:
        FileNotFoundError, CorruptError, RefusedError: it cannot be used; names it and the file.
    """
    meta = read_meta(url)
    if set(meta["files"]) != _FILES:
        raise CorruptError(f"{url}/meta.json: of other files than {', '.join(sorted(_FILES))}")
    data = {file: storage.read(storage.join(url, file)) for file in sorted(_FILES)}
    for file, facts in meta["files"].items():
        if (len(data[file]), storage.crc32c(data[file])) != (facts["bytes"], facts["crc32c"]):
            raise CorruptError(
                f"{url}/{file}: {len(data[file]):,} bytes with crc32c "
                f"{storage.crc32c(data[file]):08x}; meta.json says {facts['bytes']:,} with "
                f"{facts['crc32c']:08x}"
            )
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "ema": {}}
    try:
        for key, value in safetensors.torch.load(data["model.safetensors"]).items():
            kind, _, rest = key.partition(".")
            parts[kind][rest] = value
        state = torch.load(io.BytesIO(data["state.pt"]), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # Not torch's own words: they advise to load what was just refused with pickle's powers.
        raise CorruptError(f"{url}: not a checkpoint's files ({type(error).__name__})") from None
    return Checkpoint(url, meta, parts["model"], parts["ema"], state)


def steps(run: str) -> list[int]:
    """Steps that have a checkpoint folder, whole or not, in order."""
    found = (entry.partition("step-") for entry in storage.folders(folder(run)))
    return sorted(int(rest) for head, mark, rest in found if mark and not head and rest.isdigit())


def newest(run: str) -> Checkpoint | None:
    """The newest checkpoint that verifies; broken ones are reported and passed over.

    Raises:
        RefusedError: the newest is of a newer format: training on would overwrite its run.
    """
    for step in reversed(steps(run)):
        url = storage.join(folder(run), name(step))
        try:
            return load(url)
        except FileNotFoundError:
            print(f"checkpoint {url}: half-written, passed over", file=sys.stderr)
        except CorruptError as error:
            print(f"checkpoint {error}; passed over", file=sys.stderr)
    return None


def score(meta: Mapping[str, Any], metric: str) -> float | None:
    """Validation figure of these very weights, the higher the better; None where there is none, or
    an earlier one was carried on."""
    validation = meta.get("validation") or {}
    value = validation.get(metric)
    if value is None or validation.get("step", meta["step"]) != meta["step"]:
        return None
    return -value if metric == "loss" else float(value)


def surplus(scores: Mapping[int, float | None], keep_last: int, keep_best: int) -> list[int]:
    """Steps whose checkpoints may go: neither among the newest nor among the best; pure.

    `scores` has that of every checkpoint, None where it was not measured.
    """
    newest_first = sorted(scores, reverse=True)
    measured = [(score, step) for step, score in scores.items() if score is not None]
    best = [step for _, step in sorted(measured, reverse=True)[:keep_best]]
    return sorted(set(scores) - set(newest_first[:keep_last]) - set(best))


def prune(run: str, saved: int, keep: Keep) -> None:
    """Remove what is surplus after step `saved` was, and any later step: a checkpoint that did
    not verify when the run resumed from one before it."""
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


def find(path: str) -> str:
    """The checkpoint that a user means: its own address, or a run's best one by its own metric.

    Raises:
        RefusedError: neither.
    """
    if storage.exists(storage.join(path, "meta.json")):
        return path
    metas = {}
    for step in steps(path):
        url = storage.join(folder(path), name(step))
        if storage.exists(storage.join(url, "meta.json")):
            metas[url] = read_meta(url)
    if not metas:
        raise RefusedError(
            f"{path}: no checkpoint there. A run's folder or one of its checkpoints/step-... is "
            "right; train one with: torchrun --nproc_per_node=2 -m quickdraw_dist.train"
        )
    newest = max(metas.values(), key=lambda meta: int(meta["step"]))
    metric = newest["config"].get("checkpoint", {}).get("best_metric", "top1")

    def rank(url: str) -> tuple[float, int]:
        value = score(metas[url], metric)
        return (-math.inf if value is None else value), metas[url]["step"]

    return max(metas, key=rank)


def build_model(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint in evaluation mode, with the averaged weights if it has any."""
    settings = Model.model_validate(checkpoint.meta["config"]["model"])
    model = models.build(settings, len(checkpoint.meta["classes"]))
    model.load_state_dict(checkpoint.average or checkpoint.weights)
    return model.eval()
