"""Sessions of the IPv6 firewall: tracked, not translated (RFC 6092). Rows of two lines, found through the one index by one key.

Both directions have the same tuple, internal end first, so a session has a single entry in the index, and its key is a keyed
digest of that tuple, because two addresses do not fit two words:

    word 0 = 54 bits of the digest | PERMISSION << 32 | SIX | protocol << 56        word 1 = the other 64

SIX is the highest bit of what is the realm in a key of IPv4, where no realm has it, and PERMISSION the one below. The digest
proves nothing: whoever finds a session compares its second line with the packet (`is_of`). The first line is as any session's
is, so that wheel, states, journal and census need not know which they have.

*Permissions* are the half-lines of IPv4's (see `sessions`): one says that an internal endpoint, or the pair of it and a remote
address, has sessions, and so lets in what filtering lets in (RFC 6092 REC-11, 17, 33). Their 118 bits of digest stand for
themselves: there is no room for the addresses, nor anybody who could look for two that collide, since the seed is secret.
"""

from __future__ import annotations

import numpy as np

from shards import cuckoo, journal, permissions, slabs, timers, wire
from shards.accounts import charge
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import Word, fold_multiply
from shards.parse6 import ECHO, ECHO_REPLY
from shards.state import (
    ADDRESS_DEPENDENT,
    ENDPOINT_INDEPENDENT,
    FIREWALL_SESSION6,
    FREE,
    ICMP6,
    OUTBOUND,
    Array,
    State,
)
from shards.verdict import SESSIONS_CREATED, TABLE_FULL

_U = np.uint64
SIX = _U(1 << 55)
PERMISSION = 1 << 22  # of the realm, in the key of a permission. Not of the protocol, as IPv4's have it: here all are served
_DIGEST = _U((1 << 54) - 1)

# Digits of pi, as in `cuckoo`.
_PI = tuple(
    _U(word)
    for word in (
        0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89, 0x452821E638D01377, 0xBE5466CF34E90C6C,
        0xC0AC29B7C97C50DD, 0x3F84D5B5B5470917, 0x9216D5D98979FB1B, 0xD1310BA698DFB5AC,
    )
)  # fmt: skip


# --- keys -----------------------------------------------------------------------------------------------------------------


@hot
def key(
    state: State, realm: int, protocol: int, internal_high: Word, internal_low: Word, remote_high: Word, remote_low: Word,
    internal_port: int, remote_port: int,
) -> tuple[Word, Word]:  # fmt: skip
    """Both words of a tuple's key: two digests of everything, which share nothing but the seed."""
    seed0, seed1 = state.settings[0]["seed"][0], state.settings[0]["seed"][1]
    rest = _U(internal_port) | _U(remote_port) << _U(16) | _U(realm) << _U(32) | _U(protocol) << _U(56)
    one = fold_multiply(internal_high ^ seed0 ^ _PI[0], internal_low ^ seed1 ^ _PI[1])
    two = fold_multiply(remote_high ^ seed0 ^ _PI[2], remote_low ^ seed1 ^ _PI[3])
    first = fold_multiply(one ^ rest ^ _PI[4], two ^ seed0 ^ _PI[5])
    one = fold_multiply(internal_high ^ seed1 ^ _PI[6], internal_low ^ seed0 ^ _PI[7])
    two = fold_multiply(remote_high ^ seed1 ^ _PI[8], remote_low ^ seed0 ^ _PI[9])
    second = fold_multiply(one ^ rest ^ _PI[5], two ^ seed1 ^ _PI[4])
    return (first & _DIGEST) | _U(realm & PERMISSION) << _U(32) | SIX | _U(protocol) << _U(56), second


