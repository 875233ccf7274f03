"""Cases of the training benchmark: python -m benchmarks.train_speed.cases CASE ARGUMENTS."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import (
    CLASSES,
    call_case,
    peak_rss_bytes,
    report,
    train_records,
)
from benchmarks.train_speed import profile
from benchmarks.train_speed.device import (
    chosen_device,
    copied_bytes_per_second,
    device_name,
    matrix_flops_per_second,
)
from benchmarks.train_speed.work import floor_rates, training_flops
from quickdraw_dist import train
from quickdraw_dist.base.settings import Model
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.models import build


def ours(data: str, output: str, *settings: object) -> None:
    """Run the trainer as a user does and report its speed from its metrics.jsonl: the median rate
    of all progress lines except the first, whose steps are the warm-up."""
    pauses: list[float] = []
    metrics.CHECKPOINT_PAUSE_SECONDS.observe = pauses.append  # type: ignore
    arguments = ["--data", data, "--output", output, "--metrics.port", "0"]
    if code := train.main([*arguments, *map(str, settings)]):
        sys.exit(code)
    first, *rest = train_records(Path(output))
    drawings = rest[-1]["drawings"] - first["drawings"]
    rate = statistics.median(record["drawings_per_second"] for record in rest)
    wait = statistics.median(record["data_wait_share"] for record in rest)
    profiled = {"profile": profile.read(Path(output))} if "--train.profile" in settings else {}
    report(
        drawings,
        drawings / rate,
        data_wait_share=round(wait, 5),
        memory_bytes=_memory(),
        checkpoint_pauses=len(pauses),
        checkpoint_pause_ms_median=round(1e3 * statistics.median(pauses), 2) if pauses else None,
        **profiled,
    )


def small_project(source: str, count: int, workers: int, width: int) -> None:
    """Train as small projects do: all drawings in memory, a map-style Dataset, a DataLoader,
    batches of 256, fp32 without compilation, Adam, and the loss read in every step."""
    device = chosen_device()
    pixels, labels = _in_memory(source, count)

    class InMemory(Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.from_numpy(pixels[index]).unsqueeze(0).float() / 255, int(labels[index])

    loader = DataLoader(
        InMemory(), batch_size=256, shuffle=True, num_workers=workers, drop_last=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    model = build(Model(width=width), CLASSES).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    times, loss_sum = [time.perf_counter()], 0.0
    for drawings, targets in loader:
        drawings, targets = drawings.to(device), targets.to(device)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(drawings), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_sum += loss.item()
        times.append(time.perf_counter())
    steps = np.diff(times)[len(times) // 8 + 1 :]  # without the warm-up
    report(256 * len(steps), float(np.median(steps)) * len(steps), memory_bytes=_memory())


def limits(batch: int, width: int, precision: str) -> None:
    """Measure the largest matrix product and the fastest copy of this device, and compute the rates
    that they allow."""
    device = chosen_device()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    side, size = (8_192, 2**30) if device.type == "cuda" else (2_048, 2**28)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    flops = matrix_flops_per_second(device, kind, side)
    moved = 2 * copied_bytes_per_second(source, torch.empty_like(source))
    model = build(Model(width=width), CLASSES)
    rates = floor_rates(model, batch, kind.itemsize, flops, moved)
    found = {
        "flops_per_second": flops, "bytes_per_second": moved,
        "flops_per_drawing": training_flops(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "arithmetic_drawings_per_second": round(rates[0]),
        "memory_drawings_per_second": round(rates[1]),
        "device": device_name(device),
    }  # fmt: skip
    report(1, 1.0, **found)


def _memory() -> int:
    """Peak memory in bytes so far: of the GPU if there is one, else of the process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss_bytes()


def _in_memory(source: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Load about `count` drawings, equally many per class, (n, 28, 28) uint8, and their labels."""
    opened = open_source(source)
    each = -(-count // len(opened.classes))
    classes = [opened.read(label, 0, each).drawings for label in range(len(opened.classes))]
    labels = np.repeat(np.arange(len(classes)), each)
    return np.concatenate(classes).reshape(-1, SIDE, SIDE), labels


if __name__ == "__main__":
    call_case(globals())
