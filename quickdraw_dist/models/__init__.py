"""Networks by name, and the conversion of drawings to their input."""

from __future__ import annotations

from quickdraw_dist.models.registry import build, check, names

__all__ = ["build", "check", "names"]
