"""The time, inside compiled loops: a generator that is to keep a pace cannot ask Python."""

from __future__ import annotations

import numpy as np

from shards import calls
from shards.jit import hot
from shards.state import Array

_MONOTONIC = 1  # CLOCK_MONOTONIC, clock_gettime(2): what time.monotonic_ns tells


@hot
def now_ns(box: Array) -> int:
    """Nanoseconds of the monotonic clock; `box`: a struct timespec to work with, from `new_box`."""
    calls.clock_gettime(_MONOTONIC, box.ctypes.data)
    return int(box[0] * 1_000_000_000 + box[1])


def new_box() -> Array:
    """A struct timespec: int64 (2,)."""
    return np.zeros(2, np.int64)


@hot
def longest_gap(duration_ns: int, box: Array) -> int:
    """Longest time, ns, for which a loop that does nothing but look at the clock was kept from it."""
    begun = last = now_ns(box)
    longest = 0
    while last - begun < duration_ns:
        now = now_ns(box)
        longest = max(longest, now - last)
        last = now
    return longest
