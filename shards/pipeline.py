"""One burst, from bytes to bytes: the packet path on a page.

    parse -> choose_key -> ask -> suggest -> prove -> serve hits -> rewrite     all rows, in one sweep
    look further -> serve hits -> rewrite                                       rows whose key was displaced
    decide -> shunt -> rewrite -> answer                                        misses and whatever is special

Each stage reads the columns to its left and fills its own; a row that has a verdict is passed over. `settle` is the one place
that counts, after the rings have had their say.
"""

from __future__ import annotations

import numpy as np

from shards import (
    bfd,
    cuckoo,
    cut,
    doubt,
    firewall6,
    fragments,
    icmp,
    icmp6,
    lookahead,
    nat,
    parse,
    parse6,
    rewrite,
    serve,
    sessions,
    shunt,
    timers,
    unasked,
)
from shards.burst import TURNED_BARE, Burst
from shards.cuckoo import BLOCK
from shards.jit import hot, whole
from shards.native import prefetch
from shards.state import ICMP, INBOUND, OUTBOUND, Array, State
from shards.verdict import (
    DROP,
    FORWARDED_IN,
    FORWARDED_OUT,
    FRAGMENT,
    FRAGMENT_LIMIT,
    HAIRPIN_REFUSED,
    HAIRPINNED,
    HELD_BACK,
    NEIGHBOUR_UNRESOLVED,
    NO_AUTHORITY,
    RECEIVED,
    SENT,
    SHUNTED,
    SPOOFED_SOURCE,
    TCP_NOT_OPENING,
    UNDECIDED,
    VERDICTS,
)

FRAMES_AHEAD = 12  # rows between asking for a frame and parsing it
FIRST_DROP = min(verdict.number for verdict in VERDICTS if verdict.fate == DROP)


@hot
def process(state: State, frames: Array, burst: Burst, count: int, now: int) -> None:
    """Decide and rewrite `count` packets in place.

    `frames`: uint8, the frame memory, with at least 64 bytes before each frame; `now`: ticks. Afterwards every row has a
    verdict, and `out_length` > 0 where bytes are to be sent (also for a drop that is answered by an ICMP error).
    """
    last = _sweep(state, frames, burst, count, now)
    if last >= 0:
        cuckoo.look_further(state, burst.key0, burst.key1, burst.ref, last)
        _serve_hits(state, frames, burst, 0, count, now)
    if _left(burst, count):
        _begin_rest(burst, count)
        lookahead.misses(state, burst, count)
        doubt.begin(state)
        _serve_rest(state, frames, burst, count, now)
        doubt.end(state)
        _limit_waiting(state, burst, count, now)
        _finish_rest(state, frames, burst, count, now)


@hot
def _sweep(state: State, frames: Array, burst: Burst, count: int, now: int) -> int:
    """Every stage of an ordinary hit, three blocks of rows in hand at a time; the last row that must look further, or -1.

    While a block is parsed, the buckets of the one before it and the sessions of the one before that arrive from memory: the
    processor computes and waits at once, where stage by stage over the whole burst it would do one after the other.
    """
    clear(burst, count)
    last = -1
    for at in range(0, count + 2 * BLOCK, BLOCK):
        begin, end = at, min(at + BLOCK, count)
        _parse(state, frames, burst, begin, end, count)
        cuckoo.ask(state, burst.key0, burst.key1, burst.ref, begin, end)
        for i in range(max(at - BLOCK, 0), min(at, count)):
            cuckoo.suggest(state, burst.ref, np.uint64(i))
        begin, end = max(at - 2 * BLOCK, 0), min(at - BLOCK, count)
        for i in range(begin, end):
            last = cuckoo.prove(state, burst.key0, burst.key1, burst.ref, burst.verdict, np.uint64(i), last)
        _serve_hits(state, frames, burst, begin, end, now)
    return last


@hot
def _parse(state: State, frames: Array, burst: Burst, begin: int, end: int, count: int) -> None:
    for i in range(begin, end):
        if i + FRAMES_AHEAD < count:
            prefetch(frames, burst.at[i + FRAMES_AHEAD])
        parse.parse(state, frames, burst, i)
        nat.choose_key(state, burst, i)
        if burst.six[i] and burst.verdict[i] == UNDECIDED:
            firewall6.choose_key(state, frames, burst, i)


