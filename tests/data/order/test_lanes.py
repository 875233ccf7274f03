"""The number of lanes of a run: what fits together, and what a refusal suggests."""

from __future__ import annotations

from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.order.lanes import resolve_lanes


@pytest.mark.parametrize(
    ("global_batch", "world_size", "lanes"),
    [(4096, 1, 64), (4096, 64, 64), (100, 4, 4), (96, 8, 32), (4096, 65, 512), (7, 1, 1)],
)
def test_auto_lanes(global_batch: int, world_size: int, lanes: int) -> None:
    """Checkpoints store the number of lanes: the rule must not drift."""
    assert resolve_lanes("auto", global_batch, world_size) == lanes


def check_refusal(error: RefusedError, lanes: int | str, global_batch: int, size: int) -> None:
    """The refusal names a setting and its value, and a global batch that is accepted."""
    given = {"--train.global_batch": global_batch, "--stream.lanes": lanes}
    assert error.value == given[error.subject]
    fitting = int(str(error.global_batch))
    assert f"--stream.lanes auto with --train.global_batch {fitting}" in error.remedy
    resolve_lanes("auto", fitting, size)


@given(st.integers(1, 3000), st.integers(1, 600), st.just("auto") | st.integers(1, 3000))
def test_resolved_lanes_fit(global_batch: int, world_size: int, lanes: int | str) -> None:
    """Accepted lanes divide the batch and give every rank a drawing; what a refusal suggests is
    accepted: advice that is refused in turn costs a user of a cluster a queue each time."""
    try:
        resolved = resolve_lanes(lanes, global_batch, world_size)
    except RefusedError as error:
        check_refusal(error, lanes, global_batch, world_size)
        return
    assert global_batch % resolved == 0
    assert world_size <= resolved <= global_batch
    most = 64 if world_size <= 64 else 512 if world_size <= 512 else 1024
    assert resolved == (gcd(global_batch, most) if lanes == "auto" else lanes)


@pytest.mark.parametrize(
    ("lanes", "global_batch", "world_size"),
    [
        ("auto", 1000, 16),
        ("auto", 4096 + 32, 64),
        ("auto", 1000, 100),
        (5, 96, 2),
        (2, 96, 3),
        (4, 4096, 8),
        ("auto", 1, 64),
        pytest.param("auto", 6000, 600, id="more than 512 ranks"),
        pytest.param("auto", 3, 7, id="batch smaller than ranks that are no power of two"),
        pytest.param(16, 3, 7, id="batch smaller than ranks, with lanes"),
        pytest.param(7, 100, 8, id="lanes that do not divide, gcd smaller than the ranks"),
        pytest.param(2, 100, 8, id="no multiple of the ranks divides the batch"),
    ],
)
def test_a_refusal_suggests_what_works(
    lanes: int | str, global_batch: int, world_size: int
) -> None:
    with pytest.raises(RefusedError) as refused:
        resolve_lanes(lanes, global_batch, world_size)
    check_refusal(refused.value, lanes, global_batch, world_size)


def test_a_refusal_in_words() -> None:
    with pytest.raises(RefusedError) as refused:
        resolve_lanes(7, 100, 4)
    assert str(refused.value) == (
        "--stream.lanes 7: does not divide --train.global_batch 100. "
        "Use --stream.lanes auto with --train.global_batch 100"
    )
