"""IP fragments (RFC 791, RFC 8200 4.5, RFC 4787 REQ-14): served as they come, in any order, and never put together again.

Only the first fragment of a datagram has the ports. It is decided like any packet (its checksum is updated by the difference,
and that covers the others), and what became of it is kept in a row of FRAGMENTED, found by what all of them have (see
`datagrams`). The others follow it. One that comes before it waits, in its frame, in the loop's hands.

    WAITING --first--> PENDING --decided--> KNOWN | SHUNTING | REFUSED       all of it has come, or `expiry`: free again

An overlap refuses the rest of the datagram (RFC 5722, for IPv4 as well; RFC 1858, RFC 3128, teardrop). A row belongs to the
address, of IPv6 the subscriber, of ours that it is from or for, and each of these has a share: who floods us evicts himself.
Nothing of this is replicated or outlives the worker: a datagram lives for moments, and its sender sends it again. Where an
authority moves in between, the others go the way of their first, so far as this core still can; elsewhere they are orphans.
Left out on purpose: ICMP errors in fragments (none is that long), and identifications of whole packets without DF (RFC 6864).
"""

from __future__ import annotations

import numpy as np

from shards import datagrams, refusals, rewrite, shunt
from shards.burst import Burst
from shards.datagrams import Name
from shards.fragment_rows import FRAGMENTS, IDENTITIES, PIECES_EACH, SHARES
from shards.jit import hot, whole
from shards.native import Word, read16
from shards.ports import siphash
from shards.state import INBOUND, OUTBOUND, Array, Row, State
from shards.timers import age, remaining
from shards.verdict import (
    FRAGMENT_DUPLICATE,
    FRAGMENT_LIMIT,
    FRAGMENT_ORPHAN,
    FRAGMENT_OVERLAP,
    FRAGMENT_REFUSED,
    HAIRPINNED,
    HELD_BACK,
    NEIGHBOUR_UNRESOLVED,
    NO_AUTHORITY,
    SHUNTED,
    UNDECIDED,
)

WAITING, PENDING, KNOWN, SHUNTING, REFUSED = range(1, 6)
WAYS = 16  # rows that a datagram may have

HELD_TICKS = 2000  # that a fragment waits for its first
PENDING_TICKS = 5000  # that a first fragment may wait for its next hop or an authority: longer than either
KEPT_TICKS = 30_000  # that others may come after the first
DATAGRAMS_EACH = FRAGMENTS // 16  # of one address at once
PARTS_AT_MOST = 256  # fragments that wait
PARTS_EACH = 64  # of one address: more than a datagram of 65,535 bytes over Ethernet has

_OFFSET = 0x1FFF  # in the word of flags and offset of IPv4
_U = np.uint64
_FOR_SHARES, _FOR_IDENTITIES = 1, 2  # beside what is hashed, so that one table's hash says nothing of another's


