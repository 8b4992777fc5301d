"""Mappings that subscribers ask for (RFC 6888 REQ-9): made, found and given up for `krononat.pcp`.

Such a mapping is like any other, but stays while no session uses it, and lets everyone in as a static one does (RFC 6887 11:
its filtering is endpoint-independent). Its port lies in a block of its subscriber's, so whose it is can be told as of any other
port; a suggested port in a block of nobody's has that block handed out. When it is given up and a session still uses it, it
goes on as the dynamic mapping of that session (RFC 6887 15.1); else its port is held down (RFC 6888 REQ-8), but for the
endpoint that had it (RFC 6887 15).
"""

from __future__ import annotations

from shards import accounts, doubt, journal, nat, ports, sessions
from shards.account_rows import BLOCKS_AT_MOST
from shards.grant_rows import DYNAMIC, GRANTED
from shards.jit import hot, whole
from shards.state import CHUNK_PORTS, NAT_MAPPING, UDP, State
from shards.verdict import NO_AUTHORITY, NO_MAPPING

TAKEN = -1  # no verdict: the external endpoint that was insisted on cannot be had
NONE_FIT = -2  # nor is this: the only ports to be had are PCP's own
_FIRST_OF_PCP, _LAST_OF_PCP = 5350, 5351  # of UDP: no client may have them outside (RFC 6887 11.3)
_TRIES = 8  # for another one


@hot
def subscriber_of(state: State, realm: int, address: int) -> tuple[int, int, bool]:
    """(account of the subscriber with an internal address or 0, its shard, whether this core has the authority over it)."""
    _, subscriber = nat.find_account(state, realm, address)
    if subscriber == 0:
        return 0, 0, False
    shard = whole(state.accounts[subscriber]["shard"])
    return subscriber, shard, state.shards[shard]["creates"] != 0


@hot
def find(state: State, realm: int, address: int, protocol: int, port: int) -> int:
    """Half-line of the mapping of an internal endpoint, 0 if it has none."""
    return sessions.find_mapping(state, address, realm, protocol, port)


@hot
def grant(
    state: State, realm: int, address: int, protocol: int, port: int, wanted: int, wanted_port: int, exact: bool, rests: int,
    now: int,
) -> tuple[int, int]:  # fmt: skip
    """(0, TAKEN, NONE_FIT or verdict of what refused it; half-line) of an internal endpoint's mapping, which stays from now on.

    `wanted`, `wanted_port`: its external endpoint if that can be had, 0: any; `exact`: that or nothing. `rests`: what `owners`
    has of the wanted port if it was this very endpoint's before, else 0. A mapping that is there already is taken as it is. A
    static one of the configuration stays what it is.
    """
    account, subscriber = nat.find_account(state, realm, address)
    if subscriber == 0:
        return NO_MAPPING, 0
    if state.shards[whole(state.accounts[subscriber]["shard"])]["creates"] == 0:
        return NO_AUTHORITY, 0
    half = sessions.find_mapping(state, address, realm, protocol, port)
    if half:
        row = state.mappings[half]
        if row["static"] == DYNAMIC and _is_of_pcp(protocol, whole(row["external_port"])):
            return NONE_FIT, 0
        _keep(state, half)
        return 0, half
    verdict = accounts.admit(state, account, protocol, True, 0, now)
    if verdict:
        return verdict, 0
    doubt.begin(state)
    verdict, half = _make(state, account, subscriber, realm, address, protocol, port, wanted, wanted_port, exact, rests, now)
    doubt.end(state)
    return verdict, half


@hot
def _keep(state: State, half: int) -> None:
    """Have a dynamic mapping outlive its sessions."""
    row = state.mappings[half]
    if row["static"] == DYNAMIC:
        row["static"] = GRANTED
        journal.mark(state, half)


@hot
def _make(
    state: State, account: int, subscriber: int, realm: int, address: int, protocol: int, port: int, wanted: int,
    wanted_port: int, exact: bool, rests: int, now: int,
) -> tuple[int, int]:  # fmt: skip
    """A port is claimed as for a packet first: by it the subscriber is paired, if he was not yet (RFC 4787 REQ-2)."""
    verdict, external, claimed = _claim(state, subscriber, realm, address, protocol, port, now)
    if verdict:
        return verdict, 0
    chosen = _choose(state, subscriber, protocol, external, claimed, wanted, wanted_port, exact, rests, now)
    if chosen < 0 or _is_of_pcp(protocol, chosen):
        ports.give_back(state, external, claimed, now)
        return (TAKEN if chosen < 0 else NONE_FIT), 0
    shard = whole(state.accounts[subscriber]["shard"])
    verdict, half = sessions.make_mapping(state, shard, account, address, realm, protocol, port, external, chosen, GRANTED, now)
    size = whole(state.pools[whole(state.accounts[subscriber]["pool"])]["block_size"])
    if verdict:
        ports.give_back(state, external, chosen, now)
    if chosen // size != claimed // size:  # once for each block: a second time it would count as free twice
        ports.give_back(state, external, claimed, now)
    return verdict, half


