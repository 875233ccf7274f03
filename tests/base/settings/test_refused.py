"""Settings that are refused: from a flag, a variable or a file, and with which fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, leaves
from tests.support.settings import as_variable, as_yaml, resolve, write


def refused(*argv: str) -> RefusedError:
    """Resolve a command line that has to be refused."""
    with pytest.raises(RefusedError) as caught:
        resolve(*argv)
    return caught.value


# -- unknown names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "value", "nearest"),
    [
        ("train: {epocs: 3}", "train.epocs", 3, "'train.epochs'"),
        ("model: {widht: 3}", "model.widht", 3, "'model.width'"),
        ("trian: {epochs: 3}", "trian", {"epochs": 3}, "'train'"),
        ("ouput: x", "ouput", "x", "'output'"),
        ("train.epochs: 3", "train.epochs", 3, "'train.epochs'"),  # the command line's spelling
        ("epochs: 3", "epochs", 3, "'train.epochs'"),
        ("zzz: 1", "zzz", 1, ""),
        ("stream: {qqqqqq: 1}", "stream.qqqqqq", 1, ""),
        ("_env_file: x", "_env_file", "x", ""),  # an argument of pydantic-settings
    ],
)
def test_unknown_name_in_yaml(
    text: str, name: str, value: object, nearest: str, tmp_path: Path
) -> None:
    """A misspelt setting that is silently ignored costs a training run."""
    error = refused(*write(tmp_path, text))
    assert (error.subject, error.value, error.problem) == (name, value, "unknown setting")
    assert nearest in error.remedy
    assert ("Did you mean" in error.remedy) == bool(nearest)


@pytest.mark.parametrize(
    ("variable", "subject"),
    [
        ("QUICKDRAW_TRAIN__EPOCS", "train.epocs"),
        ("QUICKDRAW_TRIAN__EPOCHS", "QUICKDRAW_TRIAN__EPOCHS"),
        ("QUICKDRAW_OPTIMISER__CLIP_NORM", "QUICKDRAW_OPTIMISER__CLIP_NORM"),
        ("QUICKDRAW_DATA__PATH", "QUICKDRAW_DATA__PATH"),  # below a setting
    ],
)
def test_unknown_name_in_a_variable(
    variable: str, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the environment, which cluster manifests set; a double underscore always means
    a setting."""
    monkeypatch.setenv(variable, "3")
    error = refused()
    assert error.subject == subject
    assert error.problem.startswith("unknown setting")
    assert error.remedy


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
    """A wrong command line ends with exit code 2, the nearest name and a pointer to --help."""
    with pytest.raises(SystemExit) as stop:
        resolve(*argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    for word in [*words, "command --help"]:
        assert word in message


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("QUICKDRAW_TRAIN_EPOCHS", "1", "Did you mean 'QUICKDRAW_TRAIN__EPOCHS'?"),
        ("quickdraw_train_global_batch", "1", "Did you mean 'QUICKDRAW_TRAIN__GLOBAL_BATCH'?"),
        ("QUICKDRAW_METRICS_PORT", "9500", "Did you mean 'QUICKDRAW_METRICS__PORT'?"),
        ("QUICKDRAW_EPOCHS", "1", "Did you mean 'QUICKDRAW_TRAIN__EPOCHS'?"),
        ("QUICKDRAW_OUTPT", "x", "Did you mean 'QUICKDRAW_OUTPUT'"),
        ("QUICKDRAW_QQQ", "1", "Unset QUICKDRAW_QQQ"),
    ],
)
def test_unknown_variable(
    variable: str, value: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One underscore is easily lost; without a word the default would train."""
    monkeypatch.setenv(variable, value)
    error = refused()
    assert (error.subject, error.value) == (variable, value)
    assert error.remedy.startswith(right)


# -- wrong values ----------------------------------------------------------------------------------

WRONG = [
    # path, value as typed, what it should be
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
    ("train.epochs", str(10**26), "less than or equal to 1000000"),
    ("train.seed", str(10**26), "less than or equal to"),
]


@pytest.mark.parametrize("source", ["file", "variable", "flag"])
@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
def test_wrong_value(
    path: str,
    value: str,
    expected: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From any source: the flag that sets it, the value, and what it should be."""
    argv: tuple[str, ...] = ()
    if source == "file":
        argv = write(tmp_path, as_yaml(path, value))
    elif source == "variable":
        monkeypatch.setenv(as_variable(path), value)
    else:
        argv = (f"--{path}", value)
    error = refused(*argv)
    assert (error.subject, str(error.value)) == (f"--{path}", value)
    assert error.problem.startswith("should be ") and expected in error.problem


@pytest.mark.parametrize(
    ("text", "path", "value", "expected"),
    [
        ("model: {name: 123}", "model.name", 123, "valid string"),
        ("train: {epochs: [1, 2]}", "train.epochs", [1, 2], "valid integer"),
        ("train: {epochs: }", "train.epochs", "null", "valid integer"),
        ("train: {epochs: yes}", "train.epochs", True, "number, not true or false"),
        ("stream: {lanes: yes}", "stream.lanes", True, "number, not true or false"),
        ("optimizer: {learning_rate: yes}", "optimizer.learning_rate", True, "number, not true"),
        ("shard: {classes: cat}", "shard.classes", "cat", "valid tuple"),
        ("shard: {classes: [cat, 2]}", "shard.classes", 2, "valid string"),
    ],
)
def test_wrong_type_in_yaml(
    text: str, path: str, value: Any, expected: str, tmp_path: Path
) -> None:
    """YAML has types of its own; a value of another one is refused, not converted by guessing."""
    error = refused(*write(tmp_path, text))
    assert (error.subject, error.value) == (f"--{path}", value)
    assert expected in error.problem


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("shard: {classes: [0, no]}", "shard.classes", "0, False"),
        ("shard: {classes: [cat, null]}", "shard.classes", "null"),
        ("stream: {class_names: [2024-01-01]}", "stream.class_names", "2024-01-01"),
        ("model: {name: off}", "model.name", False),
        ("output: 7", "output", 7),
    ],
)
def test_text_that_yaml_reads_as_something_else(
    text: str, path: str, value: object, tmp_path: Path
) -> None:
    """The error says that quotes are missing."""
    error = refused(*write(tmp_path, text))
    assert (error.subject, str(error.value)) == (f"--{path}", str(value))
    assert error.problem == "should be a valid string" and "quotes" in error.remedy