@hot
def set_key(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Key of a row whose direction is known."""
    near, far = ends(burst, i)
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    burst.key0[i], burst.key1[i] = key(
        state, realm, burst.protocol[i], wire.word_at(frames, near), wire.word_at(frames, near + 8),
        wire.word_at(frames, far), wire.word_at(frames, far + 8), near_port(burst, i), far_port(burst, i),
    )  # fmt: skip


@hot
def ends(burst: Burst, i: int) -> tuple[int, int]:
    """Where in the frame the internal and the remote address of a packet stand."""
    l3 = burst.l3[i]
    return (l3 + 8, l3 + 24) if burst.direction[i] == OUTBOUND else (l3 + 24, l3 + 8)


@hot
def near_port(burst: Burst, i: int) -> int:
    """Internal port; of a query its identifier."""
    port: int = burst.source_port[i] if burst.direction[i] == OUTBOUND else burst.destination_port[i]
    return port


@hot
def far_port(burst: Burst, i: int) -> int:
    """Remote port; of a query 0."""
    if burst.protocol[i] == ICMP6:
        return 0
    port: int = burst.destination_port[i] if burst.direction[i] == OUTBOUND else burst.source_port[i]
    return port


@hot
def is_of(state: State, frames: Array, burst: Burst, i: int, line: int) -> bool:
    """Whether the session at a line is really that of a packet: its key is only a digest."""
    near, far = ends(burst, i)
    flow = state.flows6[line + 1]
    return bool(
        state.sessions[line]["kind"] == FIREWALL_SESSION6
        and flow["internal_low"] == wire.word_at(frames, near + 8)
        and flow["internal_high"] == wire.word_at(frames, near)
        and flow["remote_low"] == wire.word_at(frames, far + 8)
        and flow["remote_high"] == wire.word_at(frames, far)
        and whole(flow["internal_port"]) == near_port(burst, i)
        and whole(flow["remote_port"]) == far_port(burst, i)
        and whole(flow["realm"]) == whole(state.ports[burst.port[i]]["internal_realm"]) | burst.protocol[i] << 24
    )


@hot
def is_echo(protocol: int, kind: int) -> bool:
    """Whether an ICMPv6 message is a query that sessions are made of, or its answer."""
    return protocol == ICMP6 and kind in (ECHO, ECHO_REPLY)


# --- born and ended -------------------------------------------------------------------------------------------------------


@hot
def describe(
    state: State, line: int, realm: int, protocol: int, internal_high: Word, internal_low: Word, remote_high: Word,
    remote_low: Word, internal_port: int, remote_port: int,
) -> None:  # fmt: skip
    """Write what never changes of a session: its tuple, and the key that this core finds it by."""
    flow = state.flows6[line + 1]
    flow["internal_high"] = internal_high
    flow["internal_low"] = internal_low
    flow["remote_high"] = remote_high
    flow["remote_low"] = remote_low
    flow["realm"] = realm | protocol << 24
    flow["internal_port"] = internal_port
    flow["remote_port"] = remote_port
    state.words[line * 8 + 2] = 0
    state.words[line * 8 + 3] = 0
    state.sessions[line]["mapping"] = 0
    state.sessions[line]["delta_l3"] = 0
    state.sessions[line]["delta_l4"] = 0
    state.words[line * 8], state.words[line * 8 + 1] = key(
        state, realm, protocol, internal_high, internal_low, remote_high, remote_low, internal_port, remote_port
    )


@hot
def make(
    state: State, shard: int, line: int, account: int, filtering: int, tcp_state: int, inward: int, outward: int, expiry: int,
    now: int,
) -> int:  # fmt: skip
    """Let the described session at a fresh `line` live; verdict, or 0. `filtering`: as FLOW6 has it."""
    row, flow = state.sessions[line], state.flows6[line + 1]
    flow["account"] = account
    flow["filtering"] = filtering
    row["created"] = now & 0xFFFFFFFF
    row["expiry"] = expiry & 0xFFFFFFFF
    row["packets"] = 0
    row["shard"] = shard
    row["state"] = tcp_state
    row["inward"] = inward
    row["outward"] = outward
    row["rules"] = state.settings[0]["rules_version"]
    row["generation"] = (whole(row["generation"]) + 1) & 0xFFFF
    verdict = index(state, line)
    if verdict:
        slabs.free_line(state, line)
        return verdict
    row["kind"] = FIREWALL_SESSION6
    timers.arm(state, line, expiry)
    charge(state, account, whole(flow["realm"]) >> 24, 1, 0)
    state.shards[shard]["sessions"] += 1
    state.counters[SESSIONS_CREATED, 0] += 1
    journal.mark(state, line << 1)
    return 0


@hot
def index(state: State, line: int) -> int:
    """Enter the tuple, and the permission where filtering has one; all or nothing. Verdict, or 0.

    A key that is there already is another tuple's whose digest is the same, should that ever be: it cannot be entered.
    """
    key0, key1 = state.words[line * 8], state.words[line * 8 + 1]
    if cuckoo.lookup(state, key0, key1) or not cuckoo.insert(state, key0, key1, line << 2):
        return TABLE_FULL
    verdict = _permit(state, line)
    if verdict:
        cuckoo.erase(state, key0, key1, line << 2)
    return verdict


@hot
def take_out(state: State, line: int) -> None:
    """Undo all that follows from a session but its row."""
    cuckoo.erase(state, state.words[line * 8], state.words[line * 8 + 1], line << 2)
    _forbid(state, line)
    flow = state.flows6[line + 1]
    charge(state, whole(flow["account"]), whole(flow["realm"]) >> 24, -1, 0)
    state.shards[whole(state.sessions[line]["shard"])]["sessions"] -= 1


@hot
def end(state: State, line: int) -> None:
    """End a session that is off the wheel."""
    row = state.sessions[line]
    row["kind"] = FREE
    take_out(state, line)
    journal.bury(state, line << 1, whole(row["generation"]))
    slabs.free_line(state, line)


# --- permissions ----------------------------------------------------------------------------------------------------------


@hot
def find_permission(
    state: State, realm: int, protocol: int, filtering: int, internal_high: Word, internal_low: Word, remote_high: Word,
    remote_low: Word, internal_port: int,
) -> int:  # fmt: skip
    """Half-line of what lets a remote reach an internal endpoint under a filtering, 0 if nothing does."""
    if filtering == ENDPOINT_INDEPENDENT:
        remote_high, remote_low = _U(0), _U(0)
    elif filtering != ADDRESS_DEPENDENT:
        return 0
    key0, key1 = key(
        state, realm | PERMISSION, protocol, internal_high, internal_low, remote_high, remote_low, internal_port, 0
    )
    return cuckoo.lookup(state, key0, key1) >> 1


@hot
def _permission_key(state: State, line: int) -> tuple[Word, Word]:
    flow = state.flows6[line + 1]
    realm, protocol = whole(flow["realm"]) & 0xFFFFFF | PERMISSION, whole(flow["realm"]) >> 24
    remote_high, remote_low = flow["remote_high"], flow["remote_low"]
    if whole(flow["filtering"]) == ENDPOINT_INDEPENDENT + 1:
        remote_high, remote_low = _U(0), _U(0)
    return key(
        state, realm, protocol, flow["internal_high"], flow["internal_low"], remote_high, remote_low,
        whole(flow["internal_port"]), 0,
    )  # fmt: skip


@hot
def _has_permission(state: State, line: int) -> bool:
    return whole(state.flows6[line + 1]["filtering"]) in (ENDPOINT_INDEPENDENT + 1, ADDRESS_DEPENDENT + 1)


@hot
def _permit(state: State, line: int) -> int:
    """Count the session in its permission; verdict, or 0."""
    if not _has_permission(state, line):
        return 0
    key0, key1 = _permission_key(state, line)
    return permissions.permit(state, whole(state.sessions[line]["shard"]), key0, key1)


@hot
def _forbid(state: State, line: int) -> None:
    """Count it there no more."""
    if _has_permission(state, line):
        key0, key1 = _permission_key(state, line)
        permissions.forbid(state, key0, key1)
