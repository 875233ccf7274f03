"""Which checkpoint a run resumes from, and with which settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, Train
from quickdraw_dist.models.input import Raster
from quickdraw_dist.run.checkpoint import files, resume
from tests.support.checkpoints import CLASSES, DIGEST, flip, meta, save


def dataset(
    classes: tuple[str, ...] = CLASSES, digest: str = DIGEST, content: str = "bitmaps"
) -> Any:
    """What resuming reads of a dataset."""
    return SimpleNamespace(classes=classes, digest=digest, content=content)


def find(output: Path, mode: str = "auto") -> files.Checkpoint | None:
    """Find the checkpoint as the trainer does, on one rank."""
    asked = Settings(output=str(output), train=Train(resume=mode))  # type: ignore[arg-type]
    return resume.find(asked, dataset())[0]


def test_nothing_to_resume(tmp_path: Path) -> None:
    """A new run starts; with must it is refused."""
    assert find(tmp_path) is None
    assert find(tmp_path, "never") is None
    with pytest.raises(RefusedError, match="no run there to resume"):
        find(tmp_path, "must")


def test_a_run_to_resume(tmp_path: Path) -> None:
    """It resumes by default; with never it is refused before anything of it is changed."""
    save(tmp_path, 3)
    for mode in ("auto", "must"):
        found = find(tmp_path, mode)
        assert found is not None and found.meta["step"] == 3
    with pytest.raises(RefusedError, match=r"holds a run, and --train\.resume is never"):
        find(tmp_path, "never")


def test_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    """The run is refused, rather than started from scratch over what may be repaired."""
    home = save(tmp_path, 3)
    flip(home / "state.pt", 99)
    for mode in ("auto", "must"):
        with pytest.raises(RefusedError, match="holds a run, but no checkpoint that verifies"):
            find(tmp_path, mode)
    assert home.is_dir()


def test_killed_before_the_first_one_was_complete(tmp_path: Path) -> None:
    """A host that is often preempted would otherwise leave a run that can never start."""
    (save(tmp_path, 3) / "meta.json").unlink()
    assert find(tmp_path) is None
    assert find(tmp_path, "never") is None
    with pytest.raises(RefusedError, match="no run there to resume"):
        find(tmp_path, "must")


def compare(
    tmp_path: Path,
    now: dict[str, Any],
    before: dict[str, Any] | None = None,
    classes: tuple[str, ...] = CLASSES,
    digest: str = DIGEST,
    lanes: int = 64,
    content: str = "bitmaps",
    raster: str = "quickdraw-28x28",
) -> list[str]:
    """Save a run with the settings `before`, and resume it with `now`."""
    home = save(tmp_path, 1, config=before, lanes=lanes, raster=raster)
    return resume.check_changes(
        files.load(str(home)), Settings(**now), dataset(classes, digest, content)
    )


def test_no_change(tmp_path: Path) -> None:
    """The same command resumes and reports nothing."""
    assert compare(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "name", "other"),
        ("model", "width", 32),
        ("model", "dropout", 0.1),
        ("optimizer", "name", "sgd"),
        ("train", "global_batch", 8192),
        ("train", "seed", 2),
        ("stream", "window_blocks", 8),
        ("stream", "lanes", 32),
    ],
)
def test_fixed_settings(section: str, name: str, value: Any, tmp_path: Path) -> None:
    """Another value of these is another network or another order of drawings: the refusal has
    the setting and both values."""
    with pytest.raises(RefusedError) as refused:
        compare(tmp_path, {section: {name: value}})
    old = 64 if name == "lanes" else getattr(getattr(Settings(), section), name)
    assert refused.value.changes == [f"{section}.{name}: {old} -> {value}"]


def test_all_fixed_settings_are_named_at_once(tmp_path: Path) -> None:
    """One refusal for all of them."""
    with pytest.raises(RefusedError) as refused:
        compare(tmp_path, {"model": {"width": 1}, "train": {"seed": 9, "global_batch": 2}})
    names = {change.partition(":")[0] for change in refused.value.changes}
    assert names == {"model.width", "train.seed", "train.global_batch"}


def test_lanes_written_differently(tmp_path: Path) -> None:
    """auto and the number it stood for are the same lanes, whatever auto would mean now."""
    assert compare(tmp_path, {"stream": {"lanes": 64}}) == ["stream.lanes: auto -> 64"]
    before = {"stream": {"lanes": 16}}
    assert compare(tmp_path, {}, before, lanes=16) == ["stream.lanes: 16 -> auto"]


def test_other_classes(tmp_path: Path) -> None:
    """Labels are indices of the class list: other classes, or the same ones in another order, give
    a model whose names are wrong, even if a change of the digest is allowed."""
    for classes in (CLASSES[:2], CLASSES[::-1], ("cat", "light bulb", "zoo")):
        with pytest.raises(RefusedError, match="other classes"):
            compare(tmp_path, {"train": {"allow_dataset_change": True}}, classes=classes)


def test_other_dataset(tmp_path: Path) -> None:
    """The same classes but other drawings: refused unless allowed."""
    with pytest.raises(RefusedError) as refused:
        compare(tmp_path, {"data": "elsewhere"}, digest="e2" * 32)
    for word in (DIGEST[:16], "e2" * 8, "elsewhere", "--train.allow_dataset_change true"):
        assert word in str(refused.value)
    allowed = {"train": {"allow_dataset_change": True}}
    changes = compare(tmp_path, allowed, digest="e2" * 32)
    assert changes == ["train.allow_dataset_change: False -> True"]


@pytest.mark.parametrize(
    ("raster", "content", "strokes", "now"),
    [
        ("strokes-28-4", "bitmaps", {}, "quickdraw-28x28"),
        ("strokes-56-1", "bitmaps", {}, "quickdraw-28x28"),
        ("strokes-28-1", "strokes", {"channels": 4}, "strokes-28-4"),
        ("strokes-28-1", "strokes", {"side": 56}, "strokes-56-1"),
        ("quickdraw-28x28", "strokes", {"side": 56}, "strokes-56-1"),
    ],
)
def test_pictures_of_another_size(
    tmp_path: Path, raster: str, content: str, strokes: dict[str, Any], now: str
) -> None:
    """Another network or, where its weights fit any side, other input: refused, whatever change of
    the dataset is allowed, with what gives the checkpoint's pictures."""
    settings = {"strokes": strokes, "train": {"allow_dataset_change": True}}
    with pytest.raises(RefusedError) as refused:
        compare(tmp_path, settings, content=content, raster=raster, digest="e2" * 32)
    error = refused.value
    assert error.subject.startswith(str(tmp_path)) and error.value is None
    assert (error.before, error.now) == (raster, now)
    assert raster in error.problem and now in error.problem
    was = Raster.parse(raster)
    assert f"--strokes.side {was.side} --strokes.channels {was.channels}" in error.remedy


