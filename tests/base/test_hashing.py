"""Seeded random numbers: exact, O(1) access, the same in every release."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.hashing import key64, mix64, permutation, random64

KEYS = st.integers(0, 2**64 - 1)
WORDS = 2**64


@settings(max_examples=200)
@given(count=st.integers(0, 3_000), key=KEYS)
@example(count=0, key=0)
@example(count=1, key=0)
@example(count=2, key=WORDS - 1)
@example(count=1_024, key=5)
@example(count=1_025, key=5)
@example(count=340_029, key=5)
def test_permutation_holds_every_index_once(count: int, key: int) -> None:
    """Every drawing exactly once rests on this."""
    order = permutation(count, key)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(count))


def test_permutation_depends_on_its_key() -> None:
    """The same order for all keys would pass the other tests."""
    assert len({permutation(8, key).tobytes() for key in range(2_000)}) > 1_900


def test_permutation_is_uniform() -> None:
    """Every index comes first about equally often, so that no row prefers a split."""
    first = np.bincount([permutation(10, key64(n))[0] for n in range(5_000)], minlength=10)
    assert first.min() > 400
    assert first.max() < 600


@pytest.mark.parametrize(
    ("count", "key", "order"),
    [
        (10, 0, [3, 5, 7, 4, 1, 2, 8, 9, 6, 0]),
        (10, 12345, [8, 0, 4, 2, 5, 7, 6, 3, 9, 1]),
        (7, key64(1, "split", "cat"), [2, 1, 5, 0, 6, 4, 3]),
    ],
)
def test_permutations_are_frozen(count: int, key: int, order: list[int]) -> None:
    """Datasets and checkpoints of old releases depend on these orders."""
    assert permutation(count, key).tolist() == order


def test_a_large_permutation_is_frozen() -> None:
    """At the size of a class, whose indices take more bits."""
    digest = hashlib.sha256(permutation(340_029, 42).astype("<i8").tobytes()).hexdigest()
    assert digest == "a7a521b7af6b184779acea2b71322d9b63c5ef4e6b9265d7899e9e58366f5e7f"


def test_mix64_is_splitmix64() -> None:
    """The reference outputs published for the algorithm named in the docstring."""
    golden = 0x9E3779B97F4A7C15
    states = [0, 1_234_567, 1_234_567 + golden, (1_234_567 + 2 * golden) % WORDS]
    assert mix64(np.array(states, np.uint64)).tolist() == [
        0xE220A8397B1DCDAF,
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def _unmix64(word: int) -> int:
    """The inverse of SplitMix64's finaliser, in exact integers."""
    word ^= word >> 31 ^ word >> 62
    word = word * pow(0x94D049BB133111EB, -1, WORDS) % WORDS
    word ^= word >> 27 ^ word >> 54
    word = word * pow(0xBF58476D1CE4E5B9, -1, WORDS) % WORDS
    word ^= word >> 30 ^ word >> 60
    return (word - 0x9E3779B97F4A7C15) % WORDS


@given(values=st.lists(KEYS, min_size=1, max_size=50))
def test_mix64_can_be_undone(values: list[int]) -> None:
    """A function with an inverse is a bijection: distinct counters never collide."""
    given_values = np.array(values, np.uint64)
    mixed = mix64(given_values)
    assert [_unmix64(word) for word in mixed.tolist()] == values
    assert given_values.tolist() == values, "the input is unchanged"


@given(key=KEYS, start=st.integers(0, 2**40), count=st.integers(0, 50), skip=st.integers(0, 50))
def test_random64_has_random_access(key: int, start: int, count: int, skip: int) -> None:
    """A resumed run starts in the middle of a stream."""
    whole = random64(key, skip + count, start)
    assert np.array_equal(random64(key, count, start + skip), whole[skip:])


def test_random64_and_key64_are_frozen() -> None:
    """Every seed in every manifest is read through these."""
    assert random64(7, 3).tolist() == [
        7191089600892374487,
        13647215125184110592,
        7134611160154358618,
    ]
    assert key64(1, "split", "cat") == 3916387232649401697
    assert key64("a") == 6272302100373100518


def test_key64_depends_on_order_type_and_boundaries() -> None:
    """Two decisions with the same key would be the same."""
    parts: list[tuple[int | str, ...]] = [
        (), (1,), ("1",), (-1,), (1, 2), (2, 1), (12,), ("a", "b"), ("b", "a"), ("ab",),
        ("a, b",), ("a', 'b",), ("",), ("", ""), (0,), (2**64,), ("train", 1), (1, "train"),
    ]  # fmt: skip
    assert len({key64(*part) for part in parts}) == len(parts)


PARTS = st.tuples(st.integers() | st.text(max_size=5), st.integers() | st.text(max_size=5))


@given(one=PARTS, other=PARTS)
def test_key64_is_equal_only_for_equal_parts(
    one: tuple[int | str, ...], other: tuple[int | str, ...]
) -> None:
    """For any names and numbers, those with quotes and commas included."""
    assert 0 <= key64(*one) < WORDS
    assert (key64(*one) == key64(*other)) == (one == other)
