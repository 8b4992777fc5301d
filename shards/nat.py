"""The miss path: which side a packet comes from, and what makes or admits a session (RFC 4787, 5382, 5508, 6888).

All of it is for the core with the authority over the packet's shard; elsewhere it ends in SHUNTED, and `shunt` goes on.

Outbound: subscriber -> rules -> limits -> mapping found or made -> session. Inbound: external endpoint -> mapping -> rules ->
filtering. An inbound packet that only a mapping lets in is forwarded by the mapping: a session appears with the answer, so
outsiders cannot fill a subscriber's quota. An answer that refuses (a RST) leaves by the mapping as well, and opens nothing.
"""

from __future__ import annotations

import numpy as np

from shards import accounts, bypass, firewall, generic, ports, refusals, serve, sessions, sole_owner, tcp
from shards.accounts import is_bypassed
from shards.burst import TURNED_BARE, Burst
from shards.hops import names_no_host_at, next_hop
from shards.jit import hot, inlined, whole
from shards.native import choose
from shards.parse import is_query
from shards.state import (
    ACCEPT,
    ADDRESS_DEPENDENT,
    BOTH,
    DROP,
    ENDPOINT_INDEPENDENT,
    EXTERNAL,
    FAILED,
    ICMP,
    INBOUND,
    INTERNAL,
    OUTBOUND,
    PICKUP_ASIDE,
    REACHABLE,
    Array,
    Row,
    State,
)
from shards.timers import remaining
from shards.verdict import (
    FILTERED,
    HAIRPIN_REFUSED,
    HELD_BACK,
    ICMP_TYPE_NOT_SERVED,
    INSIDE_DESTINATION,
    MARTIAN_DESTINATION,
    NEIGHBOUR_UNRESOLVED,
    NEIGHBOURS_EXHAUSTED,
    NO_MAPPING,
    NOT_OUR_DESTINATION,
    RULE_DROPPED,
    RULE_REJECTED,
    SHUNTED,
    SPOOFED_SOURCE,
    TCP_NOT_OPENING,
    TTL_EXCEEDED,
    UNDECIDED,
)
from shards.wire import SYN, read8


@hot
def find_account(state: State, realm: int, address: int) -> tuple[int, int]:
    """(account, subscriber account) of an internal address: a device's and its subscriber's, or twice the latter; or 0, 0."""
    subscriber = _account_in(state, state.prefixes, whole(state.settings[0]["prefixes"]), realm, address)
    if subscriber == 0:
        return 0, 0
    device = _account_in(state, state.devices, whole(state.settings[0]["devices"]), realm, address)
    return (device, subscriber) if device else (subscriber, subscriber)


@hot
def _account_in(state: State, prefixes: Array, count: int, realm: int, address: int) -> int:
    """Account of the longest of `prefixes` that holds the address, 0 if none does."""
    p = _prefix_of(prefixes, count, realm, address)
    if p < 0:
        return 0
    return use_account(state, prefixes[p], address)


@hot
def use_account(state: State, prefix: Row, address: int) -> int:
    """Account of an address of a prefix; first use writes the account's constant facts."""
    account = _account_of(prefix, address)
    row = state.accounts[account]
    if row["base"] == 0:
        row["base"] = address >> whole(prefix["shift"]) << whole(prefix["shift"])
        row["parent"] = prefix["parent"]
        row["pool"] = prefix["pool"]
        row["shard"] = prefix["shard"]
    return account


@hot
def _prefix_of(prefixes: Array, count: int, realm: int, address: int) -> int:
    """Row of the longest of the first `count` prefixes that holds the address, -1 if none does."""
    for p in range(count):
        prefix = prefixes[p]
        if address & whole(prefix["mask"]) == whole(prefix["network"]) and realm == whole(prefix["realm"]):
            return p
    return -1


@hot
def _account_of(prefix: Row, address: int) -> int:
    return whole(prefix["first_account"]) + ((address - whole(prefix["network"])) >> whole(prefix["shift"]))


@hot
def subscriber_of(state: State, realm: int, address: int) -> int:
    """Account of the subscriber with an internal address, 0 for none; it may never have been used (see `find_account`)."""
    p = _prefix_of(state.prefixes, whole(state.settings[0]["prefixes"]), realm, address)
    return _account_of(state.prefixes[p], address) if p >= 0 else 0


