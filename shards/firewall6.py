"""The IPv6 firewall's decisions: whose packet it is, what opens a session, what is let in (RFC 6092).

Out: subscriber -> rules -> session. In: session, else rules -> pinholes, IPsec, filtering or transparency; what only those let
in is forwarded without a session, which appears with the answer (but not with a RST), as for IPv4's mappings (see `nat`). So
whatever comes in unasked, scans with ESP say, takes no row of anybody's: a subscriber has as many sessions as he answers within
his limits. All else from outside is dropped; who asked for a connection is told so later (see `unasked`). Between two
subscribers of ours a packet goes out by one session and in by another.
"""

from __future__ import annotations

import numpy as np

from shards import accounts, cuckoo, firewall, hops6, nat, parse6, refusals, serve, sessions, sessions6, slabs, tcp, wire
from shards.burst import TURNED_BARE, Burst
from shards.jit import hot, whole
from shards.native import Word
from shards.parse6 import ECHO, ESP, HIP, MOBILITY, UDP_LITE, has_ports
from shards.state import (
    ACCEPT,
    ADDRESS_AND_PORT_DEPENDENT,
    BOTH,
    DROP,
    EXTERNAL,
    FAILED,
    ICMP6,
    INBOUND,
    INTERNAL,
    OUTBOUND,
    REACHABLE,
    TCP,
    UDP,
    Array,
    Row,
    State,
)
from shards.timers import remaining
from shards.verdict import (
    FORWARDED_IN,
    FORWARDED_OUT,
    HAIRPIN_REFUSED,
    HAIRPINNED,
    HELD_BACK,
    ICMP_TYPE_NOT_SERVED,
    MARTIAN_DESTINATION,
    NEIGHBOUR_UNRESOLVED,
    NEIGHBOURS_EXHAUSTED,
    NOT_OUR_DESTINATION,
    ROWS_EXHAUSTED,
    RULE_DROPPED,
    RULE_REJECTED,
    SHUNTED,
    SPOOFED_SOURCE,
    TCP_NOT_OPENING,
    TOO_BIG,
    TTL_EXCEEDED,
    UNDECIDED,
    UNSOLICITED,
)
from shards.wire import read8

_U = np.uint64
_TUNNELS = (4, 41)  # IPv4 and IPv6 inside IPv6 (RFC 2473)
# Not 4500: RFC 6092 REC-24 names 500 alone, and hosts leave it only where they find a NAT between them (RFC 7296 2.23).
_IKE = 500

# --- whose ----------------------------------------------------------------------------------------------------------------


@hot
def prefix_of(state: State, realm: int, high: Word) -> int:
    """Row of the longest subscriber prefix that holds an address, by its upper half; -1 if none does."""
    for p in range(whole(state.settings[0]["prefixes6"])):
        prefix = state.prefixes6[p]
        if high & prefix["mask"] == prefix["network"] and realm == whole(prefix["realm"]):
            return p
    return -1


@hot
def subscriber_of(state: State, p: int, high: Word) -> int:
    """Account of the subscriber with an address in the prefix of row `p`: that of the same number in its IPv4 prefix."""
    prefix = state.prefixes6[p]
    ordinal = whole((high - prefix["network"]) >> _U(prefix["shift"]))
    mate = state.prefixes[whole(prefix["prefix"])]
    return nat.use_account(state, mate, whole(mate["network"]) + (ordinal << whole(mate["shift"])))


