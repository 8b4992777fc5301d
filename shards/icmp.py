"""ICMP errors: those that pass, with the packet that they carry put right (RFC 5508 sections 4 and 5), and those of our own
(RFC 1812 section 4.3), rate-limited, never about another error, quoting the packet as its sender knew it.
"""

from __future__ import annotations

from shards import bypass, cuckoo, fragments, generic, hops, nat, parse, ports, refusals, sessions, shunt, wire
from shards.accounts import is_bypassed
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import read16, read32, write16, write32
from shards.neighbours import mac_of
from shards.rewrite import adjust_transport, link_header
from shards.serve import way
from shards.state import EXTERNAL, ICMP, INBOUND, INTERNAL, OUTBOUND, TCP, UDP, Array, State
from shards.timers import age, remaining
from shards.verdict import (
    FILTERED,
    FORWARDED_IN,
    FORWARDED_OUT,
    HAIRPIN_REFUSED,
    HAIRPINNED,
    HELD_BACK,
    ICMP_EMBEDDED_BAD,
    ICMP_UNRELATED,
    INSIDE_DESTINATION,
    MARTIAN_DESTINATION,
    NEIGHBOUR_UNRESOLVED,
    NEIGHBOURS_EXHAUSTED,
    NO_MAPPING,
    NOT_OUR_DESTINATION,
    ORIGINATED,
    RULE_REJECTED,
    SHUNTED,
    SPOOFED_SOURCE,
    SUPPRESSED,
    TOO_BIG,
    TTL_EXCEEDED,
    UNDECIDED,
    UNSOLICITED,
)
from shards.wire import adjust, read8, write8

UNASKED_BUCKET = 3  # of `icmp_tokens`

_HEADER = 8  # of an ICMP error, before the embedded packet
_MPLS = 1  # class of the object in an extension (RFC 4950)
_QUOTED_WORDS = 32  # before an extension, at least (RFC 4884 3)
_QUOTE_BYTES = 548  # so that the whole error has at most 576 bytes (RFC 1812 4.3.2.3)

# --- errors that pass -----------------------------------------------------------------------------------------------------


