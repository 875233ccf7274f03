"""What a run may be gone on with, and from where."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, Train
from quickdraw_dist.run.checkpoint import files as checkpoint
from quickdraw_dist.run.checkpoint import resume as resuming
from tests.support.checkpoints import CLASSES, DIGEST, flip, meta, save


def find(output: Path, resume: str = "auto") -> checkpoint.Checkpoint | None:
    """As the trainer does it, in a world of one."""
    dataset: Any = SimpleNamespace(classes=CLASSES, digest=DIGEST)
    asked = Settings(output=str(output), train=Train(resume=resume))  # type: ignore[arg-type]
    return resuming.find(asked, dataset)[0]


def test_nothing_to_go_on_with(tmp_path: Path) -> None:
    """A new run starts; with must it is refused, with the ways out."""
    assert find(tmp_path) is None
    assert find(tmp_path, "never") is None
    with pytest.raises(RefusedError, match=r"no run there to resume.*--train\.resume auto"):
        find(tmp_path, "must")


def test_a_run_to_go_on_with(tmp_path: Path) -> None:
    """It goes on by itself; with never it is refused before anything of it is touched."""
    save(tmp_path, 3)
    for resume in ("auto", "must"):
        found = find(tmp_path, resume)
        assert found is not None and found.meta["step"] == 3
    with pytest.raises(RefusedError, match=r"holds a run, and --train\.resume is never"):
        find(tmp_path, "never")


def test_the_newest_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one before it goes on, and the broken one is named; where all are broken the run is
    refused, rather than begun anew over what may be repaired."""
    homes = [save(tmp_path, step) for step in (3, 4)]
    flip(homes[1] / "state.pt", 99)
    found = find(tmp_path)
    assert found is not None and found.meta["step"] == 3
    assert f"{homes[1]}/state.pt" in capsys.readouterr().err
    (homes[0] / "meta.json").unlink()
    for resume in ("auto", "must"):
        with pytest.raises(RefusedError, match="holds a run, but no checkpoint that verifies"):
            find(tmp_path, resume)
    assert all(home.is_dir() for home in homes)


def test_killed_before_the_first_one_was_whole(tmp_path: Path) -> None:
    """A machine that is taken away often would otherwise leave a run that can never start."""
    (save(tmp_path, 3) / "meta.json").unlink()
    assert find(tmp_path) is None
    assert find(tmp_path, "never") is None
    with pytest.raises(RefusedError, match="no run there to resume"):
        find(tmp_path, "must")


def test_a_newer_release_was_here(tmp_path: Path) -> None:
    """It is not passed over: going on from an older one would write over the newer one's run."""
    save(tmp_path, 3)
    home = save(tmp_path, 4, format_version=checkpoint.FORMAT_VERSION + 1)
    with pytest.raises(RefusedError, match=f"{home}: checkpoint format 2; .* Update"):
        find(tmp_path)


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
    return resuming.check_changes(checkpoint.load(str(home)), Settings(**now), dataset)


def test_no_change(tmp_path: Path) -> None:
    """The same command again resumes and has nothing to tell."""
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


def test_settings_that_were_removed(tmp_path: Path) -> None:
    """A checkpoint of an earlier release resumes, and they are no changes of the user's."""
    older = meta()
    older["config"]["metrics"]["live"] = True
    older["config"]["train"] |= {"patience_seconds": 2_100, "start_seconds": 1_800}
    older["config"]["removed"] = {"name": 1}
    home = checkpoint.save(str(tmp_path), 1, {"weight": torch.ones(1)}, {}, {}, older)
    dataset: Any = SimpleNamespace(classes=CLASSES, digest=DIGEST)
    assert resuming.check_changes(checkpoint.load(home), Settings(), dataset) == []


def test_settings_that_did_not_exist_yet(tmp_path: Path) -> None:
    """A later release adds settings: an older checkpoint of the same format still resumes."""
    older = meta()
    del older["config"]["metrics"], older["config"]["train"]["compile"]
    home = checkpoint.save(str(tmp_path), 1, {"weight": torch.ones(1)}, {}, {}, older)
    dataset: Any = SimpleNamespace(classes=CLASSES, digest=DIGEST)
    changes = resuming.check_changes(checkpoint.load(home), Settings(), dataset)
    assert "train.compile: None -> auto" in changes