@hot
def is_internal(state: State, realm: int, address: int) -> bool:
    """Whether an address lies in a subscriber prefix."""
    return _prefix_of(state.prefixes, whole(state.settings[0]["prefixes"]), realm, address) >= 0


@inlined
def choose_key(state: State, burst: Burst, i: int) -> None:
    """Direction and lookup key of row `i`. ICMP errors have no key of their own: their embedded packet has."""
    port = state.ports[np.uint64(burst.port[i])]
    side = port["side"]
    outbound = side == INTERNAL
    if side == BOTH and burst.verdict[i] == UNDECIDED:
        outbound = is_internal(state, whole(port["internal_realm"]), burst.source[i])
    burst.direction[i] = choose(outbound, OUTBOUND, INBOUND)
    if burst.verdict[i] != UNDECIDED or burst.icmp_error[i]:
        burst.key0[i] = 0
        burst.key1[i] = 0
    else:
        set_key(state, burst, i)


@inlined
def set_key(state: State, burst: Burst, i: int) -> None:
    """Key of a row whose direction is known: local endpoint, remote endpoint, realm, protocol."""
    port = state.ports[np.uint64(burst.port[i])]
    protocol, outbound = burst.protocol[i], burst.direction[i] == OUTBOUND
    # Without a branch: the directions of a burst are as good as random.
    local = choose(outbound, burst.source[i], burst.destination[i])
    remote = choose(outbound, burst.destination[i], burst.source[i])
    local_port = choose(outbound, burst.source_port[i], burst.destination_port[i])
    remote_port = choose(outbound, burst.destination_port[i], burst.source_port[i])
    realm = choose(outbound, whole(port["internal_realm"]), whole(port["external_realm"]))
    burst.key0[i] = sessions.key_0(local, realm, protocol)
    burst.key1[i] = sessions.key_1(remote, local_port, choose(protocol == ICMP, 0, remote_port))


