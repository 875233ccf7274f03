"""The same drawings through other libraries: python -m benchmarks.data_path.peers CASE ...

webdataset runs in our environment. mosaicml-streaming and litdata need other versions of numpy and
of Google's libraries, so they have a virtual environment of their own; this file imports nothing of
ours except `benchmarks.measure`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import call_case, report

BATCH = 4_096

PEERS = ("mosaicml-streaming==0.13.0", "litdata==0.2.76")


def write_classic(array: str, dest: str) -> None:
    """Write with webdataset.TarWriter, one png and one cls per drawing."""
    import webdataset

    pixels, labels = _load(array)
    Path(dest).mkdir(parents=True)
    started = time.perf_counter()
    with webdataset.TarWriter(f"{dest}/0.tar", mtime=0) as tar:
        for row, (drawing, label) in enumerate(zip(pixels, labels, strict=True)):
            tar.write({"__key__": f"{row:08d}", "png": drawing, "cls": int(label)})
    _report_written(len(labels), started, dest)


def write_mosaic(array: str, dest: str) -> None:
    """Write MosaicML's MDS without compression, an ndarray and an int per drawing."""
    _declare_torchvision_operators()
    import streaming

    pixels, labels = _load(array)
    columns = {"drawing": "ndarray:uint8:28,28", "label": "int"}
    started = time.perf_counter()
    with streaming.MDSWriter(out=dest, columns=columns) as writer:
        for drawing, label in zip(pixels, labels, strict=True):
            writer.write({"drawing": drawing, "label": int(label)})
    _report_written(len(labels), started, dest)


def write_litdata(array: str, dest: str) -> None:
    """Write litdata's chunks with one worker, an array and an int per drawing."""
    _declare_torchvision_operators()
    import litdata

    global _pixels, _labels
    _pixels, _labels = _load(array)
    started = time.perf_counter()
    litdata.optimize(
        _drawing, list(range(len(_labels))), dest, num_workers=1, chunk_bytes="64MB",
        start_method="fork", verbose=False,
    )  # fmt: skip
    _report_written(len(_labels), started, dest)


_pixels = _labels = np.empty(0)


def _drawing(index: int) -> tuple[np.ndarray, int]:
    return _pixels[index], int(_labels[index])


def read_classic(folder: str) -> None:
    """Read with webdataset as documented: shuffle, decode, tuple, batch."""
    import webdataset

    urls = sorted(map(str, Path(folder).glob("*.tar")))
    data = webdataset.WebDataset(urls, shardshuffle=False).shuffle(1000).decode("l8")
    _consume(data.to_tuple("png", "cls").batched(BATCH), folder)


def read_blocks(folder: str) -> None:
    """Read our blocks with stock webdataset: one sample is a block."""
    import webdataset

    urls = sorted(map(str, Path(folder, "train").glob("*.tar")))
    end = ".npy.gz" if "gzip" in folder else ".npy"
    data = webdataset.WebDataset(urls, shardshuffle=False).decode()
    _consume(data.to_tuple(f"drawings{end}", f"labels{end}"), f"{folder}/train")


def read_mosaic(folder: str, workers: int) -> None:
    """Read with MosaicML streaming from local disk, shuffled, in a DataLoader."""
    _declare_torchvision_operators()
    import streaming
    from torch.utils.data import DataLoader

    data = streaming.StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    batches = _loader(DataLoader, data, workers)
    _consume(((batch["drawing"], batch["label"]) for batch in batches), folder)


def read_litdata(folder: str, workers: int) -> None:
    """Read with litdata from local disk, shuffled, in its DataLoader."""
    _declare_torchvision_operators()
    import litdata

    data = litdata.StreamingDataset(folder, shuffle=True, drop_last=False)
    _consume(_loader(litdata.StreamingDataLoader, data, workers), folder)


def _loader(kind: Any, data: Any, workers: int) -> Iterable[Any]:
    loader: Iterable[Any] = kind(data, batch_size=BATCH, num_workers=workers)
    return loader


def _consume(batches: Iterable[tuple[Any, Any]], folder: str) -> None:
    started = time.perf_counter()
    drawings = sum(len(labels) for _, labels in batches)
    report(drawings, time.perf_counter() - started, bytes_per_drawing=_size(folder) // drawings)


def _load(array: str) -> tuple[np.ndarray, np.ndarray]:
    stored = np.load(array)
    return stored["pixels"], stored["labels"]


def _report_written(drawings: int, started: float, dest: str) -> None:
    seconds = time.perf_counter() - started
    report(drawings, seconds, bytes_per_drawing=_size(dest) // drawings)


def _size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _declare_torchvision_operators() -> None:
    """Declare torchvision's operators by name: both packages import torchvision, whose GPU build
    fails to load with a CPU build of torch because operators, unused here, are missing."""
    import importlib.util
    import re

    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or torch.version.cuda is not None:
        return
    text = Path(found.origin).with_name("_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "DEF")
    names = re.findall(r'(?:register_meta\("|torchvision::)(\w+)', text)
    for name in sorted(set(names)):
        library.define(f"{name}() -> ()")
    _libraries.append(library)


_libraries: list[Any] = []


if __name__ == "__main__":
    call_case(globals())
