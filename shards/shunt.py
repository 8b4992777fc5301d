"""Shunting: a packet that only the core with the authority over its shard may serve is passed there, as its sender sent it.

Before the untouched packet of IPv4 or IPv6, where it lies, go IPv4, UDP to `SHUNT_PORT`, and sixteen bytes:

    0  "K"    1  version (high half), TURNED, side it came by (INTERNAL, EXTERNAL)    2  shard    4  epoch    8  seal

The seal is keyed with the cluster's secret and covers header and endpoints: without it, whoever can forge a peer's address
could send as any subscriber. The core that gets the packet goes on as if it had come by its own port of that side, from the
first check on; but it never shunts it again, so nothing goes in circles. Nothing is written into a packet before it is decided:
one that has to wait is unsealed again. (What its options tell of the inside its sender has concealed.)

TURNED: the second half of a hairpin between shards of two cores. The first half is done by its sender, and shows in the packet.
What is shorter than the 28 bytes that are sealed (a last fragment may be) is filled up with zeros.
Left out on purpose: cutting what does not fit (it is dropped), and a hairpin whose first half was shunted already.
"""

from __future__ import annotations

import numpy as np

from shards import firewall6, hops, nat, parse, parse6, rewrite, wire
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import Word, read16, read32, write16, write32
from shards.neighbours import mac_of
from shards.outcomes import SHUNT_PORT
from shards.ports import siphash
from shards.state import EXTERNAL, FAILED, INTERNAL, OUTBOUND, REACHABLE, UDP, Array, Row, State
from shards.verdict import (
    HELD_BACK,
    NEIGHBOURS_EXHAUSTED,
    NO_AUTHORITY,
    SHUNT_FOREIGN,
    SHUNT_MALFORMED,
    SHUNT_REFUSED,
    SHUNT_TOO_BIG,
    SHUNTED,
    TTL_EXCEEDED,
    UNDECIDED,
)
from shards.wire import read8, write8

_UDP_BYTES, _HEADER_BYTES = 8, 16
# What a packet grows by. With Ethernet and a tag that is 62 bytes, and 64 are free before each frame.
BYTES = wire.IPV4_BYTES + _UDP_BYTES + _HEADER_BYTES
_INNER_AT_LEAST = wire.IPV4_BYTES + 8  # no protocol that is served has a shorter header, and all of it is sealed but 4 bytes

MAGIC, VERSION = 0x4B, 1
TURNED, _SIDES = 4, 3  # bits of the second byte

AUTHORITY_WAIT = 1000  # ticks that a packet waits for somebody with the authority over its shard

# The secret is that of derived ports as well; so that the two never sign the same.
_FOR_SHUNTS = np.uint64(0x73687561E1BADA55)
_DONT_FRAGMENT = 0x4000
_U = np.uint64

# --- to the authority -----------------------------------------------------------------------------------------------------


