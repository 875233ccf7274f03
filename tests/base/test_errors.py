"""Errors: the text of a refusal, its fields, and copies from other processes."""

from __future__ import annotations

import pickle

import pytest

from quickdraw_dist.base.errors import CorruptError, DeniedError, RefusedError, flag, nearest


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (("--train.device", "cuda", "no CUDA device here", "Use --train.device cpu"),
         "--train.device cuda: no CUDA device here. Use --train.device cpu"),
        (("a/cat.npy", None, "not a .npy file"), "a/cat.npy: not a .npy file"),
        (("--model.name", "cnn", "unknown. Did you mean 'sketchcnn'?", "Choose one of: a, b"),
         "--model.name cnn: unknown. Did you mean 'sketchcnn'? Choose one of: a, b"),
        (("--stream.resident", True, "not for external data"),
         "--stream.resident true: not for external data"),
        (("--train.epochs", 0, "too few"), "--train.epochs 0: too few"),
    ],
)  # fmt: skip
def test_wording(fields: tuple[str, ...], text: str) -> None:
    assert str(RefusedError(*fields)) == text


def test_facts_are_attributes() -> None:
    error = RefusedError("--stream.memory_bytes", 1, "too small", needed_bytes=1000)
    assert (error.subject, error.value, error.needed_bytes) == ("--stream.memory_bytes", 1, 1000)
    with pytest.raises(AttributeError):
        _ = error.never_given


@pytest.mark.parametrize("kind", [RefusedError, CorruptError, DeniedError])
def test_pickled(kind: type[RefusedError]) -> None:
    """A pool of processes pickles what a worker raises."""
    error = kind("a.tar", None, "block 3 has another crc32c", block=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.block) == (kind, str(error), 3)


def test_flag_and_nearest() -> None:
    assert flag("train.epochs", 2) == "--train.epochs 2"
    assert flag("stream.resident", False) == "--stream.resident false"
    assert flag("data") == "--data"
    assert nearest("epocs", ["epochs", "seed"]) == " Did you mean 'epochs'?"
    assert nearest("zebra", ["epochs"]) == ""
