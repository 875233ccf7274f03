"""Which runs the input ablation makes, how it scores them and what it says of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.input_ablation.arms import ARMS, COMMON, TASKS, plan
from benchmarks.input_ablation.held_out import pack, score, unpack
from benchmarks.input_ablation.page import difference, page, summary
from benchmarks.measure import Metrics
from quickdraw_dist import train
from quickdraw_dist.base.settings import Settings
from tests.support import runs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_arm_is_valid_and_differs() -> None:
    trees = []
    for arm in ARMS:
        tree: dict[str, dict[str, object]] = {}
        for name, value in (COMMON | arm.settings).items():
            section, leaf = name.split(".")
            tree.setdefault(section, {})[leaf] = value
        trees.append(Settings.model_validate(tree))
    assert len({tree.model_dump_json() for tree in trees}) == len(ARMS)
    assert len({arm.name for arm in ARMS}) == len(ARMS)


@given(seeds=st.integers(1, 4), stop=st.integers(0, 60))
def test_stopped_anywhere_arms_have_as_many_runs_as_can_be(seeds: int, stop: int) -> None:
    planned = plan(TASKS, ARMS, seeds)
    assert len({(r.task, r.arm.name, r.seed) for r in planned}) == len(planned)
    assert len(planned) == len(TASKS) * len(ARMS) * seeds
    for task in TASKS:
        made = [run.arm.name for run in planned[:stop] if run.task == task]
        counts = [made.count(arm.name) for arm in ARMS]
        assert max(counts) - min(counts) <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_hits_survive_packing(hits: list[bool]) -> None:
    assert unpack(pack(np.array(hits)), len(hits)).tolist() == hits


def test_difference_pairs_drawings() -> None:
    """Two arms that are right on the same drawings but for one differ with a small error; unpaired
    it would be that of the two accuracies."""
    base = np.array([True] * 50 + [False] * 50)
    arm = base.copy()
    arm[60] = True
    found = difference([arm], [base])
    assert found.mean == pytest.approx(0.01) and found.by_seed == (pytest.approx(0.01),)
    assert found.error == pytest.approx(math.sqrt(0.01 * 0.99 / 99))
    two = difference([arm, base], [base, arm])
    assert two.mean == 0 and two.error == 0
    assert two.by_seed == pytest.approx((0.01, -0.01))


def record(arm: str, seed: int, hits: list[int], **settings: object) -> Metrics:
    hit = np.array(hits, bool)
    return {
        "task": "345-2", "arm": arm, "seed": seed, "settings": settings,
        "train_drawings": 4_000,
        "date": "2026-11-27", "dataset": "ab", "drawings": len(hit), "top1": float(hit.mean()),
        "mean_class_accuracy": float(hit.mean()), "hits": pack(hit),
    }  # fmt: skip


def test_page_compares_with_the_first_arm_over_common_seeds() -> None:
    first, second = ARMS[0].name, ARMS[1].name
    records = [
        record("gone", 1, [0, 0, 0, 0], **{"augment.gone": 2}),
        record(second, 1, [1, 1, 0, 0], **{"augment.affine": True}),
        record(first, 1, [1, 0, 0, 0]),
        record(second, 2, [1, 1, 1, 1], **{"augment.affine": True}),
    ]
    assert summary(records) == {"345-2": {first: 0.25, second: 0.75, "gone": 0.0}}
    lines = page(records).splitlines()
    assert "## 345 classes, 2 epochs" in lines
    assert "4,000 drawings to train on, 4 held out." in lines
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert rows[0] == f"| {first} |  | 1 | 25.00 | 25.00, 25.00 | 25.00 |  |  |"
    means = "2 | 75.00 | 50.00, 100.00 | 75.00"
    difference = "+25.00 ± 25.00 | +25.00"
    assert rows[1] == f"| {second} | `augment.affine True` | {means} | {difference} |"
    assert "`augment.gone 2`*" in rows[2], "a setting that exists no longer is marked"


def test_other_drawings_are_not_compared() -> None:
    other = record(ARMS[1].name, 1, [1, 1]) | {"dataset": "cd"}
    with pytest.raises(ValueError, match="different datasets"):
        page([record(ARMS[0].name, 1, [1, 0]), other])


def test_scores_every_held_out_drawing_once(tmp_path: Path) -> None:
    """The hits add up to what the run itself has measured on its validation split, and to the
    number of drawings of both splits."""
    data = runs.make_dataset(tmp_path / "data", val_fraction=0.2, test_fraction=0.1)
    output = tmp_path / "run"
    assert train.main(runs.settings(data, output)) == 0
    scored = score(output, Path(data))
    meta = runs.last_meta(output)
    validated = meta["validation"]["drawings"]
    hits = unpack(scored["hits"], scored["drawings"])
    assert hits[:validated].mean() == pytest.approx(meta["validation"]["top1"], abs=1e-6)
    assert len(hits) > validated and scored["top1"] == pytest.approx(hits.mean())