@pytest.mark.parametrize(
    ("raster", "content"), [("strokes-28-1", "bitmaps"), ("quickdraw-28x28", "strokes")]
)
def test_the_same_pictures_stored_otherwise(tmp_path: Path, raster: str, content: str) -> None:
    """Bitmaps are what strokes of one channel are rendered to: a change of the dataset like any."""
    allowed = {"train": {"allow_dataset_change": True}}
    changes = compare(tmp_path, allowed, content=content, raster=raster, digest="e2" * 32)
    assert changes == ["train.allow_dataset_change: False -> True"]


def test_harmless_changes_are_listed(tmp_path: Path) -> None:
    """More epochs or another machine are allowed, and the differences are reported."""
    now = {
        "data": "/local/copy",
        "train": {"epochs": 8, "device": "cpu", "global_batch": 4096},
        "shard": {"classes": ("cat",)},
        "metrics": {"port": 0},
        "strokes": {"unrecognized_weight": 0.5},
    }
    assert sorted(compare(tmp_path, now)) == [
        "data: data/shards -> /local/copy",
        "metrics.port: 9400 -> 0",
        "shard.classes: [] -> ['cat']",
        "strokes.unrecognized_weight: 1.0 -> 0.5",
        "train.device: auto -> cpu",
        "train.epochs: 4 -> 8",
    ]


def test_settings_that_were_removed(tmp_path: Path) -> None:
    """A checkpoint of an earlier release resumes; they are not reported as changes."""
    older = meta()
    older["config"]["metrics"]["live"] = True
    older["config"]["train"] |= {"patience_seconds": 2_100, "start_seconds": 1_800}
    older["config"]["removed"] = {"name": 1}
    home = files.save(str(tmp_path), 1, {"weight": torch.ones(1)}, {}, {}, older)
    assert resume.check_changes(files.load(home), Settings(), dataset()) == []


def test_settings_that_did_not_exist_yet(tmp_path: Path) -> None:
    """A later release adds settings: an older checkpoint of the same format still resumes."""
    older = meta()
    del older["config"]["metrics"], older["config"]["train"]["compile"]
    home = files.save(str(tmp_path), 1, {"weight": torch.ones(1)}, {}, {}, older)
    changes = resume.check_changes(files.load(home), Settings(), dataset())
    assert "train.compile: None -> auto" in changes