@hot
def outbound_miss(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Open a session for an outbound packet; its line goes into the row. Verdict, or UNDECIDED: serve it as a hit now."""
    port = state.ports[burst.port[i]]
    realm = whole(port["internal_realm"])
    source, source_port, protocol = burst.source[i], burst.source_port[i], burst.protocol[i]
    account, subscriber = find_account(state, realm, source)
    if account == 0:
        return SPOOFED_SOURCE
    if names_no_host_at(state, INTERNAL, source):
        return SPOOFED_SOURCE
    inside = is_internal(state, realm, burst.destination[i])
    if inside and not bypass.is_reached(state, burst.destination[i]):
        return INSIDE_DESTINATION
    if names_no_host_at(state, EXTERNAL, burst.destination[i]):
        return MARTIAN_DESTINATION
    turns = inside or sessions.external_ordinal(state, burst.destination[i]) >= 0
    if turns and state.settings[0]["hairpin"] == 0:
        return HAIRPIN_REFUSED
    shard = whole(state.accounts[subscriber]["shard"])
    if not serves(state, burst, i, shard):
        return SHUNTED
    passes = _passes(state, burst, i, OUTBOUND)
    half = 0 if passes else sessions.find_mapping(state, source, realm, protocol, source_port)
    goes_on = half != 0 or (passes and _passes(state, burst, i, INBOUND))  # of what may begin outside this may be the answer
    if protocol == ICMP and not goes_on and not is_query(read8(frames, burst.l4[i])):
        return ICMP_TYPE_NOT_SERVED
    bare = half != 0 and burst.part[i] == 0 and tcp.answers(protocol, burst.tcp_flags[i]) and _was_let_in(state, burst, i, half)
    if not bare and not tcp.may_open(protocol, burst.tcp_flags[i], goes_on or picks_up(state, shard, burst.tcp_flags[i], now)):
        return TCP_NOT_OPENING
    verdict = _obey_rules(state, burst, i, OUTBOUND, source, source_port, burst.destination[i], burst.destination_port[i])
    inward = 0
    if verdict == UNDECIDED:
        verdict, inward = _find_way(state, frames, burst, i, turns, now)
    if verdict == UNDECIDED and bare:
        burst.mapping[i] = half
        return UNDECIDED
    if verdict == UNDECIDED and not passes:
        verdict = sole_owner.foresee(state, burst, i, subscriber, half, now)
    if verdict == UNDECIDED:
        verdict = accounts.admit(state, account, protocol, half == 0 and not passes, half, now)
    if verdict == UNDECIDED and half == 0 and not passes:
        aside = _steps_aside(state, shard, burst.tcp_flags[i], now)
        verdict, half = _map(state, account, subscriber, realm, protocol, source, source_port, aside, now)
    if verdict == UNDECIDED:
        verdict = _open(state, burst, i, half, account, inward, now)
        if verdict != UNDECIDED and half:
            _drop_if_idle(state, half, now)
    if verdict != UNDECIDED:
        burst.verdict[i] = verdict
        refusals.note(state, burst, i, account, source_port, now)
    return verdict


@hot
def serves(state: State, burst: Burst, i: int, shard: int) -> bool:
    """Whether this core may do for a shard what only its authority may. If not the row says whose it is (see `shunt`)."""
    if state.shards[shard]["creates"] != 0 and (
        burst.outer[i] == 0 or was_turned_here(burst, i) or burst.shard[i] == shard + 1
    ):
        return True
    burst.shard[i] = shard + 1
    return False


@hot
def was_turned_here(burst: Burst, i: int) -> bool:
    """Whether the row is the second half of a hairpin whose first half was ours to do."""
    return bool(burst.turned[i] > 0 or burst.turned[i] == TURNED_BARE)


@hot
def picks_up(state: State, shard: int, tcp_flags: int, now: int) -> bool:
    """Whether a connection that is under way may be one that the authority before us had not told us of."""
    row = state.shards[shard]
    if row["pickup"] != 0 and remaining(now, whole(row["grace_until"])) <= 0:
        row["pickup"] = 0
    return row["pickup"] != 0 and tcp_flags & SYN == 0


@hot
def _steps_aside(state: State, shard: int, tcp_flags: int, now: int) -> bool:
    """Whether a new connection leaves our side's ports to those that may be picked up."""
    row = state.shards[shard]
    return bool(row["pickup"] == PICKUP_ASIDE and tcp_flags & SYN != 0 and remaining(now, whole(row["grace_until"])) > 0)


@hot
def _find_way(state: State, frames: Array, burst: Burst, i: int, turns: bool, now: int) -> tuple[int, int]:
    """(verdict or UNDECIDED, inward next hop); the outward one goes into the row.

    Both must have answered before anything is remembered: who does not exist, or writes to who does not, costs no state.
    """
    source, destination = burst.source[i], burst.destination[i]
    inward = next_hop(state, INTERNAL, source, 0, now)
    outward = sessions.HAIRPIN_HOP if turns else next_hop(state, EXTERNAL, destination, source, now)
    if inward == 0 or outward == 0:
        return NEIGHBOURS_EXHAUSTED, 0
    burst.next_hop[i] = outward
    if not turns:
        verdict = serve.way(state, frames, burst, i)
    else:
        verdict = TTL_EXCEEDED if read8(frames, burst.l3[i] + 8) <= 1 else UNDECIDED
    if verdict == UNDECIDED and state.neighbours[inward]["state"] != REACHABLE:
        verdict = NEIGHBOUR_UNRESOLVED if state.neighbours[inward]["state"] == FAILED else HELD_BACK
    return verdict, inward


@hot
def _obey_rules(
    state: State, burst: Burst, i: int, direction: int, internal: int, internal_port: int, remote: int, remote_port: int
) -> int:
    return _judge(state, burst, i, direction, burst.protocol[i], internal, internal_port, remote, remote_port)


@hot
def _judge(
    state: State, burst: Burst, i: int, direction: int, protocol: int, internal: int, internal_port: int, remote: int,
    remote_port: int,
) -> int:  # fmt: skip
    """Verdict of the first rule that fits, or UNDECIDED; its number goes into the row."""
    action, number = firewall.judge(state, direction, protocol, internal, internal_port, remote, remote_port)
    burst.detail[i] = number
    if action == ACCEPT:
        return UNDECIDED
    return RULE_DROPPED if action == DROP else RULE_REJECTED


@hot
def _map(
    state: State, account: int, subscriber: int, realm: int, protocol: int, address: int, port: int, aside: bool, now: int
) -> tuple[int, int]:
    """(verdict or UNDECIDED, half-line) of a new mapping. Ports are the subscriber's; a device of his has none of its own."""
    verdict, external, external_port = ports.claim(state, subscriber, protocol, address, realm, port, aside, now)
    if verdict:
        return verdict, 0
    shard = whole(state.accounts[subscriber]["shard"])
    verdict, half = sessions.make_mapping(
        state, shard, account, address, realm, protocol, port, external, external_port, 0, now
    )
    if verdict:
        ports.give_back(state, external, external_port, now)
    return verdict, half


@hot
def _passes(state: State, burst: Burst, i: int, direction: int) -> bool:
    """Whether a packet from inside (or, INBOUND, the one that it would answer) is one that is not translated."""
    source, port = burst.source[i], burst.source_port[i]
    return bypass.find(state, direction, burst.protocol[i], source, port, burst.destination[i], burst.destination_port[i])


@hot
def _open(state: State, burst: Burst, i: int, half: int, account: int, inward: int, now: int) -> int:
    """Make the session, with its next hops, so that no later packet has to look for them. `half` 0: it is not translated."""
    protocol = burst.protocol[i]
    remote_port = 0 if protocol == ICMP else burst.destination_port[i]
    opening = tcp.first_state(protocol, burst.tcp_flags[i]) | tcp.timer_of(state, protocol, remote_port)
    expiry = tcp.ends(state.settings, opening, now)
    shard = whole(state.accounts[account]["shard"])
    port = state.ports[burst.port[i]]
    realm, line = whole(port["external_realm"]), 0
    if half == 0:
        verdict, line = sessions.make_bypassed(
            state, shard, account, burst.source[i], whole(port["internal_realm"]), protocol, burst.source_port[i],
            burst.destination[i], remote_port, realm, opening, inward, burst.next_hop[i], expiry, now,
        )  # fmt: skip
    else:
        verdict = sole_owner.refuse(state, burst, i, half, whole(state.mappings[half]["external_address"]), now)
        if verdict == UNDECIDED:
            verdict, line = sessions.make_session(
                state, shard, half, burst.destination[i], remote_port, realm, opening, inward, burst.next_hop[i], expiry, now
            )
    burst.session[i] = line
    return verdict


@hot
def _drop_if_idle(state: State, half: int, now: int) -> None:
    """A mapping that was made for a session that could not be made does not stay."""
    mapping = state.mappings[half]
    if mapping["sessions"] == 0 and mapping["static"] == 0:
        shard = whole(state.accounts[whole(mapping["account"])]["shard"])
        external = sessions.external_ordinal(state, whole(mapping["external_address"]))
        sessions.end_mapping(state, shard, half, now)
        ports.forget(state, external, whole(mapping["internal_realm"]) >> 24, whole(mapping["external_port"]))


@hot
def inbound_miss(state: State, burst: Burst, i: int, now: int) -> int:
    """Find the mapping that lets an inbound packet in; its half-line goes into the row. Verdict, or UNDECIDED."""
    port = state.ports[burst.port[i]]
    realm, destination = whole(port["internal_realm"]), burst.destination[i]
    external = sessions.external_ordinal(state, destination)
    if external < 0:
        return _inbound_untranslated(state, burst, i, realm, now)
    if burst.turned[i] == 0 and not plausible_outsider(state, realm, burst.source[i]):
        return SPOOFED_SOURCE
    if not serves(state, burst, i, shard_of(state, external)):
        return SHUNTED
    half = ports.owner(state, external, burst.protocol[i], generic.place(burst.protocol[i], burst.destination_port[i]))
    if half == 0:
        return NO_MAPPING
    mapping = state.mappings[half]
    internal, internal_port = whole(mapping["internal_address"]), whole(mapping["internal_port"])
    verdict = _obey_rules(state, burst, i, INBOUND, internal, internal_port, burst.source[i], burst.source_port[i])
    if verdict != UNDECIDED:
        return verdict
    if not _lets_in(state, burst, i, external, half, burst.source[i]):
        return FILTERED
    hop = next_hop(state, INTERNAL, internal, 0, now)
    if hop == 0:
        return NEIGHBOURS_EXHAUSTED
    burst.mapping[i] = half
    burst.next_hop[i] = hop
    return UNDECIDED


@hot
def _inbound_untranslated(state: State, burst: Burst, i: int, realm: int, now: int) -> int:
    """A packet for an inside address as it is, without a session: its next hop goes into the row where an entry lets it in."""
    internal, source = burst.destination[i], burst.source[i]
    subscriber = subscriber_of(state, realm, internal)
    if subscriber == 0:
        return NOT_OUR_DESTINATION
    if not bypass.names(state, internal):
        return INSIDE_DESTINATION
    if burst.turned[i] == 0 and not plausible_outsider(state, realm, source):
        return SPOOFED_SOURCE
    if not serves(state, burst, i, shard_at(state, realm, internal)):
        return SHUNTED
    port, remote_port = burst.destination_port[i], burst.source_port[i]
    if not bypass.find(state, INBOUND, burst.protocol[i], internal, port, source, remote_port):
        return NO_MAPPING
    verdict = _obey_rules(state, burst, i, INBOUND, internal, port, source, remote_port)
    if verdict != UNDECIDED:
        return verdict
    burst.next_hop[i] = next_hop(state, INTERNAL, internal, 0, now)
    return UNDECIDED if burst.next_hop[i] else NEIGHBOURS_EXHAUSTED


@hot
def shard_at(state: State, realm: int, internal: int) -> int:
    """Shard of an address that lies in a subscriber prefix."""
    return whole(state.prefixes[_prefix_of(state.prefixes, whole(state.settings[0]["prefixes"]), realm, internal)]["shard"])


@hot
def judge_again(state: State, burst: Burst, i: int, line: int, now: int) -> tuple[int, int]:
    """(verdict or UNDECIDED, line or 0) of a packet whose session was admitted by older rules; what these refuse ends.

    They are asked what they say of a packet from inside, and for a static mapping of one from outside as well: which side
    began is not remembered. A session that is not translated any more goes on being so until it ends, and the other way round
    ends: no inside address is seen outside that should not be.
    """
    row = state.sessions[line]
    protocol, internal, port = whole(row["internal_realm"]) >> 24, whole(row["internal_address"]), whole(row["internal_port"])
    remote, remote_port = whole(row["remote_address"]), whole(row["remote_port"])
    if is_bypassed(row) and not bypass.find(state, OUTBOUND, protocol, internal, port, remote, remote_port):
        return UNDECIDED, end_here(state, line, now)
    static = state.mappings[sessions.mapping_of(state, line)]["static"] != 0
    verdict = _judge(state, burst, i, OUTBOUND, protocol, internal, port, remote, remote_port)
    if verdict == UNDECIDED and static:
        verdict = _judge(state, burst, i, INBOUND, protocol, internal, port, remote, remote_port)
    if verdict != UNDECIDED:
        return verdict, end_here(state, line, now)
    row["rules"] = state.settings[0]["rules_version"]
    return UNDECIDED, line


@hot
def end_here(state: State, line: int, now: int) -> int:
    """End a session where that is ours to do, for whoever finds no session there; always 0."""
    if state.shards[whole(state.sessions[line]["shard"])]["creates"] != 0:
        sessions.delete(state, line, now)
    return 0


@hot
def shard_of(state: State, external: int) -> int:
    """Shard of an external address."""
    return whole(state.pools[whole(state.externals[external]["pool"])]["shard"])


@hot
def plausible_outsider(state: State, realm: int, source: int) -> bool:
    """Nobody outside has one of our subscribers' or pools' addresses (BCP 38)."""
    return not is_internal(state, realm, source) and sessions.external_ordinal(state, source) < 0


@hot
def _was_let_in(state: State, burst: Burst, i: int, half: int) -> bool:
    """Whether the destination may have written to the mapping, without a session."""
    return _lets_in(state, burst, i, sessions.external_ordinal(state, whole(state.mappings[half]["external_address"])), half,
                    burst.destination[i])  # fmt: skip


@hot
def _lets_in(state: State, burst: Burst, i: int, external: int, half: int, remote: int) -> bool:
    """Filtering (RFC 4787 section 5) of a packet without a session. A static mapping lets everyone in: it is made for that."""
    filtering = sessions.filtering_of(state, external, burst.protocol[i])
    if filtering == ENDPOINT_INDEPENDENT or state.mappings[half]["static"] != 0:
        return True
    if filtering != ADDRESS_DEPENDENT:
        return False
    realm = whole(state.ports[burst.port[i]]["external_realm"])
    mapping = state.mappings[half]
    address, port = whole(mapping["external_address"]), whole(mapping["external_port"])
    return sessions.find_permission(state, address, realm, burst.protocol[i], port, remote) != 0
