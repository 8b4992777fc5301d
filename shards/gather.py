"""Rows to records: what a backup is told, in pieces that fit into arrays which the caller has made once.

Three streams about a shard. *Changes*: `tombstones` until there are none, then `drain`, in the same pause between two breaths
so that they are of one instant: the receiver never meets a life before the end of the one before it, nor a session before its
mapping. *A snapshot*: `snapshot` of each class (MAPPING_0, MAPPING_1, SESSION_0, SESSION_1, in that order) and `holds`, in
pieces, while changes go on. *Liveness*: `refreshed`, a bit a row.

What does not travel: half-open TCP, unless `everything` is asked for, and sessions younger than a threshold; both count as not
yet begun. Once a life was sent (`State.shipped`), all that becomes of it is sent as well.
"""

from __future__ import annotations

import numpy as np

from shards import journal, ports, slabs, tcp, timers
from shards.account_rows import BLOCKS_AT_MOST
from shards.accounts import is_bypassed
from shards.grant_rows import GRANTED
from shards.jit import hot, whole
from shards.native import Word, first_bit, prefetch
from shards.records import ASKED, CONTINUED, COPIED, HAIRPIN, SHADOW, STATIC, UNTRANSLATED
from shards.sessions import HAIRPIN_HOP, is_living, mapping_of
from shards.state import (
    CHUNK_PORTS,
    CLASSES,
    EXTENT_LINES,
    HELD,
    HELD_SPACES,
    MAPPING_0,
    MAPPING_1,
    NAT_MAPPING,
    SESSION6_0,
    SESSION6_1,
    SESSION_0,
    SESSION_1,
    TOMBSTONES,
    Array,
    Row,
    State,
)

LAPPED = -1  # in the place of a count: what was to be read is overwritten
END = -1  # in the place of where to go on: that was all
ROWS_AT_ONCE = 16_384  # that a call looks at, at most, whether they live or not
CHUNKS_AT_ONCE = 1024  # of ports, that a call looks at, at most: 64 words each
AHEAD = 16  # records between asking for an account and reading it

_U = np.uint64
_LOW = _U(0xFFFF_FFFF)
_SUMMARY_EACH = 2 * EXTENT_LINES // 64 // 64  # words of `summary` for an extent
_CHUNKS_EACH = 65536 // CHUNK_PORTS


@hot
def rows(state: State, shard: int, klass: int) -> int:
    """Rows that a class spans on this core, living or not: where walks over it end. Those that are still fresh are none."""
    slab, each = state.slabs[shard, klass], slabs.rows_each(klass)
    return whole(slab["extents"]) * each - (whole(slab["fresh_end"]) - whole(slab["fresh"])) // slabs.lines_each(klass)


# --- changes --------------------------------------------------------------------------------------------------------------


@hot
def drain(
    state: State, shard: int, everything: bool, threshold: int, now: int, sessions: Array, mappings: Array
) -> tuple[int, int]:
    """Take dirty rows of the shard: (session records, mapping records) written.

    `sessions`: SESSION_RECORD, `mappings`: MAPPING_RECORD; `threshold`: seconds that a session must have lived. As many rows
    are taken as there is room for, and no session before all mappings are. Of those some may not travel, so what was written
    does not say whether that was all: `unsent` does.
    """
    mapped = 0
    for klass in range(MAPPING_0, MAPPING_1 + 1):
        mapped = _collect(state, shard, klass, mappings, mapped)
    for k in range(mapped):
        if k + AHEAD < mapped:
            prefetch(state.accounts, whole(state.mappings[whole(mappings[k + AHEAD]["row"])]["account"]))
        _write_mapping(state, whole(mappings[k]["row"]), mappings[k])
    if mapped == len(mappings):
        return 0, mapped
    found = 0
    for klass in range(SESSION_0, SESSION_1 + 1):
        found = _collect(state, shard, klass, sessions, found)
    count = 0
    for k in range(found):
        line = whole(sessions[k]["row"]) >> 1
        if _travels(state, line, everything, threshold, now):
            _write_session(state, line, now, sessions[count])
            count += 1
    return _drain6(state, shard, everything, threshold, now, sessions, count), mapped


