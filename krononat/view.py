"""Looking into a running core from outside: plain rows out of its shared memory, which is mapped read-only.

Nothing here locks or asks the worker. Sessions are copied a slice at a time; a row that was reborn while its slice was copied
is left out, so what is shown was true at some instant. Only extents in use are touched: reading others would take memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any, NamedTuple

import numpy as np

from krononat import clock, view6
from krononat.clock import ticks as ticks  # most of who looks also looks at the clock
from shards import protocols
from shards.lifetimes import STATE_MASK, STATES
from shards.state import (
    CHUNK_PORTS,
    EXTENT_LINES,
    FIREWALL_SESSION6,
    NAT_MAPPING,
    NAT_SESSION,
    Array,
    State,
    external_rows,
    open_state,
    read_header,
    state_bytes,
    unpack_filtering,
)
from shards.verdict import DROP, METER_NAMES, METERS, VERDICTS

SLICE = 4096  # rows copied at once: 256 KiB

SESSION_STATES = STATES


def open_view(descriptor: int) -> State:
    """State behind a descriptor, mapped read-only (it may be closed then); ValueError where it is of another layout."""
    header = os.pread(descriptor, mmap.PAGESIZE, 0)
    sizes = read_header(header)
    return open_state(mmap.mmap(descriptor, state_bytes(sizes), prot=mmap.PROT_READ), sizes)


class Filter(NamedTuple):
    """Which sessions are wanted; None: whatever. `source` and `destination` are the outbound tuple's."""

    protocol: int | None = None
    source: IPv4Network | IPv6Network | None = None
    destination: IPv4Network | IPv6Network | None = None
    source_port: int | None = None
    destination_port: int | None = None
    external: IPv4Network | IPv6Network | None = None
    external_port: int | None = None
    state: str | None = None

    def choose(self, rows: Array) -> Array:
        """Boolean column: which of these SESSION rows are wanted."""
        wanted = np.ones(len(rows), bool)
        for field, value in (
            ("internal_port", self.source_port),
            ("remote_port", self.destination_port),
            ("external_port", self.external_port),
        ):
            if value is not None:
                wanted &= rows[field] == value
        if self.state is not None:
            wanted &= rows["state"] & STATE_MASK == SESSION_STATES.index(self.state)
        for field, prefix in (
            ("internal_address", self.source),
            ("remote_address", self.destination),
            ("external_address", self.external),
        ):
            if isinstance(prefix, IPv6Network):
                wanted &= False
            elif prefix is not None:
                wanted &= (rows[field] & np.uint32(int(prefix.netmask))) == int(prefix.network_address)
        if self.protocol is not None:
            wanted &= rows["internal_realm"] >> 24 == self.protocol
        return wanted


class Session(NamedTuple):
    """A session as people read it; times in seconds."""

    line: int
    generation: int
    protocol: str
    internal: str
    internal_port: int
    external: str
    external_port: int
    remote: str
    remote_port: int
    state: str
    age_s: int
    expires_s: int
    packets: int
    shard: int


def sessions(state: State, wanted: Filter = Filter(), now: int | None = None) -> Iterator[Session]:  # noqa: B008
    """Living sessions that `wanted` chooses, in the order of their rows; `now` in ticks, by default the core's."""
    for at, rows in slices(state, NAT_SESSION):
        moment = clock.now(state) if now is None else now
        chosen = (rows["kind"] == NAT_SESSION) & (_ticks_left(rows["expiry"], moment) > 0) & wanted.choose(rows)
        for index in np.flatnonzero(chosen):
            yield _session(at + int(index), rows[index], moment)
    for at, rows, flows in view6.slices(state):
        moment = clock.now(state) if now is None else now
        chosen = (_ticks_left(rows["expiry"], moment) > 0) & view6.choose(wanted, rows, flows, SESSION_STATES)
        for index in np.flatnonzero(chosen):
            yield _session6(at + 2 * int(index), rows[index], flows[index], moment)


def count_sessions(state: State, wanted: Filter = Filter(), now: int | None = None) -> int:  # noqa: B008
    """How many sessions `sessions` would yield."""
    total = 0
    for _, rows in slices(state, NAT_SESSION):
        alive = (rows["kind"] == NAT_SESSION) & (_ticks_left(rows["expiry"], clock.now(state) if now is None else now) > 0)
        total += int(np.count_nonzero(alive & wanted.choose(rows)))
    for _, rows, flows in view6.slices(state):
        alive = _ticks_left(rows["expiry"], clock.now(state) if now is None else now) > 0
        total += int(np.count_nonzero(alive & view6.choose(wanted, rows, flows, SESSION_STATES)))
    return total


