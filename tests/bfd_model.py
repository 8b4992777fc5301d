"""BFD as RFC 5880 and RFC 5881 tell it, one session, in plain words: the oracle of `shards.bfd`.

Times in ms (ticks), intervals in microseconds. Packets are dictionaries with the names of RFC 5880 4.1; a session is told what
came (`hear`), that time passes (`expire`), and says when it has something to send (`is_due`) and what (`send`).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

Packet = dict[str, int]
ADMIN_DOWN, DOWN, INIT, UP = range(4)
SECOND = 1_000_000


def encode(packet: Packet) -> bytes:
    """The bytes of RFC 5880 4.1."""
    first = packet["version"] << 5 | packet["diagnostic"]
    flags = packet["state"] << 6 | packet["poll"] << 5 | packet["final"] << 4 | packet["independent"] << 3
    flags |= packet["authenticated"] << 2 | packet["demand"] << 1 | packet["multipoint"]
    words = [packet[name] for name in ("mine", "yours", "desired", "required", "echo")]
    return struct.pack(">4B5I", first, flags, packet["multiplier"], packet["length"], *words)


def decode(raw: bytes) -> Packet:
    """The first 24 of these bytes as a packet."""
    first, flags, multiplier, length, mine, yours, desired, required, echo = struct.unpack(">4B5I", raw[:24])
    return {
        "version": first >> 5, "diagnostic": first & 31, "state": flags >> 6, "poll": flags >> 5 & 1, "final": flags >> 4 & 1,
        "independent": flags >> 3 & 1, "authenticated": flags >> 2 & 1, "demand": flags >> 1 & 1, "multipoint": flags & 1,
        "multiplier": multiplier, "length": length, "mine": mine, "yours": yours, "desired": desired, "required": required,
        "echo": echo,
    }  # fmt: skip


@dataclasses.dataclass
class Session:
    """One session with a peer; `percent(low, high)` is a random whole number between these."""

    discriminator: int
    wanted: int  # both intervals, once it is up
    multiplier: int
    percent: Callable[[int, int], int]
    next_at: int
    state: int = DOWN
    diagnostic: int = 0
    remote: Packet = dataclasses.field(default_factory=dict)  # the last packet; empty: none since the peer fell silent
    desired: int = 0
    polling: bool = False
    answering: bool = False
    silent_at: int | None = None
    flaps: int = 0

    def __post_init__(self) -> None:
        self.desired = max(self.wanted, SECOND)

    # --- 6.8.6 ------------------------------------------------------------------------------------------------------------

    def refusal(self, raw: bytes, ttl: int = 255) -> str:
        """Why a packet of the peer's address must not be heeded; empty: it must."""
        if ttl != 255:
            return "bfd_hops"
        if len(raw) < 24:
            return "bfd_malformed"
        packet = decode(raw)
        least = 26 if packet["authenticated"] else 24
        impossible = packet["version"] != 1 or packet["length"] < least or packet["length"] > len(raw)
        if impossible or packet["multiplier"] == 0 or packet["multipoint"] or packet["mine"] == 0:
            return "bfd_malformed"
        if packet["yours"] not in (0, self.discriminator):
            return "bfd_unknown_session"
        if packet["yours"] == 0 and packet["state"] in (INIT, UP):
            return "bfd_unknown_session"
        if packet["authenticated"]:
            return "bfd_authenticated"
        return "bfd_closed" if self.state == ADMIN_DOWN else ""

    def hear(self, raw: bytes, now: int, ttl: int = 255) -> str:
        """Heed a packet, or say why not."""
        refused = self.refusal(raw, ttl)
        if refused:
            return refused
        packet = self.remote = decode(raw)
        if packet["final"]:
            self.polling = False
        if (self.state in (UP, INIT) and packet["state"] == ADMIN_DOWN) or (self.state == UP and packet["state"] == DOWN):
            self._become(DOWN, 3, now)
        elif self.state == DOWN and packet["state"] == DOWN:
            self._become(INIT, self.diagnostic, now)
        elif (self.state == DOWN and packet["state"] == INIT) or (self.state == INIT and packet["state"] in (INIT, UP)):
            self._become(UP, 0, now)
        self.answering = self.answering or bool(packet["poll"])
        self.silent_at = now + self.detection()
        if self.next_at - now > self.interval() // 1000:
            self._plan(now)
        return ""

    def _become(self, state: int, diagnostic: int, now: int) -> None:
        was_up = self.state == UP
        self.flaps += was_up and state == DOWN
        self.state, self.diagnostic, self.next_at = state, diagnostic, now
        desired = self.wanted if state == UP else max(self.wanted, SECOND)
        if (was_up or state == UP) and desired != self.desired:
            self.desired, self.polling = desired, True

    # --- timers -----------------------------------------------------------------------------------------------------------

    def detection(self) -> int:
        """Ms of silence after which the peer is gone, 6.8.4."""
        return -(-self.remote["multiplier"] * max(self.wanted, self.remote["desired"]) // 1000)

    def interval(self) -> int:
        """Microseconds between packets, 6.8.2; until the peer is heard it is taken to be able to receive one each."""
        return max(self.desired, self.remote["required"] if self.remote else 1)

    def expire(self, now: int) -> None:
        """The peer may have been silent for too long."""
        if self.silent_at is None or now < self.silent_at:
            return
        self.silent_at, self.remote = None, {}
        if self.state in (INIT, UP):
            self._become(DOWN, 1, now)

    def _plan(self, now: int) -> None:
        percent = self.percent(75, 90 if self.multiplier == 1 else 100)
        self.next_at = now + max(self.interval() * percent // 100_000, 1)

    # --- 6.8.7 ------------------------------------------------------------------------------------------------------------

    def is_due(self, now: int) -> bool:
        """Whether there is something to send."""
        if self.answering:
            return True
        if self.remote and self.remote["required"] == 0:
            return False
        both_up = bool(self.remote) and self.state == UP and self.remote["state"] == UP
        if both_up and self.remote["demand"] and not self.polling:
            return False
        return now >= self.next_at

    def send(self, now: int) -> bytes:
        """The packet that is due."""
        sent: Packet = {
            "version": 1, "diagnostic": self.diagnostic, "state": self.state, "poll": self.polling and not self.answering,
            "final": self.answering, "independent": 0, "authenticated": 0, "demand": 0, "multipoint": 0,
            "multiplier": self.multiplier, "length": 24, "mine": self.discriminator,
            "yours": self.remote["mine"] if self.remote else 0, "desired": self.desired, "required": self.wanted, "echo": 0,
        }  # fmt: skip
        if not self.answering or now >= self.next_at:
            self._plan(now)
        self.answering = False
        return encode(sent)

    def close(self, now: int) -> None:
        """An administrator closes it, 6.8.16."""
        self._become(ADMIN_DOWN, 7, now)
        self.polling = False

    def facts(self) -> dict[str, Any]:
        """What can be compared with a row of the state."""
        return {
            "state": self.state, "diagnostic": self.diagnostic, "desired": self.desired, "polling": int(self.polling),
            "final": int(self.answering), "flaps": self.flaps, "watched": int(self.silent_at is not None),
            "remote_discriminator": self.remote["mine"] if self.remote else 0,
        }  # fmt: skip
