"""Networks by name. To add one, write its file in this folder and add a line to the table."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from quickdraw_dist.base.errors import RefusedError, nearest
from quickdraw_dist.base.settings import Model
from quickdraw_dist.models.sketch_cnn import SketchCNN

_BUILDERS: dict[str, Callable[[Model, int, int, int], nn.Module]] = {
    "sketchcnn": SketchCNN.from_settings,
}


def names() -> tuple[str, ...]:
    """Return the values that --model.name accepts."""
    return tuple(_BUILDERS)


def check(model: Model) -> None:
    """Check that the table has the network's name.

    Raises:
        RefusedError: it does not; the remedy suggests the nearest name and lists all.
    """
    if model.name not in _BUILDERS:
        remedy = f"{nearest(model.name, names())} Choose one of: {', '.join(names())}".strip()
        raise RefusedError("--model.name", model.name, "unknown network", remedy)


def build(model: Model, classes: int, channels: int = 1, side: int = 28) -> nn.Module:
    """Return a new network from (B, channels, side, side) normalised float to (B, classes) logits.

    Raises:
        RefusedError: unknown name.
    """
    check(model)
    return _BUILDERS[model.name](model, classes, channels, side)
