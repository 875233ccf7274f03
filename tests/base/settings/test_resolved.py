"""Settings: where a value comes from, and what --print-config and --help show."""

from __future__ import annotations

import contextlib
import io
import itertools
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.settings import Settings, leaves, setting_fields
from tests.support.settings import as_variable, as_yaml, resolve, write

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def values_of(tree: Settings) -> dict[str, Any]:
    """Every setting's value by its dotted path."""
    return dict(leaves(tree.model_dump()))


# -- precedence ------------------------------------------------------------------------------------

LAYERS = [
    # path, default, (YAML, value), (environment, value), (command line, value)
    ("data", "data/shards", ("a/b", "a/b"), ("gs://b/c", "gs://b/c"), (["x y"], "x y")),
    ("train.epochs", 4, ("7", 7), ("8", 8), (["9"], 9)),
    ("optimizer.learning_rate", 2e-3, ("5e-3", 5e-3), ("1e-4", 1e-4), ([".25"], 0.25)),
    ("augment.affine", True, ("no", False), ("on", True), (["false"], False)),
    ("shard.compression", "gzip", ("none", "none"), ("gzip", "gzip"), (["none"], "none")),
    ("stream.lanes", "auto", ("8", 8), ("auto", "auto"), (["16"], 16)),
    ("stream.lanes", "auto", ("8", 8), ("16", 16), (["auto"], "auto")),
    ("optimizer.warmup_drawings", "auto", ("0", 0), ("5", 5), (["0"], 0)),
    ("strokes.channels", 1, ("4", 4), ("1", 1), (["4"], 4)),
    (
        "shard.classes", (), ("[cat, the eiffel tower]", ("cat", "the eiffel tower")),
        ('["dog"]', ("dog",)), (["ant", "light bulb"], ("ant", "light bulb")),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "default", "file", "variable", "flag"), LAYERS)
def test_later_sources_win(
    path: str, default: Any, file: Any, variable: Any, flag: Any, tmp_path: Path
) -> None:
    """A cluster script sets the environment, a user a flag: each overrides the sources below it,
    for every kind of value and every combination of sources."""
    for from_file, from_variable, from_flag in itertools.product([False, True], repeat=3):
        argv = write(tmp_path, as_yaml(path, file[0])) if from_file else ()
        expected = file[1] if from_file else default
        with pytest.MonkeyPatch.context() as patch:
            if from_variable:
                patch.setenv(as_variable(path), variable[0])
                expected = variable[1]
            if from_flag:
                argv, expected = (*argv, f"--{path}", *flag[0]), flag[1]
            value = values_of(resolve(*argv))[path]
        assert value == expected
        assert type(value) is type(expected)


