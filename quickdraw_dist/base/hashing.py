"""Counter-based randomness: the one source of every seeded decision in the project.

Plans and orders must be the same on every machine and in every release, and have O(1) random
access. numpy's generators promise neither (NEP 19 lets a release change a stream), so all of it
comes from keys made by BLAKE2b and one fixed 64-bit mixer: the finaliser of SplitMix64 (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Array64 = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15


def mix64(values: Array64) -> Array64:
    """Mix every element of a uint64 array to a well-distributed uint64; a bijection."""
    mixed = values + np.uint64(_GOLDEN)  # arrays wrap around in silence
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def key64(*parts: int | str) -> int:
    """Fold integers and names into one 64-bit key: the same for the same parts in this order."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def random64(key: int, count: int, start: int = 0) -> Array64:
    """Elements `start` to `start + count` of the random stream named by `key`, (count,) uint64."""
    return mix64(np.arange(start, start + count, dtype=np.uint64) ^ np.uint64(key))


def permutation(count: int, key: int) -> NDArray[np.int64]:
    """A permutation of range(count), (count,) int64, the same for the same key forever.

    Every index rides in the low bits of its own random number, so the numbers are distinct, one
    plain sort is enough, and the result does not depend on the sorting algorithm.
    """
    mask = np.uint64((1 << max(count - 1, 1).bit_length()) - 1)
    riders = random64(key, count)
    riders &= ~mask
    riders |= np.arange(count, dtype=np.uint64)
    riders.sort()
    riders &= mask
    return riders.view(np.int64)
