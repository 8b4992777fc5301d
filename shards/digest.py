"""Digests of a shard's rows, for a primary and its backup to compare.

Rows have the same numbers in both copies, so a digest is of one row under its (class, row); that of a range is the sum of its
rows', in whatever order and pieces. What is each core's own is compared by its meaning: of a mapping's account its first
address, of a session's mapping the number that all cores know, of its next hops whether they are the right ones. What differs
between sound copies is left out: counts of packets, ticks (the clocks are two), rule versions (each core numbers its own), and
how many sessions use a mapping. Permissions are left out too: they follow from the sessions.

Rows that a backup is not told of are left out on both sides: half-open connections, and whatever was never sent.

"While packets change it": a walk is done in pieces between breaths, by the thread that forwards, so a piece is of one instant.
A row whose dirty bit is set has not been sent as it is; whoever asks leaves those rows out, by the bitmap as it was at that
instant (`unsettled`), and the other side, which answers in the order of the stream, leaves out the same. A row that ended
meanwhile and whose tombstone is still to be sent looks like a difference: one is a difference if it stays when asked again.

The key of a walk is random and told with the question: what collides once does not collide again.
"""

from __future__ import annotations

import numpy as np

from shards import gather, hops, hops6, slabs, tcp
from shards.accounts import is_bypassed
from shards.jit import hot, whole
from shards.native import Word, fold_multiply
from shards.sessions import HAIRPIN_HOP
from shards.state import (
    BYPASSED,
    EXTERNAL,
    FIREWALL_SESSION6,
    INTERNAL,
    MAPPING,
    NAT_MAPPING,
    NAT_SESSION,
    SESSION,
    SESSION6_0,
    Array,
    Row,
    State,
)

ROWS_OF_A_WORD = 64  # of a bitmap with a bit a row: ranges begin at a multiple

_U = np.uint64
_PI = tuple(_U(word) for word in (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D1, 0x082EFA98EC4E6C89))


def _mask(row: np.dtype[np.void], left_out: str) -> tuple[np.uint64, ...]:
    """Ones where a row's words are compared as they are."""
    ones = np.full(row.itemsize, 0xFF, np.uint8).view(row)
    for field in left_out.split():
        ones[field] = 0
    return tuple(ones.view(np.uint64))


_SESSION_MASK = _mask(SESSION, "mapping expiry created packets rules inward outward")
_MAPPING_MASK = _mask(MAPPING, "account sessions")


@hot
def digest(
    state: State, shard: int, klass: int, key0: Word, key1: Word, first: int, end: int, left_out: Array, rows: Array
) -> Word:
    """Sum, mod 2**64, of the digests of the living rows `first` to `end` of a class, first a multiple of ROWS_OF_A_WORD.

    `left_out`: uint64, a bit per row from `first` on, those not to be looked at. `rows`: uint64, gets the digest of each row
    from `first` on, 0 where none lives or it is left out; or it is empty. `end` may lie beyond what the class spans here.
    """
    total, spans = _U(0), gather.rows(state, shard, klass)
    for row in range(first, end):
        at, found = row - first, _U(0)
        if row < spans and (left_out[at >> 6] >> _U(at & 63)) & _U(1) == _U(0):
            local = slabs.local_row(state, shard, klass, row)
            if not slabs.in_lines(klass):
                found = _of_mapping(state, key0 ^ _U(row), key1 ^ _U(klass), local)
            elif klass >= SESSION6_0:
                found = _of_session6(state, key0 ^ _U(row), key1 ^ _U(klass), local, shard)
            else:
                found = _of_session(state, key0 ^ _U(row), key1 ^ _U(klass), local, shard)
        total += found
        if len(rows):
            rows[at] = found
    return total


@hot
def unsettled(state: State, shard: int, klass: int, first: int, end: int, bits: Array) -> None:
    """Set a bit, in uint64 `bits` from row `first` on, for each row that was not sent as it is now, or never."""
    bits[:] = 0
    for row in range(first, min(end, gather.rows(state, shard, klass))):
        local = slabs.local_row(state, shard, klass, row)
        half = local << 1 if slabs.in_lines(klass) else local
        if not gather.is_shipped(state, half) or (state.dirty[half >> 6] >> _U(half & 63)) & _U(1) != _U(0):
            bits[(row - first) >> 6] |= _U(1) << _U((row - first) & 63)


