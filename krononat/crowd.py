"""Whether a core has to share its CPU: then what need not be done at once is done more rarely, and packets get the time.

A core should have a CPU of its own. Where it has not (a laboratory, a small machine, a neighbour that nobody expected), each
turn of replication finds nothing in the caches and takes several times as long, which delays everybody's packets, and others'
turns. What tells is for how long this thread could have run and others did: proc(5), schedstat.
"""

from __future__ import annotations

import contextlib
import os

LOOK_EACH = 200  # ticks
CROWDED, FREE = 40, 20  # percent of a time in which it waited: from which on it is crowded, and below which it is no more


class Crowd:
    """Of the thread that makes it."""

    def __init__(self, path: str = "/proc/thread-self/schedstat") -> None:
        self.is_crowded = False
        self._file = -1  # a kernel without it: then it is never crowded
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._waited, self._looked = self._ms(), -1

    def look(self, now: int) -> bool:
        """Look again, if it is time to; whether that has changed anything."""
        if self._looked >= 0 and now - self._looked < LOOK_EACH:
            return False
        before, waited = self.is_crowded, self._ms()
        if self._looked >= 0:
            share = 100 * (waited - self._waited) / max(now - self._looked, 1)
            self.is_crowded = share >= (FREE if before else CROWDED)
        self._waited, self._looked = waited, now
        return before != self.is_crowded

    def _ms(self) -> float:
        """Waited ever."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(os.pread(self._file, 100, 0).split()[1]) / 1e6
        return 0.0
