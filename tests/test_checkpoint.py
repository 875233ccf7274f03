"""Checkpoints: what was saved comes back, what is broken never does, what is needed stays."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from quickdraw_dist import checkpoint, models, storage
from quickdraw_dist.config import Model, Settings
from quickdraw_dist.errors import CorruptError, RefusedError

FILES = ("model.safetensors", "state.pt", "meta.json")
CLASSES = ("cat", "light bulb", "zebra")
DIGEST = "d1" * 32


def meta(config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What the trainer writes, as far as this module reads it."""
    return {
        "config": Settings(**(config or {})).model_dump(mode="json"),
        "classes": list(CLASSES),
        "dataset_digest": DIGEST,
        "lanes": 64,
        "validation": None,
    } | more


def save(run: Path, step: int, **more: Any) -> Path:
    """A small checkpoint whose weight is its step."""
    weights = {"weight": torch.full((3,), float(step))}
    return Path(checkpoint.save(str(run), step, weights, {}, {"optimizer": step}, meta(**more)))


def flip(path: Path, bit: int) -> None:
    """What a bad disk does."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


# -- save and load ---------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    """Every bit and type of weights, average and optimizer comes back, or a resumed run is
    another run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    weights = model.state_dict() | {
        "half": torch.randn(3).to(torch.bfloat16),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "none": torch.zeros(0, 4),
        "a.b.c": torch.tensor(2**62),
    }
    average = {name: value + 1 for name, value in model.state_dict().items()}
    state = {"optimizer": optimizer.state_dict(), "scaler": {}}
    url = checkpoint.save(str(tmp_path), 12, weights, average, state, meta(epoch=3))
    assert url == str(tmp_path / "checkpoints" / "step-000000012")
    assert sorted(p.name for p in Path(url).iterdir()) == sorted(FILES)
    loaded = checkpoint.load(url)
    assert loaded.url == url
    assert (loaded.meta["step"], loaded.meta["epoch"]) == (12, 3)
    for before, after in [(weights, loaded.weights), (average, loaded.average)]:
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert after[name].dtype == value.dtype
            assert after[name].shape == value.shape
            plain = value.contiguous().flatten().view(torch.uint8)
            assert torch.equal(after[name].contiguous().flatten().view(torch.uint8), plain), name
    torch.testing.assert_close(loaded.state, state, rtol=0, atol=0)
    torch.optim.AdamW(model.parameters()).load_state_dict(loaded.state["optimizer"])


def test_without_meta_there_is_no_checkpoint(tmp_path: Path) -> None:
    """meta.json is written last: a folder without it is a save that did not finish."""
    home = save(tmp_path, 5)
    (home / "meta.json").unlink()
    with pytest.raises(FileNotFoundError):
        checkpoint.load(str(home))
    with pytest.raises(FileNotFoundError):
        checkpoint.read_meta(str(home))
    assert checkpoint.newest(str(tmp_path)) is None


@pytest.mark.parametrize("keep", [0.0, 0.5])
@pytest.mark.parametrize("file", FILES)
def test_truncated(file: str, keep: float, tmp_path: Path) -> None:
    """A full disk or a cut copy leaves short files; they are named, not loaded."""
    home = save(tmp_path, 5)
    data = (home / file).read_bytes()
    (home / file).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CorruptError, match=str(home)) as refused:
        checkpoint.load(str(home))
    assert file in str(refused.value)


@pytest.mark.parametrize("file", FILES[:2])
def test_missing_file(file: str, tmp_path: Path) -> None:
    """Half a folder is not a checkpoint."""
    home = save(tmp_path, 5)
    (home / file).unlink()
    with pytest.raises(FileNotFoundError):
        checkpoint.load(str(home))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FILES[:2]), st.integers(0, 10**6))
def test_any_flipped_bit(tmp_path_factory: pytest.TempPathFactory, file: str, bit: int) -> None:
    """A changed bit in weights or optimizer state gives a model that is wrong and looks right."""
    home = save(tmp_path_factory.mktemp("run"), 5)
    flip(home / file, bit)
    with pytest.raises(CorruptError, match=file) as refused:
        checkpoint.load(str(home))
    assert "crc32c" in str(refused.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6))
