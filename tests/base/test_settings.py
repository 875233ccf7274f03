"""Settings: where a value comes from, what is refused, and what the user is told."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, setting_fields

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("QUICKDRAW_"):
            monkeypatch.delenv(name)


def resolve(*argv: str) -> Settings:
    """What a command sees that is started with these arguments."""
    return load(Parser("command", "A command."), argv)[0]


def write(folder: Path, text: str) -> tuple[str, str]:
    """The arguments that read a YAML file of this text."""
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return "--config", str(path)


def get(tree: Any, path: str) -> Any:
    """The value at a dotted path."""
    for name in path.split("."):
        tree = getattr(tree, name)
    return tree


def as_yaml(path: str, value: str) -> str:
    """One setting as a YAML file."""
    *above, name = path.split(".")
    return f"{above[0]}: {{{name}: {value}}}\n" if above else f"{name}: {value}\n"


def as_variable(path: str) -> str:
    """A setting's environment variable."""
    return "QUICKDRAW_" + path.upper().replace(".", "__")


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
    (
        "shard.classes", (), ("[cat, the eiffel tower]", ("cat", "the eiffel tower")),
        ('["dog"]', ("dog",)), (["ant", "light bulb"], ("ant", "light bulb")),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "default", "file", "variable", "flag"), LAYERS)
def test_later_sources_win(
    path: str, default: Any, file: Any, variable: Any, flag: Any, tmp_path: Path
) -> None:
    """A cluster script sets the environment and a user a flag: each must win over what is below,
    for every kind of value, whichever of the sources there are."""
    for from_file, from_variable, from_flag in itertools.product([False, True], repeat=3):
        argv = write(tmp_path, as_yaml(path, file[0])) if from_file else ()
        expected = file[1] if from_file else default
        with pytest.MonkeyPatch.context() as patch:
            if from_variable:
                patch.setenv(as_variable(path), variable[0])
                expected = variable[1]
            if from_flag:
                argv, expected = (*argv, f"--{path}", *flag[0]), flag[1]
            value = get(resolve(*argv), path)
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
    ],
)
def test_other_variables_of_the_name_are_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test suite, the launcher and Kubernetes set QUICKDRAW_ variables that are no settings."""
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
    """Ranks agree on settings once; nothing may change them under way."""
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
    kind = {
        bool: st.booleans(),
        int: st.integers(1, 65_000),
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
    """What --print-config prints is the record of a run: fed back it must give the same tree."""
    argv = [flag for path, value in chosen.items() for flag in as_flags(path, value)]
    direct = resolve(*argv)
    assert {path: get(direct, path) for path in chosen} == chosen
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
    """--help is where users look: each setting has a sentence there, and its default."""
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


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "suggestion"),
    [
        ("train: {epocs: 3}", "train.epocs = 3", "'train.epochs'"),
        ("model: {widht: 3}", "model.widht = 3", "'model.width'"),
        ("trian: {epochs: 3}", "trian", "'train'"),
        ("ouput: x", "ouput = 'x'", "'output'"),
        ("zzz: 1", "zzz = 1", ""),
        ("stream: {qqqqqq: 1}", "stream.qqqqqq = 1", ""),
    ],
)
def test_unknown_name_in_yaml(text: str, name: str, suggestion: str, tmp_path: Path) -> None:
    """A misspelt setting that is silently ignored costs a training run."""
    with pytest.raises(RefusedError) as refused:
        resolve(*write(tmp_path, text))
    assert f"unknown setting {name}" in str(refused.value)
    assert suggestion in str(refused.value)
    assert ("Did you mean" in str(refused.value)) == bool(suggestion)


def test_unknown_name_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the environment, which is what cluster manifests set."""
    monkeypatch.setenv("QUICKDRAW_TRAIN__EPOCS", "3")
    with pytest.raises(RefusedError, match=r"unknown setting train\.epocs .*'train\.epochs'"):
        resolve()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--train.epocs", "3"], ["--train.epocs", "'--train.epochs'"]),
        (["--train.epocs=3"], ["--train.epocs.", "'--train.epochs'"]),
        (["--train.epo", "3"], ["--train.epo.", "'--train.epochs'"]),  # no abbreviations
        (["--shard.blok", "3"], ["--shard.blok", "'--shard.block'"]),
        (["--confg", "x"], ["--confg", "'--config'"]),
        (["stray"], ["unknown argument stray"]),
        (["--train.epochs"], ["--train.epochs", "expected one argument"]),
    ],
)
def test_unknown_argument(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong command line ends with exit code 2, the nearest name and the way to --help."""
    with pytest.raises(SystemExit) as stop:
        resolve(*argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    for word in [*words, "command --help"]:
        assert word in message


WRONG = [
    # path, value as typed, what the message says is right
    ("train.epochs", "x", "valid integer"),
    ("train.epochs", "1.5", "valid integer"),
    ("train.epochs", "0", "greater than 0"),
    ("train.epochs", "-1", "greater than 0"),
    ("train.seed", "-1", "greater than or equal to 0"),
    ("optimizer.learning_rate", "fast", "valid number"),
    ("optimizer.learning_rate", "0", "greater than 0"),
    ("optimizer.learning_rate", "nan", "finite number"),
    ("optimizer.learning_rate", "inf", "finite number"),
    ("optimizer.weight_decay", "inf", "finite number"),
    ("model.dropout", "1", "less than 1"),
    ("augment.affine", "maybe", "valid boolean"),
    ("train.device", "gpu", "'auto', 'cuda', 'mps' or 'cpu'"),
    ("shard.compression", "zip", "'gzip' or 'none'"),
    ("stream.lanes", "many", "'auto' or a valid integer"),
    ("stream.lanes", "0", "'auto' or greater than 0"),
    ("optimizer.warmup_drawings", "-5", "'auto' or greater than or equal to 0"),
    ("metrics.port", "70000", "less than or equal to 65000"),
]


@pytest.mark.parametrize("source", ["file", "variable", "flag"])
@pytest.mark.parametrize(("path", "value", "right"), WRONG)
def test_wrong_value(
    path: str,
    value: str,
    right: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever set it: one line with the setting, the value, what is right and the flag."""
    argv: tuple[str, ...] = ()
    if source == "file":
        argv = write(tmp_path, as_yaml(path, value))
    elif source == "variable":
        monkeypatch.setenv(as_variable(path), value)
    else:
        argv = (f"--{path}", value)
    with pytest.raises(RefusedError) as refused:
        resolve(*argv)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"setting {path} = ")
    assert value in line.partition("should be")[0]
    assert right in line.partition("should be")[2]
    assert line.endswith(f"set it with --{path}")


