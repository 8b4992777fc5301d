"""ICMPv6 errors: those that pass, because the packet that they carry has a session (RFC 6092 REC-10, 18, 36; RFC 4890 4.3), and
those of our own (RFC 4443), rate-limited with IPv4's. Nothing is translated, so nothing is written into what passes.

Like IPv4's they neither refresh nor end a session. From inside any router may speak about a session: what a path MTU is, is
told by access routers too, whose addresses are no subscriber's.
"""

from __future__ import annotations

import numpy as np

from shards import cuckoo, firewall6, hops6, icmp, nat, parse6, refusals, sessions, sessions6, wire
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import Word, read16, read32, write16, write32
from shards.neighbours import mac_of
from shards.parse6 import has_ports
from shards.rewrite import link_header
from shards.state import EXTERNAL, FIREWALL_SESSION6, ICMP6, INBOUND, INTERNAL, OUTBOUND, REACHABLE, Array, State
from shards.timers import remaining
from shards.unasked_rows import QUOTE_BYTES
from shards.verdict import (
    FORWARDED_IN,
    FORWARDED_OUT,
    HAIRPIN_REFUSED,
    HAIRPINNED,
    ICMP_EMBEDDED_BAD,
    ICMP_UNRELATED,
    MARTIAN_DESTINATION,
    NEIGHBOUR_UNRESOLVED,
    NEIGHBOURS_EXHAUSTED,
    NOT_OUR_DESTINATION,
    ORIGINATED,
    RULE_REJECTED,
    SHUNTED,
    SPOOFED_SOURCE,
    SUPPRESSED,
    TOO_BIG,
    TTL_EXCEEDED,
    UNDECIDED,
)
from shards.wire import IPV6_BYTES, read8, write8

_U = np.uint64
_HEADER = 8  # of an ICMPv6 error, before the embedded packet

# --- errors that pass -----------------------------------------------------------------------------------------------------


