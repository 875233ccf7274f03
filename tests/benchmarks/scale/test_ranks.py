"""The arithmetic of scaling: limits that anybody can check by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale.ranks.__main__ import GPUS, gradient_bytes, modelled
from benchmarks.scale.ranks.model import Links, Step, all_reduce_seconds, efficiency, fit

FAST = Links(gpus_per_node=8, node_bytes_per_second=100, network_bytes_per_second=10, hop_seconds=0)


def test_one_gpu_talks_to_nobody() -> None:
    assert all_reduce_seconds(1e9, 1, Links()) == 0


def test_a_node_is_a_ring() -> None:
    # Every GPU sends and takes 2 (n - 1) / n of all bytes.
    assert all_reduce_seconds(1_000, 2, FAST) == pytest.approx(2 * 500 / 100)
    assert all_reduce_seconds(1_000, 8, FAST) == pytest.approx(14 * 125 / 100)


def test_between_nodes_goes_an_eighth_of_it_for_each_gpu() -> None:
    inside = all_reduce_seconds(1_000, 8, FAST)
    assert all_reduce_seconds(1_000, 16, FAST) == pytest.approx(inside + 2 * 62.5 / 10)


def test_hops_count_where_there_are_no_bytes() -> None:
    links = Links(hop_seconds=1)
    assert all_reduce_seconds(0, 64, links) == 2 * 7 + 2 * 7


def test_efficiency_between_nothing_and_everything_hidden() -> None:
    assert efficiency(3, 1) == (0.75, 1)  # two thirds of 3 hide it
    assert efficiency(3, 3) == (0.5, 0.75)
    assert efficiency(3, 0) == (1, 1)


def test_fit_finds_the_step_behind_two_measurements() -> None:
    step = Step(0.004, 50_000)
    found = fit((100, step.seconds(100)), (9_000, step.seconds(9_000)))
    assert found.fixed_seconds == pytest.approx(0.004)
    assert found.drawings_per_second == pytest.approx(50_000)
    assert fit((100, 0.001), (1_000, 0.02)).fixed_seconds == 0  # never less than nothing


@given(
    size=st.integers(1, 10**9),
    fixed=st.floats(0, 0.1),
    rate=st.floats(1e2, 1e7),
    hop=st.floats(0, 1e-3),
)
def test_more_gpus_never_scale_better(size: int, fixed: float, rate: float, hop: float) -> None:
    rows = modelled(Step(fixed, rate), size, Links(hop_seconds=hop), 4_096, 65_536)
    assert tuple(rows) == GPUS
    for key in ("growing", "fixed"):
        for end in (0, 1):
            shares = [row[key][end] for row in rows.values()]
            assert shares == sorted(shares, reverse=True)
            assert all(0 <= share <= 1 for share in shares)
        assert all(row[key][0] <= row[key][1] for row in rows.values())


def test_gradients_are_four_bytes_a_parameter() -> None:
    assert gradient_bytes(64) == 4 * 2_282_649
