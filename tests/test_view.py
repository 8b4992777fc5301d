"""The read-only view: rows filled by hand come out as people read them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import numpy as np
import pytest

from krononat import view
from krononat.cli.sessions import STATES
from shards import tcp, verdict
from shards.state import (
    DRAINED,
    EXTENT_LINES,
    NAT_MAPPING,
    NAT_SESSION,
    TCP,
    UDP,
    Sizes,
    State,
    new_state,
    open_state,
    state_bytes,
    write_header,
)

SIZES = Sizes(
    extents=3, buckets=8, externals=4, accounts=8, prefixes=1, devices=1, limits=1, pools=1, rules=1, statics=1, ports=2,
    shards=1, peers=1, neighbours=8,
)  # fmt: skip
NOW = (1 << 32) + 50_000  # ticks; beyond the wrap of 32 bits


def address(text: str) -> int:
    return int(IPv4Address(text))


def put_session(state: State, line: int, protocol: int = UDP, host: int = 2, port: int = 4000, word: str = "udp") -> None:
    row = state.sessions[line]
    row["internal_address"], row["internal_port"] = address("100.64.0.0") + host, port
    row["external_address"], row["external_port"] = address("203.0.113.1"), 2000 + host
    row["remote_address"], row["remote_port"] = address("198.51.100.9"), 53
    row["internal_realm"] = 1 | protocol << 24
    row["created"] = (NOW - 60_000) & 0xFFFFFFFF
    row["expiry"] = (NOW + 30_000) & 0xFFFFFFFF
    row["state"] = view.SESSION_STATES.index(word)
    row["packets"], row["generation"], row["kind"] = 7, 3, NAT_SESSION


@pytest.fixture
def state() -> State:
    """Two UDP sessions, one of TCP in another extent, one that is past its time, one row that is free."""
    state = new_state(SIZES)
    state.core[0]["next_extent"] = 3
    state.extents["kind"] = (NAT_SESSION, NAT_MAPPING, NAT_SESSION)
    put_session(state, 1)
    put_session(state, 5000, host=3)
    put_session(state, 2 * EXTENT_LINES + 9, TCP, 4, 51514, "established")
    put_session(state, 7)
    state.sessions[7]["expiry"] = (NOW - 1) & 0xFFFFFFFF
    put_session(state, 8)
    state.sessions[8]["kind"] = 0
    return state


def lines(state: State, wanted: view.Filter = view.Filter()) -> list[int]:  # noqa: B008
    return [session.line for session in view.sessions(state, wanted, NOW)]


def test_states_are_those_of_the_packet_path() -> None:
    assert list(view.SESSION_STATES) == list(tcp.STATES)
    assert {"none", *STATES} == set(tcp.STATES)


def test_a_session_reads_as_it_was_written(state: State) -> None:
    told = next(view.sessions(state, now=NOW))
    assert told == view.Session(
        1,
        3,
        "udp",
        "100.64.0.2",
        4000,
        "203.0.113.1",
        2002,
        "198.51.100.9",
        53,
        "udp",
        age_s=60,
        expires_s=30,
        packets=7,
        shard=0,
    )
    assert view.session(state, 1, NOW) == told


def test_only_the_living_are_told(state: State) -> None:
    assert lines(state) == [1, 5000, 2 * EXTENT_LINES + 9]
    assert view.count_sessions(state, now=NOW) == 3
    assert [view.session(state, line, NOW) for line in (0, 7, 8, EXTENT_LINES, 1 << 30)] == [None] * 5


UDP_2, UDP_3, TCP_4 = 1, 5000, 2 * EXTENT_LINES + 9  # lines of the living: protocol and host


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (view.Filter(protocol=TCP), [TCP_4]),
        (view.Filter(source=IPv4Network("100.64.0.2/31")), [UDP_2, UDP_3]),
        (view.Filter(source=IPv4Network("100.64.0.3/32"), protocol=TCP), []),
        (view.Filter(destination=IPv4Network("198.51.100.9/32"), destination_port=53), [UDP_2, UDP_3, TCP_4]),
        (view.Filter(destination_port=54), []),
        (view.Filter(source_port=51514), [TCP_4]),
        (view.Filter(external=IPv4Network("203.0.113.0/24"), external_port=2003), [UDP_3]),
        (view.Filter(external=IPv4Network("0.0.0.0/0")), [UDP_2, UDP_3, TCP_4]),
        (view.Filter(state="established"), [TCP_4]),
        (view.Filter(state="closing"), []),
    ],
)
def test_filters(state: State, wanted: view.Filter, found: list[int]) -> None:
    assert lines(state, wanted) == found
    assert view.count_sessions(state, wanted, NOW) == len(found)


def test_pools_count_blocks_subscribers_and_ports(state: State) -> None:
    state.settings[0]["pools"] = 1
    state.pools[0]["externals"], state.pools[0]["block_size"] = 4, 512
    state.pools[0]["first_block"], state.pools[0]["end_block"], state.pools[0]["blocks_free"] = 2, 128, 501
    state.externals["address"] = address("203.0.113.0") + np.arange(4)
    state.chunks["account"][1, 16:32] = 5 + 1  # two blocks of account 5
    state.chunks["account"][1, 32:40] = 6 + 1
    state.chunks["used"][1, 16] = 9
    state.chunks["used"][1, 32] = 1
    for half in range(10):
        row = state.mappings[2 * EXTENT_LINES + 4 + half]
        row["external_address"], row["kind"] = address("203.0.113.1"), NAT_MAPPING
    state.externals["closed"][1] = DRAINED
    (pool,) = view.pools(state)
    assert pool == view.Pool(0, 4, "203.0.113.0", "203.0.113.3", 512, 504, 501, 2, 10, "endpoint-independent", 1, 0)
    assert list(view.addresses(state, 0)) == [view.Address("203.0.113.1", 3, 2, 10, "drained")]
    assert view.left(state, ["203.0.113.1"]) == [{"address": "203.0.113.1", "use": "drained", "mappings": 10, "sessions": 0}]


def test_drops_by_frequency_and_fates_that_add_up(state: State) -> None:
    state.counters[verdict.RECEIVED, 0] = 25
    state.counters[verdict.FORWARDED_OUT, 0] = 10
    state.counters[verdict.FORWARDED_IN, 0] = 5
    state.counters[verdict.NO_MAPPING, 0] = 3
    state.counters[verdict.LAND, 0] = 7
    assert [(row.reason, row.packets) for row in view.drops(state)[:3]] == [("land", 7), ("no_mapping", 3), ("runt", 0)]
    fates = view.fates(state)
    assert fates == {"received": 25, "forward": 15, "punt": 0, "shunt": 0, "hold": 0, "control": 0, "drop": 10}
    assert view.counters(state)["received"] == 25


# --- the memory behind a descriptor ---------------------------------------------------------------------------------------


@pytest.fixture
def descriptor() -> Iterator[int]:
    """A read-only descriptor of a state with one session, as the supervisor hands it out."""
    writable = os.memfd_create("test")
    os.ftruncate(writable, state_bytes(SIZES))
    memory = mmap.mmap(writable, state_bytes(SIZES))
    write_header(memory, SIZES)
    state = open_state(memory, SIZES)
    state.core[0]["next_extent"] = 1
    state.extents[0]["kind"] = NAT_SESSION
    put_session(state, 1)
    read_only = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    os.close(writable)
    yield read_only
    os.close(read_only)


def test_a_view_reads_and_cannot_write(descriptor: int) -> None:
    state = view.open_view(descriptor)
    assert [session.line for session in view.sessions(state, now=NOW)] == [1]
    with pytest.raises(ValueError, match="read-only"):
        state.core[0]["next_extent"] = 2


def test_looking_takes_no_memory(descriptor: int) -> None:
    before = os.fstat(descriptor).st_blocks
    view.count_sessions(view.open_view(descriptor), now=NOW)
    once = os.fstat(descriptor).st_blocks
    assert once - before <= EXTENT_LINES * 64 // 512 + 64  # at most the one extent in use, not the three there are


def test_memory_of_another_layout_is_refused() -> None:
    foreign = os.memfd_create("test")
    os.write(foreign, b'{"krononat": 0, "digest": "other", "sizes": {}}' + bytes(4096))
    with pytest.raises(ValueError, match="has layout 0/other"):
        view.open_view(foreign)
    os.close(foreign)