@pytest.mark.parametrize(("typed", "read"), [("010", 8), ("1:30", 90), ("-07", -7)])
def test_numbers_that_yaml_reads_as_another_one(typed: str, read: int, tmp_path: Path) -> None:
    """Octal and base 60 are YAML's, nobody's intention here."""
    error = refused(*write(tmp_path, f"train: {{seed: {typed}}}"))
    assert f"{typed} would be read as {read}." in error.problem
    assert resolve(*write(tmp_path, "train: {seed: 0x1F, epochs: 1_0}")).train.seed == 31


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    """A user corrects a file once, not once for each mistake in it."""
    argv = write(tmp_path, "train: {epochs: many, epocs: 2}\n")
    error = refused(*argv, "--model.width", "0")
    subjects = {one.subject for one in error.errors}
    assert subjects == {"train.epocs", "--train.epochs", "--model.width"}
    assert len(str(error).splitlines()) == 3


@pytest.mark.parametrize(
    "path", ["data", "output", "stream.cache_folder", "stream.validation_data"]
)
def test_addresses_as_typed(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a flag or a file: one slash is refused, ~ expanded."""
    monkeypatch.setenv("HOME", "/home/me")
    expanded = "~/x" if path == "stream.cache_folder" else "/home/me/x"  # on each node
    assert dict(leaves(resolve(f"--{path}=~/x").model_dump()))[path] == expanded
    for argv in ((f"--{path}", "gs:/b/x"), write(tmp_path, as_yaml(path, "gs:/b/x"))):
        error = refused(*argv)
        assert (error.subject, error.value) == (f"--{path}", "gs:/b/x")
        assert error.remedy.startswith("Give ")


# -- files and sections ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeffmodel: {width: 64}\n"])
def test_yaml_that_changes_nothing(text: str, tmp_path: Path) -> None:
    """An empty file, or one with a byte order mark from Windows, is not an error."""
    assert resolve(*write(tmp_path, text)) == Settings()


def test_empty_section(tmp_path: Path) -> None:
    """A section whose lines are all commented out is not an error."""
    text = "train:\n  # epochs: 3\nmodel: {width: 2}\n"
    assert resolve(*write(tmp_path, text)) == Settings(model={"width": 2})


@pytest.mark.parametrize(
    "data",
    [
        b"train: {",
        b"a: 1\n---\nb: 2\n",
        b"train:\n\tepochs: 3\n",
        b"\xff\xfe\x00",
        b"!!python/x y",
        b"train: {epochs: 7}\nmodel: {width: 2}\ntrain: {seed: 5}\n",  # a section twice
        b"train:\n  epochs: 7\n  seed: 5\n  epochs: 8\n",  # a setting twice
        None,  # no file
    ],
)
def test_unreadable_yaml(data: bytes | None, tmp_path: Path) -> None:
    """What is not YAML is refused with the file's name, not with a parser's traceback."""
    path = tmp_path / "settings.yaml"
    if data is not None:
        path.write_bytes(data)
    error = refused("--config", str(path))
    assert (error.subject, error.value) == ("--config", str(path))
    assert error.problem.startswith("cannot be read as YAML: ")
    assert len(str(error).splitlines()) == 1
    assert ("given twice" in error.problem) == (b"7" in (data or b""))


@pytest.mark.parametrize(("text", "kind"), [("- 1", "list"), ("hello", "str"), ("3", "int")])
def test_yaml_without_names(text: str, kind: str, tmp_path: Path) -> None:
    """Another file, given by mistake."""
    error = refused(*write(tmp_path, text))
    assert error.problem == f"holds {kind}, not settings by name"


@pytest.mark.parametrize("value", ["5", "[1, 2]", "yes"])
def test_value_for_a_section(value: str, tmp_path: Path) -> None:
    """There is no flag --train to set it with."""
    error = refused(*write(tmp_path, f"train: {value}"))
    assert (error.subject, error.facts["section"]) == ("--config", "train")
    assert "--train" not in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [("QUICKDRAW_TRAIN", "yes"), ("QUICKDRAW_TRAIN", ""), ("QUICKDRAW_SHARD__CLASSES", "cat,dog")],
)
def test_variable_that_is_not_json(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections and lists are JSON in the environment."""
    monkeypatch.setenv(name, value)
    error = refused()
    assert error.subject == "environment" and "JSON" in error.remedy
    assert name.partition("__")[0].removeprefix("QUICKDRAW_").lower() in error.problem