@hot
def meet(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Verdict of a fragment. UNDECIDED: it is a first one, to be decided like a whole packet; then `learn` what it became."""
    burst.verdict[i] = UNDECIDED
    datagrams.choose_key(state, frames, burst, i)
    name = datagrams.name(state, frames, burst, i)
    offset, size, more = datagrams.place(frames, burst, i)
    at = _find(state, name, now)
    if offset and burst.deadline[i]:
        _let_go(state, _share_of(state, frames, burst, i), at)
        if at < 0:
            return FRAGMENT_ORPHAN
    verdict = datagrams.sound(burst, i, offset, size, more)
    if verdict == UNDECIDED:
        verdict = datagrams.plausible(state, frames, burst, i)
    if verdict != UNDECIDED:
        return verdict
    if at < 0:
        at = _begin(state, name, _share_of(state, frames, burst, i), offset == 0, now)
        _identify(state, frames, burst, i, at)
    if at < 0:
        return FRAGMENT_LIMIT
    burst.part[i] = -(at + 1) if offset else at + 1
    verdict = _cover(state, at, offset, size, more)
    if verdict == FRAGMENT_DUPLICATE and burst.deadline[i]:
        verdict = UNDECIDED  # it was here before itself
    if verdict != UNDECIDED:
        return verdict
    return _follow(state, frames, burst, i, at, now) if offset else _lead(state, frames, burst, i, at, now)


@hot
def blame(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """A fragment was too many: count it for the subscriber that sent it. For whom one from outside is, nobody knows."""
    if burst.direction[i] == OUTBOUND:
        account = datagrams.sender(state, frames, burst, i)
        if account:
            refusals.note(state, burst, i, account, 0, now)


@hot
def is_later(frames: Array, l3: int) -> bool:
    """Whether the packet of IPv4 at `l3` is a fragment behind the first: it has no ports, and no ICMP error is about it."""
    return read16(frames, l3 + 6) & _OFFSET != 0


# --- rows -----------------------------------------------------------------------------------------------------------------


@hot
def _hash(state: State, word0: Word, word1: Word) -> Word:
    """Keyed, so that nobody outside can crowd a row."""
    seed = state.settings[0]["seed"]
    return siphash(seed[0], seed[1], word0, word1)


@hot
def _row_of(hashed: Word, rows: int) -> int:
    """One of so many rows."""
    row: int = whole(hashed >> _U(33)) % rows
    return row


@hot
def _bucket(state: State, name: Name) -> int:
    """First of the rows that a datagram may have."""
    source_high, source, destination_high, destination, side, what = name
    hashed = _hash(state, _hash(state, source, destination), _U(side) << _U(38) ^ _U(what))
    if source_high != _U(0):
        hashed = _hash(state, hashed ^ source_high, destination_high)
    return _row_of(hashed, FRAGMENTS // WAYS) * WAYS


@hot
def _find(state: State, name: Name, now: int) -> int:
    """Row of the datagram with a name, -1 for none."""
    first = _bucket(state, name)
    for at in range(first, first + WAYS):
        if state.fragmented[at]["phase"] and _has_name(state.fragmented[at], name):
            if remaining(now, whole(state.fragmented[at]["expiry"])) > 0:
                return at
            _end(state, at)
    return -1


@hot
def _has_name(row: Row, name: Name) -> bool:
    source_high, source, destination_high, destination, side, what = name
    return bool(
        row["source"] == source
        and row["destination"] == destination
        and whole(row["id"]) | whole(row["protocol"]) << 32 == what
        and whole(row["realm"]) == side
        and row["source_high"] == source_high
        and row["destination_high"] == destination_high
    )


@hot
def _share_of(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Row of SHARES of who of ours the fragment is from or for."""
    return _row_of(_hash(state, datagrams.ours(state, frames, burst, i), _U(_FOR_SHARES)), SHARES)


@hot
def _begin(state: State, name: Name, share: int, leads: bool, now: int) -> int:
    """A row for a new datagram; -1 where its address has too many, or others have all that it might have."""
    at = _vacant(state, _bucket(state, name), share, leads, now)
    if at < 0:
        return -1
    row = state.fragmented[at]
    row["source_high"], row["source"], row["destination_high"], row["destination"], row["realm"], what = name
    row["id"], row["protocol"], row["share"], row["born"] = what & 0xFFFFFFFF, what >> 32, share, now & 0xFFFFFFFF
    row["end"], row["got"], row["pieces"], row["held"] = 0, 0, 0, 0
    row["expiry"] = (now + HELD_TICKS) & 0xFFFFFFFF
    row["phase"] = WAITING
    state.shares[share, 0] += 1
    state.core[0]["fragmented"] += 1
    return at


@hot
def _identify(state: State, frames: Array, burst: Burst, i: int, at: int) -> None:
    """Give a new datagram of IPv4 that goes out an identification of its own."""
    if at >= 0 and burst.six[i] == 0:
        outbound = burst.direction[i] == OUTBOUND
        state.fragmented[at]["new_id"] = (
            next_identity(state, burst.destination[i]) if outbound else datagrams.identification(frames, burst, i)
        )


@hot
def _vacant(state: State, first: int, share: int, leads: bool, now: int) -> int:
    """A free row of a bucket, else one that may be taken: of who has most of them, the oldest, undecided ones before others."""
    has = whole(state.shares[share, 0])
    best, best_rank, best_age = -1, 0, 0
    for at in range(first, first + WAYS):
        row = state.fragmented[at]
        if row["phase"] != 0 and remaining(now, whole(row["expiry"])) <= 0:
            _end(state, at)
        if row["phase"] == 0:
            if has < DATAGRAMS_EACH:
                return at
            continue
        rank, old = _rank(state, row, share, has, leads), age(now, whole(row["born"]))
        if rank > best_rank or (rank == best_rank and rank and old > best_age):
            best, best_rank, best_age = at, rank, old
    if best >= 0:
        _end(state, best)
    return best


@hot
def _rank(state: State, row: Row, share: int, has: int, leads: bool) -> int:
    """How much rather than others this row may be taken by a datagram of `share`; 0: not at all."""
    owner = whole(row["share"])
    theirs = whole(state.shares[owner, 0])
    decided = row["phase"] == KNOWN or row["phase"] == SHUNTING
    if owner != share and (has >= DATAGRAMS_EACH or theirs <= has or (decided and not leads)):
        return 0
    return theirs + (0 if decided else FRAGMENTS)


@hot
def _end(state: State, at: int) -> None:
    """Free a row. Whatever waits for its first fragment finds none and is an orphan."""
    row = state.fragmented[at]
    row["phase"] = 0
    state.shares[whole(row["share"]), 0] -= 1
    state.core[0]["fragmented"] -= 1
    if row["held"]:
        state.core[0]["parts_due"] = 1


@hot
def sweep(state: State, now: int) -> None:
    """End what is due; to be called now and then, for who has rows has fewer left for others."""
    state.core[0]["swept_at"] = now & 0xFFFFFFFF
    if state.core[0]["fragmented"]:
        for at in range(FRAGMENTS):
            if state.fragmented[at]["phase"] and remaining(now, whole(state.fragmented[at]["expiry"])) <= 0:
                _end(state, at)


@hot
def forget(state: State) -> None:
    """Know of no fragments: frames that waited were in the hands of a worker that is gone."""
    for at in range(FRAGMENTS):
        state.fragmented[at]["phase"] = 0
    for share in range(SHARES):
        state.shares[share, 0] = 0
        state.shares[share, 1] = 0
    core = state.core[0]
    core["fragmented"] = core["parts"] = core["parted"] = core["parts_due"] = core["cuts"] = 0


# --- what has come --------------------------------------------------------------------------------------------------------


@hot
def _cover(state: State, at: int, offset: int, size: int, more: bool) -> int:
    """Note which bytes a fragment brings. UNDECIDED, or what is wrong with them; after an overlap nothing goes on.

    A duplicate brings the same bytes and says the same of the end: else it is an overlap (RFC 8200 4.5).
    """
    row, covered = state.fragmented[at], state.covered[at]
    first, last = offset >> 3, (offset + size + 7) >> 3
    pieces, end = whole(row["pieces"]), whole(row["end"])
    contradicts = end != 0 and (offset + size >= end if more else offset + size != end)
    for k in range(pieces):
        begun, ended = whole(covered[k]) >> 16, whole(covered[k]) & 0xFFFF
        if begun == first and ended == last and not contradicts and (more or end != 0):
            return FRAGMENT_DUPLICATE
        contradicts = contradicts or (begun < last and first < ended) or (not more and ended > last)
    if contradicts:
        _decide(state, at, REFUSED)
        return FRAGMENT_OVERLAP
    if pieces == PIECES_EACH:
        return FRAGMENT_LIMIT
    covered[pieces] = first << 16 | last
    row["pieces"], row["got"] = pieces + 1, whole(row["got"]) + size
    if not more:
        row["end"] = offset + size
    return UNDECIDED


@hot
def _decide(state: State, at: int, phase: int) -> None:
    """What waits for this may go on."""
    row = state.fragmented[at]
    row["phase"] = phase
    if row["held"]:
        state.core[0]["parts_due"] = 1


@hot
def _end_if_whole(state: State, at: int) -> None:
    """With its last fragment a datagram is forgotten: its identification may come again, for another one."""
    row = state.fragmented[at]
    if row["end"] and row["end"] == row["got"] and row["held"] == 0 and row["phase"] > PENDING:
        _end(state, at)


# --- the first fragment ---------------------------------------------------------------------------------------------------


@hot
def _lead(state: State, frames: Array, burst: Burst, i: int, at: int, now: int) -> int:
    row = state.fragmented[at]
    if row["phase"] == REFUSED:
        return FRAGMENT_REFUSED
    verdict = datagrams.beginning(frames, burst, i)
    if verdict != UNDECIDED:
        _decide(state, at, REFUSED)
        return verdict
    row["phase"], row["expiry"] = PENDING, (now + PENDING_TICKS) & 0xFFFFFFFF
    if burst.direction[i] == OUTBOUND and burst.six[i] == 0:
        burst.identity[i] = whole(row["new_id"]) + 1
    datagrams.set_key(state, frames, burst, i)
    return UNDECIDED


@hot
def learn(state: State, burst: Burst, i: int, now: int) -> None:
    """Keep what became of a first fragment, for the others."""
    at, verdict = burst.part[i] - 1, burst.verdict[i]
    row = state.fragmented[at]
    if verdict == HELD_BACK:
        return
    row["expiry"] = (now + KEPT_TICKS) & 0xFFFFFFFF
    row["next_hop"], row["verdict"] = burst.next_hop[i], verdict
    if burst.six[i] == 0:
        row["new_source"], row["new_destination"] = _translation(state, burst, i, row)
        if burst.identity[i] and row["new_source"] == row["source"]:
            burst.identity[i], row["new_id"] = 0, row["id"]  # an address that nobody shares has its own identifications
    if verdict == SHUNTED:
        row["shard"], row["turned"] = burst.shard[i] - 1, burst.turned[i] > 0
    _decide(state, at, KNOWN if verdict <= HAIRPINNED else SHUNTING if verdict == SHUNTED else REFUSED)
    _end_if_whole(state, at)


@hot
def give_up(state: State, burst: Burst, i: int) -> None:
    """A packet has waited long enough; if it is a first fragment, the others need not."""
    if burst.part[i] > 0:
        _decide(state, burst.part[i] - 1, REFUSED)
        _end_if_whole(state, burst.part[i] - 1)


@hot
def _translation(state: State, burst: Burst, i: int, row: Row) -> tuple[int, int]:
    """Source and destination that the first fragment leaves with."""
    source, destination = whole(row["source"]), whole(row["destination"])
    if burst.turned[i] > 0:
        source = whole(state.sessions[burst.turned[i]]["external_address"])
    elif burst.direction[i] == OUTBOUND and burst.session[i]:
        source = whole(state.sessions[burst.session[i]]["external_address"])
    if burst.direction[i] == INBOUND and burst.session[i]:
        destination = whole(state.sessions[burst.session[i]]["internal_address"])
    elif burst.direction[i] == INBOUND and burst.mapping[i]:
        destination = whole(state.mappings[burst.mapping[i]]["internal_address"])
    return source, destination


# --- the others -----------------------------------------------------------------------------------------------------------


@hot
def _follow(state: State, frames: Array, burst: Burst, i: int, at: int, now: int) -> int:
    """Verdict of a fragment without ports; where it goes on it has its addresses and its identification."""
    row = state.fragmented[at]
    phase = whole(row["phase"])
    if phase in (WAITING, PENDING):
        return _hold(state, burst, i, at, now)
    verdict = FRAGMENT_REFUSED
    if phase == KNOWN:
        verdict = _go_along(state, frames, burst, i, row)
    elif phase == SHUNTING:
        verdict = _pass_on(state, frames, burst, i, row, now)
    _end_if_whole(state, at)
    return verdict


@hot
def _hold(state: State, burst: Burst, i: int, at: int, now: int) -> int:
    row = state.fragmented[at]
    share = whole(row["share"])
    if burst.deadline[i] == 0:
        if whole(state.core[0]["parts"]) >= PARTS_AT_MOST or whole(state.shares[share, 1]) >= PARTS_EACH:
            return FRAGMENT_LIMIT
        burst.deadline[i] = now + HELD_TICKS
    elif row["phase"] == WAITING and now >= burst.deadline[i]:
        return FRAGMENT_ORPHAN
    row["held"] += 1
    state.shares[share, 1] += 1
    state.core[0]["parts"] += 1
    return HELD_BACK


@hot
def _let_go(state: State, share: int, at: int) -> None:
    """A fragment that waited is in hand again."""
    state.shares[share, 1] -= 1
    state.core[0]["parts"] -= 1
    if at >= 0 and state.fragmented[at]["held"]:  # 0: another datagram of the same name
        state.fragmented[at]["held"] -= 1


@hot
def goes_on(state: State, at: int, deadline: int, now: int) -> bool:
    """Whether a fragment that waits for the datagram in row `at` need wait no longer, whatever then becomes of it."""
    row = state.fragmented[at]
    undecided = row["phase"] == WAITING or row["phase"] == PENDING
    return now >= deadline or not undecided or remaining(now, whole(row["expiry"])) <= 0


@hot
def look_again(state: State, now: int) -> bool:
    """Whether the loop should look for fragments that need wait no longer, and which rows are due."""
    core = state.core[0]
    if core["fragmented"] and age(now, whole(core["swept_at"])) >= 1000:
        sweep(state, now)
    if core["parted"] == 0 or (core["parts_due"] == 0 and age(now, whole(core["parts_at"])) < 50):
        return False
    core["parts_due"], core["parts_at"] = 0, now & 0xFFFFFFFF
    return True


@hot
def _go_along(state: State, frames: Array, burst: Burst, i: int, row: Row) -> int:
    """The way of the first fragment. It never waits: its next hop had answered."""
    burst.next_hop[i] = whole(row["next_hop"])
    verdict = datagrams.way(state, frames, burst, i)
    if verdict != UNDECIDED:
        return NEIGHBOUR_UNRESOLVED if verdict == HELD_BACK else verdict
    if burst.six[i] == 0:
        rewrite.readdress(frames, burst.l3[i], whole(row["new_source"]), whole(row["new_destination"]), whole(row["new_id"]))
    return whole(row["verdict"])


@hot
def _pass_on(state: State, frames: Array, burst: Burst, i: int, row: Row, now: int) -> int:
    """To the core that its first fragment was passed to, from its sender's hand; of a hairpin the first half is done here."""
    burst.shard[i] = whole(row["shard"]) + 1
    if state.shards[whole(row["shard"])]["creates"]:
        return FRAGMENT_REFUSED  # the authority is ours by now: what became of the first is not known here
    if row["turned"]:
        burst.turned[i], burst.direction[i] = -1, INBOUND
    if row["turned"] and burst.six[i] == 0:
        rewrite.readdress(frames, burst.l3[i], whole(row["new_source"]), whole(row["destination"]), whole(row["new_id"]))
    verdict = shunt.send(state, frames, burst, i, now)
    return NO_AUTHORITY if verdict == HELD_BACK else verdict


# --- identifications ------------------------------------------------------------------------------------------------------


@hot
def next_identity(state: State, remote: int) -> int:
    """IP identification for a datagram that leaves in fragments (RFC 6864 4.3): a remote sees none again for the next 65,535.

    So those of two hosts that share an external address stay apart, whatever they have chosen themselves.
    """
    mixed = whole(_hash(state, _U(remote), _U(_FOR_IDENTITIES)) >> _U(33))
    count = (whole(state.identities[mixed % IDENTITIES]) + 1) & 0xFFFF
    state.identities[mixed % IDENTITIES] = count
    return (count + (mixed >> 12)) & 0xFFFF
