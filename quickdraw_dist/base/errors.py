"""The two kinds of trouble a user can meet, told apart by exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RefusedError(Exception):
    """What was asked for cannot work, now or on a retry; ends a process with exit code 2.

    The message names the thing, its value, and what would be right.
    """


class CorruptError(RefusedError):
    """Stored bytes are not what their checksum, header or count says they are."""


class TrainingError(Exception):
    """The run cannot go on as it is; says what to change."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A ' Did you mean ...?' for a mistyped name, or nothing when no name is near."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(other) for other in near)}?" if near else ""
