"""What the training benchmark runs, and what it makes of the results."""

from __future__ import annotations

import pytest

from benchmarks.train_speed.__main__ import BASE, SAVING, key_metrics, our_cases
from quickdraw_dist.base.settings import Settings


@pytest.mark.parametrize(
    ("precision", "on_gpu"), [("fp32", False), ("bf16", False), ("bf16", True)]
)
def test_every_case_is_valid_and_differs_from_the_base(precision: str, on_gpu: bool) -> None:
    cases = our_cases(precision, 4_096, 256, (64,), on_gpu)
    assert next(iter(cases)) == BASE
    for name, settings in cases.items():
        tree: dict[str, dict[str, object]] = {}
        for key, value in settings.items():
            section, leaf = key.split(".")
            tree.setdefault(section, {})[leaf] = value
        Settings(**tree)  # type: ignore[arg-type]
        assert name == BASE or settings != cases[BASE], name
    changed = {name: len(s.items() ^ cases[BASE].items()) for name, s in cases.items()}
    assert all(count <= 2 for name, count in changed.items() if "all of these" not in name), changed


def test_the_figures_are_against_the_faster_small_project() -> None:
    results = {
        BASE: {"per_second": 1_000, "data_wait_share": 0.002},
        SAVING: {"per_second": 900, "checkpoint_pause_ms_median": 3.5, "checkpoint_pauses": 9},
        "resident": {"per_second": 990},
        "small projects' way, 0 workers": {"per_second": 200},
        "small projects' way, 8 workers": {"per_second": 250},
    }
    limits = {"flops_per_drawing": 2.0, "flops_per_second": 10_000.0, "device": "cpu"}
    assert key_metrics(results, limits) == {
        "baseline_ratio": 4.0,
        "data_wait_share": 0.002,
        "checkpoint_pause_ms_median": 3.5,
        "checkpoint_pauses": 9,
        "drawings_per_second": 1_000,
        "resident_ratio": 0.99,
        "share_of_matrix_peak": 0.2,
        "device": "cpu",
    }
    assert key_metrics({}, limits)["baseline_ratio"] is None
