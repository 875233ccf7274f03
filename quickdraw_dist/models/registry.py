"""The table of networks. To add one: write its file, add a line here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from quickdraw_dist.base.errors import RefusedError, nearest
from quickdraw_dist.base.settings import Model
from quickdraw_dist.models.sketch_cnn import SketchCNN

_BUILDERS: dict[str, Callable[[int, Model], nn.Module]] = {
    "sketchcnn": lambda classes, model: SketchCNN(classes, model.width, model.dropout),
}


def names() -> tuple[str, ...]:
    """What --model.name accepts."""
    return tuple(_BUILDERS)


def check(model: Model) -> None:
    """Refuse a name that is not in the table (RefusedError)."""
    if model.name not in _BUILDERS:
        raise RefusedError(
            f"--model.name {model.name}: unknown.{nearest(model.name, names())} "
            f"There is: {', '.join(names())}"
        )


def build(model: Model, classes: int) -> nn.Module:
    """A fresh network from (B, 1, 28, 28) normalised float to (B, classes) logits.

    Raises:
        RefusedError: no such name.
    """
    check(model)
    return _BUILDERS[model.name](classes, model)
