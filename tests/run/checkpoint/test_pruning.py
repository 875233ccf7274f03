"""Which checkpoints are kept: the newest, the best, and the one just saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.settings import Checkpoint
from quickdraw_dist.run.checkpoint import files
from tests.support.checkpoints import flip, save

SCORES = st.dictionaries(st.integers(0, 10**6), st.none() | st.floats(0, 1), max_size=12)


@settings(deadline=None)
@given(SCORES, st.integers(1, 5), st.integers(0, 5))
def test_surplus_keeps_the_newest_and_the_best(
    scores: dict[int, float | None], keep_last: int, keep_best: int
) -> None:
    """Nothing that checkpoint.keep_last or keep_best promises may be removed, and what they do
    not promise goes, or the disk fills."""
    gone = files.surplus(scores, keep_last, keep_best)
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
    """On disk: the two newest and the best one are kept, complete."""
    top1 = {1: 0.2, 2: 0.9, 3: 0.5, 4: None, 5: 0.1}
    for step, score in top1.items():
        save(tmp_path, step, validation=None if score is None else {"top1": score})
    files.prune(str(tmp_path), 5, Checkpoint(keep_last=2, keep_best=1))
    assert files.steps(str(tmp_path)) == [2, 4, 5]
    for step in (2, 4, 5):
        files.load(str(tmp_path / "checkpoints" / files.name(step)))


def test_prune_removes_old_incomplete_ones(tmp_path: Path) -> None:
    """The remains of a crash are removed in the end."""
    (save(tmp_path, 1) / "meta.json").unlink()
    for step in (2, 3):
        save(tmp_path, step)
    files.prune(str(tmp_path), 3, Checkpoint(keep_last=2, keep_best=1))
    assert files.steps(str(tmp_path)) == [2, 3]


@pytest.mark.parametrize("damage", ["incomplete", "flipped"])
def test_prune_never_removes_what_was_just_saved(damage: str, tmp_path: Path) -> None:
    """A run crashed while it saved step 300, resumed from 200, and a signal saved 250: that one is
    the newest that verifies."""
    save(tmp_path, 200)
    broken = save(tmp_path, 300)
    if damage == "flipped":
        flip(broken / "state.pt", 1)
    else:
        (broken / "meta.json").unlink()
    save(tmp_path, 250)
    files.prune(str(tmp_path), 250, Checkpoint(keep_last=1, keep_best=0))
    newest = files.newest(str(tmp_path))
    assert newest is not None
    assert newest.meta["step"] == 250


def test_a_carried_over_validation_is_no_score() -> None:
    """A checkpoint within an epoch carries the last validation, of other weights: it must not
    replace the best that was measured."""
    of_its_own = {"step": 12, "validation": {"top1": 0.9, "step": 12}}
    carried = {"step": 17, "validation": {"top1": 0.9, "step": 12}}
    assert files.score(of_its_own, "top1") == 0.9
    assert files.score(carried, "top1") is None


@pytest.mark.parametrize(("metric", "best"), [("top1", 1), ("mean_class_accuracy", 2), ("loss", 3)])
def test_prune_by_the_metric_asked_for(metric: Any, best: int, tmp_path: Path) -> None:
    """A user who cares for rare classes, or for calibrated guesses, names another metric; the
    lowest loss is best."""
    results = [(0.9, 0.1, 3.0), (0.2, 0.8, 2.0), (0.1, 0.2, 1.0), (0.5, 0.5, 2.5)]
    for step, (top1, mean, loss) in enumerate(results, 1):
        measured = {"top1": top1, "mean_class_accuracy": mean, "loss": loss}
        save(tmp_path, step, validation=measured)
    keep = Checkpoint(keep_last=1, keep_best=1, best_metric=metric)
    files.prune(str(tmp_path), 4, keep)
    assert files.steps(str(tmp_path)) == [best, 4]