@pytest.mark.parametrize(
    ("text", "path", "right"),
    [
        ("model: {name: 123}", "model.name", "valid string"),
        ("train: {epochs: [1, 2]}", "train.epochs", "valid integer"),
        ("train: {epochs: }", "train.epochs", "valid integer"),
        ("shard: {classes: cat}", "shard.classes", "valid tuple"),
        ("shard: {classes: [cat, 2]}", "shard.classes", "valid string"),
    ],
)
def test_wrong_type_in_yaml(text: str, path: str, right: str, tmp_path: Path) -> None:
    """YAML has types of its own; a value of another one is named, not converted by guessing."""
    with pytest.raises(RefusedError) as refused:
        resolve(*write(tmp_path, text))
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"setting {path} = ")
    assert right in line
    assert line.endswith(f"set it with --{path}")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """A user corrects a file once, not once for each mistake in it."""
    argv = write(tmp_path, "train: {epochs: many, epocs: 2}\n")
    with pytest.raises(RefusedError) as refused:
        resolve(*argv, "--model.width", "0")
    text = str(refused.value)
    assert len(text.splitlines()) == 3
    for name in ("train.epocs", "train.epochs", "model.width"):
        assert name in text


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeffmodel: {width: 64}\n"])
def test_yaml_that_changes_nothing(text: str, tmp_path: Path) -> None:
    """An empty file, or one with a byte order mark from Windows, is not an error."""
    assert resolve(*write(tmp_path, text)) == Settings()


