"""Settings as a command resolves them: from its arguments, a file and the environment."""

from __future__ import annotations

from pathlib import Path

from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.settings import Settings


def resolve(*argv: str) -> Settings:
    """Return the settings of a command that is started with these arguments."""
    return load(Parser("command", "A command."), argv)[0]


def write(folder: Path, text: str) -> tuple[str, str]:
    """Write a YAML file and return the arguments that read it."""
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return "--config", str(path)


def as_yaml(path: str, value: str) -> str:
    """Return a YAML file of one setting."""
    *above, name = path.split(".")
    return f"{above[0]}: {{{name}: {value}}}\n" if above else f"{name}: {value}\n"


def as_variable(path: str) -> str:
    """Return the name of a setting's environment variable."""
    return "QUICKDRAW_" + path.upper().replace(".", "__")
