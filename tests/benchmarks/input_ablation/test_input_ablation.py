"""Which runs the input ablation makes, how it scores them and what it says of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.input_ablation.__main__ import largest
from benchmarks.input_ablation.arms import COMMON, DEFAULTS, INPUTS, QUESTIONS, TASKS, Arm, plan
from benchmarks.input_ablation.compare import difference, training_noise
from benchmarks.input_ablation.held_out import pack, score, unpack
from benchmarks.input_ablation.page import page, summary
from benchmarks.measure import Metrics, flags
from quickdraw_dist import train
from quickdraw_dist.base.settings import Settings, leaves
from tests.support import runs

pytestmark = pytest.mark.usefixtures("one_thread")


def settings_of(arm: Arm) -> Settings:
    tree: dict[str, dict[str, object]] = {}
    for name, value in (COMMON | arm.settings | {"shard.content": arm.content}).items():
        section, leaf = name.split(".")
        tree.setdefault(section, {})[leaf] = value
    return Settings.model_validate(tree)


def test_every_arm_is_valid_and_differs() -> None:
    assert len({task.name for task in TASKS}) == len(TASKS)
    for task in TASKS:
        assert len({settings_of(arm).model_dump_json() for arm in task.arms}) == len(task.arms)
        assert len({arm.name for arm in task.arms}) == len(task.arms)


def test_arms_of_a_question_differ_in_its_setting_only() -> None:
    assert {question.setting for question in QUESTIONS} == DEFAULTS.keys()
    arms = {arm.name: settings_of(arm).model_dump() for task in TASKS for arm in task.arms}
    for question in QUESTIONS:
        one, base = (dict(leaves(arms[name])) for name in (question.arm, question.base))
        assert [name for name in one if one[name] != base[name]] == [question.setting]


@given(seeds=st.integers(1, 4), stop=st.integers(0, 60))
def test_stopped_anywhere_arms_have_as_many_runs_as_can_be(seeds: int, stop: int) -> None:
    names = [arm.name for task in TASKS for arm in task.arms]
    planned = plan(TASKS, names, seeds)
    assert len({(r.task.name, r.arm.name, r.seed) for r in planned}) == len(planned)
    assert len(planned) == sum(len(task.arms) for task in TASKS) * seeds
    for task in TASKS:
        made = [run.arm.name for run in planned[:stop] if run.task == task]
        counts = [made.count(arm.name) for arm in task.arms]
        assert max(counts) - min(counts) <= 1
    assert {run.arm.name for run in plan(TASKS, names[:1], seeds)} == {names[0]}


def test_classes_are_those_of_about_equal_size() -> None:
    assert largest({"a": 5, "c": 9, "b": 9, "d": 70}, below=10) == ["b", "c", "a"]


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


def test_a_difference_is_clear_beyond_both_errors() -> None:
    found = difference([np.ones(100, bool)], [np.arange(100) % 10 > 0])
    assert found.mean == pytest.approx(0.1) and found.error == pytest.approx(0.03, abs=0.001)
    assert found.clear(noise=0) == 1 and found.clear(noise=0.02) == 1
    assert found.clear(noise=0.05) == 0, "as much may come of the seed"
    assert difference([np.arange(100) % 10 > 0], [np.ones(100, bool)]).clear(noise=0) == -1


def test_noise_is_pooled_over_arms_with_several_seeds() -> None:
    arms = [{1: {"top1": 0.5}, 2: {"top1": 0.7}}, {1: {"top1": 0.1}, 2: {"top1": 0.1}}]
    assert training_noise([*arms, {1: {"top1": 0.9}}]) == pytest.approx(0.1)
    assert training_noise([{1: {"top1": 0.9}}]) == 0


def record(arm: str, seed: int, hits: list[int], **settings: object) -> Metrics:
    hit = np.array(hits, bool)
    return {
        "task": "345-2", "arm": arm, "seed": seed, "content": "bitmaps", "settings": settings,
        "train_drawings": 4_000, "core_seconds": None,
        "date": "2026-11-27", "held_out": "ab", "drawings": len(hit), "top1": float(hit.mean()),
        "mean_class_accuracy": float(hit.mean()), "hits": pack(hit),
    }  # fmt: skip


def table(text: str, heading: str) -> list[str]:
    """The rows of the table below a heading."""
    after = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [line for line in after.splitlines() if line.startswith("| ")][2:]


def test_page_compares_with_the_first_arm_over_common_seeds() -> None:
    first, second = (arm.name for arm in TASKS[0].arms)
    records = [
        record("gone", 1, [0, 0, 0, 0], **{"augment.gone": 2}),
        record(second, 1, [1, 1, 0, 0], **{"augment.affine": True}) | {"core_seconds": 70.2},
        record(first, 1, [1, 0, 0, 0]),
        record(second, 2, [1, 1, 1, 1], **{"augment.affine": True}) | {"core_seconds": 65.0},
    ]
    assert summary(records) == {"345-2": {first: 0.25, second: 0.75, "gone": 0.0}}
    text = page(records)
    assert "4,000 drawings to train on, 4 held out." in text
    rows = table(text, TASKS[0].title)
    assert rows[0] == f"| {first} | bitmaps | 1 | 25.00 | 25.00, 25.00 | 25.00 |  |  |  |  |"
    means = "2 | 75.00 | 50.00, 100.00 | 75.00"
    difference = "+25.00 ± 25.00 | +25.00"
    settings = "bitmaps, `augment.affine True`"
    assert rows[1] == f"| {second} | {settings} | {means} |  | 65 | {difference} |"
    assert "`augment.gone 2`*" in rows[2], "a setting that exists no longer is marked"
    answer = table(text, "What follows")[0]
    assert f"| {second} - {first} | +25.00 ± 25.00 (1) | 0, 0 of 1 |" in answer


def test_page_shows_all_arms_over_the_recognised_drawings_of_the_strokes() -> None:
    """Bitmaps do not say which drawings were recognised; those of the same strokes were."""
    known = {"recognized": pack(np.array([1, 0, 0, 1], bool)), "content": "strokes"}
    bitmaps = record("bitmaps", 1, [1, 0, 1, 0]) | {"task": TASKS[2].name}
    text = page([bitmaps, record("strokes-1", 1, [1, 0, 0, 1]) | {"task": TASKS[2].name} | known])
    assert "2 of them known to have been recognised" in text
    rows = [row.split(" | ") for row in table(text, TASKS[2].title)]
    assert [row[6] for row in rows] == ["50.00", "100.00"]


def test_other_drawings_are_not_compared() -> None:
    first, second = (arm.name for arm in TASKS[0].arms)
    other = record(second, 1, [1, 1]) | {"held_out": "cd"}
    with pytest.raises(ValueError, match="different drawings"):
        page([record(first, 1, [1, 0]), other])


def test_scores_every_held_out_drawing_once(tmp_path: Path) -> None:
    """The hits add up to what the runs themselves have measured on their validation split, and are
    of the same drawings whatever is stored of them."""
    scored = []
    for arm in (INPUTS[0], INPUTS[2]):
        data = tmp_path / arm.name / "data"
        runs.make_dataset(data, val_fraction=0.2, test_fraction=0.1, content=arm.content)
        output = tmp_path / arm.name / "run"
        own = flags(arm.settings)
        assert train.main([*runs.settings(data, output, *own), "--train.epochs", "1"]) == 0
        scored.append(score(output, data))
        validation = runs.last_meta(output)["validation"]
        hits = unpack(scored[-1]["hits"], scored[-1]["drawings"])
        measured = hits[: validation["drawings"]].mean()
        assert measured == pytest.approx(validation["top1"], abs=1e-6)
        assert len(hits) > validation["drawings"] and scored[-1]["top1"] == hits.mean()
    assert scored[0]["held_out"] == scored[1]["held_out"]
    assert "recognized" not in scored[0]
    known = unpack(scored[1]["recognized"], len(hits))[: validation["drawings"]]
    assert known.sum() == validation["recognized_drawings"]
    right = hits[: validation["drawings"]][known].mean()
    assert right == pytest.approx(validation["top1_recognized"], abs=1e-6)