@pytest.mark.parametrize(
    "data",
    [b"train: {", b"a: 1\n---\nb: 2\n", b"train:\n\tepochs: 3\n", b"\xff\xfe\x00", b"!!python/x y"],
)
def test_unreadable_yaml(data: bytes, tmp_path: Path) -> None:
    """What is not YAML is refused with the file's name, not with a parser's traceback."""
    path = tmp_path / "settings.yaml"
    path.write_bytes(data)
    with pytest.raises(RefusedError) as refused:
        resolve("--config", str(path))
    assert str(refused.value).startswith(f"--config {path}: ")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_no_file(name: str, tmp_path: Path) -> None:
    """A wrong path is told as one."""
    path = str(tmp_path / name)
    with pytest.raises(RefusedError) as refused:
        resolve("--config", path)
    assert str(refused.value).startswith(f"--config {path}: ")


@pytest.mark.parametrize(("text", "kind"), [("- 1", "list"), ("hello", "str"), ("3", "int")])
def test_yaml_without_names(text: str, kind: str, tmp_path: Path) -> None:
    """YAML that holds no settings by name, as when another file is given by mistake."""
    with pytest.raises(RefusedError, match=f"holds {kind}, not settings by name"):
        resolve(*write(tmp_path, text))


@pytest.mark.parametrize("name", ["QUICKDRAW_TRIAN__EPOCHS", "QUICKDRAW_OPTIMISER__CLIP_NORM"])
def test_unknown_section_in_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A double underscore can only mean a setting, so an unknown section is a mistake."""
    monkeypatch.setenv(name, "3")
    with pytest.raises(RefusedError, match=f"unknown setting {name} .*Did you mean"):
        resolve()


@pytest.mark.parametrize(
    ("name", "value"),
    [("QUICKDRAW_TRAIN", "yes"), ("QUICKDRAW_TRAIN", ""), ("QUICKDRAW_SHARD__CLASSES", "cat,dog")],
)
def test_variable_that_is_not_json(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections and lists are JSON in the environment; anything else is refused like a value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(RefusedError, match="JSON") as refused:
        resolve()
    assert name.partition("__")[0].removeprefix("QUICKDRAW_").lower() in str(refused.value)


def test_empty_section(tmp_path: Path) -> None:
    """A section whose lines are all commented out says nothing, and that is no error."""
    text = "train:\n  # epochs: 3\nmodel: {width: 2}\n"
    assert resolve(*write(tmp_path, text)) == Settings(model={"width": 2})


@pytest.mark.parametrize("value", ["5", "[1, 2]", "yes"])
def test_value_for_a_section(value: str, tmp_path: Path) -> None:
    """A section is named as one; there is no flag --train to set it with."""
    with pytest.raises(RefusedError, match=r"train: .* section") as refused:
        resolve(*write(tmp_path, f"train: {value}"))
    assert "--train" not in str(refused.value)


@pytest.mark.parametrize("text", ["train.epochs: 3", "epochs: 3"])
def test_flag_spelling_in_yaml(text: str, tmp_path: Path) -> None:
    """The command line's spelling in a YAML file is the likeliest mistake there."""
    with pytest.raises(RefusedError, match=r"Did you mean .*train\.epochs"):
        resolve(*write(tmp_path, text))


def test_private_names_of_the_library_in_yaml(tmp_path: Path) -> None:
    """Every name that is not a setting is unknown."""
    with pytest.raises(RefusedError, match="unknown setting"):
        resolve(*write(tmp_path, "_env_file: x"))


@pytest.mark.parametrize("path", ["train.epochs", "optimizer.learning_rate", "stream.lanes"])
def test_boolean_for_a_number(path: str, tmp_path: Path) -> None:
    """`epochs: yes` is a mistake, not one epoch."""
    with pytest.raises(RefusedError, match=rf"setting {path} = True: .*number, not true or false"):
        resolve(*write(tmp_path, as_yaml(path, "yes")))


def test_section_given_twice(tmp_path: Path) -> None:
    """The first of two `train:` sections must not vanish without a word."""
    with pytest.raises(RefusedError, match="train stands twice"):
        resolve(*write(tmp_path, "train: {epochs: 7}\nmodel: {width: 2}\ntrain: {seed: 5}\n"))
    with pytest.raises(RefusedError, match="epochs stands twice"):
        resolve(*write(tmp_path, "train:\n  epochs: 7\n  seed: 5\n  epochs: 8\n"))


def test_variable_below_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """QUICKDRAW_DATA__PATH is ignored in silence, though only a setting has two underscores."""
    monkeypatch.setenv("QUICKDRAW_DATA__PATH", "/elsewhere")
    with pytest.raises(RefusedError):
        resolve()
