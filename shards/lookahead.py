"""Looking ahead over the packets that the fast path has left: ask for every line that `nat` will touch for them, all at once.

The description of a miss stays the scalar one, packet by packet; it only finds its lines there. A new session touches about ten
that are nowhere near (account, buckets of three keys, owner and chunk of its port, rows), each of them a hundred nanoseconds
from memory: asked for together, a burst opens sessions more than twice as fast.

Nothing here decides or writes anything but `ref`, which the fast path has done with; a guess that is wrong costs a wait.
"""

from __future__ import annotations

from shards import cuckoo, nat, ports, sessions
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import prefetch
from shards.state import CHUNK_PORTS, ICMP, OUTBOUND, State
from shards.verdict import UNDECIDED

WORTH = 4  # packets left; below, there is little to overlap


@hot
def misses(state: State, burst: Burst, count: int) -> None:
    """Look ahead over the undecided of `count` rows, in steps: what a step reads, the one before has asked for."""
    left = 0
    for i in range(count):
        left += burst.verdict[i] == UNDECIDED
    if left < WORTH:
        return
    for i in range(count):
        if _is_left(burst, i):
            if burst.direction[i] == OUTBOUND:
                _ask_for_account(state, burst, i)
            else:
                _ask_for_owner(state, burst, i)
    for i in range(count):
        if _is_left(burst, i):
            if burst.direction[i] == OUTBOUND:
                _ask_for_mapping(state, burst, i)
            else:
                _ask_for_target(state, burst, i)
    for i in range(count):
        if burst.verdict[i] == UNDECIDED and burst.direction[i] == OUTBOUND and burst.ref[i] and burst.six[i] == 0:
            mapping = state.mappings[burst.ref[i] >> 1]
            _ask_for_answers(state, burst, i, whole(mapping["external_address"]), whole(mapping["external_port"]))


@hot
def _is_left(burst: Burst, i: int) -> bool:
    return bool(burst.verdict[i] == UNDECIDED and burst.ref[i] == 0 and burst.icmp_error[i] == 0 and burst.six[i] == 0)


@hot
def _ask_for_account(state: State, burst: Burst, i: int) -> None:
    """First step of an outbound packet: the account and where its mapping is, or will be, indexed."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    prefetch(state.accounts, nat.subscriber_of(state, realm, burst.source[i]))
    key0 = sessions.key_0(burst.source[i], realm, burst.protocol[i])
    cuckoo.ask_for(state, key0, sessions.key_1(0, burst.source_port[i], 0))


@hot
def _ask_for_mapping(state: State, burst: Burst, i: int) -> None:
    """Second step: the mapping that the index has, most likely; where it has none, the port that a new one will likely get."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    key0 = sessions.key_0(burst.source[i], realm, burst.protocol[i])
    ref = cuckoo.likely(state, key0, sessions.key_1(0, burst.source_port[i], 0))
    burst.ref[i] = ref
    if ref:
        prefetch(state.words, 2 * ref)
        return
    account = nat.subscriber_of(state, realm, burst.source[i])
    external, port = ports.first_choice(state, account, burst.protocol[i], burst.source[i], realm, burst.source_port[i])
    if external >= 0:
        prefetch(state.owners[ports.port_space(burst.protocol[i]), external], port)
        prefetch(state.chunks[external], port // CHUNK_PORTS)
        _ask_for_answers(state, burst, i, whole(state.externals[external]["address"]), port)


@hot
def _ask_for_answers(state: State, burst: Burst, i: int, external: int, port: int) -> None:
    """Where the session will be indexed for what comes back."""
    realm = whole(state.ports[burst.port[i]]["external_realm"])
    remote_port = 0 if burst.protocol[i] == ICMP else burst.destination_port[i]
    key0 = sessions.key_0(external, realm, burst.protocol[i])
    cuckoo.ask_for(state, key0, sessions.key_1(burst.destination[i], port, remote_port))


@hot
def _ask_for_owner(state: State, burst: Burst, i: int) -> None:
    """First step of an inbound packet: who owns the external endpoint."""
    external = sessions.external_ordinal(state, burst.destination[i])
    if external >= 0:
        prefetch(state.owners[ports.port_space(burst.protocol[i]), external], burst.destination_port[i])


@hot
def _ask_for_target(state: State, burst: Burst, i: int) -> None:
    """Second step: the mapping that it leads to."""
    external = sessions.external_ordinal(state, burst.destination[i])
    if external >= 0:
        prefetch(state.mappings, ports.owner(state, external, burst.protocol[i], burst.destination_port[i]))