@hot
def choose_key(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Direction and key of an undecided row of IPv6; errors have none of their own."""
    port = state.ports[burst.port[i]]
    outbound = port["side"] == INTERNAL
    if port["side"] == BOTH:
        outbound = prefix_of(state, whole(port["internal_realm"]), wire.word_at(frames, burst.l3[i] + 8)) >= 0
    burst.direction[i] = OUTBOUND if outbound else INBOUND
    if burst.icmp_error[i] == 0:
        sessions6.set_key(state, frames, burst, i)


# --- the way --------------------------------------------------------------------------------------------------------------


@hot
def is_own(state: State, high: Word, low: Word) -> bool:
    """Whether an address is the core's own."""
    for p in range(whole(state.settings[0]["ports"])):
        port = state.ports[p]
        if port["length6"] != 0 and port["address6_high"] == high and port["address6_low"] == low:
            return True
    return False


@hot
def passable(state: State, frames: Array, burst: Burst, i: int) -> int:
    """UNDECIDED if row `i` can go to its next hop now, else why not."""
    if read8(frames, burst.l3[i] + 7) <= 1:
        return TTL_EXCEEDED
    neighbour = state.neighbours[burst.next_hop[i]]
    if neighbour["state"] != REACHABLE:
        return NEIGHBOUR_UNRESOLVED if neighbour["state"] == FAILED else HELD_BACK
    too_big = burst.ip_length[i] > whole(state.ports[whole(neighbour["port"])]["mtu"])
    return TOO_BIG if too_big else UNDECIDED  # no router fragments IPv6 (RFC 8200 5)


# --- a hit ----------------------------------------------------------------------------------------------------------------


@hot
def serve_hit(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """Decide an undecided row whose lookup hit, unless there is something special about it: as `serve.serve_hit`."""
    line = burst.ref[i] >> 2
    session = state.sessions[line]
    outward = whole(session["outward"])
    if (
        outward == sessions.HAIRPIN_HOP
        or remaining(now, whole(session["expiry"])) <= 0
        or session["rules"] != state.settings[0]["rules_version"]
    ):
        return
    if not sessions6.is_of(state, frames, burst, i, line):
        return
    direction = burst.direction[i]
    burst.session[i] = line
    burst.next_hop[i] = whole(session["inward"]) if direction == INBOUND else outward
    verdict = passable(state, frames, burst, i)
    if verdict == UNDECIDED:
        verdict = FORWARDED_OUT if direction == OUTBOUND else FORWARDED_IN
        touch(state, burst, i, line, direction, now)
    burst.verdict[i] = verdict


@hot
def touch(state: State, burst: Burst, i: int, line: int, direction: int, now: int) -> None:
    """Let a packet that will be forwarded move its session on."""
    session = state.sessions[line]
    before = whole(session["state"])
    if serve.touch(state.settings, session, direction, burst.tcp_flags[i], now) != before:
        serve.moved(state, line, now)


# --- everything else ------------------------------------------------------------------------------------------------------


@hot
def decide(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Verdict of one packet by the slow path: misses, expired sessions, packets between two subscribers."""
    verdict = _find_or_open(state, frames, burst, i, now)
    if verdict != UNDECIDED:
        return verdict
    if burst.next_hop[i] == sessions.HAIRPIN_HOP:
        return _turn(state, frames, burst, i, now)
    verdict = _send(state, frames, burst, i, now)
    if verdict == UNDECIDED:
        verdict = FORWARDED_OUT if burst.direction[i] == OUTBOUND else FORWARDED_IN
    return verdict


@hot
def _find_or_open(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Give the row its session, if it has or gets one, and its next hop. Verdict, or UNDECIDED."""
    line = find(state, frames, burst, i, now)
    if line and state.sessions[line]["rules"] != state.settings[0]["rules_version"]:
        verdict, line = judge_again(state, frames, burst, i, line, now)
        if verdict != UNDECIDED:
            return verdict
    burst.session[i] = line
    inbound = burst.direction[i] == INBOUND
    if line == 0:
        verdict = inbound_miss(state, frames, burst, i, now) if inbound else _outbound_miss(state, frames, burst, i, now)
        if verdict != UNDECIDED or burst.session[i] == 0:
            return verdict
    row = state.sessions[burst.session[i]]
    if inbound and row["outward"] == sessions.HAIRPIN_HOP and burst.turned[i] == 0:
        return SPOOFED_SOURCE  # its remote is one of our own: it cannot come from outside
    burst.next_hop[i] = row["inward"] if inbound else row["outward"]
    return UNDECIDED


@hot
def judge_again(state: State, frames: Array, burst: Burst, i: int, line: int, now: int) -> tuple[int, int]:
    """As `nat.judge_again`; of whom pinholes or transparency let in unasked the rules for what comes in are asked as well.

    Not so of IPsec: either end may have begun, the host inside mostly has, and it would begin anew with its next packet.
    """
    near, far = sessions6.ends(burst, i)
    p = prefix_of(state, whole(state.ports[burst.port[i]]["internal_realm"]), wire.word_at(frames, near))
    near_port, far_port = sessions6.near_port(burst, i), sessions6.far_port(burst, i)
    verdict = obey_rules(state, frames, burst, i, OUTBOUND)
    account = whole(state.flows6[line + 1]["account"])
    if (
        verdict == UNDECIDED
        and burst.protocol[i] != ICMP6
        and _is_open(state, frames, near, far, burst.protocol[i], 0, near_port, far_port, p, account)
    ):
        verdict = obey_rules(state, frames, burst, i, INBOUND)
    if verdict != UNDECIDED:
        return verdict, nat.end_here(state, line, now)
    state.sessions[line]["rules"] = state.settings[0]["rules_version"]
    return UNDECIDED, line


@hot
def find(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Line of the packet's living session, 0 if it has none."""
    line = cuckoo.lookup(state, burst.key0[i], burst.key1[i]) >> 2
    if line and not sessions6.is_of(state, frames, burst, i, line):
        return 0
    if line and remaining(now, whole(state.sessions[line]["expiry"])) <= 0:
        return sessions.end_or_revive(state, line, now)
    return line


@hot
def _send(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    verdict = passable(state, frames, burst, i)
    if verdict == UNDECIDED and burst.session[i]:
        touch(state, burst, i, burst.session[i], burst.direction[i], now)
    return verdict


@hot
def _turn(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Out by the sender's session, now in by the receiver's: nothing in the packet changes, only who is internal."""
    if state.settings[0]["hairpin"] == 0:
        return HAIRPIN_REFUSED
    first = burst.session[i]
    burst.turned[i] = first if first else TURNED_BARE
    burst.direction[i] = INBOUND
    sessions6.set_key(state, frames, burst, i)
    verdict = _find_or_open(state, frames, burst, i, now)
    if verdict == UNDECIDED:
        verdict = _send(state, frames, burst, i, now)
    if verdict != UNDECIDED:
        return verdict
    if first:
        touch(state, burst, i, first, OUTBOUND, now)
    return HAIRPINNED


@hot
def _outbound_miss(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Open a session for an outbound packet; its line goes into the row. Verdict, or UNDECIDED."""
    near, far = sessions6.ends(burst, i)
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    high, remote_high, remote_low = wire.word_at(frames, near), wire.word_at(frames, far), wire.word_at(frames, far + 8)
    p = prefix_of(state, realm, high)
    if p < 0 or is_own(state, high, wire.word_at(frames, near + 8)):
        return SPOOFED_SOURCE
    if is_own(state, remote_high, remote_low):
        return MARTIAN_DESTINATION
    turns = prefix_of(state, realm, remote_high) >= 0
    if turns and state.settings[0]["hairpin"] == 0:
        return HAIRPIN_REFUSED
    account = subscriber_of(state, p, high)
    shard = whole(state.accounts[account]["shard"])
    if not nat.serves(state, burst, i, shard):
        return SHUNTED
    verdict = obey_rules(state, frames, burst, i, OUTBOUND)
    if verdict == UNDECIDED:
        verdict = _may_open(state, frames, burst, i, p, account, now)
    inward = 0
    if verdict == UNDECIDED:
        verdict, inward = _find_way(state, frames, burst, i, turns, now)
    if verdict == UNDECIDED and tcp.answers(burst.protocol[i], burst.tcp_flags[i]):
        return UNDECIDED  # without a session
    if verdict == UNDECIDED:
        verdict = accounts.admit(state, account, burst.protocol[i], False, 0, now)
    if verdict == UNDECIDED:
        verdict = _open(state, frames, burst, i, p, account, shard, inward, now)
    if verdict != UNDECIDED:
        burst.verdict[i] = verdict
        refusals.note(state, burst, i, account, 0, now)
    return verdict


@hot
def _may_open(state: State, frames: Array, burst: Burst, i: int, p: int, account: int, now: int) -> int:
    """Verdict, or UNDECIDED: answers open a session only where the question may have come in without one."""
    protocol = burst.protocol[i]
    answers = protocol == ICMP6 and read8(frames, burst.l4[i]) != ECHO
    if protocol != TCP and not answers:
        return UNDECIDED
    shard = whole(state.accounts[account]["shard"])
    invited = lets_in(state, frames, burst, i, p, account)
    if answers:
        return UNDECIDED if invited else ICMP_TYPE_NOT_SERVED
    if invited and tcp.answers(protocol, burst.tcp_flags[i]):
        return UNDECIDED
    goes_on = invited or nat.picks_up(state, shard, burst.tcp_flags[i], now)
    return UNDECIDED if tcp.may_open(TCP, burst.tcp_flags[i], goes_on) else TCP_NOT_OPENING


@hot
def _find_way(state: State, frames: Array, burst: Burst, i: int, turns: bool, now: int) -> tuple[int, int]:
    """(verdict or UNDECIDED, inward next hop); the outward one goes into the row. As in `nat`, both must have answered."""
    near, far = sessions6.ends(burst, i)
    high, low = wire.word_at(frames, near), wire.word_at(frames, near + 8)
    inward = hops6.next_hop(state, INTERNAL, high, low, 0, now)
    outward = sessions.HAIRPIN_HOP
    if not turns:
        remote_high, remote_low = wire.word_at(frames, far), wire.word_at(frames, far + 8)
        outward = hops6.next_hop(state, EXTERNAL, remote_high, remote_low, hops6.folded(high, low), now)
    if inward == 0 or outward == 0:
        return NEIGHBOURS_EXHAUSTED, 0
    burst.next_hop[i] = outward
    verdict = UNDECIDED
    if not turns:
        verdict = passable(state, frames, burst, i)
    elif read8(frames, burst.l3[i] + 7) <= 1:
        verdict = TTL_EXCEEDED
    if verdict == UNDECIDED and state.neighbours[inward]["state"] != REACHABLE:
        verdict = NEIGHBOUR_UNRESOLVED if state.neighbours[inward]["state"] == FAILED else HELD_BACK
    return verdict, inward


@hot
def _open(
    state: State, frames: Array, burst: Burst, i: int, p: int, account: int, shard: int, inward: int, now: int
) -> int:  # fmt: skip
    line = slabs.new_line6(state, shard)
    if line == 0:
        return ROWS_EXHAUSTED
    near, far = sessions6.ends(burst, i)
    protocol = burst.protocol[i]
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    sessions6.describe(
        state, line, realm, protocol, wire.word_at(frames, near), wire.word_at(frames, near + 8), wire.word_at(frames, far),
        wire.word_at(frames, far + 8), sessions6.near_port(burst, i), sessions6.far_port(burst, i),
    )  # fmt: skip
    opening = first_state(protocol, burst.tcp_flags[i]) | tcp.timer_of(state, protocol, sessions6.far_port(burst, i))
    expiry = tcp.ends(state.settings, opening, now)
    filtering = permission_of(state, p, protocol)
    verdict = sessions6.make(state, shard, line, account, filtering, opening, inward, burst.next_hop[i], expiry, now)
    burst.session[i] = 0 if verdict else line
    return verdict


@hot
def first_state(protocol: int, tcp_flags: int) -> int:
    """State of a session that an outbound packet makes. Protocols without states of their own are generic (REC-12)."""
    if protocol == ICMP6:
        return tcp.QUERY
    if protocol == TCP:
        return tcp.first_state(TCP, tcp_flags)
    return tcp.STREAM if protocol in (UDP, UDP_LITE) else tcp.GENERIC


# --- what is let in -------------------------------------------------------------------------------------------------------


@hot
def filtering_of(state: State, p: int, protocol: int) -> int:
    """Filtering of a protocol in the prefix of row `p`."""
    prefix = state.prefixes6[p]
    if protocol == TCP:
        return whole(prefix["tcp"])
    return whole(prefix["udp"] if protocol in (UDP, UDP_LITE) else prefix["other"])


@hot
def permission_of(state: State, p: int, protocol: int) -> int:
    """What a session's row says of whom it lets in, see FLOW6. A query is its own permission."""
    filtering = filtering_of(state, p, protocol)
    return 0 if protocol == ICMP6 or filtering == ADDRESS_AND_PORT_DEPENDENT else filtering + 1


@hot
def lets_in(state: State, frames: Array, burst: Burst, i: int, p: int, account: int) -> bool:
    """Whether a packet with this row's tuple may come in without a session, to the subscriber `account` of prefix `p`."""
    near, far = sessions6.ends(burst, i)
    protocol, kind = burst.protocol[i], read8(frames, burst.l4[i])
    return is_invited(
        state, frames, burst.l3[i], near, far, protocol, kind, sessions6.near_port(burst, i), sessions6.far_port(burst, i), p,
        account,
    )  # fmt: skip


@hot
def is_invited(
    state: State, frames: Array, l3: int, near: int, far: int, protocol: int, kind: int, near_port: int, far_port: int, p: int,
    account: int,
) -> bool:  # fmt: skip
    """`lets_in` for the packet at `l3`, whose addresses stand at `near` and `far`; `kind`: type of an ICMPv6 message."""
    if _is_open(state, frames, near, far, protocol, kind, near_port, far_port, p, account):
        return True
    if state.settings[0]["ipsec6"] != 0 and _is_ipsec(frames, l3, protocol, near_port):
        return True
    high, low = wire.word_at(frames, near), wire.word_at(frames, near + 8)
    remote_high, remote_low = wire.word_at(frames, far), wire.word_at(frames, far + 8)
    filtering = filtering_of(state, p, protocol)
    realm = whole(state.prefixes6[p]["realm"])
    if protocol in _TUNNELS and _is_mobile(state, realm, high, low, remote_high, remote_low):
        return True
    return (
        protocol != ICMP6
        and sessions6.find_permission(state, realm, protocol, filtering, high, low, remote_high, remote_low, near_port) != 0
    )


@hot
def _is_ipsec(frames: Array, l3: int, protocol: int, near_port: int) -> bool:
    """Whether a packet is of those that no default may prohibit, asked for or not (RFC 6092 REC-21, 22, 24, 26).

    Hosts without a key drop them, so to let them in opens nothing. What AH protects may be of any protocol but ICMPv6, whose
    messages have rules of their own (RFC 4890), which `echo` is one of.
    """
    if protocol in (ESP, HIP) or (protocol == UDP and near_port == _IKE):
        return True
    return protocol != ICMP6 and parse6.is_authenticated(frames, l3)


@hot
def _is_mobile(state: State, realm: int, high: Word, low: Word, remote_high: Word, remote_low: Word) -> bool:
    """Whether two hosts have a session of Mobility headers, so that the tunnel between them is asked for, too (REC-29)."""
    key0, key1 = sessions6.key(state, realm, MOBILITY, high, low, remote_high, remote_low, 0, 0)
    return cuckoo.lookup(state, key0, key1) != 0


@hot
def _is_open(
    state: State, frames: Array, near: int, far: int, protocol: int, kind: int, near_port: int, far_port: int, p: int,
    account: int,
) -> bool:  # fmt: skip
    """Whether configuration, not a session, lets a packet in: transparency, the rule about echo, a pinhole."""
    prefix = state.prefixes6[p]
    if prefix["transparent"] != 0 or state.accounts[account]["transparent"] != 0:
        return True
    if sessions6.is_echo(protocol, kind) and state.settings[0]["echo6"] != 0:
        return True
    high, low = wire.word_at(frames, near), wire.word_at(frames, near + 8)
    remote_high, remote_low = wire.word_at(frames, far), wire.word_at(frames, far + 8)
    first = whole(state.settings[0]["pinholes_at"])
    for r in range(first, first + whole(state.settings[0]["pinholes"])):
        if _fits(state.pinholes[r], INBOUND, protocol, high, low, near_port, remote_high, remote_low, far_port):
            state.pinholes[r]["hits"] += 1
            return True
    return False


@hot
def obey_rules(state: State, frames: Array, burst: Burst, i: int, direction: int) -> int:
    """Verdict of the first rule that fits, or UNDECIDED."""
    near, far = sessions6.ends(burst, i)
    high, low = wire.word_at(frames, near), wire.word_at(frames, near + 8)
    remote_high, remote_low = wire.word_at(frames, far), wire.word_at(frames, far + 8)
    near_port, far_port, protocol = sessions6.near_port(burst, i), sessions6.far_port(burst, i), burst.protocol[i]
    first = whole(state.settings[0]["rules6_at"])
    for r in range(first, first + whole(state.settings[0]["rules6"])):
        rule = state.rules6[r]
        if _fits(rule, direction, protocol, high, low, near_port, remote_high, remote_low, far_port):
            rule["hits"] += 1
            burst.detail[i] = whole(rule["number"]) + 1
            if rule["action"] == ACCEPT:
                return UNDECIDED
            return RULE_DROPPED if rule["action"] == DROP else RULE_REJECTED
    return UNDECIDED


@hot
def _fits(
    rule: Row, direction: int, protocol: int, high: Word, low: Word, port: int, remote_high: Word, remote_low: Word,
    remote_port: int,
) -> bool:  # fmt: skip
    return bool(
        whole(rule["directions"]) >> direction & 1
        and (rule["protocol"] == 0 or whole(rule["protocol"]) == protocol)
        and high & rule["internal_mask_high"] == rule["internal_high"]
        and low & rule["internal_mask_low"] == rule["internal_low"]
        and remote_high & rule["remote_mask_high"] == rule["remote_high"]
        and remote_low & rule["remote_mask_low"] == rule["remote_low"]
        and firewall.ports_fit(rule, has_ports(protocol), port, remote_port)
    )


@hot
def inbound_miss(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Whether an inbound packet without a session may pass; the next hop goes into the row. Verdict, or UNDECIDED."""
    near, far = sessions6.ends(burst, i)
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    high, low = wire.word_at(frames, near), wire.word_at(frames, near + 8)
    p = prefix_of(state, realm, high)
    if p < 0 or is_own(state, high, low):
        return NOT_OUR_DESTINATION if p < 0 else MARTIAN_DESTINATION
    if burst.turned[i] == 0 and prefix_of(state, realm, wire.word_at(frames, far)) >= 0:
        return SPOOFED_SOURCE
    account = subscriber_of(state, p, high)
    if not nat.serves(state, burst, i, whole(state.accounts[account]["shard"])):
        return SHUNTED
    verdict = obey_rules(state, frames, burst, i, INBOUND)
    if verdict != UNDECIDED:
        return verdict
    if not lets_in(state, frames, burst, i, p, account):
        return UNSOLICITED
    hop = hops6.next_hop(state, INTERNAL, high, low, 0, now)
    burst.next_hop[i] = hop
    return UNDECIDED if hop else NEIGHBOURS_EXHAUSTED
