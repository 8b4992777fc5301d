"""Mappings of a running core, as people read them: whose they are, who keeps them, and how long."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

import numpy as np

from krononat import clock, view
from krononat.view import Filter
from shards import protocols
from shards.grant_rows import CONFIGURED, GRANTED, NOBODY, ORIGINS, SECONDS
from shards.state import ICMP, NAT_MAPPING, TCP, UDP, Array, Row, State

KEPT_BY = ("dynamic", "static", *ORIGINS[1:])


class Mapping(NamedTuple):
    """A mapping; `expires_s` of one that was asked for, None: it lives as long as its sessions, or for ever."""

    protocol: str
    internal: str
    internal_port: int
    external: str
    external_port: int
    origin: str  # one of KEPT_BY; "adopted": asked for at another core, and not since
    sessions: int
    expires_s: int | None


def mappings(state: State, wanted: Filter = Filter(), origin: str | None = None, now: int | None = None) -> Iterator[Mapping]:  # noqa: B008
    """Living mappings that `wanted` chooses, in the order of their rows; `now` in ticks, by default the core's."""
    asked = {int(row["half"]): row for row in state.grants[state.grants["origin"] != NOBODY].copy()}
    now_s = (clock.now(state) if now is None else now) // SECONDS
    for at, rows in view.slices(state, NAT_MAPPING):
        for index in np.flatnonzero((rows["kind"] == NAT_MAPPING) & _choose(wanted, rows)).tolist():
            found = _mapping(rows[index], asked.get(at + index), now_s)
            if origin in (None, found.origin):
                yield found


def _choose(wanted: Filter, rows: Array) -> Array:
    """Whatever names a remote, or a state, names no mapping: that is left out."""
    return wanted._replace(destination=None, destination_port=None, state=None).choose(rows)


def _mapping(row: Row, grant: Row | None, now_s: int) -> Mapping:
    protocol = int(row["internal_realm"]) >> 24
    known = grant is not None and grant["generation"] == row["generation"] and row["static"] == GRANTED
    kept = "static" if row["static"] == CONFIGURED else "adopted" if row["static"] == GRANTED else "dynamic"
    return Mapping(
        protocols.name(protocol),
        str(IPv4Address(int(row["internal_address"]))),
        int(row["internal_port"]),
        str(IPv4Address(int(row["external_address"]))),
        int(row["external_port"]) if protocol in (ICMP, TCP, UDP) else 0,
        ORIGINS[int(grant["origin"])] if known and grant is not None else kept,
        int(row["sessions"]),
        max(int(grant["expires_s"]) - now_s, 0) if known and grant is not None else None,
    )
