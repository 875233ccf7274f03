"""Checkpoints that are damaged, incomplete or malicious: named, and never used."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.run.checkpoint import files
from tests.support.checkpoints import FILES, flip, meta, save


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("file", FILES)
def test_truncated(file: str, keep: float, tmp_path: Path) -> None:
    """A full disk or a cut copy leaves short files; they are named, not loaded."""
    home = save(tmp_path, 5)
    data = (home / file).read_bytes()
    (home / file).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CorruptError, match=str(home)) as refused:
        files.load(str(home))
    assert file in str(refused.value)


@pytest.mark.parametrize("file", FILES)
def test_missing_file(file: str, tmp_path: Path) -> None:
    """Without one of its files, meta.json being written last, a folder is not a checkpoint."""
    home = save(tmp_path, 5)
    (home / file).unlink()
    with pytest.raises(FileNotFoundError):
        files.load(str(home))
    assert files.newest(str(tmp_path)) is None


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FILES[:2]), st.integers(0, 10**6))
def test_any_flipped_bit(tmp_path_factory: pytest.TempPathFactory, file: str, bit: int) -> None:
    """A changed bit in weights or optimizer state gives a model that is silently wrong."""
    home = save(tmp_path_factory.mktemp("run"), 5)
    flip(home / file, bit)
    with pytest.raises(CorruptError, match=file) as refused:
        files.load(str(home))
    assert "crc32c" in str(refused.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6))
def test_any_flipped_bit_in_meta(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    """meta.json has the position: a changed digit there is another position, a changed name a
    traceback. Only a bit that changes nothing, in the space between values, passes."""
    home = save(tmp_path_factory.mktemp("run"), 5, epoch=3, order_digest="00ff")
    before = files.read_meta(str(home))
    flip(home / "meta.json", bit)
    try:
        assert files.load(str(home)).meta == before
    except RefusedError as error:
        assert str(home) in str(error)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_state_cannot_run_code(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are copied between people: one with matching checksums must not run code when it
    is loaded."""
    canary = tmp_path / "canary"
    state = {"optimizer": Bomb(canary)}
    with monkeypatch.context() as patch:
        if kind == "pickle":
            patch.setattr(torch, "save", lambda what, to: pickle.dump(what, to, protocol=2))
        home = Path(files.save(str(tmp_path), 5, {"weight": torch.ones(1)}, {}, state, meta()))
    with pytest.raises(CorruptError, match="not a checkpoint's files") as refused:
        files.load(str(home))
    assert not canary.exists()
    # torch's own words tell the reader to load it with weights_only=False.
    assert "weights_only" not in str(refused.value)
    # The attack works without weights_only.
    if kind == "pickle":
        pickle.loads((home / "state.pt").read_bytes())
    else:
        torch.load(home / "state.pt", weights_only=False)
    assert canary.exists()


def test_newer_format(tmp_path: Path) -> None:
    """An old release must not resume a newer one's run, nor skip its checkpoint."""
    save(tmp_path, 4)
    home = save(tmp_path, 5, format_version=files.FORMAT_VERSION + 1)
    for call in (lambda: files.load(str(home)), lambda: files.newest(str(tmp_path))):
        with pytest.raises(RefusedError, match=r"checkpoint format 2; .* Update") as refused:
            call()
        assert not isinstance(refused.value, CorruptError)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff\xff", b'{"format_version"'])
def test_meta_that_is_none(data: bytes, tmp_path: Path) -> None:
    """Whatever meta.json holds, the error names the damaged file."""
    home = save(tmp_path, 5)
    (home / "meta.json").write_bytes(data)
    with pytest.raises(CorruptError, match=f"{home}/meta.json"):
        files.read_meta(str(home))


def test_newest_skips_damaged_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest that verifies resumes; each damaged one is reported once, by its path."""
    homes = {step: save(tmp_path, step) for step in (1, 2, 3, 4, 5)}
    (homes[5] / "meta.json").unlink()
    flip(homes[4] / "state.pt", 999)
    (homes[3] / "model.safetensors").write_bytes(b"")
    newest = files.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line, step in zip(lines, (5, 4, 3), strict=True):
        assert str(homes[step]) in line
        assert "skipped" in line
    assert "incomplete" in lines[0]
    assert "state.pt" in lines[1]
    assert "model.safetensors" in lines[2]


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_save_that_fails_anywhere(
    done: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after 0, 1 or 2 of the three files, of a new checkpoint or of one that is
    overwritten: the last complete one resumes, never a mixture."""
    save(tmp_path, 1)
    if again:
        save(tmp_path, 2)
    publish, calls = storage.publish, []

    def failing(url: str, data: bytes) -> None:
        if len(calls) == done:
            raise OSError(28, "No space left on device")
        calls.append(url)
        publish(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", failing)
        with pytest.raises(OSError, match="No space"):
            files.save(
                str(tmp_path), 2, {"weight": torch.full((3,), 9.0)}, {}, {"optimizer": 9}, meta()
            )
    newest = files.newest(str(tmp_path))
    assert newest is not None
    expected = 2 if again and not done else 1
    assert newest.weights["weight"].tolist() == [expected] * 3
    assert newest.state == {"optimizer": expected}
    save(tmp_path, 2)  # the next save is complete
    newest = files.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 2


def reseal(home: Path, contents: dict[str, bytes]) -> None:
    """Write files with a meta.json that has their checksums."""
    data = json.loads((home / "meta.json").read_text())
    data["files"] = {
        name: {"bytes": len(content), "crc32c": storage.crc32c(content)}
        for name, content in contents.items()
    }
    data["crc32c"] = files._meta_crc32c(data)
    for name, content in {**contents, "meta.json": json.dumps(data).encode()}.items():
        (home / name).write_bytes(content)


@pytest.mark.parametrize("kind", ["list of files", "weights", "state", "a text"])
def test_folders_of_other_programs(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of that name by another program: it is reported, not used, and the run's own older
    checkpoint resumes."""
    save(tmp_path, 1)
    home = save(tmp_path, 2)
    own = {name: (home / name).read_bytes() for name in FILES[:2]}
    if kind == "list of files":
        (tmp_path / "secret").write_text("not for loading")
        reseal(home, own | {"../../secret": b"not for loading"})
    elif kind == "weights":
        other = safetensors.torch.save({"weight": torch.ones(1)})
        reseal(home, own | {"model.safetensors": other})
    elif kind == "state":
        reseal(home, own | {"state.pt": b"PK not a zip"})
    else:
        shutil.rmtree(home)
        home.write_text("notes")
    newest = files.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 1
    if kind != "a text":
        assert f"{home}" in capsys.readouterr().err


def test_temporary_files_of_a_killed_process(tmp_path: Path) -> None:
    """Half a file under its hidden name: removed by the next save of that step."""
    home = tmp_path / "checkpoints" / files.name(2)
    home.mkdir(parents=True)
    (home / ".state.pt.0123.tmp").write_bytes(b"half")
    assert save(tmp_path, 2) == home
    assert sorted(path.name for path in home.iterdir()) == sorted(FILES)
