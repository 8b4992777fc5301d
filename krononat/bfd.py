"""BFD as it is configured and shown: rows of the sessions at the start, and what they say of themselves.

Which there are says `checks_bfd`; what they do is `shards.bfd`, which needs the compiler; nothing here does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

from krononat.checks_bfd import sessions
from krononat.models import Config
from shards.state import State

# As in shards.bfd; a test holds one against the other.
STATES = ("admin_down", "down", "init", "up")
DIAGNOSTICS = (
    "none", "detection time expired", "echo failed", "neighbour signalled down", "forwarding plane reset", "path down",
    "concatenated path down", "administratively down", "reverse concatenated path down",
)  # fmt: skip
SLOW = 1_000_000  # us
_DOWN, _UP = 1, 3


def fill(state: State, config: Config, random: bytes) -> None:
    """Write the sessions, all down, into their rows. Discriminators follow from `random`: nobody outside may guess them."""
    interval, used = 1000 * config.bfd.interval_ms, {0}
    for row, (port, peer) in zip(state.bfd, sessions(config), strict=False):
        numbers = _numbers(random, port, peer)
        row["discriminator"] = next(number for number in numbers if number not in used)
        used.add(int(row["discriminator"]))
        row["random"] = next(numbers) or 1
        row["port"], row["address"], row["state"] = port, int(peer), _DOWN
        row["interval"], row["desired"], row["multiplier"] = interval, max(interval, SLOW), config.bfd.multiplier
        row["remote_required"] = 1  # its first value: RFC 5880 6.8.1
        row["hold"] = config.bfd.settle_ms


def _numbers(random: bytes, port: int, peer: IPv4Address) -> Iterator[int]:
    """Numbers of 32 bits without end."""
    told = hashlib.sha256(b"bfd" + random + bytes([port]) + peer.packed)
    while True:
        yield int.from_bytes(told.digest()[:4], "big")
        told = hashlib.sha256(told.digest())


def rows(state: State, names: list[str], now: int) -> list[dict[str, Any]]:
    """What each session says of itself; `names` of the interfaces by port, `now` in ticks."""
    return [_row(row, names, now) for row in state.bfd.copy() if row["address"]]


def _row(row: Any, names: list[str], now: int) -> dict[str, Any]:
    number = int(row["diagnostic"])
    changed = int(row["changed_at"])
    return {
        "peer": str(IPv4Address(int(row["address"]))),
        "interface": names[int(row["port"])],
        "state": STATES[int(row["state"])],
        "since_s": round((now - changed) / 1000, 1) if changed else None,
        "detect_ms": detection_ms(row) if row["watched"] else None,
        "transmit_ms": max(int(row["desired"]), int(row["remote_required"])) / 1000,
        "receive_ms": max(int(row["interval"]), int(row["remote_desired"])) / 1000,
        "flaps": int(row["flaps"]),
        "diagnostic": DIAGNOSTICS[number] if number < len(DIAGNOSTICS) else str(number),
        "remote_state": STATES[int(row["remote_state"])] if row["watched"] else None,
        "remote_diagnostic": int(row["remote_diagnostic"]),
        "discriminator": int(row["discriminator"]),
        "remote_discriminator": int(row["remote_discriminator"]),
        "received": int(row["received"]),
        "sent": int(row["sent"]),
        "refused": int(row["refused"]),
    }


def detection_ms(row: Any) -> int:
    """Silence after which the peer is gone."""
    return -(-int(row["remote_multiplier"]) * max(int(row["interval"]), int(row["remote_desired"])) // 1000)


def summary(state: State, names: list[str]) -> dict[str, str]:
    """For `status`: state by peer and interface."""
    return {f"{row['peer']} at {row['interface']}": row["state"] for row in rows(state, names, 0)}


def is_unhealthy(state: State) -> bool:
    """Whether there are sessions that were up once, and none is up now: the core is cut off, or itself not served in time."""
    ever = state.bfd[(state.bfd["address"] != 0) & (state.bfd["ever_up"] != 0)]
    return len(ever) > 0 and not bool((ever["state"] == _UP).any())
