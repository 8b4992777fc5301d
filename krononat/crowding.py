"""How much a worker waits for its CPU, and what it puts off for that.

A core that has a CPU for itself waits for nothing. Where others use it, too, each turn of the chores between breaths costs
packets three times as much: nothing of it is in the caches any more. So the more the loop has waited of late, the longer the
chores rest; what was to be done is done together then. Packets, BFD and the shunt are no chores.
"""

from __future__ import annotations

import os

from replication.protocol import age

LOOK_EACH = 100  # ticks
REST_AT_MOST = 12  # ticks; a peer that hears nothing of us for 150 takes us for dead (but see `Worker`: it may be set lower)

_SCHEDSTAT = "/proc/thread-self/schedstat"  # proc(5): ns on the CPU, ns ready for it and without, times given it


class Crowding:
    """Of the thread that makes it. Times are ticks. `most`: that chores rest."""

    def __init__(self, most: int = REST_AT_MOST) -> None:
        self._most = most
        try:
            self._file = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without it
            self._file = -1
        self.rest = 0
        self._looked, self._waited_ns = -1, 0

    def look(self, now: int) -> None:
        """See how long this thread has waited since the last look, and rest accordingly."""
        since = age(now, self._looked)
        if self._file < 0 or (self._looked >= 0 and since < LOOK_EACH):
            return
        waited_ns = int(os.pread(self._file, 80, 0).split()[1])
        if self._looked >= 0:
            self.rest = resting(waited_ns - self._waited_ns, since, self._most)
        self._looked, self._waited_ns = now, waited_ns


def resting(waited_ns: int, ticks: int, most: int = REST_AT_MOST) -> int:
    """How long chores rest where the loop has waited so long in so many ticks: `most` from a half on."""
    return min(most, 2 * most * waited_ns // (ticks * 1_000_000))
