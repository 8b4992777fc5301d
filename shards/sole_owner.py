"""Whose a generic protocol is: an external address speaks it to a remote for one internal host at a time (see `generic`).

Nothing else in its packets tells hosts apart, so the first to speak to a remote has (external address, remote, protocol) as
long as his session lives, by whose inbound tuple he is found. Another one is refused, and neither let through untranslated nor
moved to another external address, for his is paired (RFC 4787 REQ-2, 6888 REQ-2). He whose static mapping is for the protocol
has it to every remote.
"""

from __future__ import annotations

from shards import cuckoo, ports, sessions
from shards.burst import Burst
from shards.generic import is_generic
from shards.jit import hot, whole
from shards.state import OPEN, Row, State
from shards.timers import remaining
from shards.verdict import HAIRPIN_REFUSED, PROTOCOL_IN_USE, UNDECIDED


@hot
def foresee(state: State, burst: Burst, i: int, subscriber: int, half: int, now: int) -> int:
    """`refuse` before anything is made, where it is known by which external address the packet would leave.

    So a refusal costs no token, and takes no block that is given back at once, with two lines in the log, for every packet.
    `half`: mapping of its internal endpoint, 0 if it has none yet.
    """
    if not is_generic(burst.protocol[i]):
        return UNDECIDED
    if half:
        return refuse(state, burst, i, half, whole(state.mappings[half]["external_address"]), now)
    account = state.accounts[subscriber]
    external = whole(account["external"]) - 1
    if external < 0 or (not ports.holds_a_block(account) and _may_move(state, account, external)):
        return UNDECIDED  # any address may become his
    return refuse(state, burst, i, 0, whole(state.externals[external]["address"]), now)


@hot
def _may_move(state: State, account: Row, external: int) -> bool:
    """Whether who has no block may get one elsewhere than on the address that he had last."""
    row = state.externals[external]
    return bool(row["blocks_free"] == 0 or row["closed"] != OPEN or state.pools[whole(account["pool"])]["ratio"] != 0)


@hot
def refuse(state: State, burst: Burst, i: int, half: int, external_address: int, now: int) -> int:
    """Verdict on an outbound packet that would open a session by an external address; UNDECIDED: nobody else's."""
    protocol, remote = burst.protocol[i], burst.destination[i]
    if not is_generic(protocol):
        return UNDECIDED
    if remote == external_address:  # of those who share it, itself among them, none is meant more than another
        return HAIRPIN_REFUSED
    owner = ports.owner(state, sessions.external_ordinal(state, external_address), protocol, protocol)
    if owner and owner != half:
        return PROTOCOL_IN_USE
    realm = whole(state.ports[burst.port[i]]["external_realm"])
    key0, key1 = sessions.key_0(external_address, realm, protocol), sessions.key_1(remote, 0, 0)
    line = cuckoo.lookup(state, key0, key1) >> 2
    if line and remaining(now, whole(state.sessions[line]["expiry"])) <= 0 and not sessions.outlives(state, line, now):
        line = sessions.end_or_revive(state, line, now)
    return PROTOCOL_IN_USE if line else UNDECIDED
