"""Records to rows: what another core tells of a shard becomes ours, with everything that follows from a row.

Who is right depends on our role. A passive replica takes the authority's word: what stands in the way of a record goes. The
authority itself hears from cores that were one (a partition is over, or it has just been handed the shard): what both have is
merged, what only they have is added, and where two things exclude each other ours stays. Such a union is told on: what it
changed is dirty. Nothing else is, so nothing echoes; and no end is told or logged, for the authority does that.

A record that cannot be is refused and changes nothing. Functions return how many records were not refused; each also takes
what is no news. Ticks are the receiver's own: a record says how long ago and for how long, and a copy lives SLACK longer, once.

*Shadows.* After a partition an internal endpoint may have two mappings. The authority's stays the one that new sessions use;
the other becomes a shadow: it owns its port, its sessions go on, but it is not found by its internal endpoint. Its key has a
remote port, its own external one: the remote is 0.0.0.0, to which no packet is sent, so the key is no session's.

*While a snapshot is taken* `seen` has a bit per half-line (as `State.dirty`; without a word there is no snapshot) for what was
told of; `end_unseen` ends the rest. Until then stale sessions may be counted by a mapping that took their mapping's row.
"""

from __future__ import annotations

import numpy as np

from shards import cuckoo, gather, journal, slabs, tcp, timers
from shards.apply_mappings import ask_for_mapping, end_mapping, take_mapping
from shards.apply_sessions import NEWS, ask_for_session, end_session, is_living, take_session
from shards.apply_sessions6 import take_session6
from shards.jit import hot, whole
from shards.lifetimes import SLACK
from shards.native import prefetch
from shards.sessions import ask_for_mapping as ask_for_its_end
from shards.sessions import end_mapping as end_and_tell
from shards.sessions import external_ordinal, mapping_of
from shards.state import (
    ACTIVE,
    CHUNK_PORTS,
    CLASSES,
    HELD,
    HELD_SPACES,
    NAT_MAPPING,
    PERMISSION,
    SESSION6_0,
    Array,
    Row,
    State,
)

AHEAD = 8  # records between asking for what one touches and touching it
TOGETHER = 32  # tombstones whose rows are asked for together
END = gather.END

_U = np.uint64


@hot
def mappings(state: State, shard: int, records: Array, count: int, seen: Array, now: int) -> int:
    """Take `count` MAPPING_RECORDs; how many were not refused."""
    taken = 0
    for k in range(count):
        if k + AHEAD < count:
            ask_for_mapping(state, shard, records[k + AHEAD])
        taken += take_mapping(state, shard, records[k], seen, now)
    return taken


@hot
def sessions(state: State, shard: int, records: Array, count: int, seen: Array, now: int) -> int:
    """Take `count` SESSION_RECORDs, two for a session of IPv6; mappings were told of before. How many were not refused."""
    taken, k = 0, 0
    while k < count:
        if k + AHEAD < count:
            ask_for_session(state, shard, records[k + AHEAD])
        if whole(records[k]["klass"]) >= SESSION6_0 and k + 1 < count:
            taken += 2 * take_session6(state, shard, records[k], records[k + 1], seen, now)
            k += 2
        else:
            taken += take_session(state, shard, records[k], seen, now)
            k += 1
    return taken


@hot
def tombstones(state: State, shard: int, records: Array, count: int, seen: Array, now: int) -> int:
    """End what `count` TOMBSTONEs name, where it lives in that very life; how many were not refused."""
    taken = 0
    for first in range(0, count, TOGETHER):
        end = min(first + TOGETHER, count)
        _ask_for_ends(state, shard, records, first, end)
        for k in range(first, end):
            taken += _bury(state, shard, records[k], seen, now)
    return taken


@hot
def _bury(state: State, shard: int, record: Row, seen: Array, now: int) -> bool:
    """Take one TOMBSTONE; False: refused."""
    klass, generation = whole(record["klass"]), whole(record["generation"])
    if not _is_told_of(klass):
        return False
    row = slabs.local_row(state, shard, klass, whole(record["row"]))
    if not slabs.in_lines(klass):
        return _bury_mapping(state, row, generation, seen, now)
    if is_living(state, row) and whole(state.sessions[row]["generation"]) == generation:
        end_session(state, row)
    return True


@hot
def _is_told_of(klass: int) -> bool:
    return klass != PERMISSION and klass < CLASSES


@hot
def _ask_for_ends(state: State, shard: int, records: Array, first: int, end: int) -> None:
    """Ask for every line that these ends will touch, in steps as `sessions.expire` does: it must not be faster than we are."""
    for step in range(3):
        for k in range(first, end):
            klass = whole(records[k]["klass"])
            if _is_told_of(klass):
                row = slabs.local_row(state, shard, klass, whole(records[k]["row"]))
                if slabs.in_lines(klass):
                    _ask_for_session_end(state, row, step)
                else:
                    _ask_for_mapping_end(state, row, step)


