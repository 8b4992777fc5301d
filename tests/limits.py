"""What a subscriber or a device may have: for the bed, and for the model that obeys it (RFC 6888 REQ-4, REQ-5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.frames import ICMP, TCP, UDP

CLASSES = ("tcp", "udp", "icmp", "other")  # of protocols

# Whoever meets one of these is told (RFC 6888 REQ-11).
TOLD_REFUSALS = {
    "session_limit", "mapping_limit", "protocol_limit", "rate_limit", "ports_exhausted", "pool_exhausted", "protocol_in_use",
}  # fmt: skip


def class_of(protocol: int) -> int:
    """Class of a protocol, in limits."""
    name = {TCP: "tcp", UDP: "udp", 136: "udp", ICMP: "icmp", 58: "icmp"}.get(protocol, "other")
    return CLASSES.index(name)


class Limits(NamedTuple):
    """Of a subscriber or device; 0: none. By class of protocol what it alone may have, and what others leave to it."""

    sessions: int = 0
    ports: int = 0
    rate: int = 0
    burst: int = 0
    per_port: int = 0  # sessions of one mapping
    sessions_of: tuple[int, ...] = (0,) * len(CLASSES)
    ports_of: tuple[int, ...] = (0,) * len(CLASSES)
    reserve: tuple[int, ...] = (0,) * len(CLASSES)

    def judge(self, protocol: int, sessions: list[int], ports: list[int] | None, tokens: float, of_mapping: int) -> str:
        """Verdict where a new session is too much, else nothing.

        `sessions`, `ports`: protocols of those that there are; no ports: none is needed. `of_mapping`: sessions of its mapping.
        """
        if self.sessions and len(sessions) >= self.sessions:
            return "session_limit"
        if ports is not None and self.ports and len(ports) >= self.ports:
            return "mapping_limit"
        if self._is_full(protocol, sessions, self.sessions_of, self.sessions):
            return "protocol_limit"
        if ports is not None and self._is_full(protocol, ports, self.ports_of, self.ports):
            return "protocol_limit"
        if self.rate and tokens < self._price(protocol):
            return "rate_limit"
        return "session_limit" if 0 < self.per_port <= of_mapping else ""

    def _is_full(self, protocol: int, used: list[int], own: tuple[int, ...], all_of_it: int) -> bool:
        """Whether a class has all that it may have, or the rest is what others have reserved and do not use yet."""
        mine = class_of(protocol)
        of = [sum(class_of(known) == number for known in used) for number in range(len(CLASSES))]
        kept = sum(max(self.reserve[other] - of[other], 0) for other in range(len(CLASSES)) if other != mine)
        return 0 < own[mine] <= of[mine] or (any(self.reserve) and 0 < all_of_it <= len(used) + kept)

    def _price(self, protocol: int) -> float:
        """Who has no reserve leaves half of the bucket to those that have one."""
        if not any(self.reserve) or self.reserve[class_of(protocol)]:
            return 1
        return min(1 + self.burst / 2, self.burst)


def read_limits(words: Mapping[str, str]) -> Limits:
    """Limits of a statement's pairs: `sessions 10`, `per-port 3`, `tcp-ports 5`, `udp-sessions 7`, `tcp-reserve 2` ..."""
    sessions, ports, rate, burst, each = (int(words.get(n, 0)) for n in ("sessions", "ports", "rate", "burst", "per-port"))
    of = [tuple(int(words.get(f"{name}-{what}", 0)) for name in CLASSES) for what in ("sessions", "ports", "reserve")]
    return Limits(sessions, ports, rate, burst or rate, each, *of)


def fill_limits(row: Any, limits: Limits) -> None:
    """Write them into a row of LIMITS."""
    row["sessions"], row["mappings"], row["rate"], row["burst"], row["sessions_each"] = limits[:5]
    row["sessions_of"], row["mappings_of"], row["reserve"] = limits[5:]
    row["reserved"] = any(limits.reserve)
