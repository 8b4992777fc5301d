"""The clock that packets and their timers go by, which a laboratory may stop and move ahead: `krononat lab clock`.

    now = ticks() + ahead         or, while it stands, one and the same tick

So what takes 7,440 s can be shown in milliseconds, and a scenario means the same on a busy machine as on an idle one. Both
words live in the state's memory: a worker's successor goes on by the same clock, and whoever looks into the memory tells ages
and expiries right. It never goes backwards: one that stood goes on from where it stood, behind the machine's from then on.

Moved is only what the state's memory tells of packets: sessions, mappings, ports that rest, token buckets, fragments, frames
that wait. What keeps watch on the living goes by `ticks`: the supervisor's watch on its worker, the kernel's neighbours,
clients of the control socket. Replication, BGP and BFD keep watch on other cores by the same breaths as packets, so a core that
has any of these has no clock that could be moved (`checks`).
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from shards.state import WHEEL_SHIFT, State

MOVE_AT_MOST = 86_400_000  # ticks in one go, a day

# Ticks are 32 bits in rows: what is due must have ended before it seems to be still to come, half a turn (24 days) later.
_LAG_AT_MOST = 10 * MOVE_AT_MOST


def ticks() -> int:
    """Now, as the machine counts it: ms since boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def now(state: State) -> int:
    """Now, as the packets of a core see it; its memory may be mapped read-only."""
    return Clock(state).at(ticks())


class Told(NamedTuple):
    """How a clock is: `now` in ticks, how far ahead of the machine's that is, and whether it stands."""

    now: int
    ahead_ms: int
    stands: bool


class Clock:
    """The worker's, who alone writes it."""

    def __init__(self, state: State) -> None:
        self._row, self._wheel = state.core[0], state.core["wheel_at"]
        self._ahead, self._stands = int(self._row["clock_ahead"]), int(self._row["clock_stands"])

    @property
    def ahead(self) -> int:
        """Ticks that it is ahead of the machine's."""
        return self._ahead

    @property
    def stands(self) -> int:
        """The tick at which it stands; 0 where it goes."""
        return self._stands

    def at(self, machine: int) -> int:
        """What it shows when the machine's shows `machine`."""
        return self._stands or machine + self._ahead

    def told(self, machine: int) -> Told:
        """How it is."""
        return Told(self.at(machine), self.at(machine) - machine, self._stands != 0)

    def obey(self, order: dict[str, Any], machine: int) -> str:
        """Move it by `ahead_ms`, then have it stand or go as `stands` says; why not, or nothing."""
        late = self.at(machine) - (int(self._wheel[0]) << WHEEL_SHIFT)
        if order.get("ahead_ms", 0) and late + order["ahead_ms"] > _LAG_AT_MOST:
            return f"its timers are {late // 1000} s behind still"
        self._set(self.at(machine) + int(order.get("ahead_ms", 0)), bool(order.get("stands", self._stands)), machine)
        return ""

    def _set(self, now: int, stands: bool, machine: int) -> None:
        self._ahead, self._stands = now - machine, now if stands else 0
        self._row["clock_ahead"], self._row["clock_stands"] = self._ahead, self._stands