@hot
def _of_session(state: State, key0: Word, key1: Word, line: int, shard: int) -> Word:
    """0 where no session lives that others are told of. The row's shard is compared with that of its extent."""
    row = state.sessions[line]
    if row["kind"] != NAT_SESSION or tcp.half_open(whole(row["state"])) or not gather.is_shipped(state, line << 1):
        return _U(0)
    words, at = state.words, line * 8
    mixed = _mix(key0, key1 ^ _PI[0], words[at], words[at + 1])
    mixed = _mix(mixed, key1 ^ _PI[1], words[at + 2], words[at + 3])
    mixed = _mix(mixed, key1 ^ _PI[2], words[at + 4] & _SESSION_MASK[4], _known_mapping(state, row))
    last0 = (words[at + 6] ^ _U(shard) << _U(48)) & _SESSION_MASK[6]
    last1 = words[at + 7] & _SESSION_MASK[7] ^ _U(_hops(state, row)) << _U(16)
    return _mix(mixed, key1 ^ _PI[3], last0, last1)


@hot
def _of_session6(state: State, key0: Word, key1: Word, line: int, shard: int) -> Word:
    """The same of IPv6: its tuple, since the key that each core finds it by is its own."""
    row, flow = state.sessions[line], state.flows6[line + 1]
    if row["kind"] != FIREWALL_SESSION6 or tcp.half_open(whole(row["state"])) or not gather.is_shipped(state, line << 1):
        return _U(0)
    mixed = _mix(key0, key1 ^ _PI[0], flow["internal_high"], flow["internal_low"])
    mixed = _mix(mixed, key1 ^ _PI[1], flow["remote_high"], flow["remote_low"])
    ends = _U(flow["realm"]) | _U(flow["internal_port"]) << _U(32) | _U(flow["remote_port"]) << _U(48)
    life = _U(row["generation"]) | _U(row["state"]) << _U(16) | _U(_hops6(state, row, flow)) << _U(24)
    return _mix(mixed, key1 ^ _PI[3], ends, life | _U(whole(row["shard"]) ^ shard) << _U(32))


@hot
def _hops6(state: State, session: Row, flow: Row) -> int:
    """As `_hops`."""
    right = int(hops6.leads(state, INTERNAL, whole(session["inward"]), flow["internal_high"], flow["internal_low"]))
    if session["outward"] == HAIRPIN_HOP:
        return right | 4
    return right | int(hops6.leads(state, EXTERNAL, whole(session["outward"]), flow["remote_high"], flow["remote_low"])) << 1


@hot
def _known_mapping(state: State, session: Row) -> Word:
    """A session's mapping as all cores name it; what is no half-line stands for itself."""
    half = whole(session["mapping"])
    if is_bypassed(session):
        return _U(BYPASSED) << _U(32) ^ _known_account(state, half & ~BYPASSED)
    if half >= len(state.mappings):
        return ~_U(half)
    shard, klass, row = slabs.wire_row(state, half)
    return _U(row) | _U(klass) << _U(32) | _U(shard) << _U(40)


@hot
def _hops(state: State, session: Row) -> int:
    """Which of a session's next hops are right: bit 0 inward, bit 1 outward; bit 2: it turns round inside instead."""
    right = int(hops.leads(state, INTERNAL, whole(session["inward"]), whole(session["internal_address"])))
    if session["outward"] == HAIRPIN_HOP:
        return right | 4
    return right | int(hops.leads(state, EXTERNAL, whole(session["outward"]), whole(session["remote_address"]))) << 1


@hot
def _of_mapping(state: State, key0: Word, key1: Word, half: int) -> Word:
    """0 where no mapping lives that others are told of."""
    row = state.mappings[half]
    if row["kind"] != NAT_MAPPING or not gather.is_shipped(state, half):
        return _U(0)
    words, at = state.words, half * 4
    mixed = _mix(key0 ^ _known_account(state, whole(row["account"])), key1 ^ _PI[0], words[at], words[at + 1])
    return _mix(mixed, key1 ^ _PI[1], words[at + 2] & _MAPPING_MASK[2], words[at + 3] & _MAPPING_MASK[3])


@hot
def _known_account(state: State, account: int) -> Word:
    """An account as all cores know it: its first address, and whether it is a device's; what is none stands for itself."""
    if account >= len(state.accounts):
        return _U(account) | _U(2) << _U(40)
    row = state.accounts[account]
    return _U(row["base"]) | _U(row["parent"] != 0) << _U(40)


@hot
def _mix(mixed: Word, key: Word, word0: Word, word1: Word) -> Word:
    return fold_multiply(mixed ^ word0, key ^ word1)