@hot
def pass_error(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Verdict of an ICMP error; where it is to be forwarded its addresses and the embedded packet have been put right.

    It neither refreshes nor ends a session (RFC 5508 REQ-6, RFC 4787 REQ-12).
    """
    verdict = _admit(state, burst, i)
    if verdict != UNDECIDED:
        return verdict
    inner = burst.l4[i] + _HEADER
    if not _embedded_is_sound(frames, inner, burst.l3[i] + burst.ip_length[i]):
        return ICMP_EMBEDDED_BAD
    # Whoever sent the embedded packet is told about it, and nobody else.
    if read32(frames, inner + 12) != burst.destination[i]:
        return ICMP_UNRELATED
    verdict = _find(state, frames, burst, i, inner, now)
    if verdict != UNDECIDED:
        return verdict
    turns = burst.direction[i] == OUTBOUND and burst.next_hop[i] == sessions.HAIRPIN_HOP
    if turns:
        return _turn(state, frames, burst, i, inner, now)
    verdict = way(state, frames, burst, i)
    if verdict == UNDECIDED:
        _translate(state, frames, burst, i, inner)
        verdict = FORWARDED_OUT if burst.direction[i] == OUTBOUND else FORWARDED_IN
    return verdict


@hot
def _admit(state: State, burst: Burst, i: int) -> int:
    """Addresses of the error itself. From inside any router may speak, from outside nobody of ours (BCP 38)."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    inside = nat.is_internal(state, realm, burst.destination[i])
    if inside and not bypass.names(state, burst.destination[i]):
        return INSIDE_DESTINATION
    if burst.direction[i] == OUTBOUND:
        return MARTIAN_DESTINATION if hops.names_no_host_at(state, EXTERNAL, burst.destination[i]) else UNDECIDED
    if not inside and sessions.external_ordinal(state, burst.destination[i]) < 0:
        return NOT_OUR_DESTINATION
    if burst.turned[i]:  # on another core, by one of our external addresses
        return UNDECIDED
    return UNDECIDED if nat.plausible_outsider(state, realm, burst.source[i]) else SPOOFED_SOURCE


@hot
def _embedded_is_sound(frames: Array, inner: int, end: int) -> bool:
    """An IPv4 header with a right checksum and at least eight bytes of a first fragment behind it (RFC 5508 REQ-3).

    A packet of a generic protocol may have been shorter.
    """
    if end - inner < wire.IPV4_BYTES:
        return False
    header, total = 4 * (read8(frames, inner) & 15), read16(frames, inner + 2)
    least = header + 8
    if generic.is_generic(read8(frames, inner + 9)) and header <= total < least:
        least = total
    if read8(frames, inner) >> 4 != 4 or header < wire.IPV4_BYTES or inner + least > end:
        return False
    if total < least or read16(frames, inner + 6) & 0x1FFF:
        return False
    return wire.fold(wire.sum16(frames, inner, header)) == 0xFFFF


@hot
def _find(state: State, frames: Array, burst: Burst, i: int, inner: int, now: int) -> int:
    """Session, or mapping, that the embedded packet went by the other way; with it the next hop. Verdict, or UNDECIDED."""
    l4 = inner + 4 * (read8(frames, inner) & 15)
    protocol = read8(frames, inner + 9)
    if not _is_ours_to_serve(state, frames, protocol, l4):
        return ICMP_UNRELATED
    port = state.ports[burst.port[i]]
    inbound = burst.direction[i] == INBOUND
    near, far = _ports(frames, protocol, l4, inbound)
    # Inbound, it is about a packet of ours: the local end is its source. Outbound, about one that came in: its destination.
    local, remote = read32(frames, inner + 12 if inbound else inner + 16), read32(frames, inner + 16 if inbound else inner + 12)
    realm = whole(port["external_realm"] if inbound else port["internal_realm"])
    key1 = sessions.key_1(remote, near, far)
    line = cuckoo.lookup(state, sessions.key_0(local, realm, protocol), key1) >> 2
    burst.session[i] = 0
    burst.mapping[i] = 0
    if line and remaining(now, whole(state.sessions[line]["expiry"])) > 0:
        row = state.sessions[line]
        if inbound and row["outward"] == sessions.HAIRPIN_HOP and burst.turned[i] == 0:
            return ICMP_UNRELATED
        if is_bypassed(row) and row["rules"] != state.settings[0]["rules_version"]:
            _, line = nat.judge_again(state, burst, i, line, now)
            if line == 0:
                return ICMP_UNRELATED
        burst.session[i] = line
        burst.mapping[i] = sessions.mapping_of(state, line)
        burst.next_hop[i] = row["inward"] if inbound else row["outward"]
        return UNDECIDED
    half = _mapping_of(state, local, realm, protocol, near, inbound)
    if half == 0 and not inbound and bypass.find(state, INBOUND, protocol, local, near, remote, far):
        return _hop_to(state, burst, i, local, remote, inbound, now)  # about what came in as it was, without a session
    ours = inbound and burst.turned[i] == 0 and sessions.external_ordinal(state, remote) >= 0  # never goes out to come in again
    if half == 0 and not ours and not _serves(state, burst, i, local, realm, inbound):
        return SHUNTED
    if half == 0 or ours:
        return ICMP_UNRELATED
    burst.mapping[i] = half
    return _hop_to(state, burst, i, whole(state.mappings[half]["internal_address"]), remote, inbound, now)


@hot
def _ports(frames: Array, protocol: int, l4: int, inbound: bool) -> tuple[int, int]:
    """Local and remote port of an embedded packet, whose source is the local end of what an inbound error is about."""
    if protocol == ICMP:
        return read16(frames, l4 + 4), 0
    if generic.is_generic(protocol):
        return 0, 0
    return (read16(frames, l4), read16(frames, l4 + 2)) if inbound else (read16(frames, l4 + 2), read16(frames, l4))


@hot
def _is_ours_to_serve(state: State, frames: Array, protocol: int, l4: int) -> bool:
    """Whether a packet like the embedded one can have passed us and be reported on (never an ICMP error: RFC 1122 3.2.2)."""
    if protocol != ICMP:
        return protocol in (TCP, UDP) or generic.refuse(state, protocol) == UNDECIDED
    icmp_type = read8(frames, l4)
    return parse.is_query(icmp_type) or icmp_type == wire.ECHO_REPLY or icmp_type == wire.TIMESTAMP_REPLY


@hot
def _mapping_of(state: State, local: int, realm: int, protocol: int, port: int, inbound: bool) -> int:
    """Half-line of the mapping of an endpoint; of a generic protocol only a static one serves without a session."""
    if not inbound:
        half = sessions.find_mapping(state, local, realm, protocol, port)
        return 0 if generic.is_generic(protocol) and state.mappings[half]["static"] == 0 else half
    external = sessions.external_ordinal(state, local)
    return ports.owner(state, external, protocol, generic.place(protocol, port)) if external >= 0 else 0


@hot
def _serves(state: State, burst: Burst, i: int, local: int, realm: int, inbound: bool) -> bool:
    """Whether this core knows for certain that nobody has sent what the error is about."""
    if inbound:
        external = sessions.external_ordinal(state, local)
        if external >= 0:
            return nat.serves(state, burst, i, nat.shard_of(state, external))
        here = whole(state.ports[burst.port[i]]["internal_realm"])
        return not nat.is_internal(state, here, local) or nat.serves(state, burst, i, nat.shard_at(state, here, local))
    _, subscriber = nat.find_account(state, realm, local)
    return subscriber == 0 or nat.serves(state, burst, i, whole(state.accounts[subscriber]["shard"]))


@hot
def _hop_to(state: State, burst: Burst, i: int, internal: int, remote: int, inbound: bool, now: int) -> int:
    """Next hop of an error about a packet between these two that has no session, into the row. Verdict, or UNDECIDED."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    if inbound:
        hop = hops.next_hop(state, INTERNAL, internal, 0, now)
    elif sessions.external_ordinal(state, remote) >= 0 or nat.is_internal(state, realm, remote):
        hop = sessions.HAIRPIN_HOP
    else:
        hop = hops.next_hop(state, EXTERNAL, remote, internal, now)
    burst.next_hop[i] = hop
    return UNDECIDED if hop else NEIGHBOURS_EXHAUSTED


@hot
def _translate(state: State, frames: Array, burst: Burst, i: int, inner: int) -> None:
    """Put the outer address and the embedded endpoint right, then the checksums."""
    if burst.mapping[i] == 0:
        _speak_for(state, frames, burst, i, inner)
        return
    mapping = state.mappings[burst.mapping[i]]
    internal, internal_port = whole(mapping["internal_address"]), whole(mapping["internal_port"])
    external, external_port = whole(mapping["external_address"]), whole(mapping["external_port"])
    if burst.direction[i] == INBOUND:
        _replace(frames, burst.l3[i], 16, internal)
        _replace_embedded(frames, inner, burst.l3[i] + burst.ip_length[i], 12, internal, internal_port)
    else:
        _conceal(frames, burst, i)
        parse.conceal_route(frames, inner)
        _replace(frames, burst.l3[i], 12, _speaker(state, frames, burst, i, internal, external))
        _replace_embedded(frames, inner, burst.l3[i] + burst.ip_length[i], 16, external, external_port)
    l4, length = burst.l4[i], burst.ip_length[i] - (burst.l4[i] - burst.l3[i])
    write16(frames, l4 + 2, 0)
    write16(frames, l4 + 2, wire.checksum(frames, l4, length))


@hot
def _speak_for(state: State, frames: Array, burst: Burst, i: int, inner: int) -> None:
    """An error about what is not translated: only a router inside has no name outside, and nothing to tell of itself."""
    if burst.direction[i] == INBOUND:
        return
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    internal = read32(frames, inner + 16)
    reserved = whole(state.shards[nat.shard_at(state, realm, internal)]["icmp_address"])
    before = burst.ip_length[i]
    _conceal(frames, burst, i)
    if read32(frames, burst.l3[i] + 12) != internal:
        _replace(frames, burst.l3[i], 12, reserved if reserved else internal)
    if burst.ip_length[i] != before:
        l4 = burst.l4[i]
        write16(frames, l4 + 2, 0)
        write16(frames, l4 + 2, wire.checksum(frames, l4, burst.ip_length[i] - (l4 - burst.l3[i])))


@hot
def _speaker(state: State, frames: Array, burst: Burst, i: int, internal: int, external: int) -> int:
    """Source of an error from inside: for a router's, which nobody outside knows, stands the shard's (RFC 5508 REQ-5)."""
    shard = nat.shard_of(state, sessions.external_ordinal(state, external))
    reserved = whole(state.shards[shard]["icmp_address"])
    return reserved if reserved and read32(frames, burst.l3[i] + 12) != internal else external


@hot
def _conceal(frames: Array, burst: Burst, i: int) -> None:
    """Cut off extensions that may name interfaces or addresses of the inside (RFC 5837); others pass (RFC 4884)."""
    l3, l4 = burst.l3[i], burst.l4[i]
    end = l3 + burst.ip_length[i]
    at = _extension(frames, l4, end)
    if at and _names_interfaces(frames, at, end):
        adjust(frames, l3 + 10, wire.difference(burst.ip_length[i], at - l3))
        write16(frames, l3 + 2, at - l3)
        write8(frames, l4 + 5, 0)
        burst.ip_length[i] = at - l3


@hot
def _extension(frames: Array, l4: int, end: int) -> int:
    """Where the extension structure of an error is, 0 if there is none (RFC 4884 3 and 5.5: where old routers have it)."""
    kind, words = read8(frames, l4), read8(frames, l4 + 5)
    at = l4 + _HEADER + 4 * max(words, _QUOTED_WORDS)
    if kind == wire.SOURCE_QUENCH or at + 4 > end:
        return 0
    if words < _QUOTED_WORDS and (
        read8(frames, at) >> 4 != 2 or read16(frames, at + 2) == 0 or wire.checksum(frames, at, end - at)
    ):
        return 0
    return at


@hot
def _names_interfaces(frames: Array, at: int, end: int) -> bool:
    """Whether objects of an extension structure are other than MPLS labels (RFC 4950), or not sound."""
    at += 4
    while at + 4 <= end:
        size = read16(frames, at)
        if size < 4 or at + size > end or read8(frames, at + 2) != _MPLS:
            return True
        at += size
    return at != end


@hot
def _replace(frames: Array, l3: int, field: int, address: int) -> int:
    """Write an address of an IPv4 header; the difference it makes."""
    delta = wire.difference(read32(frames, l3 + field), address)
    write32(frames, l3 + field, address)
    adjust(frames, l3 + 10, delta)
    return delta


@hot
def _replace_embedded(frames: Array, inner: int, end: int, field: int, address: int, port: int) -> None:
    """Translate an embedded endpoint back; its transport checksum only where the quote reaches that far."""
    delta = _replace(frames, inner, field, address)
    l4, protocol = inner + 4 * (read8(frames, inner) & 15), read8(frames, inner + 9)
    if generic.is_generic(protocol):
        return
    at = l4 + 4 if protocol == ICMP else (l4 if field == 12 else l4 + 2)
    changed = wire.difference(read16(frames, at), port)
    write16(frames, at, port)
    # Behind the embedded packet there may be padding and extensions (RFC 4884), which are not its.
    if protocol != TCP or l4 + 18 <= min(end, inner + read16(frames, inner + 2)):
        adjust_transport(frames, l4, protocol, changed if protocol == ICMP else wire.fold(delta + changed))


@hot
def _turn(state: State, frames: Array, burst: Burst, i: int, inner: int, now: int) -> int:
    """A hairpinned error (RFC 5508 REQ-7): out as if to the Internet, and in again to the other subscriber."""
    if state.settings[0]["hairpin"] == 0:
        return HAIRPIN_REFUSED
    if read8(frames, burst.l3[i] + 8) <= 1:
        return TTL_EXCEEDED
    _translate(state, frames, burst, i, inner)
    burst.turned[i] = 1
    burst.direction[i] = INBOUND
    burst.source[i] = read32(frames, burst.l3[i] + 12)
    verdict = _find(state, frames, burst, i, inner, now)
    if verdict == UNDECIDED:
        verdict = way(state, frames, burst, i)
    if verdict == UNDECIDED:
        _translate(state, frames, burst, i, inner)
        return HAIRPINNED
    # Half translated, it cannot be served again from the start, so it is not held.
    return NEIGHBOUR_UNRESOLVED if verdict == HELD_BACK else verdict


# --- errors of our own ----------------------------------------------------------------------------------------------------


@hot
def reply_type(settings: Array, verdict: int) -> int:
    """ICMP type << 8 | code that a packet with this verdict is answered with; 0 for silence (no drop is answered with 0/0)."""
    if verdict == TTL_EXCEEDED:
        return wire.TIME_EXCEEDED << 8
    if verdict == TOO_BIG:
        return wire.UNREACHABLE << 8 | 4
    if verdict == RULE_REJECTED:
        return wire.UNREACHABLE << 8 | whole(settings[0]["reject_code"])
    if verdict == NEIGHBOUR_UNRESOLVED:
        return wire.UNREACHABLE << 8 | 1
    if refusals.is_told(verdict):
        return refusals.reply(wire.UNREACHABLE, whole(settings[0]["refusal_code"]))
    return 0


@hot
def answer(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """Turn a refused packet into the error that tells its sender, if there is one to tell and the rate allows it."""
    kind = reply_type(state.settings, burst.verdict[i])
    if kind:
        tell(state, frames, burst, i, kind, now)


@hot
def tell(state: State, frames: Array, burst: Burst, i: int, kind: int, now: int) -> None:
    """The same with an error of this `kind`: type << 8 | code."""
    if fragments.is_later(frames, burst.l3[i]):  # RFC 1122 3.2.2
        return
    out = burst.port[i]
    if burst.icmp_error[i] or state.ports[out]["address"] == 0 or not may_answer(state, burst, i, now):
        state.counters[SUPPRESSED, 0] += 1
        return
    # Not the column: a hairpinned packet's has turned round already.
    asker = read32(frames, burst.l3[i] + 12)
    # The new headers go before the packet, which is quoted where it lies; so the sender's MAC must be read first.
    sender = wire.mac_at(frames, burst.at[i] + 6)
    if burst.outer[i]:
        hop = shunt.way_back(state, burst, i, asker, now)
        if hop == 0:
            state.counters[SUPPRESSED, 0] += 1
            return
        out, sender = whole(state.neighbours[hop]["port"]), mac_of(state, hop)
    mtu = _next_mtu(state, burst, i) if burst.verdict[i] == TOO_BIG else 0
    quote = min(burst.ip_length[i], _QUOTE_BYTES)
    source = _our_name(state, frames, burst, i, out)
    l3 = burst.l3[i] - wire.IPV4_BYTES - _HEADER
    _write_error(frames, l3 + wire.IPV4_BYTES, kind, mtu, quote)
    _write_header(frames, l3, source, asker, _HEADER + quote, _next_id(state))
    burst.out_at[i] = link_header(state, frames, l3, out, sender)
    burst.out_port[i] = out
    burst.out_length[i] = l3 - burst.out_at[i] + wire.IPV4_BYTES + _HEADER + quote
    state.counters[ORIGINATED, 0] += 1


@hot
def _our_name(state: State, frames: Array, burst: Burst, i: int, out: int) -> int:
    """Where our own errors come from: towards the Internet from the shard's address for that, if it has one."""
    external = sessions.external_ordinal(state, read32(frames, burst.l3[i] + 16))
    if burst.direction[i] == INBOUND and burst.turned[i] == 0 and external >= 0:
        reserved = whole(state.shards[nat.shard_of(state, external)]["icmp_address"])
        if reserved:
            return reserved
    return whole(state.ports[out]["address"])


@hot
def _next_mtu(state: State, burst: Burst, i: int) -> int:
    return whole(state.ports[whole(state.neighbours[burst.next_hop[i]]["port"])]["mtu"])


@hot
def _next_id(state: State) -> int:
    core = state.core[0]
    core["ip_id"] = (whole(core["ip_id"]) + 1) & 0xFFFF
    return whole(core["ip_id"])


@hot
def _write_error(frames: Array, l4: int, kind: int, mtu: int, quote: int) -> None:
    write16(frames, l4, kind)
    write16(frames, l4 + 2, 0)
    write32(frames, l4 + 4, mtu)  # RFC 1191: the low half; else unused
    write16(frames, l4 + 2, wire.checksum(frames, l4, _HEADER + quote))


@hot
def _write_header(frames: Array, l3: int, source: int, destination: int, payload: int, identification: int) -> None:
    write8(frames, l3, 0x45)
    write8(frames, l3 + 1, 0xC0)  # internetwork control (RFC 1812 4.3.2.5)
    write16(frames, l3 + 2, wire.IPV4_BYTES + payload)
    write16(frames, l3 + 4, identification)
    write16(frames, l3 + 6, 0)
    write8(frames, l3 + 8, 64)
    write8(frames, l3 + 9, ICMP)
    write16(frames, l3 + 10, 0)
    write32(frames, l3 + 12, source)
    write32(frames, l3 + 16, destination)
    write16(frames, l3 + 10, wire.checksum(frames, l3, wire.IPV4_BYTES))


@hot
def may_answer(state: State, burst: Burst, i: int, now: int) -> bool:
    """Whether a rate allows to answer row `i`; who is refused for want of something has one of his own (see `refusals`)."""
    if refusals.is_told(burst.verdict[i]):
        return burst.detail[i] == refusals.TELL and rate_allows(state, refusals.BUCKET, now)
    asked_from = OUTBOUND if burst.turned[i] else burst.direction[i]
    if comes_unasked(burst.verdict[i]):
        return not is_quiet(state, asked_from) and rate_allows(state, UNASKED_BUCKET, now)
    return rate_allows(state, asked_from, now)


@hot
def comes_unasked(verdict: int) -> bool:
    """Whether a packet was dropped because nothing permits it: nobody is told of that at once, some later (see `unasked`)."""
    return verdict in (UNSOLICITED, NO_MAPPING, FILTERED)


@hot
def is_quiet(state: State, direction: int) -> bool:
    """Whether no packet of a direction is answered by an error of ours (RFC 5508 REQ-9)."""
    return whole(state.settings[0]["quiet"]) >> direction & 1 != 0


@hot
def rate_allows(state: State, direction: int, now: int) -> bool:
    """Token bucket of the core (RFC 1812 4.3.2.8): `icmp_rate` a second, `icmp_burst` saved; counted in thousandths.

    One for each direction of what is answered, so that nobody outside can use up what subscribers need for path MTU discovery;
    one for refusals; and one for what comes unasked, which scans may empty as they like.
    """
    settings, tokens, since = state.settings[0], state.core[0]["icmp_tokens"], state.core[0]["icmp_tokens_at"]
    if is_quiet(state, direction):
        return False
    rate = whole(settings["icmp_rate"])
    full = 1000 * max(whole(settings["icmp_burst"]), 1)
    has = min(full, whole(tokens[direction]) + min(age(now, whole(since[direction])), 1 << 20) * rate)
    allowed = rate != 0 and has >= 1000
    tokens[direction] = has - 1000 if allowed else has
    since[direction] = now & 0xFFFFFFFF
    return allowed
