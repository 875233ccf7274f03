"""Resolve the settings from command line, environment and YAML file."""

from __future__ import annotations

import argparse
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, SettingsError
from yaml.error import MarkedYAMLError

from quickdraw_dist.base.errors import RefusedError, nearest, one_line
from quickdraw_dist.base.process.parent import PARENT_VARIABLE
from quickdraw_dist.base.settings import Settings, is_section, setting_fields

EPILOG = """\
examples:
  torchrun --nproc_per_node=2 -m quickdraw_dist.train --data data/shards --train.epochs 2
  python -m quickdraw_dist.train --config configs/demo.yaml

The same command again resumes the run in --output. Every setting is also a line of the --config
file and an environment variable: --train.epochs 2 is QUICKDRAW_TRAIN__EPOCHS=2.
Exit codes: 0 done, 2 refused (do not retry), 85 stopped by a signal and saved, otherwise 1.
torchrun itself exits with 1 whenever a rank's code is not 0; use python -m quickdraw_dist.launch
instead to get the codes above.
"""


_OWN_VARIABLES = (PARENT_VARIABLE, "QUICKDRAW_EXIT_FILE", "QUICKDRAW_REAL_DATA")
"""Variables with the prefix that are not settings: of processes for their children, of tests."""

_SERVICE = re.compile(
    r"QUICKDRAW_(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT(_\d+_\w+)?=\w+://|"
    r"PORT_\d+_[A-Z]+_(PROTO|PORT|ADDR)=)\S*"
)
"""Variables that Kubernetes sets for a service, such as one called quickdraw-metrics."""