@hot
def send(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Verdict of a packet that the core with the authority over `burst.shard` has to serve; where SHUNTED, it is wrapped up."""
    if burst.outer[i]:
        return SHUNT_REFUSED
    shard = state.shards[burst.shard[i] - 1]
    peer = state.peers[whole(shard["authority"])]
    if shard["authority"] == 0 or peer["alive"] == 0:
        shard["wanted"] += 1
        return _wait(burst, i, now)
    verdict = _find_way(state, frames, burst, i, peer, now)
    if verdict != UNDECIDED:
        return verdict
    if nat.was_turned_here(burst, i) and burst.icmp_error[i] == 0 and burst.six[i] == 0:
        rewrite.turn_out(state, frames, burst, i)
    _wrap(state, frames, burst, i, shard, peer)
    shard["shunted"] += 1
    peer["sent"] += 1
    return SHUNTED


@hot
def _side(state: State) -> int:
    """Where the other cores are."""
    return INTERNAL if whole(state.settings[0]["shunt_side"]) == INTERNAL else EXTERNAL


@hot
def _wait(burst: Burst, i: int, now: int) -> int:
    """Somebody may take the authority, or answer for its address, in a moment."""
    if burst.deadline[i] == 0:
        burst.deadline[i] = now + AUTHORITY_WAIT
    return HELD_BACK if now < burst.deadline[i] else NO_AUTHORITY


@hot
def _find_way(state: State, frames: Array, burst: Burst, i: int, peer: Row, now: int) -> int:
    """Verdict, or UNDECIDED with the next hop to the peer in the row."""
    if burst.turned[i] and read8(frames, burst.l3[i] + (7 if burst.six[i] else 8)) <= 1:
        return TTL_EXCEEDED  # whoever gets it does not know whom to tell
    hop = hops.next_hop(state, _side(state), whole(peer["address"]), 0, now)
    if hop == 0:
        return NEIGHBOURS_EXHAUSTED
    neighbour = state.neighbours[hop]
    if neighbour["state"] != REACHABLE:
        return NO_AUTHORITY if neighbour["state"] == FAILED else _wait(burst, i, now)
    mtu = whole(state.ports[whole(neighbour["port"])]["mtu"])
    if peer["mtu"]:
        mtu = min(mtu, whole(peer["mtu"]))
    burst.next_hop[i] = hop
    return SHUNT_TOO_BIG if burst.ip_length[i] + BYTES > mtu else UNDECIDED


@hot
def _wrap(state: State, frames: Array, burst: Burst, i: int, shard: Row, peer: Row) -> None:
    """Write all headers before the packet; it leaves at once, or never."""
    _pad(frames, burst, i)
    inner, hop, size = burst.l3[i], burst.next_hop[i], max(burst.ip_length[i], _INNER_AT_LEAST)
    l3, out = inner - BYTES, whole(state.neighbours[hop]["port"])
    here, there = whole(state.peers[0]["address"]), whole(peer["address"])
    _write_outer(frames, l3, here, there, BYTES + size, _service(frames, inner))
    side = INTERNAL if burst.direction[i] == OUTBOUND else EXTERNAL
    _write_header(state, frames, inner - _HEADER_BYTES, side | (TURNED if burst.turned[i] else 0), shard)
    burst.out_at[i] = rewrite.link_header(state, frames, l3, out, mac_of(state, hop))
    burst.out_port[i] = out
    burst.out_length[i] = l3 - burst.out_at[i] + BYTES + size


@hot
def _pad(frames: Array, burst: Burst, i: int) -> None:
    """Fill up what is shorter than what is sealed: a last fragment may be."""
    for at in range(burst.l3[i] + burst.ip_length[i], burst.l3[i] + _INNER_AT_LEAST):
        write8(frames, at, 0)


@hot
def _service(frames: Array, inner: int) -> int:
    """Type of service of the packet inside, or traffic class."""
    return read8(frames, inner + 1) if read8(frames, inner) >> 4 == 4 else read16(frames, inner) >> 4 & 0xFF


@hot
def _write_outer(frames: Array, l3: int, source: int, destination: int, length: int, service: int) -> None:
    """IPv4 (RFC 791) and UDP headers. Never fragmented, so it needs no identification (RFC 6864 4.1); UDP checksum none."""
    write8(frames, l3, 0x45)
    write8(frames, l3 + 1, service)
    write16(frames, l3 + 2, length)
    write32(frames, l3 + 4, _DONT_FRAGMENT)
    write8(frames, l3 + 8, 64)
    write8(frames, l3 + 9, UDP)
    write16(frames, l3 + 10, 0)
    write32(frames, l3 + 12, source)
    write32(frames, l3 + 16, destination)
    write16(frames, l3 + 10, wire.checksum(frames, l3, wire.IPV4_BYTES))
    l4 = l3 + wire.IPV4_BYTES
    write16(frames, l4, SHUNT_PORT)
    write16(frames, l4 + 2, SHUNT_PORT)
    write16(frames, l4 + 4, length - wire.IPV4_BYTES)
    write16(frames, l4 + 6, 0)


@hot
def _write_header(state: State, frames: Array, at: int, shape: int, shard: Row) -> None:
    write8(frames, at, MAGIC)
    write8(frames, at + 1, VERSION << 4 | shape)
    write16(frames, at + 2, whole(shard["id"]))
    write32(frames, at + 4, whole(shard["epoch"]))
    sealed = seal(state, frames, at)
    write32(frames, at + 8, whole(sealed >> _U(32)))
    write32(frames, at + 12, whole(sealed & _U(0xFFFF_FFFF)))


@hot
def seal(state: State, frames: Array, at: int) -> Word:
    """Seal of the header at `at` and of the first 24 bytes of the packet behind it (IPv6: 40), two words chained into one at a
    time.
    """
    secret0, secret1 = state.settings[0]["secret"][0] ^ _FOR_SHUNTS, state.settings[0]["secret"][1] ^ _FOR_SHUNTS
    told = _word(frames, at)
    for k in range(5 if read8(frames, at + _HEADER_BYTES) >> 4 == 6 else 3):
        told = siphash(secret0, secret1, told, _word(frames, at + _HEADER_BYTES + 8 * k))
    return told


@hot
def _word(frames: Array, at: int) -> Word:
    return _U(read32(frames, at)) << _U(32) | _U(read32(frames, at + 4))


# --- at the authority -----------------------------------------------------------------------------------------------------


@hot
def is_for_us(state: State, burst: Burst, i: int) -> bool:
    """Whether an undecided row is addressed to this core as a shunted packet."""
    if burst.protocol[i] != UDP or burst.destination_port[i] != SHUNT_PORT:
        return False
    return bool(burst.destination[i] == whole(state.peers[0]["address"]))


@hot
def receive(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Make the row the packet inside, as if that had come by a port of ours. Verdict, or UNDECIDED: serve that."""
    peer = _peer_at(state, burst.source[i])
    if peer == 0:
        return SHUNT_FOREIGN
    header = burst.l4[i] + _UDP_BYTES
    if not _is_whole(frames, burst, i, header):
        return SHUNT_MALFORMED
    if not _is_sealed(state, frames, header):
        return SHUNT_FOREIGN
    if burst.deadline[i] == 0:  # else it waited here already
        state.peers[peer]["received"] += 1
    _unwrap(state, frames, burst, i, header)
    return whole(burst.verdict[i])


@hot
def _peer_at(state: State, address: int) -> int:
    """Row of the core with this shunt address, 0 if there is none."""
    for p in range(1, len(state.peers)):
        if whole(state.peers[p]["address"]) == address:
            return p
    return 0


@hot
def _is_whole(frames: Array, burst: Burst, i: int, header: int) -> bool:
    """Whether everything is as long as everything else says, in this version, and undamaged."""
    l4, inner = burst.l4[i], header + _HEADER_BYTES
    length, end = read16(frames, l4 + 4), burst.l3[i] + burst.ip_length[i]
    told = max(_length(frames, inner), _INNER_AT_LEAST)
    if l4 + length != end or end - inner < _INNER_AT_LEAST or told != end - inner:
        return False
    shape = read8(frames, header + 1) & 15
    side = shape & _SIDES
    if read8(frames, header) != MAGIC or read8(frames, header + 1) >> 4 != VERSION:
        return False
    if (side != INTERNAL and side != EXTERNAL) or shape > TURNED + EXTERNAL or shape == TURNED + INTERNAL:
        return False
    if read16(frames, l4 + 6) == 0:
        return True
    return bool(wire.fold(parse.pseudo_sum(frames, burst.l3[i], UDP, length) + wire.sum16(frames, l4, length)) == 0xFFFF)


@hot
def _length(frames: Array, inner: int) -> int:
    """What the packet inside says that it is long."""
    if read8(frames, inner) >> 4 == 6:
        return wire.IPV6_BYTES + read16(frames, inner + 4)
    return read16(frames, inner + 2)


@hot
def _is_sealed(state: State, frames: Array, header: int) -> bool:
    sealed = seal(state, frames, header)
    return bool(_word(frames, header + 8) == sealed)


@hot
def _unwrap(state: State, frames: Array, burst: Burst, i: int, header: int) -> None:
    """Fill the columns anew, from the packet inside. A newer epoch than ours means another authority, though it came here."""
    shape, shard = read8(frames, header + 1), read16(frames, header + 2)
    known = shard < len(state.shards) and read32(frames, header + 4) <= whole(state.shards[shard]["epoch"])
    burst.outer[i] = burst.port[i] + 1
    burst.shard[i] = shard + 1 if known else 0
    burst.turned[i] = -1 if shape & TURNED else 0
    settings = state.settings[0]
    burst.port[i] = whole(settings["internal_port"]) if shape & _SIDES == INTERNAL else whole(settings["external_port"])
    inner = header + _HEADER_BYTES
    end = inner + _length(frames, inner)
    if read8(frames, inner) >> 4 == 6 and state.settings[0]["prefixes6"] != 0:
        burst.verdict[i] = parse6.datagram(frames, burst, i, inner, end)
        if burst.verdict[i] == UNDECIDED:
            firewall6.choose_key(state, frames, burst, i)
        return
    burst.verdict[i] = parse.datagram(state, frames, burst, i, inner, end)
    nat.choose_key(state, burst, i)


@hot
def way_back(state: State, burst: Burst, i: int, asker: int, now: int) -> int:
    """Neighbour by which the sender of a packet that came shunted is reached, 0 for none: its MAC is not in the frame."""
    if burst.turned[i]:
        return 0
    hop = hops.next_hop(state, INTERNAL if burst.direction[i] == OUTBOUND else EXTERNAL, asker, 0, now)
    return hop if state.neighbours[hop]["state"] == REACHABLE else 0


@hot
def prepare(state: State, now: int) -> None:
    """Ask for the next hop to every core that is known, before the first packet has to wait for it."""
    for p in range(1, len(state.peers)):
        if state.peers[p]["address"] != 0:
            hops.next_hop(state, _side(state), whole(state.peers[p]["address"]), 0, now)
