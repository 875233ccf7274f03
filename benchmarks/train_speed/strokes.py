"""Cases of drawings that are stored as strokes, and what of a step is spent on rendering them:
python -m benchmarks.train_speed.strokes CASE ARGUMENTS."""

from __future__ import annotations

import torch

from benchmarks.measure import Metrics, call_case, report, table
from benchmarks.train_speed.device import best_device_seconds, chosen_device
from quickdraw_dist.base.settings import Stream
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.models.stroke_raster import StrokeRaster

STROKES, RENDERING = "strokes", "rendering"


def pictures(on_gpu: bool) -> list[tuple[int, int]]:
    """Sides in pixels and channels of the pictures that are compared."""
    return [(side, channels) for side in ((28, 56) if on_gpu else (28,)) for channels in (1, 4)]


def name_of(kind: str, side: int, channels: int) -> str:
    """Name of the case that trains on such pictures (`STROKES`) or only renders them."""
    return f"{kind}, {side} px, {channels} channel{'s' if channels > 1 else ''}"


def training_cases(base: dict[str, object], on_gpu: bool) -> dict[str, dict[str, object]]:
    """Settings of every run on strokes. Pure."""
    cases = {
        name_of(STROKES, side, channels): {
            **base, "strokes.side": side, "strokes.channels": channels
        }
        for side, channels in pictures(on_gpu)
    }  # fmt: skip
    return cases | {f"{STROKES}, resident": {**base, "stream.resident": True}}


def rendering(data: str, batch: int, side: int, channels: int) -> None:
    """Render one batch over and over; compiled on a GPU, as it is in training there."""
    device = chosen_device()
    reader = SplitReader(data, manifest.read(data), "train", Stream())
    batches = evaluation_batches(reader, rank=0, world_size=1, batch=batch, threads=1)
    drawings = next(batches).drawings
    assert isinstance(drawings, StrokeBatch), "a dataset of strokes"
    inputs = drawings.to(device).inputs()[:4]
    render: torch.nn.Module = StrokeRaster(side, channels).to(device)
    if device.type == "cuda":
        render.compile(dynamic=False)
    render(*inputs)
    report(len(drawings), best_device_seconds(lambda: render(*inputs), device))


def body(cases: Metrics) -> list[str]:
    """Lines of Markdown about rendering; none if nothing was rendered alone."""
    rows: list[tuple[str, ...]] = [("picture", "rendered/s", "trained/s", "rendering's share")]
    for name, result in cases.items():
        if name.startswith(RENDERING):
            rate = result["per_second"]
            trained = cases.get(name.replace(RENDERING, STROKES), {}).get("per_second")
            share = ("", "") if trained is None else (f"{trained:,}", f"{trained / rate:.1%}")
            rows.append((name.removeprefix(f"{RENDERING}, "), f"{rate:,}", *share))
    if len(rows) == 1:
        return []
    about = (
        "Strokes become pictures in the step. The layer alone, on a batch of such drawings, and "
        "what of the time per drawing in training that is."
    )
    return ["## Rendering", "", about, "", table(rows), ""]


if __name__ == "__main__":
    call_case(globals())