@hot
def _drain6(
    state: State, shard: int, everything: bool, threshold: int, now: int, sessions: Array, count: int
) -> int:  # fmt: skip
    """Add sessions of IPv6, two records each; how many records there are then.

    The rows' numbers are kept at the end of the array meanwhile: as the records grow towards them, those met were read before.
    """
    kept = sessions[len(sessions) - (len(sessions) - count) // 2 :]
    found = 0
    for klass in range(SESSION6_0, SESSION6_1 + 1):
        found = _collect(state, shard, klass, kept, found)
    for k in range(found):
        line = whole(kept[k]["row"]) >> 1
        if _travels(state, line, everything, threshold, now):
            _write_session6(state, line, now, sessions[count], sessions[count + 1])
            count += 2
    return count


@hot
def _collect(state: State, shard: int, klass: int, records: Array, found: int) -> int:
    """Put half-lines of dirty rows of a class into the records' `row`, from the `found`-th on, clear their bits; how many."""
    for ordinal in range(whole(state.slabs[shard, klass]["extents"])):
        extent = whole(state.extent_of[shard, klass, ordinal])
        for at in range(extent * _SUMMARY_EACH, (extent + 1) * _SUMMARY_EACH):
            while state.summary[at] != _U(0):
                word = at * 64 + first_bit(state.summary[at])
                found = _collect_word(state, word, records, found)
                if state.dirty[word] != _U(0):
                    return found
                state.summary[at] &= ~(_U(1) << _U(word & 63))
    return found


@hot
def _collect_word(state: State, word: int, records: Array, found: int) -> int:
    while state.dirty[word] != _U(0) and found < len(records):
        bit = first_bit(state.dirty[word])
        half = word * 64 + bit
        state.dirty[word] &= ~(_U(1) << _U(bit))
        records[found]["row"] = half
        prefetch(state.sessions, half >> 1)
        found += 1
    return found


@hot
def clean(state: State, shard: int, cursor: int, at_most: int) -> int:
    """No row of the shard has changed: a snapshot that begins when all is clean tells all. The cursor to go on from, or END.

    `cursor`: 0 at first; `at_most`: extents. What changes behind the cursor has changed.
    """
    each = len(state.extent_of[shard, 0])
    for klass in range(cursor // each, CLASSES):
        for ordinal in range(cursor % each if klass == cursor // each else 0, whole(state.slabs[shard, klass]["extents"])):
            if at_most == 0:
                return klass * each + ordinal
            _clean_extent(state, whole(state.extent_of[shard, klass, ordinal]))
            at_most -= 1
    return END


@hot
def _clean_extent(state: State, extent: int) -> None:
    for at in range(extent * _SUMMARY_EACH, (extent + 1) * _SUMMARY_EACH):
        while state.summary[at] != _U(0):
            word = at * 64 + first_bit(state.summary[at])
            state.dirty[word] = 0
            state.summary[at] &= ~(_U(1) << _U(word & 63))


@hot
def unsent(state: State, shard: int) -> int:
    """Rows of the shard that have changed and were not drained; half-open connections count."""
    count = 0
    for klass in range(CLASSES):
        for ordinal in range(whole(state.slabs[shard, klass]["extents"])):
            extent = whole(state.extent_of[shard, klass, ordinal])
            for at in range(extent * _SUMMARY_EACH, (extent + 1) * _SUMMARY_EACH):
                words = state.summary[at]
                while words != _U(0):
                    count += _bits(state.dirty[at * 64 + first_bit(words)])
                    words &= words - _U(1)
    return count


@hot
def _bits(word: Word) -> int:
    """How many are set."""
    count = 0
    while word != _U(0):
        word &= word - _U(1)
        count += 1
    return count


@hot
def _travels(state: State, line: int, everything: bool, threshold: int, now: int) -> bool:
    """Whether the backup is to know a session: it does already, or the session is open and old enough."""
    row = state.sessions[line]
    if not is_living(state, line):
        return False
    if everything or is_shipped(state, line << 1):
        return True
    return not tcp.half_open(whole(row["state"])) and timers.age(now, whole(row["created"])) >= threshold * 1000


@hot
def is_shipped(state: State, half: int) -> bool:
    """Whether this life of the row at a half-line was sent, or came from another core."""
    return bool((state.shipped[half >> 6] >> _U(half & 63)) & _U(1) != _U(0))


@hot
def ship(state: State, half: int) -> None:
    """Remember that this life of a row is known elsewhere: its end must be told."""
    state.shipped[half >> 6] |= _U(1) << _U(half & 63)


@hot
def _write_session(state: State, line: int, now: int, record: Row) -> None:
    row = state.sessions[line]
    _, klass, number = slabs.wire_row(state, line << 1)
    _, mapping_klass, mapping_row = slabs.wire_row(state, mapping_of(state, line))
    record["row"] = number
    record["mapping_row"] = mapping_row
    record["internal_address"] = row["internal_address"]
    record["remote_address"] = row["remote_address"]
    record["external_address"] = row["external_address"]
    record["internal_realm"] = whole(row["internal_realm"]) & 0xFFFFFF
    record["external_realm"] = whole(row["external_realm"]) & 0xFFFFFF
    record["age_s"] = timers.age(now, whole(row["created"])) // 1000
    record["remaining"] = max(timers.remaining(now, whole(row["expiry"])), 0)
    record["packets"] = row["packets"]
    record["internal_port"] = row["internal_port"]
    record["remote_port"] = row["remote_port"]
    record["external_port"] = row["external_port"]
    record["generation"] = row["generation"]
    record["rules"] = row["rules"]
    record["klass"] = klass
    record["mapping_klass"] = mapping_klass
    record["protocol"] = whole(row["internal_realm"]) >> 24
    record["state"] = row["state"]
    record["flags"] = _flags(row) | (UNTRANSLATED if is_bypassed(row) else 0)
    ship(state, line << 1)


@hot
def _flags(row: Row) -> int:
    return (HAIRPIN if row["outward"] == HAIRPIN_HOP else 0) | (COPIED if tcp.slack(row) else 0)


@hot
def _write_session6(state: State, line: int, now: int, record: Row, more: Row) -> None:
    row, flow = state.sessions[line], state.flows6[line + 1]
    _, klass, number = slabs.wire_row(state, line << 1)
    record["row"] = number
    record["mapping_row"] = 0
    record["internal_address"] = 0
    record["remote_address"] = 0
    record["external_address"] = 0
    record["internal_realm"] = whole(flow["realm"]) & 0xFFFFFF
    record["external_realm"] = 0
    record["age_s"] = timers.age(now, whole(row["created"])) // 1000
    record["remaining"] = max(timers.remaining(now, whole(row["expiry"])), 0)
    record["packets"] = row["packets"]
    record["internal_port"] = flow["internal_port"]
    record["remote_port"] = flow["remote_port"]
    record["external_port"] = 0
    record["generation"] = row["generation"]
    record["rules"] = row["rules"]
    record["klass"] = klass
    record["mapping_klass"] = 0
    record["protocol"] = whole(flow["realm"]) >> 24
    record["state"] = row["state"]
    record["flags"] = _flags(row)
    more["klass"] = CONTINUED
    more["row"], more["mapping_row"] = flow["internal_high"] >> _U(32), flow["internal_high"] & _LOW
    more["internal_address"], more["remote_address"] = flow["internal_low"] >> _U(32), flow["internal_low"] & _LOW
    more["external_address"], more["internal_realm"] = flow["remote_high"] >> _U(32), flow["remote_high"] & _LOW
    more["external_realm"], more["age_s"] = flow["remote_low"] >> _U(32), flow["remote_low"] & _LOW
    ship(state, line << 1)


@hot
def _write_mapping(state: State, half: int, record: Row) -> None:
    row = state.mappings[half]
    _, klass, number = slabs.wire_row(state, half)
    record["row"] = number
    record["internal_address"] = row["internal_address"]
    record["internal_realm"] = whole(row["internal_realm"]) & 0xFFFFFF
    record["external_address"] = row["external_address"]
    record["internal_port"] = row["internal_port"]
    record["external_port"] = row["external_port"]
    record["generation"] = row["generation"]
    record["klass"] = klass
    record["protocol"] = whole(row["internal_realm"]) >> 24
    record["flags"] = _kept(row) | (SHADOW if row["remote_port"] != 0 else 0)
    record["block"] = _block_of(state, row)
    ship(state, half)


@hot
def _kept(mapping: Row) -> int:
    """The flag of what keeps a mapping while no session uses it, 0: nothing does."""
    if mapping["static"] == GRANTED:
        return ASKED
    return STATIC if mapping["static"] != 0 else 0


@hot
def _block_of(state: State, mapping: Row) -> int:
    """Which of its subscriber's blocks a mapping's port lies in, + 1; 0: in none of them."""
    account = state.accounts[whole(mapping["account"])]
    if account["parent"]:
        account = state.accounts[whole(account["parent"])]
    external = whole(account["external"]) - 1
    if external < 0 or state.externals[external]["address"] != mapping["external_address"]:
        return 0
    block = whole(mapping["external_port"]) // whole(state.pools[whole(account["pool"])]["block_size"])
    for k in range(BLOCKS_AT_MOST):
        if account["blocks"][k] == block + 1:
            return k + 1
    return 0


@hot
def tombstones(state: State, shard: int, number: int, out: Array) -> tuple[int, int]:
    """(tombstones of the shard from the ring's `number`-th on, number to go on from). `out`: TOMBSTONE.

    LAPPED instead of how many: the ring has overwritten some, and the receiver needs a snapshot; what is told with it is where
    the ring stands now. All were read once the number is `core.tombstones`.
    """
    last = whole(state.core[0]["tombstones"])
    if (last - number) & 0xFFFFFFFF > TOMBSTONES:
        return LAPPED, last
    count = 0
    while number != last and count < len(out):
        told = whole(state.tombstones[number & (TOMBSTONES - 1)])
        of, klass, row = slabs.wire_row(state, told & 0xFFFFFFFF)
        if of == shard:
            out[count]["row"] = row
            out[count]["generation"] = (told >> 32) & 0xFFFF
            out[count]["klass"] = klass
            count += 1
        number = (number + 1) & 0xFFFFFFFF
    return count, number


@hot
def sweep_untold(
    state: State, shard: int, klass: int, row: int, everything: bool, threshold: int, now: int, at_most: int
) -> int:  # fmt: skip
    """Mark sessions that were not sent yet and may travel by now: by their age, or as everything is to; see `drain`.

    The row to go on from, or END.
    """
    end = rows(state, shard, klass)
    last = min(row + at_most, end)
    for number in range(row, last):
        line = slabs.local_row(state, shard, klass, number)
        if is_living(state, line) and not is_shipped(state, line << 1) and _travels(state, line, everything, threshold, now):
            journal.mark(state, line << 1)
    return last if last < end else END


# --- a snapshot -----------------------------------------------------------------------------------------------------------


def snapshot(state: State, shard: int, klass: int, row: int, everything: bool, now: int, out: Array) -> tuple[int, int]:
    """(records of living rows of a class from `row` on, the row to go on from or END).

    `out`: SESSION_RECORD or MAPPING_RECORD, whichever the class is of. No piece looks at more than ROWS_AT_ONCE rows. What is
    dirty stays so: a snapshot is for one peer, changes may be for several. A session whose mapping is still to be drained is
    left to the drain, too.
    """
    if klass in (MAPPING_0, MAPPING_1):
        return living_mappings(state, shard, klass, row, out)
    if klass >= SESSION6_0:
        return living_sessions6(state, shard, klass, row, everything, now, out)
    return living_sessions(state, shard, klass, row, everything, now, out)


@hot
def living_mappings(state: State, shard: int, klass: int, row: int, out: Array) -> tuple[int, int]:
    """`snapshot` of a class of mappings."""
    end = rows(state, shard, klass)
    last, count = min(row + ROWS_AT_ONCE, end), 0
    while row < last and count < len(out):
        local = slabs.local_row(state, shard, klass, row)
        if state.mappings[local]["kind"] == NAT_MAPPING:
            _write_mapping(state, local, out[count])
            count += 1
        row += 1
    return count, row if row < end else END


@hot
def living_sessions(state: State, shard: int, klass: int, row: int, everything: bool, now: int, out: Array) -> tuple[int, int]:
    """`snapshot` of a class of sessions."""
    end = rows(state, shard, klass)
    last, count = min(row + ROWS_AT_ONCE, end), 0
    while row < last and count < len(out):
        local = slabs.local_row(state, shard, klass, row)
        if _travels(state, local, everything, 0, now) and _is_mapping_shipped(state, local):
            _write_session(state, local, now, out[count])
            count += 1
        row += 1
    return count, row if row < end else END


@hot
def _is_mapping_shipped(state: State, line: int) -> bool:
    """Whether who is told of a session knows its mapping, or need not."""
    half = mapping_of(state, line)
    return half == 0 or is_shipped(state, half)


@hot
def living_sessions6(
    state: State, shard: int, klass: int, row: int, everything: bool, now: int, out: Array
) -> tuple[int, int]:  # fmt: skip
    """`snapshot` of a class of sessions of IPv6, two records each."""
    end = rows(state, shard, klass)
    last, count = min(row + ROWS_AT_ONCE, end), 0
    while row < last and count + 1 < len(out):
        local = slabs.local_row(state, shard, klass, row)
        if _travels(state, local, everything, 0, now):
            _write_session6(state, local, now, out[count], out[count + 1])
            count += 2
        row += 1
    return count, row if row < end else END


@hot
def holds(state: State, shard: int, cursor: int, now: int, out: Array) -> tuple[int, int]:
    """(ports of the shard's addresses that are held down, cursor to go on from or END). `out`: HOLD, CHUNK_PORTS at least.

    Chunks that never were anyone's are passed over: to look at their owners would take memory for them.
    """
    end = len(state.externals) * HELD_SPACES * _CHUNKS_EACH
    last, count = min(cursor + CHUNKS_AT_ONCE, end), 0
    while cursor < last and count + CHUNK_PORTS <= len(out):
        external, chunk = cursor // (HELD_SPACES * _CHUNKS_EACH), cursor % _CHUNKS_EACH
        row = state.externals[external]
        if row["address"] == 0 or state.pools[whole(row["pool"])]["shard"] != shard:
            cursor = (external + 1) * HELD_SPACES * _CHUNKS_EACH
            continue
        if state.chunks[external, chunk]["epoch"] != 0:
            count = _holds_of(state, external, cursor // _CHUNKS_EACH % HELD_SPACES, chunk, now, out, count)
        cursor += 1
    return count, cursor if cursor < end else END


@hot
def _holds_of(state: State, external: int, space: int, chunk: int, now: int, out: Array, count: int) -> int:
    """Add the ports of a chunk that are held down still; how many records there are then."""
    hold_down_s = whole(state.settings[0]["hold_down_s"])
    for port in range(chunk * CHUNK_PORTS, (chunk + 1) * CHUNK_PORTS):
        owner = whole(state.owners[space, external, port])
        if owner & HELD and not ports.is_free(owner, now, hold_down_s):
            out[count]["address"] = state.externals[external]["address"]
            out[count]["port"] = port
            out[count]["age_s"] = min((now // 1000 - owner) & 0x7FFFFFFF, 0xFFFF)
            out[count]["space"] = space
            count += 1
    return count


# --- liveness -------------------------------------------------------------------------------------------------------------


@hot
def refreshed(state: State, shard: int, klass: int, first: int, since: int, now: int, bits: Array) -> int:
    """Set a bit for each living session whose lifetime a packet here let begin anew at tick `since` or later; how many.

    `bits`: uint64, a bit per row from `first` on, a multiple of 64; cleared first. Nothing is written when a packet refreshes:
    a row's expiry says when that was. What another core has told of is not passed on: each word lets a copy's lifetime begin
    with the word, so one that several cores have told each other of would never end.
    """
    bits[:] = 0
    count = 0
    for row in range(first, min(first + 64 * len(bits), rows(state, shard, klass))):
        line = slabs.local_row(state, shard, klass, row)
        if is_living(state, line) and _is_used_since(state, state.sessions[line], since, now):
            bits[(row - first) >> 6] |= _U(1) << _U(row & 63)
            count += 1
    return count


@hot
def _is_used_since(state: State, session: Row, since: int, now: int) -> bool:
    unused_for = tcp.timeout(state.settings, whole(session["state"])) - timers.remaining(now, whole(session["expiry"]))
    return tcp.slack(session) == 0 and unused_for <= timers.age(now, since)
