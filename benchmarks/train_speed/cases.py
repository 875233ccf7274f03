"""Cases of the training benchmark: python -m benchmarks.train_speed.cases CASE ARGUMENTS."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import peak_rss_bytes, report
from benchmarks.train_speed.work import floor_rates, training_flops
from quickdraw_dist import train
from quickdraw_dist.base.settings import Model
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.models import build

CLASSES = 345
_REPEATS = 5


def ours(data: str, output: str, *settings: str) -> None:
    """A run of the trainer, as a user starts it; its speed from its own metrics.jsonl.

    The first line's steps warm up and do not count; of the others' rates it is the median.
    """
    pauses: list[float] = []
    telemetry.CHECKPOINT_PAUSE_SECONDS.observe = pauses.append  # type: ignore[method-assign]
    arguments = ["--data", data, "--output", output, "--metrics.port", "0"]
    if code := train.main([*arguments, *settings]):
        sys.exit(code)
    text = Path(output, "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    first, *rest = [line for line in lines if line["kind"] == "train"]
    drawings = rest[-1]["drawings"] - first["drawings"]
    rate = statistics.median(line["drawings_per_second"] for line in rest)
    wait = statistics.median(line["data_wait_share"] for line in rest)
    report(
        drawings,
        drawings / rate,
        data_wait_share=round(wait, 5),
        memory_bytes=_memory(),
        checkpoint_pauses=len(pauses),
        checkpoint_pause_ms_median=round(1e3 * statistics.median(pauses), 2) if pauses else None,
    )


def small_project(source: str, count: int, workers: int, width: int) -> None:
    """The small projects' way: all drawings in memory, a Dataset of one drawing, a DataLoader,
    batches of 256, fp32 without compilation, Adam, and the loss looked at in every step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, labels = _in_memory(source, count)

    class InMemory(Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            return torch.from_numpy(pixels[at]).unsqueeze(0).float() / 255, int(labels[at])

    loader = DataLoader(
        InMemory(), batch_size=256, shuffle=True, num_workers=workers, drop_last=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    model = build(Model(width=width), CLASSES).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    times, loss_sum = [time.perf_counter()], 0.0
    for drawings, their_labels in loader:
        drawings, their_labels = drawings.to(device), their_labels.to(device)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(drawings), their_labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()
        times.append(time.perf_counter())
    steps = np.diff(times)[len(times) // 8 + 1 :]  # the first ones warm up
    report(256 * len(steps), float(np.median(steps)) * len(steps), memory_bytes=_memory())


def limits(batch: int, width: int, precision: str) -> None:
    """The largest matrix product and the fastest copy of this device, and what a drawing takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    side, size = (8_192, 2**30) if device.type == "cuda" else (2_048, 2**28)
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    flops = 2 * side**3 / _best_seconds(lambda: torch.mm(one, other), device)
    moved = 2 * size / _best_seconds(lambda: target.copy_(source), device)
    model = build(Model(width=width), CLASSES)
    rates = floor_rates(model, batch, kind.itemsize, flops, moved)
    metrics = {
        "flops_per_second": flops, "bytes_per_second": moved,
        "flops_per_drawing": training_flops(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "arithmetic_drawings_per_second": round(rates[0]),
        "memory_drawings_per_second": round(rates[1]),
        "device": _device_name(device),
    }  # fmt: skip
    report(1, 1.0, **metrics)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _memory() -> int:
    """Most memory so far: the GPU's where there is one, else the process's."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss_bytes()


def _in_memory(source: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """About `count` drawings, evenly over the classes, (n, 28, 28) uint8, and labels."""
    opened = open_source(source)
    each = -(-count // len(opened.classes))
    parts = [opened.read(label, 0, each) for label in range(len(opened.classes))]
    labels = np.repeat(np.arange(len(parts)), each)
    return np.concatenate(parts).reshape(-1, SIDE, SIDE), labels


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the fastest of some tries, after one that warms up: a limit is what it can do at all."""
    best = float("inf")
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        for _ in range(_REPEATS):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - started) / _REPEATS)
    return best


if __name__ == "__main__":
    case, *given = sys.argv[1:]
    if case == "ours":
        ours(*given)
    else:
        globals()[case](*(int(text) if text.isdigit() else text for text in given))