def test_any_flipped_bit_in_meta(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    """meta.json says where to go on: a changed digit there is another position, a changed name a
    traceback. Only a bit that changes nothing, in the space between values, passes."""
    home = save(tmp_path_factory.mktemp("run"), 5, epoch=3, order_digest="00ff")
    before = checkpoint.read_meta(str(home))
    flip(home / "meta.json", bit)
    try:
        assert checkpoint.load(str(home)).meta == before
    except RefusedError as error:
        assert str(home) in str(error)


@pytest.mark.parametrize("word", [b'"files"', b'"crc32c"', b'"bytes"', b'"config"'])
def test_damaged_name_in_meta(word: bytes, tmp_path: Path) -> None:
    """Still JSON, but one name in it is another: passed over like any broken checkpoint."""
    save(tmp_path, 1)
    home = save(tmp_path, 2)
    data = (home / "meta.json").read_bytes()
    flip(home / "meta.json", 8 * (data.index(word) + 1))
    newest = checkpoint.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 1


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_state_cannot_run_code(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are copied between people: one with matching checksums must still not be able
    to run anything when it is loaded."""
    canary = tmp_path / "canary"
    state = {"optimizer": Bomb(canary)}
    with monkeypatch.context() as patch:
        if kind == "pickle":
            patch.setattr(torch, "save", lambda what, to: pickle.dump(what, to, protocol=2))
        home = Path(checkpoint.save(str(tmp_path), 5, {"weight": torch.ones(1)}, {}, state, meta()))
    with pytest.raises(CorruptError, match="not a checkpoint's files") as refused:
        checkpoint.load(str(home))
    assert not canary.exists()
    # torch's own words tell the reader to load it with weights_only=False.
    assert "weights_only" not in str(refused.value)
    # It is live: nothing but weights_only stands in its way.
    if kind == "pickle":
        pickle.loads((home / "state.pt").read_bytes())
    else:
        torch.load(home / "state.pt", weights_only=False)
    assert canary.exists()


def test_newer_format(tmp_path: Path) -> None:
    """An old release must not train on in a newer one's run: it says what to do instead."""
    save(tmp_path, 4)
    home = save(tmp_path, 5, format_version=checkpoint.FORMAT_VERSION + 1)
    for call in (lambda: checkpoint.load(str(home)), lambda: checkpoint.newest(str(tmp_path))):
        with pytest.raises(RefusedError, match=r"checkpoint format 2; .* Update") as refused:
            call()
        assert not isinstance(refused.value, CorruptError)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff\xff", b'{"format_version"'])
def test_meta_that_is_none(data: bytes, tmp_path: Path) -> None:
    """Whatever stands in meta.json, the user is told which file is broken."""
    home = save(tmp_path, 5)
    (home / "meta.json").write_bytes(data)
    with pytest.raises(CorruptError, match=f"{home}/meta.json"):
        checkpoint.read_meta(str(home))


# -- newest ----------------------------------------------------------------------------------------


def test_newest_of_nothing(tmp_path: Path) -> None:
    """A run that has not started has no checkpoint, and that is no error."""
    assert checkpoint.newest(str(tmp_path)) is None
    assert checkpoint.newest(str(tmp_path / "not yet")) is None
    (tmp_path / "checkpoints" / "step-000000abc").mkdir(parents=True)
    (tmp_path / "checkpoints" / "other").mkdir()
    assert checkpoint.steps(str(tmp_path)) == []


def test_newest_is_by_step(tmp_path: Path) -> None:
    """By the number, not by name or time: step 1,000,000,000 comes after 999,999,999."""
    for step in (10**9, 5, 10**9 - 1, 40):
        save(tmp_path, step)
    assert checkpoint.steps(str(tmp_path)) == [5, 40, 10**9 - 1, 10**9]
    newest = checkpoint.newest(str(tmp_path))
    assert newest is not None
    assert newest.weights["weight"][0] == 1e9


def test_newest_passes_over_broken_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest that verifies resumes; each broken one is reported once, by its path."""
    homes = {step: save(tmp_path, step) for step in (1, 2, 3, 4, 5)}
    (homes[5] / "meta.json").unlink()
    flip(homes[4] / "state.pt", 999)
    (homes[3] / "model.safetensors").write_bytes(b"")
    newest = checkpoint.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line, step in zip(lines, (5, 4, 3), strict=True):
        assert str(homes[step]) in line
        assert "passed over" in line
    assert "half-written" in lines[0]
    assert "state.pt" in lines[1]
    assert "model.safetensors" in lines[2]


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_save_that_fails_anywhere(
    done: int, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after 0, 1 or 2 of the three files, of a new checkpoint or of one that is
    written again: the last whole one resumes, never a mixture."""
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
            checkpoint.save(
                str(tmp_path), 2, {"weight": torch.full((3,), 9.0)}, {}, {"optimizer": 9}, meta()
            )
    newest = checkpoint.newest(str(tmp_path))
    assert newest is not None
    expected = 2 if again and not done else 1
    assert newest.weights["weight"].tolist() == [expected] * 3
    assert newest.state == {"optimizer": expected}
    save(tmp_path, 2)  # and the next save is whole again
    newest = checkpoint.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 2


# -- surplus and prune -----------------------------------------------------------------------------

SCORES = st.dictionaries(st.integers(0, 10**6), st.none() | st.floats(0, 1), max_size=12)


@settings(deadline=None)
@given(SCORES, st.integers(1, 5), st.integers(0, 5))
def test_surplus_keeps_the_newest_and_the_best(
    scores: dict[int, float | None], keep_last: int, keep_best: int
) -> None:
    """Nothing that checkpoint.keep_last or keep_best promises may be removed, and what they do
    not promise goes, or the disk fills."""
    gone = checkpoint.surplus(scores, keep_last, keep_best)
    kept = scores.keys() - set(gone)
    assert gone == sorted(set(gone)) and set(gone) <= scores.keys()
    newest = set(sorted(scores)[-keep_last:])
    assert newest <= kept
    measured = {step: score for step, score in scores.items() if score is not None}
    best = sorted(measured.values(), reverse=True)[:keep_best]
    held = sorted((measured[step] for step in kept & measured.keys()), reverse=True)
    assert held[: len(best)] == best
    assert len(kept) <= keep_last + keep_best


def test_prune(tmp_path: Path) -> None:
    """On disk: the two newest and the best one stay, whole."""
    top1 = {1: 0.2, 2: 0.9, 3: 0.5, 4: None, 5: 0.1}
    for step, score in top1.items():
        save(tmp_path, step, validation=None if score is None else {"top1": score})
    checkpoint.prune(str(tmp_path), 5, keep_last=2, keep_best=1)
    assert checkpoint.steps(str(tmp_path)) == [2, 4, 5]
    for step in (2, 4, 5):
        checkpoint.load(str(tmp_path / "checkpoints" / checkpoint.name(step)))


def test_prune_removes_old_half_written_ones(tmp_path: Path) -> None:
    """What a crash left behind does not stay for ever."""
    (save(tmp_path, 1) / "meta.json").unlink()
    for step in (2, 3):
        save(tmp_path, step)
    checkpoint.prune(str(tmp_path), 3, keep_last=2, keep_best=1)
    assert checkpoint.steps(str(tmp_path)) == [2, 3]


@pytest.mark.parametrize("damage", ["half-written", "flipped"])
def test_prune_never_removes_what_was_just_saved(damage: str, tmp_path: Path) -> None:
    """A run broke while it saved step 300, resumed from 200, and a signal saved 250: that one is
    the newest that verifies, and all there is."""
    save(tmp_path, 200)
    broken = save(tmp_path, 300)
    if damage == "flipped":
        flip(broken / "state.pt", 1)
    else:
        (broken / "meta.json").unlink()
    save(tmp_path, 250)
    checkpoint.prune(str(tmp_path), 250, keep_last=1, keep_best=0)
    newest = checkpoint.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 250


# -- find ------------------------------------------------------------------------------------------


def test_find_the_best_of_a_run(tmp_path: Path) -> None:
    """A user names the run and means its best checkpoint; of equals the later, of unmeasured
    ones the newest."""
    top1 = {1: 0.2, 2: 0.9, 3: 0.9, 4: None}
    for step, score in top1.items():
        save(tmp_path, step, validation=None if score is None else {"top1": score})
    (save(tmp_path, 5, validation={"top1": 1.0}) / "meta.json").unlink()
    assert checkpoint.find(str(tmp_path)) == str(tmp_path / "checkpoints" / "step-000000003")
    unmeasured = tmp_path / "unmeasured"
    for step in (1, 2):
        home = save(unmeasured, step)
    assert checkpoint.find(str(unmeasured)) == str(home)


def test_find_a_checkpoint_itself(tmp_path: Path) -> None:
    """Its own address names it, also where it was copied alone."""
    home = save(tmp_path, 1)
    save(tmp_path, 2, validation={"top1": 0.5})
    assert checkpoint.find(str(home)) == str(home)
    copied = shutil.copytree(home, tmp_path / "copied")
    assert checkpoint.find(str(copied)) == str(copied)


def test_find_nothing(tmp_path: Path) -> None:
    """Neither a run nor a checkpoint: refused with the command that makes one."""
    (save(tmp_path / "half", 1) / "meta.json").unlink()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "half"):
        with pytest.raises(RefusedError) as refused:
            checkpoint.find(str(path))
        assert str(refused.value).startswith(f"{path}: ")
        assert "-m quickdraw_dist.train" in str(refused.value)


# -- resuming with other settings ------------------------------------------------------------------


def compare(
    tmp_path: Path,
    now: dict[str, Any],
    before: dict[str, Any] | None = None,
    classes: tuple[str, ...] = CLASSES,
    digest: str = DIGEST,
    lanes: int = 64,
) -> list[str]:
    """Resume a run that was saved with some settings under others."""
    home = save(tmp_path, 1, config=before, lanes=lanes)
    dataset: Any = SimpleNamespace(classes=classes, digest=digest)
    return checkpoint.refuse_changes(checkpoint.load(str(home)), Settings(**now), dataset)


def test_no_change(tmp_path: Path) -> None:
    """The same command again resumes and has nothing to tell."""
    assert compare(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "name", "other"),
        ("model", "width", 32),
        ("model", "dropout", 0.1),
        ("train", "global_batch", 8192),
        ("train", "seed", 2),
        ("stream", "window_blocks", 8),
        ("stream", "lanes", 32),
    ],
)
def test_fixed_settings(section: str, name: str, value: Any, tmp_path: Path) -> None:
    """Another value of these is another network or another order of drawings: the refusal says
    which setting, from what to what, and what to do."""
    with pytest.raises(RefusedError) as refused:
        compare(tmp_path, {section: {name: value}})
    text = str(refused.value)
    old = 64 if name == "lanes" else getattr(getattr(Settings(), section), name)
    assert f"{section}.{name}: {old} -> {value}" in text
    assert "--output" in text


