"""Who uses how much, who was refused how often, and what is nearly full: read off a core's memory from outside (see `view`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import numpy as np

from krononat.view import ticks
from shards.account_rows import CLASSES, REASONS
from shards.event_rows import ALARM_INDEX, ALARM_POOLS, ALARM_ROWS, ALARM_SUBSCRIBERS
from shards.state import Array, State

SLICE = 1 << 16  # accounts copied at once: 8 MiB
LEVELS = ("none", "warning", "critical")
ORDERS = ("refused", "sessions", "ports", *REASONS[2:])  # by which there can be a first one


class Usage(NamedTuple):
    """What a subscriber, or a device behind one, uses, and what he was refused, in packets, by reason."""

    account: int
    prefix: str
    kind: str  # subscriber or device
    external: str
    blocks: int
    sessions: int
    ports: int
    sessions_of: dict[str, int]
    ports_of: dict[str, int]
    refused: int
    refused_for: dict[str, int]


def accounts(state: State) -> Iterator[Usage]:
    """Everyone who has ever sent something, or was refused, in the order of their numbers."""
    for kind, rows in (("subscriber", state.prefixes), ("device", state.devices)):
        for prefix in rows[: int(state.settings[0]["prefixes" if kind == "subscriber" else "devices"])]:
            for number, row in _used(state, prefix):
                yield _usage(state, number, row, 32 - int(prefix["shift"]), kind)


def top(state: State, by: str, count: int) -> list[Usage]:
    """The first `count` of everyone by one of ORDERS, those who have none of it left out."""
    chosen = [row for row in accounts(state) if _figure(row, by)]
    return sorted(chosen, key=lambda row: -_figure(row, by))[:count]


def of_address(state: State, address: IPv4Address) -> list[Usage]:
    """The subscriber with an internal address, and the device, as far as they were ever used."""
    found = []
    for kind, rows in (("subscriber", state.prefixes), ("device", state.devices)):
        for prefix in rows[: int(state.settings[0]["prefixes" if kind == "subscriber" else "devices"])]:
            if int(address) & int(prefix["mask"]) == int(prefix["network"]):
                number = int(prefix["first_account"]) + (int(address) - int(prefix["network"]) >> int(prefix["shift"]))
                row = state.accounts[number]
                found += [_usage(state, number, row, 32 - int(prefix["shift"]), kind)] if row["base"] else []
                break
    return found


def _used(state: State, prefix: Any) -> Iterator[tuple[int, Any]]:
    """(number, row) of the accounts of a prefix that were ever used."""
    first = int(prefix["first_account"])
    end = first + ((~int(prefix["mask"]) & 0xFFFFFFFF) + 1 >> int(prefix["shift"]))
    for at in range(first, end, SLICE):
        rows = state.accounts[at : min(at + SLICE, end)]
        for index in np.flatnonzero(rows["base"]):
            yield at + int(index), rows[index]


def _usage(state: State, number: int, row: Any, length: int, kind: str) -> Usage:
    external = int(row["external"])
    return Usage(
        number,
        f"{IPv4Address(int(row['base']))}/{length}",
        kind,
        _address(state, external - 1) if external else "",
        int(np.count_nonzero(row["blocks"])),
        int(row["sessions"]),
        int(row["mappings"]),
        _named(CLASSES, row["sessions_of"]),
        _named(CLASSES, row["mappings_of"]),
        int(row["refused"].sum()),
        _named(REASONS, row["refused"]),
    )


def _address(state: State, row: int) -> str:
    """Of an external address; empty where its row has none any more."""
    address = int(state.externals[row]["address"])
    return str(IPv4Address(address)) if address else ""


def _named(names: Sequence[str], figures: Array) -> dict[str, int]:
    return dict(zip(names, figures.tolist(), strict=True))


def _figure(row: Usage, by: str) -> int:
    return row.refused_for[by] if by in REASONS[2:] else int(getattr(row, by))


# --- what is nearly full --------------------------------------------------------------------------------------------------


class Alarm(NamedTuple):
    """How full something is. `level`: one of LEVELS; of subscribers `strained` says how many have nearly all their blocks."""

    what: str
    pool: str
    percent: int
    level: str
    since_s: int
    raised: int
    strained: int


def alarms(state: State, pools: Sequence[str], now: int | None = None) -> list[Alarm]:
    """Everything that is watched; `pools`: their names; `now` in ticks."""
    told, moment = [], ticks() if now is None else now
    for number in range(ALARM_POOLS + len(pools)):
        row = state.alarms[number]
        pool = pools[number - ALARM_POOLS] if number >= ALARM_POOLS else ""
        level, count = int(row["level"]), int(row["count"])
        if number == ALARM_SUBSCRIBERS:
            level = 1 if count else 0
        since = ((moment - int(row["since"])) & 0xFFFFFFFF) // 1000 if row["since"] else 0
        told.append(
            Alarm(_WHAT.get(number, "pool"), pool, int(row["percent"]), LEVELS[level], since, int(row["raised"]), count)
        )
    return told


_WHAT = {ALARM_INDEX: "index", ALARM_ROWS: "rows", ALARM_SUBSCRIBERS: "subscribers"}
_SENTENCES = {
    "index": "{percent} % of the index is in use: raise memory.sessions, or limit what fills it",
    "rows": "{percent} % of memory.sessions are in use: raise it, or limit what fills it",
    "subscribers": "{strained} subscribers have nearly all the blocks that they may have: krononat subscribers top --by ports",
    "pool": "{percent} % of the blocks of pool {pool} are in use: krononat pool add {pool} PREFIX",
}


def sentences(found: Sequence[Alarm]) -> list[str]:
    """Those that are raised, for people."""
    return [f"{row.level}: {_SENTENCES[row.what].format(**row._asdict())}" for row in found if row.level != LEVELS[0]]
