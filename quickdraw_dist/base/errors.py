"""The errors a user can meet, told apart by exit code, and how a refusal is worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RefusedError(Exception):
    """A request that cannot work, now or on a retry; ends a process with exit code 2.

    `str()` renders "SUBJECT VALUE: problem. Remedy."; tests and callers read the fields.

    Attributes:
        subject: the setting, file, address or class at fault, as the user typed it
            ("--train.device", "gs://bucket/run").
        value: the value refused; None where the subject alone says what is meant.
        problem: what is wrong, in lower case and without a full stop.
        remedy: what to do, an imperative sentence ("Use --train.device cpu"); empty where the
            problem says it.
        facts: the numbers behind the message by name, also readable as attributes.
    """

    def __init__(
        self,
        subject: str,
        value: object = None,
        problem: str = "",
        remedy: str = "",
        **facts: object,
    ) -> None:
        super().__init__(subject, value, problem, remedy)  # what pickle hands to a copy
        self.subject, self.value, self.problem, self.remedy = subject, value, problem, remedy
        self.facts = facts

    def __getattr__(self, name: str) -> object:
        facts: dict[str, object] = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        named = self.subject if self.value is None else f"{self.subject} {_shown(self.value)}"
        said = f"{named}: {self.problem}" if self.problem else named
        if not self.remedy:
            return said
        return f"{said}{'' if said[-1] in '.?!' else '.'} {self.remedy}"


class CorruptError(RefusedError):
    """Stored bytes are not what their checksum, header or count says they are."""


class TrainingError(Exception):
    """The run cannot continue as it is; says what to change."""


class BusyError(TrainingError):
    """Another process writes the run. A later start may succeed, when that one has ended or its
    lock or lease has expired: ends a process with exit code 1."""


class StorageError(Exception):
    """An object store failed on all tries of a request; names the object. A later start may
    succeed: ends a process with exit code 1."""


class DeniedError(StorageError, RefusedError):
    """An object store denies a request to this account; says how to log in."""


class ChangedError(StorageError):
    """An object no longer has the generation that a conditional write or removal named."""


def flag(setting: str, value: object = None) -> str:
    """Return a setting as it is typed on a command line: flag("train.epochs", 2) is
    '--train.epochs 2'."""
    return f"--{setting}" if value is None else f"--{setting} {_shown(value)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for a mistyped name, or '' when no name is near."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(other) for other in near)}?" if near else ""


def one_line(error: Exception) -> str:
    """Return the message of an error as one line; pydantic's and YAML's take up to eight."""
    if hasattr(error, "errors"):  # pydantic's
        wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return "; ".join(wrong)
    mark = getattr(error, "problem_mark", None)
    if mark is not None:  # YAML's
        problem = getattr(error, "problem", None) or "not YAML"
        return f"{problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def _shown(value: object) -> str:
    """A value as a user types it: booleans in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)
