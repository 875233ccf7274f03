"""Networks by name: every file here registers the one that it holds."""

from __future__ import annotations

from quickdraw_dist.models.registry import build, check, names

__all__ = ["build", "check", "names"]