@hot
def _is_of_pcp(protocol: int, port: int) -> bool:
    """Whether an external port is none to be given to clients (RFC 6887 11.3)."""
    return protocol == UDP and _FIRST_OF_PCP <= port <= _LAST_OF_PCP


@hot
def _claim(state: State, subscriber: int, realm: int, address: int, protocol: int, port: int, now: int) -> tuple[int, int, int]:
    """(verdict or 0, external ordinal, port), one of PCP's own only if no other is found.

    The port derived is another one for each number it is derived from; those above 65,535 are no packet's.
    """
    verdict, external, claimed = ports.claim(state, subscriber, protocol, address, realm, port, False, now)
    for k in range(1, _TRIES):
        if verdict or not _is_of_pcp(protocol, claimed):
            break
        verdict, external, claimed = ports.claim(state, subscriber, protocol, address, realm, port + (k << 16), False, now)
    return verdict, external, claimed


@hot
def _choose(
    state: State, subscriber: int, protocol: int, external: int, claimed: int, wanted: int, wanted_port: int, exact: bool,
    rests: int, now: int,
) -> int:  # fmt: skip
    """The wanted port if it can be had, else the one that was claimed; -1 where that will not do."""
    elsewhere = wanted != 0 and whole(state.externals[external]["address"]) != wanted
    if exact and elsewhere:
        return -1
    if wanted_port == 0 or wanted_port == claimed:
        return claimed
    if _can_have(state, subscriber, external, protocol, wanted_port, rests, now):
        return wanted_port
    return -1 if exact else claimed


@hot
def _can_have(state: State, subscriber: int, external: int, protocol: int, port: int, rests: int, now: int) -> bool:
    """Whether a port is free, of our side, and in a block of the subscriber's, which it may become by this."""
    if _is_of_pcp(protocol, port):
        return False
    pool = state.pools[whole(state.accounts[subscriber]["pool"])]
    block = port // whole(pool["block_size"])
    if not whole(pool["first_block"]) <= block < whole(pool["end_block"]):
        return False
    chunk = state.chunks[external, port // CHUNK_PORTS]
    if chunk["side"] != state.shards[whole(pool["shard"])]["side"]:
        return False
    owner = whole(state.owners[ports.port_space(protocol), external, port])
    if owner != rests and not ports.is_free(owner, now, whole(state.settings[0]["hold_down_s"])):
        return False
    return whole(chunk["account"]) == subscriber + 1 or _take_block(state, subscriber, external, block, now)


@hot
def _take_block(state: State, subscriber: int, external: int, block: int, now: int) -> bool:
    """Give the subscriber a block of nobody's, if he may have one more; a deterministic pool says whose each is."""
    account = state.accounts[subscriber]
    pool = state.pools[whole(account["pool"])]
    each = whole(pool["block_size"]) // CHUNK_PORTS
    if pool["ratio"] != 0 or not ports.is_vacant(state, external, block, each):
        return False
    if state.chunks[external, block * each]["side"] != state.shards[whole(pool["shard"])]["side"]:
        return False
    for k in range(min(whole(pool["blocks_each"]), BLOCKS_AT_MOST)):
        if account["blocks"][k] == 0:
            ports.hand_out(state, subscriber, k, external, block, now)
            return True
    return False


@hot
def revoke(state: State, half: int, generation: int, now: int) -> bool:
    """Let a mapping go, if it is still the one that was granted, and ours: it ends, or stays as long as sessions use it."""
    row = state.mappings[half]
    if half == 0 or row["kind"] != NAT_MAPPING or row["static"] != GRANTED or whole(row["generation"]) != generation:
        return False
    shard = whole(state.accounts[whole(row["account"])]["shard"])
    if state.shards[shard]["creates"] == 0:
        return False
    doubt.begin(state)
    row["static"] = DYNAMIC
    journal.mark(state, half)
    if row["sessions"] == 0:
        sessions.end_mapping(state, shard, half, now)
    doubt.end(state)
    return True


@hot
def address_of(state: State, realm: int, address: int, now: int) -> int:
    """External address that a host's mappings have, or would have; 0 where there is none for it now."""
    _, subscriber = nat.find_account(state, realm, address)
    if subscriber == 0:
        return 0
    account = state.accounts[subscriber]
    if state.shards[whole(account["shard"])]["creates"] == 0:
        return 0
    if account["external"] == 0 or not ports.holds_a_block(account):
        doubt.begin(state)
        verdict, external, port = ports.claim(state, subscriber, UDP, address, realm, 0, False, now)
        if verdict == 0:
            ports.give_back(state, external, port, now)
        doubt.end(state)
        if verdict:
            return 0
    return whole(state.externals[whole(account["external"]) - 1]["address"])
