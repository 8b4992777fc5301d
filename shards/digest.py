"""Walking the slabs: digests that a primary and its backup compare, and copies of living rows for a snapshot.

Rows stand at the same numbers in both copies, so a digest is of one row at its number; that of a range is the sum of its rows',
in whatever order and pieces. What differs between sound copies is left out: counts of packets, ticks (the clocks are two),
next hops, rule versions and accounts (each core numbers its own), and how many sessions use a mapping (half-open ones do not
travel). Permissions are left out too: they follow from the sessions.

"While packets change it": a walk is done in pieces between breaths, by the thread that forwards, so a piece is of one instant.
A row whose dirty bit is set has not been shipped as it is; whoever asks leaves those rows out, by the bitmap as it was at that
instant, and the other side, which answers in the order of the stream, leaves out the same. A row that ended meanwhile and whose
tombstone is still to be shipped looks like a difference: a difference is one if it stays when asked about again.

The key of a walk is random and told with the question: what collides once does not collide again.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, whole
from shards.native import Word, fold_multiply
from shards.state import EXTENT_LINES, MAPPING, NAT_MAPPING, NAT_SESSION, SESSION, Array, State

BITMAP_LINES = 32  # lines to a word of a bitmap with a bit per half-line, as `State.dirty` is: ranges begin at a multiple

_U = np.uint64
_PI = tuple(_U(word) for word in (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D1, 0x082EFA98EC4E6C89))


def _mask(row: np.dtype[np.void], left_out: str) -> tuple[np.uint64, ...]:
    """Ones where a row's words are compared."""
    ones = np.full(row.itemsize, 0xFF, np.uint8).view(row)
    for field in left_out.split():
        ones[field] = 0
    return tuple(ones.view(np.uint64))


_SESSION_MASK = _mask(SESSION, "expiry created packets rules inward outward")
_MAPPING_MASK = _mask(MAPPING, "account sessions")


@hot
def digest(state: State, key0: Word, key1: Word, first: int, end: int, left_out: Array, rows: Array) -> Word:
    """Sum, mod 2**64, of the digests of the living rows in lines `first` to `end`, first a multiple of BITMAP_LINES.

    `left_out`: uint64, a bit per half-line from `first` on, those not to be looked at. `rows`: uint64, gets the digest of the
    row at each half-line from 2 * `first` on, 0 where none lives or it is left out; or it is empty.
    """
    total, line = _U(0), first
    while line < end:
        extent = line // EXTENT_LINES
        until = min(end, (extent + 1) * EXTENT_LINES)
        kind = state.extents[extent]["kind"]
        for half in range(2 * line, 2 * until):
            at = half - 2 * first
            found = _U(0)
            if (left_out[at >> 6] >> _U(at & 63)) & _U(1) == _U(0):
                if kind == NAT_SESSION:
                    found = _of_session(state, key0, key1, half, whole(state.extents[extent]["shard"]))
                elif kind == NAT_MAPPING:
                    found = _of_mapping(state, key0, key1, half)
            total += found
            if len(rows):
                rows[at] = found
        line = until
    return total


@hot
def _of_session(state: State, key0: Word, key1: Word, half: int, shard: int) -> Word:
    """0 where no session lives. The row's shard is compared with that of its extent: each core numbers its own."""
    if half & 1 or state.sessions[half >> 1]["kind"] != NAT_SESSION:
        return _U(0)
    words, at = state.words, half * 4
    mixed = _mix(key0 ^ _U(half), key1 ^ _PI[0], words[at], words[at + 1])
    mixed = _mix(mixed, key1 ^ _PI[1], words[at + 2], words[at + 3])
    mixed = _mix(mixed, key1 ^ _PI[2], words[at + 4] & _SESSION_MASK[4], words[at + 5] & _SESSION_MASK[5])
    last0 = (words[at + 6] ^ _U(shard) << _U(48)) & _SESSION_MASK[6]
    return _mix(mixed, key1 ^ _PI[3], last0, words[at + 7] & _SESSION_MASK[7])


@hot
def _of_mapping(state: State, key0: Word, key1: Word, half: int) -> Word:
    if state.mappings[half]["kind"] != NAT_MAPPING:
        return _U(0)
    words, at = state.words, half * 4
    mixed = _mix(key0 ^ _U(half), key1 ^ _PI[0], words[at], words[at + 1])
    return _mix(mixed, key1 ^ _PI[1], words[at + 2] & _MAPPING_MASK[2], words[at + 3] & _MAPPING_MASK[3])


@hot
def _mix(mixed: Word, key: Word, word0: Word, word1: Word) -> Word:
    return fold_multiply(mixed ^ word0, key ^ word1)


@hot
def copy_living(state: State, first: int, end: int, words: Array, halves: Array) -> tuple[int, int]:
    """Copy living sessions and mappings in lines `first` to `end`: (how many, line to go on from; `end` if that was all).

    `words`: uint64 (n, 8), n >= 2, a row each, a mapping in the first four; `halves`: int64 (n,), the half-lines they stand at.
    """
    copied, line = 0, first
    while line < end and copied + 2 <= len(halves):
        kind = state.extents[line // EXTENT_LINES]["kind"]
        if kind == NAT_SESSION:
            if state.sessions[line]["kind"] == NAT_SESSION:
                _copy(state, 2 * line, 8, words, halves, copied)
                copied += 1
        elif kind == NAT_MAPPING:
            for half in (2 * line, 2 * line + 1):
                if state.mappings[half]["kind"] == NAT_MAPPING:
                    _copy(state, half, 4, words, halves, copied)
                    copied += 1
        line += 1
    return copied, line


@hot
def _copy(state: State, half: int, width: int, words: Array, halves: Array, to: int) -> None:
    halves[to] = half
    for word in range(width):
        words[to, word] = state.words[half * 4 + word]
