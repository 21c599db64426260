"""Seeded patterns that do not depend on any library: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).

Published code draws its patterns from PyTorch's generators, which differ between devices and cannot be exported. Ours
are integer constants: the same in every window, image, runtime and release.
"""

from __future__ import annotations

from functools import lru_cache

_WORD = (1 << 64) - 1


@lru_cache(maxsize=64)
def splitmix64(seed: int, count: int) -> tuple[int, ...]:
    """The first `count` outputs, 64-bit integers."""
    made, state = [], seed & _WORD
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & _WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
        made.append(z ^ (z >> 31))
    return tuple(made)


def corners(seed: int, count: int) -> tuple[int, ...]:
    """`count` numbers from 0 to 3."""
    return tuple(value >> 62 for value in splitmix64(seed, count))


def subset(seed: int, count: int, size: int) -> tuple[int, ...]:
    """`size` of the numbers below `count`, ascending."""
    draws = splitmix64(seed, count)
    return tuple(sorted(sorted(range(count), key=lambda t: draws[t])[:size]))
