"""Counter-based random numbers: the only source of seeded decisions in the project.

Plans and orders must be the same on every machine and in every release, and have O(1) random
access. numpy's generators promise neither (NEP 19 lets a release change a stream), so BLAKE2b makes
the keys and one fixed 64-bit mixer the numbers: the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Array64 = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15


def mix64(values: Array64) -> Array64:
    """Mix every element of a uint64 array to a well-distributed uint64; a bijection."""
    mixed = values + np.uint64(_GOLDEN)  # arrays overflow without a warning
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def key64(*values: int | str) -> int:
    """Return a 64-bit key of integers and names, which depends on their order and types."""
    plain = tuple(value if isinstance(value, str) else int(value) for value in values)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def random64(key: int, count: int, start: int = 0) -> Array64:
    """Return elements `start` to `start + count` of the random stream of `key`, (count,) uint64."""
    return mix64(np.arange(start, start + count, dtype=np.uint64) ^ np.uint64(key))


def permutation(count: int, key: int) -> NDArray[np.int64]:
    """Return a permutation of range(count), (count,) int64, that depends on `key` alone.

    Sorts random numbers whose low bits are replaced by their indices: all are distinct, so the
    result does not depend on the sorting algorithm.
    """
    mask = np.uint64((1 << max(count - 1, 1).bit_length()) - 1)
    keys = random64(key, count)
    keys &= ~mask
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    keys &= mask
    return keys.view(np.int64)
