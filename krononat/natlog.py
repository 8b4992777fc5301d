"""The log of NAT events as people read it: out of the ring in shared memory (`shards.events`), by any number of readers.

Nothing here locks or asks the worker. A reader keeps its own place; what was overwritten before it came by counts as missed.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import numpy as np

from shards import protocols
from shards.event_rows import ALARM_POOLS, ALARM_SUBSCRIBERS
from shards.state import EVENTS, Array, State
from shards.verdict import VERDICTS

# natEvent (RFC 8158 section 4.3, IANA's registry of IPFIX) and the words that RFC 6146 and RFC 6888 have for it.
KINDS = {
    3: "addresses_exhausted",
    4: "session_created",
    5: "session_deleted",
    8: "mapping_created",
    9: "mapping_deleted",
    12: "ports_exhausted",
    13: "quota_exceeded",
    16: "block_allocated",
    17: "block_released",
    18: "threshold_reached",
}
LEVELS = ("none", "warning", "critical")

# Which quota was exceeded (natQuotaExceededEvent) and which threshold was reached (natThresholdEvent), by RFC 8158 4.3.
QUOTAS = {"rows_exhausted": 1, "table_full": 1, "neighbours_exhausted": 4, "fragment_limit": 5}
_PER_USER = 3
_POOL_HIGH, _POOL_LOW, _MAPPINGS_HIGH, _USER_HIGH = 1, 2, 3, 4

_READABLE = EVENTS - 1  # the oldest row may be in the writer's hands
_WRAP = 0xFFFF_FFFF
_QUOTA_EXCEEDED = 13


class Event(NamedTuple):
    """An event. `reason`: the verdict of a refused packet. `row` and `generation` name the life of a session or mapping.

    `detail`: natQuotaExceededEvent or natThresholdEvent. Of a threshold `what` and `level` say which and how bad, `packets` how
    many percent.
    """

    time: str  # UTC, ISO 8601, by the reader's clock
    kind: str
    nat_event: int
    protocol: str
    internal: str
    internal_port: int
    external: str
    external_port: int
    external_last: int
    remote: str
    remote_port: int
    account: int
    row: int
    generation: int
    packets: int
    reason: str
    detail: int
    what: str
    level: str


class Reader:
    """Reads events in their order, each once, beginning with the oldest that there are."""

    def __init__(self, state: State) -> None:
        self._state = state
        logged = int(state.logged[0])
        # The count alone cannot tell, for it wraps. The next row may be in the writer's hands, but the one behind it is not.
        full = bool(state.events[(logged + 1) & (EVENTS - 1)]["kind"])
        self._at = (logged - (_READABLE if full else logged)) & _WRAP
        self.missed = 0  # overwritten before they could be read

    def rows(self) -> Array:
        """Copies of all EVENT rows that were written since the last call."""
        number, count = self._at, (int(self._state.logged[0]) - self._at) & _WRAP
        skipped = max(count - _READABLE, 0)
        places = (number + np.arange(skipped, count)) & (EVENTS - 1)
        copied: Array = self._state.events[places]
        overwritten = ((int(self._state.logged[0]) - number) & _WRAP) - _READABLE  # while they were being copied, too
        lost = max(min(overwritten, count), skipped)
        self.missed += lost
        self._at = (number + count) & _WRAP
        return copied[lost - skipped :]


def event(row: Any) -> Event:
    """An EVENT row in words."""
    number = int(row["internal_realm"]) >> 24
    return Event(
        _moment(int(row["tick"])),
        KINDS.get(int(row["kind"]), str(int(row["kind"]))),
        int(row["kind"]),
        protocols.NAMES.get(number, str(number) if number else ""),
        _address(row["internal_address"]),
        int(row["internal_port"]),
        _address(row["external_address"]),
        int(row["external_port"]),
        int(row["external_last"]),
        _address(row["remote_address"]),
        int(row["remote_port"]),
        int(row["account"]),
        int(row["half"]),
        int(row["generation"]),
        int(row["packets"]),
        VERDICTS[int(row["verdict"])].name if row["verdict"] else "",
        _detail(row),
        what(int(row["alarm"]) - 1) if row["alarm"] else "",
        LEVELS[int(row["level"])] if row["alarm"] else "",
    )


def _detail(row: Any) -> int:
    """Which quota, or which threshold; 0 for other events."""
    if row["alarm"]:
        return _threshold(int(row["alarm"]) - 1, int(row["level"]))
    exceeded = int(row["kind"]) == _QUOTA_EXCEEDED
    return QUOTAS.get(VERDICTS[int(row["verdict"])].name, _PER_USER) if exceeded else 0


def _threshold(alarm: int, level: int) -> int:
    """natThresholdEvent: what rose, or a pool of which there is enough again."""
    if alarm == ALARM_SUBSCRIBERS:
        return _USER_HIGH
    if alarm >= ALARM_POOLS:
        return _POOL_HIGH if level else _POOL_LOW
    return _MAPPINGS_HIGH


def what(alarm: int) -> str:
    """A row of ALARM in words; pools have their numbers."""
    return ("index", "rows", "subscriber")[alarm] if alarm < ALARM_POOLS else f"pool {alarm - ALARM_POOLS}"


def _moment(tick: int) -> str:
    """Ticks count since boot, so a clock that was set meanwhile sets the past, too."""
    booted = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return datetime.fromtimestamp(booted / 1e9 + tick / 1000, UTC).isoformat(timespec="milliseconds")


def _address(value: Any) -> str:
    return str(IPv4Address(int(value))) if value else ""
