"""Settings as a command resolves them: from its arguments, a file and the environment."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the shell that runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith("QUICKDRAW_"):
            monkeypatch.delenv(name)
