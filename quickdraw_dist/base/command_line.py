"""From what a user typed to the tree of settings: command line, environment, YAML file."""

from __future__ import annotations

import argparse
import os
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, SettingsError

from quickdraw_dist.base.errors import RefusedError, nearest
from quickdraw_dist.base.settings import Settings, is_section, setting_fields

EPILOG = """\
  torchrun --nproc_per_node=2 -m quickdraw_dist.train --data data/shards --train.epochs 2
  python -m quickdraw_dist.train --config configs/demo.yaml

The same command again resumes the run in --output. Every setting is also a line of the --config
file and an environment variable: --train.epochs 2 is QUICKDRAW_TRAIN__EPOCHS=2.
Exit codes: 0 done, 2 refused (do not retry), 85 stopped by a signal and saved, otherwise 1.
(torchrun itself ends with 1 whenever a rank's is not 0; python -m quickdraw_dist.launch in its
place passes them on.)
"""


class Parser(argparse.ArgumentParser):
    """A command line whose unknown arguments are errors that suggest the nearest name."""

    def __init__(
        self, prog: str, description: str, epilog: str = "", config: str | None = None
    ) -> None:
        """Every command has these two options; `config` is the file that the first defaults to.
        The settings are added by `load`."""
        super().__init__(
            prog=prog,
            usage="%(prog)s [--NAME VALUE ...]",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        shown = f"YAML file of settings [{config or 'none'}]"
        self.add_argument("--config", metavar="FILE", default=config, help=shown)
        self.add_argument(
            "--print-config", action="store_true", help="print the resolved settings and stop"
        )

    def error(self, message: str) -> NoReturn:
        """One line that names the trouble and where to look, exit code 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            name = unknown.split()[0].split("=")[0]
            message = f"unknown argument {name}.{nearest(name, self._option_string_actions)}"
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")


def read_settings(argv: Sequence[str] | None = None) -> Settings:
    """What a command line, with environment and YAML file, asks for.

    Raises:
        RefusedError: something that cannot be.
        SystemExit: after --help, --print-config or an unknown argument.
    """
    parser = Parser("quickdraw_dist.train", "Train a classifier on a sharded dataset.", EPILOG)
    sections = [name for name in Settings.model_fields if name != "shard"]
    return load(parser, argv, sections)[0]


def load(
    parser: Parser, argv: Sequence[str] | None = None, sections: Sequence[str] | None = None
) -> tuple[Settings, argparse.Namespace]:
    """Resolve the settings and a command's own arguments.

    Args:
        parser: with the command's own arguments already added.
        argv: the command line without the program's name; None for this process's.
        sections: fields of `Settings` that --help shows; None for all. All are accepted.

    Raises:
        RefusedError: an unknown setting, a value of the wrong type, an unreadable --config.
        SystemExit: after --help, --print-config or an unknown argument.
    """
    for path, field in setting_fields().items():
        help_text = (field.description or "").replace("\n", " ").replace("%", "%%")
        shown = sections is None or path.split(".")[0] in sections
        parser.add_argument(
            f"--{path}",
            default=argparse.SUPPRESS,
            nargs="+" if typing.get_origin(field.annotation) is tuple else None,
            metavar=_metavar(field),
            help=f"{help_text} [{field.default}]" if shown else argparse.SUPPRESS,
        )
    arguments = parser.parse_args(argv)
    tree = _merge(_read_yaml(arguments.config), _read_environment())
    for path in setting_fields():
        if path in arguments:
            *above, name = path.split(".")
            leaf = {name: vars(arguments)[path]}
            tree = _merge(tree, {above[0]: leaf} if above else leaf)
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        raise RefusedError("\n".join(_explain(error))) from None
    if arguments.print_config:
        sys.stdout.write(settings.to_yaml())
        parser.exit()
    return settings, arguments


def _metavar(field: FieldInfo) -> str:
    choices = [arg for arg in typing.get_args(field.annotation) if isinstance(arg, str)]
    if choices and typing.get_origin(field.annotation) is Literal:
        return "{" + ",".join(choices) + "}"
    return {bool: "true|false", int: "N", float: "X"}.get(type(field.default), "VALUE")


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` on top, branch by branch."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(value, dict) and isinstance(under, dict)
        merged[key] = _merge(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _read_environment() -> dict[str, Any]:
    """QUICKDRAW_SECTION__SETTING variables. Others with the prefix are not settings: Kubernetes
    makes QUICKDRAW_METRICS_PORT of a service called quickdraw-metrics."""
    for variable in os.environ:
        section, nested, _ = variable.upper().removeprefix("QUICKDRAW_").partition("__")
        if variable.upper().startswith("QUICKDRAW_") and nested:
            _check_section(section.lower(), variable, os.environ[variable])
            if not is_section(section.lower()):
                raise RefusedError(
                    f"unknown setting {variable}: {section.lower()} has none below it; "
                    f"QUICKDRAW_{section} is right"
                )
    try:
        return EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise RefusedError(
            f"environment: {error}; a section or list is JSON there, such as "
            """QUICKDRAW_SHARD__CLASSES='["cat", "dog"]'"""
        ) from None


class _OnceLoader(yaml.SafeLoader):
    """Refuses a name that stands twice: YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if its names differ."""
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.load(text, _OnceLoader)  # noqa: S506  a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RefusedError(f"--config {path}: cannot be read as YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise RefusedError(f"--config {path}: holds {type(tree).__name__}, not settings by name")
    for name, value in tree.items():
        _check_section(name, name, value)
        if is_section(name):
            if value is None:
                tree[name] = {}  # all of its lines are commented out
            elif not isinstance(value, dict):
                raise RefusedError(
                    f"--config {path}: {name}: {value!r}: a section; settings by name below it "
                    "are right"
                )
    return tree


def _check_section(name: str, shown: str, value: object) -> None:
    """Refuse a name that is not at the root of the tree."""
    if name in Settings.model_fields:
        return
    below = [path for path in setting_fields() if name in (path, path.split(".")[-1])]
    suggestion = f" Did you mean {below[0]!r}?" if below else nearest(name, Settings.model_fields)
    if below and "." in below[0]:
        section, leaf = below[0].split(".")
        suggestion += f" In YAML: {{{section}: {{{leaf}: ...}}}}"
    raise RefusedError(f"unknown setting {shown} = {value!r}.{suggestion}")


def _explain(error: ValidationError) -> Iterator[str]:
    """One line a setting: its name, its value, what would be right, the flag that sets it."""
    wrong: dict[str, tuple[Any, list[str]]] = {}
    for problem in error.errors():
        names = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            name = ".".join(names)
            yield f"unknown setting {name} = {problem['input']!r}.{nearest(name, setting_fields())}"
        else:
            depth = 2 if is_section(names[0]) else 1
            name = ".".join(names[:depth])
            message = problem["msg"].lower().removeprefix("input should be ")
            wrong.setdefault(name, (problem["input"], []))[1].append(message)
    for name, (value, messages) in wrong.items():
        yield f"setting {name} = {value!r}: should be {' or '.join(messages)}; set it with --{name}"
