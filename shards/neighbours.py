"""Next hops: an open-addressed table by (address, port) whose row numbers sessions store, so a row never moves.

The worker asks (`want`), the supervisor answers: it resolves rows that are WANTED through the kernel and writes their own MAC
and state. What packets go by is written by the worker again (`legs`).
Probing is linear and bounded instead of counting how full the table is: a crowded neighbourhood is full, and says so.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, inlined, whole
from shards.native import Word, fold_multiply
from shards.state import FAILED, NEIGHBOUR_BYTES, NEIGHBOUR_MAC, NEIGHBOUR_OWN, WANTED, Row, State
from shards.wire import mac_at

PROBES = 64  # rows looked at, at most

# A row may change hands once no session can name it any more: FAILED, and unused for longer than any timer lasts. One that
# never answered was never named (see `nat`), so a scan of addresses that nobody has does not crowd out for long.
FORGOTTEN, NEVER_ANSWERED = 8_400_000, 10_000  # ticks
LAST = 0xFFFF  # never handed out: a session's next hop of this number means something else (sessions.HAIRPIN_HOP)

_U = np.uint64
_PI = _U(0x452821E638D01377)
_ODD = 0x45D9F3B5  # below 2**31, so that its product with 32 bits is the same number in Python and in 64-bit registers


@hot
def first(state: State, port: int, address: int) -> int:
    """Where probing for a neighbour begins; keyed, so that nobody outside can crowd a neighbourhood."""
    key = int(np.int64(state.settings[0]["seed"][1] >> np.uint64(32)))
    mixed = (address ^ key ^ (port << 24)) * _ODD
    return (mixed ^ (mixed >> 29)) & (len(state.neighbours) - 1)


@hot
def _is_row(at: int) -> bool:
    return at not in (0, LAST)


@inlined
def mac_of(state: State, at: int) -> int:
    """MAC address that packets to row `at` get, as a number."""
    return mac_at(state.neighbour_bytes, at * NEIGHBOUR_BYTES + NEIGHBOUR_MAC)


@hot
def _is_forgotten(state: State, at: int, now: int) -> bool:
    """Whether nobody can mean this row any more."""
    row = state.neighbours[at]
    unused = (now - int(row["used"])) & 0xFFFFFFFF
    if int(row["own_state"]) != FAILED or int(row["kept"]) != 0:
        return False
    answered = mac_at(state.neighbour_bytes, at * NEIGHBOUR_BYTES + NEIGHBOUR_OWN) != 0
    return unused > (FORGOTTEN if answered else NEVER_ANSWERED)


@hot
def find(state: State, port: int, address: int) -> int:
    """Row of the neighbour `address` (host integer) on `port` (row of PORT), or 0."""
    at = first(state, port, address)
    for _ in range(min(PROBES, len(state.neighbours))):
        row = state.neighbours[at]
        if _is_row(at) and int(row["own_state"]) == 0:
            return 0
        if _is_row(at) and int(row["address"]) == address and int(row["own_port"]) == port and row["six"] == 0:
            return at
        at = (at + 1) & (len(state.neighbours) - 1)
    return 0


@hot
def want(state: State, port: int, address: int, now: int) -> int:
    """Row of the neighbour, marked as used at tick `now`; a new one starts out WANTED. 0 where there is no room."""
    at = find(state, port, address)
    if at == 0:
        at = _vacant(state, first(state, port, address), now)
        if at != 0:
            state.neighbours[at]["six"] = 0
            _occupy(state, at, port, address)
    if at != 0:
        state.neighbours[at]["used"] = now & 0xFFFFFFFF
    return at


@hot
def first6(state: State, port: int, high: Word, low: Word) -> int:
    """Where probing for a neighbour of IPv6 begins."""
    mixed = fold_multiply(high ^ state.settings[0]["seed"][1], low ^ _U(port) ^ _PI)
    return whole(mixed & _U(len(state.neighbours) - 1))


@hot
def find6(state: State, port: int, high: Word, low: Word) -> int:
    """Row of the neighbour with an IPv6 address (its two halves) on `port`, or 0."""
    at = first6(state, port, high, low)
    for _ in range(min(PROBES, len(state.neighbours))):
        row = state.neighbours[at]
        if _is_row(at) and whole(row["own_state"]) == 0:
            return 0
        if _is_row(at) and row["six"] != 0 and whole(row["own_port"]) == port and row["high"] == high and low_half(row) == low:
            return at
        at = (at + 1) & (len(state.neighbours) - 1)
    return 0


@hot
def low_half(row: Row) -> Word:
    """Lower half of a neighbour's IPv6 address."""
    return _U(row["middle"]) << _U(32) | _U(row["address"])


@hot
def want6(state: State, port: int, high: Word, low: Word, now: int) -> int:
    """`want` for an IPv6 address."""
    at = find6(state, port, high, low)
    if at == 0:
        at = _vacant(state, first6(state, port, high, low), now)
        if at != 0:
            row: Row = state.neighbours[at]
            row["six"] = 1
            row["high"] = high
            row["middle"] = low >> _U(32)
            _occupy(state, at, port, whole(low & _U(0xFFFF_FFFF)))
    if at != 0:
        state.neighbours[at]["used"] = now & 0xFFFFFFFF
    return at


@hot
def _vacant(state: State, at: int, now: int) -> int:
    """A row that may be taken, probing from `at`: an empty one, else the first that is forgotten, else 0."""
    forgotten = 0
    for _ in range(min(PROBES, len(state.neighbours))):
        row = state.neighbours[at]
        if _is_row(at) and int(row["own_state"]) == 0:
            return at
        if _is_row(at) and forgotten == 0 and _is_forgotten(state, at, now):
            forgotten = at
        at = (at + 1) & (len(state.neighbours) - 1)
    return forgotten


@hot
def _occupy(state: State, at: int, port: int, address: int) -> None:
    row: Row = state.neighbours[at]
    row["address"] = address
    row["port"] = port
    row["own_port"] = port
    for k in range(6):
        row["mac"][k] = 0
        row["own_mac"][k] = 0
    row["state"] = WANTED
    row["own_state"] = WANTED  # last: the supervisor looks for it
    state.core[0]["neighbours_wanted"] = (int(state.core[0]["neighbours_wanted"]) + 1) & 0xFFFFFFFF