@hot
def clear(burst: Burst, count: int) -> None:
    """Forget what columns say of the burst before ; a loop each, for that is what compilers make fast."""
    for column in (
        burst.tcp_flags, burst.icmp_error, burst.six, burst.session, burst.mapping,
        burst.next_hop, burst.turned, burst.detail, burst.out_length,
    ):  # fmt: skip
        for i in range(count):
            column[i] = 0


@hot
def _serve_hits(state: State, frames: Array, burst: Burst, begin: int, end: int, now: int) -> None:
    for i in range(begin, end):
        if burst.ref[i] > 0 and burst.verdict[i] == UNDECIDED:
            if burst.six[i]:
                _serve_hit6(state, frames, burst, i, now)
                continue
            serve.serve_hit(state, frames, burst, i, now)
            if burst.verdict[i] in (FORWARDED_OUT, FORWARDED_IN):
                rewrite.rewrite_hit(state, frames, burst, i)


@hot
def _serve_hit6(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    firewall6.serve_hit(state, frames, burst, i, now)
    if burst.verdict[i] in (FORWARDED_OUT, FORWARDED_IN):
        rewrite.send_off6(state, frames, burst, i)


@hot
def _left(burst: Burst, count: int) -> int:
    """How many rows were not simply forwarded as a hit."""
    left = 0
    for i in range(count):
        left += burst.out_length[i] == 0
    return left


@hot
def _begin_rest(burst: Burst, count: int) -> None:
    """Forget what columns of the slow path say of the burst before."""
    for i in range(count):
        burst.outer[i] = 0
        burst.part[i] = 0
        burst.identity[i] = 0


@hot
def _serve_rest(state: State, frames: Array, burst: Burst, count: int, now: int) -> None:
    """Decide what no hit decided."""
    for i in range(count):
        if burst.verdict[i] == UNDECIDED:
            _serve_one(state, frames, burst, i, now)
        if burst.verdict[i] == FRAGMENT:  # perhaps inside what came shunted
            _serve_fragment(state, frames, burst, i, now)


@hot
def _serve_fragment(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """The first of a datagram is decided like a packet; the others follow it (see `fragments`)."""
    burst.verdict[i] = fragments.meet(state, frames, burst, i, now)
    if burst.verdict[i] == UNDECIDED:
        _decide_one(state, frames, burst, i, now)
        fragments.learn(state, burst, i, now)
    elif burst.verdict[i] == FRAGMENT_LIMIT:
        fragments.blame(state, frames, burst, i, now)


@hot
def _serve_one(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    if burst.six[i] == 0:
        _receive_one(state, frames, burst, i, now)
    if burst.six[i] and burst.icmp_error[i] == 0 and burst.verdict[i] == UNDECIDED:  # perhaps inside what came shunted
        burst.verdict[i] = parse6.refuse_addresses(frames, burst.l3[i])
    if burst.verdict[i] == UNDECIDED:
        _decide_one(state, frames, burst, i, now)


@hot
def _receive_one(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """What is addressed to this core itself is opened, or has its verdict here."""
    if burst.icmp_error[i] == 0:
        burst.verdict[i] = parse.refuse_addresses(burst, i)
    if burst.verdict[i] == UNDECIDED and shunt.is_for_us(state, burst, i):
        burst.verdict[i] = shunt.receive(state, frames, burst, i)
    elif burst.verdict[i] == UNDECIDED and bfd.is_for_us(state, burst, i):
        burst.verdict[i] = bfd.receive(state, frames, burst, i, now)


@hot
def _decide_one(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    burst.verdict[i] = _decide_any(state, frames, burst, i, now)
    if burst.verdict[i] == SHUNTED:
        burst.verdict[i] = _shunt(state, frames, burst, i, now)
    elif burst.six[i] == 0 and burst.icmp_error[i] == 0 and _goes_by_mapping(burst, i):
        rewrite.translate_by_mapping(state, frames, burst, i)


@hot
def _goes_by_mapping(burst: Burst, i: int) -> bool:
    """Whether the row is forwarded, and a half of it that is ours to do goes without a session."""
    if burst.verdict[i] not in (FORWARDED_OUT, FORWARDED_IN, HAIRPINNED):
        return False
    return bool(burst.session[i] == 0 or burst.turned[i] == TURNED_BARE)


@hot
def _decide_any(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    if burst.six[i]:
        if burst.icmp_error[i]:
            return icmp6.pass_error(state, frames, burst, i, now)
        return firewall6.decide(state, frames, burst, i, now)
    return icmp.pass_error(state, frames, burst, i, now) if burst.icmp_error[i] else decide(state, frames, burst, i, now)


@hot
def _shunt(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Pass a packet to the core with the authority over its shard; of a hairpin the first half was ours. Verdict."""
    verdict = shunt.send(state, frames, burst, i, now)
    if burst.turned[i] > 0 and burst.icmp_error[i]:
        # Half translated, it cannot be served again from the start, so it is not held.
        return NO_AUTHORITY if verdict == HELD_BACK else verdict
    if verdict == SHUNTED and burst.turned[i] > 0:
        _touch(state, burst.turned[i], OUTBOUND, burst.tcp_flags[i], now)
    return verdict


@hot
def _finish_rest(state: State, frames: Array, burst: Burst, count: int, now: int) -> None:
    """Rewrite what was decided to go, answer what is refused and wants an answer."""
    for i in range(count):
        if burst.out_length[i] == 0:
            if burst.verdict[i] <= HAIRPINNED:
                _send_off(state, frames, burst, i)
            elif burst.verdict[i] >= FIRST_DROP:
                _answer(state, frames, burst, i, now)


@hot
def _answer(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """Tell the sender of a dropped packet, now or later, where it wants to be told."""
    if icmp.comes_unasked(burst.verdict[i]):
        unasked.remember(state, frames, burst, i, now)
    elif burst.six[i]:
        icmp6.answer(state, frames, burst, i, now)
    else:
        icmp.answer(state, frames, burst, i, now)


@hot
def _send_off(state: State, frames: Array, burst: Burst, i: int) -> None:
    if burst.six[i]:
        rewrite.send_off6(state, frames, burst, i)
    else:
        cut.mark(state, burst, i)
        rewrite.rewrite(state, frames, burst, i)


@hot
def _limit_waiting(state: State, burst: Burst, count: int, now: int) -> None:
    """A frame waits for its neighbour until its deadline, which its first wait sets; then the neighbour is unresolved."""
    for i in range(count):
        if burst.verdict[i] == HELD_BACK:
            if burst.deadline[i] == 0:
                burst.deadline[i] = now + whole(state.settings[0]["neighbour_wait"])
            elif now >= burst.deadline[i] and burst.part[i] >= 0:
                burst.verdict[i] = NEIGHBOUR_UNRESOLVED
                fragments.give_up(state, burst, i)
            if burst.outer[i] and burst.verdict[i] == HELD_BACK:
                burst.port[i] = burst.outer[i] - 1  # it will be unwrapped again


@hot
def decide(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Verdict of one packet by the slow path: misses, expired sessions, hairpins."""
    verdict = _find_or_open(state, frames, burst, i, now)
    if verdict != UNDECIDED:
        return verdict
    if burst.next_hop[i] == sessions.HAIRPIN_HOP:
        return _hairpin(state, frames, burst, i, now)
    verdict = _send(state, frames, burst, i, now)
    if verdict == UNDECIDED:
        verdict = FORWARDED_OUT if burst.direction[i] == OUTBOUND else FORWARDED_IN
    return verdict


@hot
def _find_or_open(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Give the row its session or mapping, and its next hop. Verdict, or UNDECIDED.

    The lookup is made again: a packet before it in this burst may have opened the session, or the row may be another's by now.
    """
    line = cuckoo.lookup(state, burst.key0[i], burst.key1[i]) >> 2
    if line and timers.remaining(now, whole(state.sessions[line]["expiry"])) <= 0:
        line = sessions.end_or_revive(state, line, now)
    if line and state.sessions[line]["rules"] != state.settings[0]["rules_version"]:
        verdict, line = nat.judge_again(state, burst, i, line, now)
        if verdict != UNDECIDED:
            return verdict
    burst.session[i] = line
    inbound = burst.direction[i] == INBOUND
    if line == 0:
        verdict = nat.inbound_miss(state, burst, i, now) if inbound else nat.outbound_miss(state, frames, burst, i, now)
        if verdict != UNDECIDED:
            return verdict
        line = burst.session[i]
    if line:
        row = state.sessions[line]
        if inbound and row["outward"] == sessions.HAIRPIN_HOP and burst.turned[i] == 0:
            return SPOOFED_SOURCE  # its remote is one of our own: it cannot come from outside
        burst.next_hop[i] = row["inward"] if inbound else row["outward"]
    return UNDECIDED


@hot
def _send(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """The common end of both paths: can it go there, and then what it does to its session. Verdict, or UNDECIDED."""
    verdict = serve.way(state, frames, burst, i)
    if verdict == UNDECIDED and burst.session[i]:
        _touch(state, burst.session[i], burst.direction[i], burst.tcp_flags[i], now)
    return verdict


@hot
def _touch(state: State, line: int, direction: int, tcp_flags: int, now: int) -> None:
    session = state.sessions[line]
    before = whole(session["state"])
    if serve.touch(state.settings, session, direction, tcp_flags, now) != before:
        serve.moved(state, line, now)


@hot
def _hairpin(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Out as if to the Internet and in again, by the external endpoints (RFC 4787 REQ-9a).

    Only the columns turn round; the frame is rewritten once both halves are decided, so a packet that must wait, or is refused,
    is still what its sender sent.
    """
    if state.settings[0]["hairpin"] == 0:
        return HAIRPIN_REFUSED
    first, half = burst.session[i], burst.mapping[i]
    if first == 0:
        return _hairpin_bare(state, frames, burst, i, half, now)
    row = state.sessions[first]
    _turn_round(state, burst, i, first, whole(row["external_address"]), whole(row["external_port"]))
    verdict = _find_or_open(state, frames, burst, i, now)
    if verdict == UNDECIDED:
        verdict = _send(state, frames, burst, i, now)
    if verdict != UNDECIDED:
        return verdict
    _touch(state, first, OUTBOUND, burst.tcp_flags[i], now)
    return HAIRPINNED


@hot
def _turn_round(state: State, burst: Burst, i: int, turned: int, external: int, external_port: int) -> None:
    burst.turned[i] = turned
    burst.direction[i] = INBOUND
    burst.source[i] = external
    burst.source_port[i] = external_port
    if burst.protocol[i] == ICMP:
        burst.destination_port[i] = external_port
    nat.set_key(state, burst, i)


@hot
def _hairpin_bare(state: State, frames: Array, burst: Burst, i: int, half: int, now: int) -> int:
    """A refusal, out by the mapping and in by the session of whoever has asked; without that it answers nothing."""
    row = state.mappings[half]
    _turn_round(state, burst, i, TURNED_BARE, whole(row["external_address"]), whole(row["external_port"]))
    verdict = _find_or_open(state, frames, burst, i, now)
    if verdict == UNDECIDED and burst.session[i] == 0:
        verdict = TCP_NOT_OPENING
    burst.mapping[i] = half
    if verdict == UNDECIDED:
        verdict = _send(state, frames, burst, i, now)
    return HAIRPINNED if verdict == UNDECIDED else verdict


@hot
def settle(state: State, burst: Burst, count: int) -> None:
    """Count `count` rows by verdict, packets and bytes of frame. A held frame is counted once it has left (see `core.held`)."""
    counters = state.counters
    received, received_bytes, sent, sent_bytes = 0, 0, 0, 0
    for i in range(count):
        verdict, length = burst.verdict[i], burst.length[i]
        if verdict != HELD_BACK:
            counters[verdict, 0] += np.uint64(1)
            counters[verdict, 1] += np.uint64(length)
            received += 1
            received_bytes += length
        sent += burst.out_length[i] != 0
        sent_bytes += burst.out_length[i]
    counters[RECEIVED, 0] += np.uint64(received)
    counters[RECEIVED, 1] += np.uint64(received_bytes)
    counters[SENT, 0] += np.uint64(sent)
    counters[SENT, 1] += np.uint64(sent_bytes)