def test_a_source_changes_only_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overriding one setting of a section must not put its neighbours back to their defaults."""
    argv = write(tmp_path, "train: {epochs: 7, seed: 8, global_batch: 9}\nmodel: {width: 2}\n")
    monkeypatch.setenv("QUICKDRAW_TRAIN", '{"seed": 10, "global_batch": 11}')
    monkeypatch.setenv("QUICKDRAW_TRAIN__GLOBAL_BATCH", "12")
    settings = resolve(*argv, "--train.log_every", "13")
    train = settings.train
    assert (train.epochs, train.seed, train.global_batch, train.log_every) == (7, 10, 12, 13)
    assert settings.model.width == 2
    assert settings.optimizer == Settings().optimizer


def test_only_load_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree built in code, as tests and checkpoints do, must not depend on who runs it."""
    monkeypatch.setenv("QUICKDRAW_TRAIN__EPOCHS", "9")
    assert Settings().train.epochs == 4
    assert resolve().train.epochs == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QUICKDRAW_REAL_DATA", "1"),
        ("QUICKDRAW_EXIT_FILE", "/tmp/exit"),
        ("QUICKDRAW_TRAIN_SERVICE_HOST", "10.0.0.1"),  # Kubernetes, for a Service quickdraw-train
        ("QUICKDRAW_METRICS_PORT", "tcp://10.0.0.1:9400"),
        ("QUICKDRAW_METRICS_SERVICE_PORT", "9400"),
        ("QUICKDRAW_METRICS_SERVICE_PORT_HTTP", "9400"),
        ("QUICKDRAW_METRICS_PORT_9400_TCP", "tcp://10.0.0.1:9400"),
        ("QUICKDRAW_METRICS_PORT_9400_TCP_ADDR", "10.0.0.1"),
        ("QUICKDRAW_SERVICE_HOST", "10.0.0.1"),  # of a Service quickdraw
        ("QUICKDRAW_PARENT_PID", "1"),
    ],
)
def test_other_variables_with_the_prefix_are_ignored(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests, launcher and Kubernetes set QUICKDRAW_ variables that are not settings."""
    monkeypatch.setenv(name, value)
    assert resolve() == Settings()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_resolve(path: Path) -> None:
    """A renamed setting must not leave a stale file behind in configs/."""
    assert resolve("--config", str(path)) != Settings()


def test_the_commands_own_arguments_come_back() -> None:
    """A job adds options of its own beside the settings."""
    parser = Parser("command", "A command.")
    parser.add_argument("--split", choices=("val", "test"))
    settings, arguments = load(parser, ["--split", "val", "--train.epochs", "2"])
    assert (arguments.split, settings.train.epochs) == ("val", 2)


def test_frozen() -> None:
    """Ranks compare their settings once, at the start."""
    settings = resolve()
    with pytest.raises(ValidationError):
        settings.data = "other"
    with pytest.raises(ValidationError):
        settings.train.epochs = 5


# -- print-config ----------------------------------------------------------------------------------


def values(field: Any) -> st.SearchStrategy[Any]:
    """Values that a setting accepts."""
    if typing.get_origin(field.annotation) is Literal:
        return st.sampled_from(typing.get_args(field.annotation))
    if isinstance(field.default, tuple):
        return st.lists(st.text(min_size=1).filter(lambda t: t[0] != "-"), min_size=1).map(tuple)
    if field.metadata and field.annotation is str:  # an address
        return st.text("abc/.-_ ü").filter(lambda text: text[:1] != "-")
    least = max([1, *(bound.ge for bound in field.metadata if hasattr(bound, "ge"))])
    most = min([65_000, *(bound.le for bound in field.metadata if hasattr(bound, "le"))])
    kind = {
        bool: st.booleans(),
        int: st.integers(int(least), int(most)),
        float: st.floats(1e-9, 0.999),
        str: st.text(),
    }[type(field.default)]
    if field.default == "auto":
        return st.just("auto") | st.integers(1, 10**12)
    return kind


def as_flags(path: str, value: Any) -> list[str]:
    """A setting on the command line."""
    if isinstance(value, tuple):
        return [f"--{path}", *value]
    return [f"--{path}={str(value).lower() if isinstance(value, bool) else value}"]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {}, optional={path: values(field) for path, field in setting_fields().items()}
    )
)
def test_print_config_is_a_config(
    tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, Any]
) -> None:
    """The output of --print-config, given as --config, results in the same tree."""
    argv = [flag for path, value in chosen.items() for flag in as_flags(path, value)]
    direct = resolve(*argv)
    assert values_of(direct).items() >= chosen.items()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        resolve(*argv, "--print-config")
    assert stop.value.code in (0, None)
    file = tmp_path_factory.mktemp("printed") / "settings.yaml"
    file.write_text(printed.getvalue(), encoding="utf-8")
    assert resolve("--config", str(file)) == direct


# -- help ------------------------------------------------------------------------------------------


def help_text(capsys: pytest.CaptureFixture[str], sections: tuple[str, ...] | None = None) -> str:
    with pytest.raises(SystemExit) as stop:
        load(Parser("command", "A command."), ["--help"], sections)
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


def test_every_setting_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows a sentence and the default of every setting."""
    shown = "".join(help_text(capsys).split())
    for path, field in setting_fields().items():
        assert (field.description or "").strip().endswith("."), f"{path} is not described"
        entry = f"{field.description}[{field.default}]"
        assert f"--{path}" in shown
        assert "".join(entry.split()) in shown, f"{path}: not in --help"


def test_sections_hide_but_accept(capsys: pytest.CaptureFixture[str]) -> None:
    """A job's --help shows what concerns it, and one YAML file or script still serves all jobs."""
    shown = help_text(capsys, ("data", "shard"))
    assert "--data" in shown
    assert "--shard.block" in shown
    assert "--train.epochs" not in shown
    assert "--output" not in shown
    parser = Parser("command", "A command.")
    assert load(parser, ["--train.epochs", "2"], ("data", "shard"))[0].train.epochs == 2