def session(state: State, line: int, now: int | None = None) -> Session | None:
    """The living session of a row, None where there is none."""
    if not 0 < line < len(state.sessions):
        return None
    if state.extents[line // EXTENT_LINES]["kind"] == FIREWALL_SESSION6 and line % 2 == 0:
        return _living6(state, line, clock.now(state) if now is None else now)
    if state.extents[line // EXTENT_LINES]["kind"] != NAT_SESSION:
        return None
    rows = state.sessions[line : line + 1].copy()
    moment = clock.now(state) if now is None else now
    alive = rows["kind"][0] == NAT_SESSION and rows["generation"][0] == state.sessions[line]["generation"]
    return _session(line, rows[0], moment) if alive and _ticks_left(rows["expiry"], moment)[0] > 0 else None


def slices(state: State, kind: int) -> Iterator[tuple[int, Array]]:
    """(number of the first, copy of rows) of all extents of a kind; rows reborn while being copied count as free."""
    source, each = (state.sessions, 1) if kind == NAT_SESSION else (state.mappings, 2)
    for extent in range(min(int(state.core[0]["next_extent"]), len(state.extents))):
        if state.extents[extent]["kind"] != kind:
            continue
        for at in range(extent * EXTENT_LINES * each, (extent + 1) * EXTENT_LINES * each, SLICE):
            rows = source[at : at + SLICE].copy()
            rows["kind"][rows["generation"] != source["generation"][at : at + SLICE]] = 0
            yield at, rows


def _ticks_left(expiry: Array, now: int) -> Array:
    """Signed distance: ticks are 32 bits and wrap (see shards.state)."""
    return (expiry.astype(np.uint32) - np.uint32(now & 0xFFFFFFFF)).view(np.int32)


def _session(line: int, row: Any, now: int) -> Session:
    return Session(
        line,
        int(row["generation"]),
        protocols.name(int(row["internal_realm"]) >> 24),
        str(IPv4Address(int(row["internal_address"]))),
        int(row["internal_port"]),
        str(IPv4Address(int(row["external_address"]))),
        int(row["external_port"]),
        str(IPv4Address(int(row["remote_address"]))),
        int(row["remote_port"]),
        _state(int(row["state"])),
        ((now - int(row["created"])) & 0xFFFFFFFF) // 1000,
        max(((int(row["expiry"]) - now + 0x80000000) & 0xFFFFFFFF) - 0x80000000, 0) // 1000,
        int(row["packets"]),
        int(row["shard"]),
    )


def _state(told: int) -> str:
    """State of a row in a word; its timer is left out."""
    known = told & STATE_MASK
    return SESSION_STATES[known] if known < len(SESSION_STATES) else str(told)


def _living6(state: State, line: int, now: int) -> Session | None:
    rows, flows = view6.copied(state, line, line + 2)
    alive = rows["kind"][0] == FIREWALL_SESSION6 and _ticks_left(rows["expiry"], now)[0] > 0
    return _session6(line, rows[0], flows[0], now) if alive else None


def _session6(line: int, row: Any, flow: Any, now: int) -> Session:
    """Outside it has the addresses that it has inside."""
    internal, port = view6.address(flow, "internal"), int(flow["internal_port"])
    return _session(line, row, now)._replace(
        protocol=view6.protocol(flow), internal=internal, internal_port=port, external=internal, external_port=port,
        remote=view6.address(flow, "remote"), remote_port=int(flow["remote_port"]),
    )  # fmt: skip


class Pool(NamedTuple):
    """A pool's use. Ports count each protocol's apart: one port number can serve ICMP, TCP and UDP at once."""

    number: int
    addresses: int
    first: str
    last: str
    block_size: int
    blocks: int
    blocks_free: int
    subscribers: int
    ports_used: int
    filtering: str
    closed: int  # addresses that nobody is paired with anew
    room: int  # addresses that may be added while it runs


class Address(NamedTuple):
    """Use of one external address; `ports_used` are mappings that live."""

    address: str
    blocks_used: int
    subscribers: int
    ports_used: int
    use: str  # one of USES


USES = ("open", "drained", "excluded", "returning", "returning")  # as shards.state numbers them, and `membership`
FILTERINGS = ("endpoint-independent", "address-dependent", "address-and-port-dependent")


def pools(state: State) -> list[Pool]:
    """Use of every pool, in the order of the configuration."""
    return [_pool(state, number) for number in range(int(state.settings[0]["pools"]))]


def _pool(state: State, number: int) -> Pool:
    row, rows = state.pools[number], external_rows(state, number)
    count, used = len(rows), list(addresses(state, number))
    return Pool(
        number,
        count,
        _address(state, rows[0]),
        _address(state, rows[-1]),
        int(row["block_size"]),
        count * (int(row["end_block"]) - int(row["first_block"])),
        int(row["blocks_free"]),
        sum(address.subscribers for address in used),  # a subscriber is paired with one address
        sum(address.ports_used for address in used),
        _filtering(int(row["filtering"])),
        int(np.count_nonzero(state.externals["closed"][rows])),
        max(int(row["rooms"]) - count, 0),
    )


def _address(state: State, row: int) -> str:
    return str(IPv4Address(int(state.externals["address"][row])))


def _filtering(told: int) -> str:
    """A word, or where protocols differ one for each."""
    icmp, tcp, udp = (FILTERINGS[number] for number in unpack_filtering(told))
    return udp if icmp == tcp == udp else f"tcp {tcp}, udp {udp}, icmp {icmp}"


def addresses(state: State, pool: int) -> Iterator[Address]:
    """Use of every external address of a pool that is in use; the chunks of the others are not touched."""
    rows, chunks_each = external_rows(state, pool), int(state.pools[pool]["block_size"]) // CHUNK_PORTS
    for row in rows[np.flatnonzero(_ports_used(state, rows))].tolist():
        chunks = state.chunks[row]
        owners = chunks["account"][chunks["account"] != 0]
        use = USES[int(state.externals["closed"][row])]
        yield Address(_address(state, row), len(owners) // chunks_each, len(np.unique(owners)), int(chunks["used"].sum()), use)


def left(state: State, wanted: Iterable[str]) -> list[dict[str, Any]]:
    """Mappings and sessions that live on external addresses, and what these are for: how far draining them has come."""
    found = []
    rows = np.concatenate([external_rows(state, number) for number in range(int(state.settings[0]["pools"]))])
    where = dict(zip(state.externals["address"][rows].tolist(), rows.tolist(), strict=True))
    for text in wanted:
        row = where[int(IPv4Address(text))]
        mappings, sessions = int(state.chunks["used"][row].sum()), count_sessions(state, Filter(external=IPv4Network(text)))
        use = USES[int(state.externals["closed"][row])]
        found.append({"address": text, "use": use, "mappings": mappings, "sessions": sessions})
    return found


def _ports_used(state: State, rows: Array) -> Array:
    """Mappings of each external address of a pool, whose rows come in the ascending order of addresses."""
    known, count = state.externals["address"][rows], len(rows)
    used = np.zeros(count, np.int64)
    for _, rows in slices(state, NAT_MAPPING):
        told = rows["external_address"][rows["kind"] == NAT_MAPPING]
        index = np.minimum(np.searchsorted(known, told), count - 1)
        used += np.bincount(index[known[index] == told], minlength=count)
    return used


class Drop(NamedTuple):
    """Packets dropped for one reason."""

    reason: str
    packets: int
    sentence: str
    remedy: str


def drops(state: State) -> list[Drop]:
    """Every reason to drop, most frequent first."""
    packets = state.counters[:, 0].copy()
    rows = [Drop(told.name, int(packets[told.number]), told.sentence, told.remedy) for told in VERDICTS if told.fate == DROP]
    return sorted(rows, key=lambda row: -row.packets)


def fates(state: State) -> dict[str, int]:
    """Packets by fate: received, forwarded, held, dropped ...; what is not in them is in flight."""
    packets = state.counters[:, 0].copy()
    told = {"received": int(packets[METERS])}
    for verdict in VERDICTS[1:]:
        told[verdict.fate] = told.get(verdict.fate, 0) + int(packets[verdict.number])
    return told


def counters(state: State) -> dict[str, int]:
    """Every verdict and meter by name: packets."""
    packets = state.counters[:, 0].copy()
    told = {verdict.name: int(packets[verdict.number]) for verdict in VERDICTS[1:]}
    return told | {name: int(packets[METERS + index]) for index, name in enumerate(METER_NAMES)}


def totals(state: State) -> dict[str, int]:
    """Living rows, and how full the memory is."""
    extents = state.extents["kind"]
    return {
        "sessions": int(state.shards["sessions"].sum()),
        "mappings": int(state.shards["mappings"].sum()),
        "index_entries": int(state.core[0]["index_entries"]),
        "index_slots": len(state.tags) * 8,
        "extents_used": int(np.count_nonzero(extents)),
        "extents": len(extents),
        "held": int(state.core[0]["held"]) + int(state.core[0]["parted"]),
        "breaths": int(state.core[0]["breaths"]),
    }