@hot
def _ask_for_session_end(state: State, line: int, step: int) -> None:
    """A step of it: the row, then what the row names, then what its mapping names, which mostly ends as well."""
    if step == 0:
        prefetch(state.sessions, line)
        prefetch(state.links, line)
    elif step == 1:
        prefetch(state.mappings, mapping_of(state, line))
        cuckoo.ask_for(state, state.words[line * 8], state.words[line * 8 + 1])
        cuckoo.ask_for(state, state.words[line * 8 + 2], state.words[line * 8 + 3])
        prefetch(state.links, whole(state.links[line]["next"]))
        prefetch(state.links, whole(state.links[line]["previous"]))
    else:
        ask_for_its_end(state, mapping_of(state, line))


@hot
def _ask_for_mapping_end(state: State, half: int, step: int) -> None:
    """A step of it; where its last session ends among the same, that has asked already."""
    if step == 0:
        prefetch(state.mappings, half)
    elif step == 1 and state.mappings[half]["sessions"] == 0:
        ask_for_its_end(state, half)


@hot
def _bury_mapping(state: State, half: int, generation: int, seen: Array, now: int) -> bool:
    """One that counts stale sessions still goes with them, as unseen; without a snapshot that cannot be."""
    row = state.mappings[half]
    if half == 0 or row["kind"] != NAT_MAPPING or whole(row["generation"]) != generation:
        return True
    if row["sessions"] == 0:
        end_mapping(state, half, now)
        return True
    if len(seen) == 0:
        return False
    seen[half >> 6] &= ~(_U(1) << _U(half & 63))
    return True


@hot
def end_unseen(state: State, shard: int, klass: int, row: int, seen: Array, now: int, at_most: int) -> int:
    """A snapshot is over: end what it did not tell of, classes in ascending order; the row to go on from, or END."""
    end = gather.rows(state, shard, klass)
    last = min(row + at_most, end)
    for number in range(row, last):
        local = slabs.local_row(state, shard, klass, number)
        half = local << 1 if slabs.in_lines(klass) else local
        if (seen[half >> 6] >> _U(half & 63)) & _U(1) != _U(0):
            continue
        if slabs.in_lines(klass):
            end_session(state, local)
        elif state.mappings[half]["kind"] == NAT_MAPPING and state.mappings[half]["sessions"] == 0:
            end_mapping(state, half, now)
    return last if last < end else END


@hot
def end_idle(state: State, shard: int, klass: int, row: int, now: int, at_most: int) -> int:
    """For an authority some time after its takeover: end mappings whose sessions never came; the row to go on from, or END."""
    end = gather.rows(state, shard, klass)
    last = min(row + at_most, end)
    for number in range(row, last):
        half = slabs.local_row(state, shard, klass, number)
        mapping = state.mappings[half]
        if mapping["kind"] == NAT_MAPPING and mapping["sessions"] == 0 and mapping["static"] == 0:
            end_and_tell(state, shard, half, now)
    return last if last < end else END


@hot
def holds(state: State, shard: int, records: Array, count: int, now: int) -> int:
    """Hold down ports that are free here; of two ages the younger counts. How many were not refused."""
    taken = 0
    for k in range(count):
        external = external_ordinal(state, whole(records[k]["address"]))
        if external < 0 or whole(state.pools[whole(state.externals[external]["pool"])]["shard"]) != shard:
            continue
        if whole(records[k]["space"]) < HELD_SPACES:
            _hold(state, external, records[k], now)
            taken += 1
    return taken


@hot
def _hold(state: State, external: int, record: Row, now: int) -> None:
    space, port, age = whole(record["space"]), whole(record["port"]), whole(record["age_s"])
    owner = whole(state.owners[space, external, port])
    if owner and (owner & HELD == 0 or (now // 1000 - owner) & 0x7FFFFFFF <= age):
        return
    state.owners[space, external, port] = HELD | (now // 1000 - age) & 0x7FFFFFFF
    chunk = state.chunks[external, port // CHUNK_PORTS]
    if chunk["epoch"] == 0:  # it has ports that are held down: see `gather.holds`
        chunk["epoch"] = state.shards[whole(state.pools[whole(state.externals[external]["pool"])]["shard"])]["epoch"]


@hot
def refresh(state: State, shard: int, klass: int, first: int, bits: Array, now: int) -> int:
    """Let the lifetime of each living session with a bit begin anew; how many. `bits`: as of `gather.refreshed`."""
    count, ours = 0, state.shards[shard]["role"] == ACTIVE
    for row in range(first, min(first + 64 * len(bits), gather.rows(state, shard, klass))):
        at = row - first
        if (bits[at >> 6] >> _U(at & 63)) & _U(1) != _U(0):
            count += _refresh_one(state, slabs.local_row(state, shard, klass, row), ours, now)
    return count


@hot
def _refresh_one(state: State, line: int, ours: bool, now: int) -> bool:
    """Never shortens a life: no look of the wheel has to be moved. `ours`: the shard is, so whoever copies us is to know."""
    if not is_living(state, line):
        return False
    row = state.sessions[line]
    lifetime = tcp.timeout(state.settings, whole(row["state"]))
    left = timers.remaining(now, whole(row["expiry"]))
    if ours and lifetime - (left - tcp.slack(row)) <= NEWS:
        return True
    if left < lifetime + SLACK:
        row["expiry"] = tcp.copy_ends(lifetime + SLACK, now) & 0xFFFFFFFF
    if ours:
        journal.mark(state, line << 1)
    return True
