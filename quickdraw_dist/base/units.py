"""Durations, sizes and counts as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration as '1:02:03' or '2:03'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size_text(count: float) -> str:
    """Return a number of bytes as '39.5 GB', '12 MB' or '100 bytes', with three digits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def counted(count: float, noun: str) -> str:
    """Return a count with its noun, as '1 epoch', '2 epochs' or '0.5 epochs'."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:.4g}"
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"