def test_all_fixed_settings_are_named_at_once(tmp_path: Path) -> None:
    """One refusal for all of them."""
    with pytest.raises(RefusedError) as refused:
        compare(tmp_path, {"model": {"width": 1}, "train": {"seed": 9, "global_batch": 2}})
    for name in ("model.width", "train.seed", "train.global_batch"):
        assert name in str(refused.value)


def test_lanes_spelt_otherwise(tmp_path: Path) -> None:
    """auto and the number it stood for are the same lanes, whatever auto would be now."""
    assert compare(tmp_path, {"stream": {"lanes": 64}}) == ["stream.lanes: auto -> 64"]
    before = {"stream": {"lanes": 16}}
    assert compare(tmp_path, {}, before, lanes=16) == ["stream.lanes: 16 -> auto"]


def test_other_classes(tmp_path: Path) -> None:
    """Labels are positions in the class list: other classes, or the same ones in another order,
    give a model that names everything wrongly, even if the digest is waved through."""
    for classes in (CLASSES[:2], CLASSES[::-1], ("cat", "light bulb", "zoo")):
        with pytest.raises(RefusedError, match="other classes"):
            compare(tmp_path, {"train": {"allow_dataset_change": True}}, classes=classes)


def test_other_dataset(tmp_path: Path) -> None:
    """The same classes but other drawings: refused unless told, with the flag that tells."""
    with pytest.raises(RefusedError) as refused:
        compare(tmp_path, {"data": "elsewhere"}, digest="e2" * 32)
    text = str(refused.value)
    for word in (DIGEST[:16], "e2" * 8, "elsewhere", "--train.allow_dataset_change true"):
        assert word in text
    allowed = {"train": {"allow_dataset_change": True}}
    changes = compare(tmp_path, allowed, digest="e2" * 32)
    assert changes == ["train.allow_dataset_change: False -> True"]


