"""What a run may be gone on with, and from where."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quickdraw_dist import checkpoint, resuming
from quickdraw_dist.config import Settings
from quickdraw_dist.errors import RefusedError
from tests.checkpoints import CLASSES, DIGEST, meta, save


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
    return resuming.refuse_changes(checkpoint.load(str(home)), Settings(**now), dataset)


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
    changes = resuming.refuse_changes(checkpoint.load(home), Settings(), dataset)
    assert "train.compile: None -> auto" in changes
