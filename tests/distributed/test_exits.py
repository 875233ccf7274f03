"""Exit codes: one for every error, whatever ends a process."""

from __future__ import annotations

import errno

import pytest

from quickdraw_dist.base.errors import BusyError, CorruptError, RefusedError, StorageError
from quickdraw_dist.distributed.exits import report


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RefusedError("--data", "x", "no dataset there"), 2, "error: --data x: no dataset there\n"),
        (CorruptError("x.tar", None, "another crc32c"), 2, "error: x.tar: another crc32c\n"),
        (StorageError("gs://b: failed"), 1, "error: gs://b: failed\n"),
        (OSError(errno.EIO, "Input/output error"), 1, "error: [Errno 5] Input/output error\n"),
        (BusyError("process 7 writes this run"), 1, "error: process 7 writes this run\n"),
        (KeyboardInterrupt(), 130, "error: interrupted. The same command continues from here\n"),
        (SystemExit(), 0, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("a library's last words"), 1, "error: a library's last words\n"),
    ],
)
def test_report(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    assert capsys.readouterr().err == line


def test_what_nobody_expects_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(KeyError("x")) == 1
    assert "KeyError: 'x'" in capsys.readouterr().err