def test_harmless_changes_are_listed(tmp_path: Path) -> None:
    """Whoever resumes with more epochs or another machine may, and sees what is different."""
    now = {
        "data": "/local/copy",
        "train": {"epochs": 8, "device": "cpu", "global_batch": 4096},
        "shard": {"classes": ("cat",)},
        "metrics": {"port": 0},
    }
    assert sorted(compare(tmp_path, now)) == [
        "data: data/shards -> /local/copy",
        "metrics.port: 9400 -> 0",
        "shard.classes: [] -> ['cat']",
        "train.device: auto -> cpu",
        "train.epochs: 4 -> 8",
    ]


def test_settings_that_did_not_exist_yet(tmp_path: Path) -> None:
    """A later release adds settings: an older checkpoint of the same format still resumes."""
    older = meta()
    del older["config"]["metrics"], older["config"]["train"]["compile"]
    home = checkpoint.save(str(tmp_path), 1, {"weight": torch.ones(1)}, {}, {}, older)
    dataset: Any = SimpleNamespace(classes=CLASSES, digest=DIGEST)
    changes = checkpoint.refuse_changes(checkpoint.load(home), Settings(), dataset)
    assert "train.compile: None -> auto" in changes


# -- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize("averaged", [True, False])
def test_build_model(averaged: bool, tmp_path: Path) -> None:
    """What is evaluated and exported is the averaged network if an average was kept, built as
    the checkpoint says and not as today's settings do, and in evaluation mode."""
    network = models.build(Model(width=2), len(CLASSES))
    weights = network.state_dict()
    average = {
        name: value + 1 if value.is_floating_point() else value.clone()
        for name, value in weights.items()
    }
    url = checkpoint.save(
        str(tmp_path), 1, weights, average if averaged else {}, {}, meta({"model": {"width": 2}})
    )
    built = checkpoint.build_model(checkpoint.load(url))
    assert not built.training
    for name, value in built.state_dict().items():
        assert torch.equal(value, (average if averaged else weights)[name]), name
    assert built(torch.zeros(2, 1, 28, 28)).shape == (2, len(CLASSES))


def test_a_folder_put_aside_is_no_step(tmp_path: Path) -> None:
    """A user renames a checkpoint to keep it: it is not reported as half-written at each start,
    and takes none of the places of keep_last."""
    home = save(tmp_path, 1)
    home.rename(home.with_name("good-step-000000001"))
    assert checkpoint.steps(str(tmp_path)) == []


def test_a_carried_on_score_is_no_score() -> None:
    """A checkpoint in the middle of an epoch carries the last validation, of other weights: the
    measured best must not make room for it."""
    of_its_own = {"step": 12, "validation": {"top1": 0.9, "step": 12}}
    carried = {"step": 17, "validation": {"top1": 0.9, "step": 12}}
    assert checkpoint._score(of_its_own) == 0.9
    assert checkpoint._score(carried) is None