@hot
def pass_error(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Verdict of an ICMPv6 error."""
    verdict = _admit(state, frames, burst, i)
    if verdict != UNDECIDED:
        return verdict
    inner, end = burst.l4[i] + _HEADER, burst.l3[i] + burst.ip_length[i]
    protocol, l4 = _embedded(frames, inner, end)
    if protocol < 0:
        return ICMP_EMBEDDED_BAD
    if not _is_told_its_sender(frames, inner, burst.l3[i] + 24):
        return ICMP_UNRELATED
    verdict = _find(state, frames, burst, i, inner, protocol, l4, now)
    if verdict == UNDECIDED and burst.next_hop[i] == sessions.HAIRPIN_HOP:
        return _turn(state, frames, burst, i, inner, protocol, l4, now)
    if verdict == UNDECIDED:
        verdict = firewall6.passable(state, frames, burst, i)
    if verdict == UNDECIDED:
        verdict = FORWARDED_OUT if burst.direction[i] == OUTBOUND else FORWARDED_IN
    return verdict


@hot
def _admit(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Addresses of the error itself: from outside nobody of ours speaks (BCP 38), and nobody but subscribers is spoken to."""
    verdict = parse6.refuse_addresses(frames, burst.l3[i])
    if verdict != UNDECIDED:
        return verdict
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    high, low = wire.word_at(frames, burst.l3[i] + 24), wire.word_at(frames, burst.l3[i] + 32)
    if firewall6.is_own(state, high, low):
        return MARTIAN_DESTINATION
    if burst.direction[i] == OUTBOUND:
        return UNDECIDED
    if firewall6.prefix_of(state, realm, high) < 0:
        return NOT_OUR_DESTINATION
    spoofed = burst.turned[i] == 0 and firewall6.prefix_of(state, realm, wire.word_at(frames, burst.l3[i] + 8)) >= 0
    return SPOOFED_SOURCE if spoofed else UNDECIDED


@hot
def _embedded(frames: Array, inner: int, end: int) -> tuple[int, int]:
    """(protocol, offset of its header) of the embedded packet, (-1, 0) where it is none or cut too short to be known."""
    if end - inner < IPV6_BYTES or read8(frames, inner) >> 4 != 6:
        return -1, 0
    verdict, protocol, l4 = parse6.walk(frames, inner, end, True)
    if verdict != UNDECIDED or end - l4 < 8:
        return -1, 0
    return protocol, l4


@hot
def _is_told_its_sender(frames: Array, inner: int, told: int) -> bool:
    """Whoever sent the embedded packet is told about it, and nobody else."""
    high, low = wire.word_at(frames, inner + 8), wire.word_at(frames, inner + 16)
    return bool(high == wire.word_at(frames, told) and low == wire.word_at(frames, told + 8))


@hot
def _find(state: State, frames: Array, burst: Burst, i: int, inner: int, protocol: int, l4: int, now: int) -> int:
    """Session that the embedded packet went by the other way; with it the next hop. Verdict, or UNDECIDED."""
    inbound = burst.direction[i] == INBOUND
    kind = read8(frames, l4)
    burst.session[i] = 0
    if protocol == ICMP6 and not sessions6.is_echo(protocol, kind):
        return ICMP_UNRELATED
    # Inbound, it is about a packet of ours: the internal end is its source. Outbound, about one that came in.
    near, far = (inner + 8, inner + 24) if inbound else (inner + 24, inner + 8)
    near_port, far_port = _ports(frames, l4, protocol, inbound)
    line = _line_of(state, frames, burst, i, near, far, protocol, near_port, far_port)
    if line and remaining(now, whole(state.sessions[line]["expiry"])) > 0:
        row = state.sessions[line]
        if inbound and row["outward"] == sessions.HAIRPIN_HOP and burst.turned[i] == 0:
            return ICMP_UNRELATED
        burst.session[i] = line
        burst.next_hop[i] = row["inward"] if inbound else row["outward"]
        return UNDECIDED
    return _without_session(state, frames, burst, i, near, far, protocol, kind, near_port, far_port, now)


@hot
def _ports(frames: Array, l4: int, protocol: int, inbound: bool) -> tuple[int, int]:
    """(internal, remote) port of the embedded packet."""
    if protocol == ICMP6:
        return read16(frames, l4 + 4), 0
    if not has_ports(protocol):
        return 0, 0
    source, destination = read16(frames, l4), read16(frames, l4 + 2)
    return (source, destination) if inbound else (destination, source)


@hot
def _line_of(
    state: State, frames: Array, burst: Burst, i: int, near: int, far: int, protocol: int, near_port: int, far_port: int
) -> int:  # fmt: skip
    """Line of the session of an embedded tuple, proven; 0 if there is none."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    high, low = wire.word_at(frames, near), wire.word_at(frames, near + 8)
    remote_high, remote_low = wire.word_at(frames, far), wire.word_at(frames, far + 8)
    key0, key1 = sessions6.key(state, realm, protocol, high, low, remote_high, remote_low, near_port, far_port)
    line = cuckoo.lookup(state, key0, key1) >> 2
    if line == 0 or state.sessions[line]["kind"] != FIREWALL_SESSION6:
        return 0
    flow = state.flows6[line + 1]
    same = flow["internal_high"] == high and flow["internal_low"] == low
    same = same and flow["remote_high"] == remote_high and flow["remote_low"] == remote_low
    same = same and whole(flow["internal_port"]) == near_port and whole(flow["remote_port"]) == far_port
    return line if same and whole(flow["realm"]) == realm | protocol << 24 else 0


@hot
def _without_session(
    state: State, frames: Array, burst: Burst, i: int, near: int, far: int, protocol: int, kind: int, near_port: int,
    far_port: int, now: int,
) -> int:  # fmt: skip
    """Verdict, or UNDECIDED: from inside, about what may have come in without a session; else about nothing that we know."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    p = firewall6.prefix_of(state, realm, wire.word_at(frames, near))
    if p < 0:
        return ICMP_UNRELATED
    account = firewall6.subscriber_of(state, p, wire.word_at(frames, near))
    if not nat.serves(state, burst, i, whole(state.accounts[account]["shard"])):
        return SHUNTED
    inner = far - 8  # it came in: its source is the remote end
    if burst.direction[i] == INBOUND or not firewall6.is_invited(
        state, frames, inner, near, far, protocol, kind, near_port, far_port, p, account
    ):
        return ICMP_UNRELATED
    remote_high, remote_low = wire.word_at(frames, far), wire.word_at(frames, far + 8)
    if firewall6.prefix_of(state, realm, remote_high) >= 0:
        burst.next_hop[i] = sessions.HAIRPIN_HOP
        return UNDECIDED
    whose = hops6.folded(wire.word_at(frames, near), wire.word_at(frames, near + 8))
    burst.next_hop[i] = hops6.next_hop(state, EXTERNAL, remote_high, remote_low, whose, now)
    return UNDECIDED if burst.next_hop[i] else NEIGHBOURS_EXHAUSTED


@hot
def _turn(state: State, frames: Array, burst: Burst, i: int, inner: int, protocol: int, l4: int, now: int) -> int:
    """An error between two subscribers: in again, to the one whose session its packet went out by."""
    if state.settings[0]["hairpin"] == 0:
        return HAIRPIN_REFUSED
    burst.turned[i] = burst.session[i] if burst.session[i] else -1
    burst.direction[i] = INBOUND
    verdict = _find(state, frames, burst, i, inner, protocol, l4, now)
    if verdict == UNDECIDED:
        verdict = firewall6.passable(state, frames, burst, i)
    return HAIRPINNED if verdict == UNDECIDED else verdict


# --- errors of our own ----------------------------------------------------------------------------------------------------


@hot
def _error_for(settings: Array, verdict: int) -> int:
    """Type << 8 | code of the error that the sender of a dropped packet is told, 0 for none."""
    if refusals.is_told(verdict):
        return refusals.reply(parse6.UNREACHABLE, whole(settings[0]["refusal_code6"]))
    if verdict == TTL_EXCEEDED:
        return parse6.TIME_EXCEEDED << 8
    if verdict == TOO_BIG:
        return parse6.TOO_BIG << 8
    if verdict == NEIGHBOUR_UNRESOLVED:
        return parse6.UNREACHABLE << 8 | 3
    return parse6.UNREACHABLE << 8 | 1 if verdict == RULE_REJECTED else 0


@hot
def answer(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """Tell the sender of a dropped packet, where it wants to be told; the error is built around the packet where it lies."""
    kind = _error_for(state.settings, burst.verdict[i])
    if kind:
        tell(state, frames, burst, i, kind, now)


@hot
def tell(state: State, frames: Array, burst: Burst, i: int, kind: int, now: int) -> None:
    """The same with an error of this `kind`: type << 8 | code."""
    if burst.icmp_error[i] or state.ports[burst.port[i]]["length6"] == 0 or not icmp.may_answer(state, burst, i, now):
        state.counters[SUPPRESSED, 0] += 1
        return
    out, sender = _way_back(state, frames, burst, i, now)
    if sender < 0:
        state.counters[SUPPRESSED, 0] += 1
        return
    mtu = whole(state.ports[whole(state.neighbours[burst.next_hop[i]]["port"])]["mtu"]) if burst.verdict[i] == TOO_BIG else 0
    quote = min(burst.ip_length[i], QUOTE_BYTES)
    l3, port = burst.l3[i] - IPV6_BYTES - _HEADER, state.ports[out]
    _write_header(frames, l3, port["address6_high"], port["address6_low"], burst.l3[i] + 8, _HEADER + quote)
    _write_error(frames, l3, kind, mtu, _HEADER + quote)
    burst.out_at[i] = link_header(state, frames, l3, out, sender)
    write16(frames, l3 - 2, wire.ETHERTYPE_IPV6)
    burst.out_port[i] = out
    burst.out_length[i] = l3 - burst.out_at[i] + IPV6_BYTES + _HEADER + quote
    state.counters[ORIGINATED, 0] += 1


@hot
def _way_back(state: State, frames: Array, burst: Burst, i: int, now: int) -> tuple[int, int]:
    """Port and MAC address of who sent us the packet; of what came shunted, of the next hop to its sender. -1: not known."""
    if burst.outer[i] == 0:
        return burst.port[i], wire.mac_at(frames, burst.at[i] + 6)
    if burst.turned[i]:
        return burst.port[i], -1
    side = INTERNAL if burst.direction[i] == OUTBOUND else EXTERNAL
    high, low = wire.word_at(frames, burst.l3[i] + 8), wire.word_at(frames, burst.l3[i] + 16)
    hop = hops6.next_hop(state, side, high, low, 0, now)
    mac = mac_of(state, hop) if state.neighbours[hop]["state"] == REACHABLE else -1
    return whole(state.neighbours[hop]["port"]), mac


@hot
def _write_header(frames: Array, l3: int, high: Word, low: Word, asker: int, payload: int) -> None:
    """`asker`: where in the frame the destination's address stands."""
    write32(frames, l3, 6 << 28)
    write16(frames, l3 + 4, payload)
    write8(frames, l3 + 6, ICMP6)
    write8(frames, l3 + 7, 64)
    for half in range(2):
        word = high if half == 0 else low
        write32(frames, l3 + 8 + 8 * half, whole(word >> _U(32)))
        write32(frames, l3 + 12 + 8 * half, whole(word & _U(0xFFFF_FFFF)))
    for quarter in range(4):
        write32(frames, l3 + 24 + 4 * quarter, read32(frames, asker + 4 * quarter))


@hot
def _write_error(frames: Array, l3: int, kind: int, mtu: int, length: int) -> None:
    l4 = l3 + IPV6_BYTES
    write16(frames, l4, kind)
    write16(frames, l4 + 2, 0)
    write32(frames, l4 + 4, mtu)
    write16(frames, l4 + 2, ~wire.fold(parse6.pseudo_sum(frames, l3, ICMP6, length) + wire.sum16(frames, l4, length)) & 0xFFFF)