class Parser(argparse.ArgumentParser):
    """A command line whose errors suggest the nearest known argument.

    It has --config and --print-config unless `settings` is false; `load` adds the settings.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        epilog: str = "",
        config: str | None = None,
        settings: bool = True,
    ) -> None:
        """`config` is the file that --config defaults to; the others are argparse's."""
        super().__init__(
            prog=prog,
            usage="%(prog)s [--NAME VALUE ...]" if settings else None,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if not settings:
            return
        shown = f"YAML file of settings [{config or 'none'}]"
        self.add_argument("--config", metavar="FILE", default=config, help=shown)
        self.add_argument(
            "--print-config", action="store_true", help="print the resolved settings and stop"
        )

    def error(self, message: str) -> NoReturn:
        """Print one line that names the wrong argument, and exit with 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            name = unknown.split()[0].split("=")[0]
            message = f"unknown argument {name}.{nearest(name, self._option_string_actions)}"
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")


def read_settings(argv: Sequence[str] | None = None) -> Settings:
    """Return the settings of quickdraw_dist.train; arguments and errors are those of `load`."""
    parser = Parser("quickdraw_dist.train", "Train a classifier on a sharded dataset.", EPILOG)
    sections = [name for name in Settings.model_fields if name != "shard"]
    return load(parser, argv, sections)[0]


def load(
    parser: Parser, argv: Sequence[str] | None = None, sections: Sequence[str] | None = None
) -> tuple[Settings, argparse.Namespace]:
    """Return the resolved settings and a command's own arguments.

    Args:
        parser: with the command's own arguments already added.
        argv: the command line without the program's name; None for this process's.
        sections: fields of `Settings` that --help shows; None for all. All are accepted.

    Raises:
        RefusedError: an unknown setting, a value of the wrong type, an unreadable --config.
        SystemExit: after --help, --print-config or an unknown argument.
    """
    _add_settings(parser, sections)
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
        errors = list(_refusals(error))
        if len(errors) == 1:
            raise errors[0] from None
        raise RefusedError("\n".join(map(str, errors)), errors=errors) from None
    if arguments.print_config:
        sys.stdout.write(settings.to_yaml())
        parser.exit()
    return settings, arguments


def _add_settings(parser: Parser, sections: Sequence[str] | None) -> None:
    """Add every setting to a parser, one group per section in --help."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for path, field in setting_fields().items():
        section = path.split(".")[0]
        shown = sections is None or section in sections
        group: argparse._ActionsContainer = parser
        if shown:
            if section not in groups and is_section(section):
                heading = type(Settings.model_fields[section].default).__doc__
                groups[section] = parser.add_argument_group(section, heading)
            group = groups.get(section, parser)
        help_text = (field.description or "").replace("\n", " ").replace("%", "%%")
        group.add_argument(
            f"--{path}",
            default=argparse.SUPPRESS,
            nargs="+" if typing.get_origin(field.annotation) is tuple else None,
            metavar=_metavar(field),
            help=f"{help_text} [{field.default}]" if shown else argparse.SUPPRESS,
        )


def _metavar(field: FieldInfo) -> str:
    choices = [arg for arg in typing.get_args(field.annotation) if isinstance(arg, str)]
    if choices and typing.get_origin(field.annotation) is Literal:
        return "{" + ",".join(choices) + "}"
    return {bool: "true|false", int: "N", float: "X"}.get(type(field.default), "VALUE")


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return `below` overridden by `above`, section by section."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(value, dict) and isinstance(under, dict)
        merged[key] = _merge(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _read_environment() -> dict[str, Any]:
    """Read the QUICKDRAW_SECTION__SETTING variables, and refuse any other one with the prefix."""
    for variable, value in os.environ.items():
        name = variable.upper()
        if name.startswith("QUICKDRAW_") and name not in _OWN_VARIABLES:
            _check_variable(name.removeprefix("QUICKDRAW_"), variable, value)
    try:
        return EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise RefusedError(
            "environment",
            None,
            str(error),
            "Give a section or list as JSON, such as "
            """QUICKDRAW_SHARD__CLASSES='["cat", "dog"]'""",
        ) from None


def _check_variable(name: str, variable: str, value: str) -> None:
    """Refuse a variable with the prefix that is neither a setting nor a service of Kubernetes."""
    section, nested, _ = name.partition("__")
    if nested:
        _check_root(section.lower(), variable, value)
        if not is_section(section.lower()):
            problem = f"unknown setting: {section.lower()} is not a section"
            raise RefusedError(variable, None, problem, f"Set QUICKDRAW_{section}")
    elif name.lower() not in Settings.model_fields and not _SERVICE.fullmatch(
        f"{variable.upper()}={value}"
    ):
        known = [path.upper().replace(".", "__") for path in setting_fields()]
        same = [one for one in known if one.replace("__", "_") == name]
        same = same or [one for one in known if one.endswith(f"__{name}")]
        near = f"Did you mean {same[0]!r}?" if same else nearest(name, known).strip()
        near = re.sub(r"'(\w+)'", r"'QUICKDRAW_\1'", near)
        raise RefusedError(variable, value, "unknown setting", near or f"Unset {variable}")


class _UniqueLoader(yaml.SafeLoader):
    """Refuses a name that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise MarkedYAMLError(None, None, f"{name} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Read an integer, and refuse 010 and 1:30, which YAML reads as 8 and 90."""
        if re.match(r"[-+]?0[0-9_]|.*:", node.value):
            problem = f"{node.value} would be read as {self.construct_yaml_int(node)}. Give a "
            problem += "decimal number, or quotes around text,"
            raise MarkedYAMLError(None, None, problem, node.start_mark)
        return self.construct_yaml_int(node)


_UniqueLoader.add_constructor("tag:yaml.org,2002:int", _UniqueLoader.construct_decimal)


def _read_yaml(path: str | None) -> dict[str, Any]:
    """Read the tree of a --config file; {} for an empty one or None."""
    if path is None:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.load(text, _UniqueLoader)  # noqa: S506  a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = f"cannot be read as YAML: {one_line(error)}"
        raise RefusedError("--config", path, problem) from None
    if tree is None:
        return {}
    remedy = "Give settings by name, as in 'train: {epochs: 2}'"
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        kind = type(tree).__name__
        raise RefusedError("--config", path, f"holds {kind}, not settings by name", remedy)
    for name, value in tree.items():
        _check_root(name, name, value)
        if is_section(name):
            if value is None:
                tree[name] = {}  # all of its lines are commented out
            elif not isinstance(value, dict):
                problem = f"section {name} is {value!r}"
                raise RefusedError("--config", path, problem, remedy, section=name)
    return tree


def _check_root(name: str, shown: str, value: object) -> None:
    """Refuse a name that is not at the root of the tree."""
    if name in Settings.model_fields:
        return
    below = [path for path in setting_fields() if name in (path, path.split(".")[-1])]
    remedy = f"Did you mean {below[0]!r}?" if below else nearest(name, Settings.model_fields)
    if below and "." in below[0]:
        section, leaf = below[0].split(".")
        remedy += f" In YAML: {{{section}: {{{leaf}: ...}}}}"
    raise RefusedError(shown, value, "unknown setting", remedy.strip())


def _refusals(error: ValidationError) -> Iterator[RefusedError]:
    """Yield one error per wrong setting, with everything that is wrong with its value."""
    wrong: dict[str, list[tuple[object, str]]] = {}
    for problem in error.errors():
        names, value = [str(part) for part in problem["loc"]], problem["input"]
        if problem["type"] == "extra_forbidden":
            name = ".".join(names)
            suggestion = nearest(name, setting_fields()).strip()
            yield RefusedError(name, value, "unknown setting", suggestion)
        elif problem["type"] == "address":
            refused = problem["ctx"]["refused"]
            yield RefusedError(f"--{'.'.join(names)}", value, refused.problem, refused.remedy)
        else:
            name = ".".join(names[: 2 if is_section(names[0]) else 1])
            message = problem["msg"].lower().removeprefix("input should be ")
            wrong.setdefault(name, []).append((value, message))
    for name, each in wrong.items():
        shown = list({repr(v): "null" if v is None else v for v, _ in each}.values())
        messages = " or ".join(dict.fromkeys(message for _, message in each))
        remedy = ""
        if messages == "a valid string" and not any(isinstance(v, list | dict) for v in shown):
            remedy = (
                "Put it in quotes, as in 'no': without them YAML reads no, yes, on, off, null, "
                "numbers and dates as something else than text"
            )
        value = shown[0] if len(shown) == 1 else ", ".join(map(str, shown))
        yield RefusedError(f"--{name}", value, f"should be {messages}", remedy)
