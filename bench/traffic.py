"""Traffic in memory: established UDP or TCP flows as frames that lie far apart, laid down by numpy in bulk.

A flow is one subscriber endpoint talking to one remote; its session is made by the real miss path, from its first packets, so
what is measured afterwards is served exactly as in life. Two shards have half of the sessions each: one is this core's own, of
the other it is the backup (another replica side of the port chunks, another epoch); a backup forwards hits, too. All features
that a packet can meet are on: rules, limits, MSS clamping, hairpinning, refresh from both sides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shards import lifetimes, neighbours, pipeline, recovery
from shards.burst import BURST, Burst, new_burst
from shards.jit import hot
from shards.state import (
    ACCEPT,
    ACTIVE,
    EXTENT_LINES,
    EXTERNAL,
    INTERNAL,
    REACHABLE,
    TCP,
    UDP,
    Array,
    Sizes,
    State,
    admitted,
    new_state,
)
from shards.verdict import FORWARDED_IN, FORWARDED_OUT

FRAME_BYTES = 256  # room of one frame: headroom, then 60 bytes (64 on the wire with its check sequence)
HEADROOM = 64
PACKET_BYTES = 60
NOW = 100_000_000
TTL = 64
PORTS_EACH = 63  # sessions a subscriber, as in CSIT's NAT44 ladder
LOAD = 0.8  # of the index, at most; full where the flows are `flows_at_load`
KEYS_EACH = 3  # entries of a flow in the index: both tuples of its session, and its mapping

_INSIDE, _OUTSIDE, _POOL = (0x64400000, 0x64600000), 0xC6336400, 0xCB007100  # 100.64/11, 100.96/11, 198.51.100.0, 203.0.113.0
_INSIDE_MAC, _OUTSIDE_MAC, _CLIENT_MAC, _ROUTER_MAC = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3, 4))
_AT_ONCE = 1 << 20  # flows that are opened with one set of frames
_SYN, _SYN_ACK, _ACK = 2, 18, 16
_CHECK = {UDP: 40, TCP: 50}  # where the checksum stands


class Scene(NamedTuple):
    """A core with `flows` sessions and frames of theirs in random order: even rows outbound, odd rows inbound."""

    state: State
    frames: Array  # uint8, FRAME_BYTES a row
    burst: Burst
    order: Array  # row k holds a packet of flow order[k]
    flows: int
    protocol: int


def empty(room: int) -> State:
    """A core with room for so many flows, and none yet."""
    state = _state(room)
    recovery.attach(state, NOW)
    return state


def outbound(flows: Array, protocol: int = UDP) -> Array:
    """The first packet of each flow, as its subscriber sends it: FRAME_BYTES apart, flat uint8."""
    return _frames(flows, protocol, _SYN)


def build(flows: int, rows: int, seed: int = 1, protocol: int = UDP, room: int = 0) -> Scene:
    """A scene of established flows, and `rows` frames of theirs; `room`: for how many flows, if for more."""
    state, burst = empty(max(flows, room)), new_burst()
    external = np.concatenate(
        [_open(state, burst, np.arange(at, min(at + _AT_ONCE, flows)), protocol) for at in range(0, flows, _AT_ONCE)]
    )
    order = np.random.default_rng(seed).permutation(max(rows, flows))[:rows] % flows
    frames = _frames(order, protocol, _ACK)
    packets_of(frames)[1::2] = packets_of(_frames(order[1::2], protocol, _ACK, external[order[1::2]]))
    return Scene(state, frames, burst, order, flows, protocol)


def flows_at_load(about: int) -> int:
    """The number of flows nearest to `about` that fills an index to LOAD: its size is a power of two."""
    exact = [int((8 << bits) * LOAD / KEYS_EACH) for bits in range(2, 30)]
    return min(exact, key=lambda flows: abs(flows - about))


def _open(state: State, burst: Burst, flows: Array, protocol: int) -> Array:
    """Open sessions by what subscribers send first, and of TCP what comes back; external endpoints (address << 16 | port)."""
    frames = _frames(flows, protocol, _SYN)
    before = _forwarded(state)
    run(state, frames, burst, len(flows), 1, NOW)
    packets = packets_of(frames)
    external = _number(packets, 26, 4) << 16 | _number(packets, 34, 2)
    rows = len(flows)
    if protocol == TCP:
        both = _frames(np.repeat(flows, 2), protocol, _SYN)
        packets_of(both)[1::2] = packets_of(_frames(flows, protocol, _SYN_ACK, external))
        run(state, both, burst, 2 * len(flows), 2, NOW)
        rows = 3 * len(flows)
    if _forwarded(state) - before != rows:
        raise RuntimeError(f"{rows - _forwarded(state) + before} of {rows} first packets were not forwarded")
    return external


def _forwarded(state: State) -> int:
    return int(state.counters[FORWARDED_OUT, 0]) + int(state.counters[FORWARDED_IN, 0])


def _state(flows: int) -> State:
    subscribers = -(-flows // PORTS_EACH)
    each = -(-subscribers // 2) + 4  # subscribers of a shard
    externals = -(-each // 900) + 1  # of a shard; 64-port blocks: 1,008 of them an address, with room to spare
    extents = 1 + 2 * (-(-(flows // 2 + EXTENT_LINES) // EXTENT_LINES) + -(-(flows // 4 + EXTENT_LINES) // EXTENT_LINES))
    buckets = max(1 << int(np.ceil(np.log2(flows * KEYS_EACH / 8 / LOAD) - 1e-6)), 4)
    sizes = Sizes(
        extents=extents, buckets=buckets, externals=2 * externals, accounts=2 * each + 1, prefixes=2, devices=1, limits=2,
        pools=2, rules=1, statics=1, ports=2, shards=2, peers=1, neighbours=64,
    )  # fmt: skip
    state = new_state(sizes)
    _settings(state)
    for shard in (0, 1):
        _share(state, shard, each, externals)
    for row, side, mac, address in ((0, INTERNAL, _INSIDE_MAC, 0x0A000001), (1, EXTERNAL, _OUTSIDE_MAC, 0xC0000202)):
        port = state.ports[row]
        port["side"], port["mtu"], port["address"], port["mask"] = side, 1500, address, 0xFFFFFF00
        port["mac"], port["network"] = np.frombuffer(mac, np.uint8), address & 0xFFFFFF00
        port["internal_realm"] = 1
        gateway = _gateway(state, row, (address & 0xFFFFFF00) + 254, _CLIENT_MAC if side == INTERNAL else _ROUTER_MAC)
        port["internal_gateway" if side == INTERNAL else "external_gateway"] = gateway
    return state


def _settings(state: State) -> None:
    row = state.settings[0]
    row["seed"], row["secret"] = (0x0123456789ABCDEF, 0xFEDCBA9876543210), (11, 22)
    ticks = {"established": 7_440_000, "opening": 240_000, "closing": 240_000, "udp": 300_000, "icmp": 60_000}
    lifetimes.lay(row, ticks | {"generic": 300_000})
    row["hold_down_s"], row["neighbour_wait"], row["icmp_rate"], row["icmp_burst"] = 120, 1000, 100, 100
    row["prefixes"], row["pools"], row["ports"], row["shards"], row["rules"] = 2, 2, 2, 2, 1
    row["admitted"] = admitted(0)
    row["external_port"], row["hairpin"], row["inbound_refresh"], row["mss"] = 1, 1, 1, 1400
    row["internal_ports"], row["external_ports"] = 1, 1
    rule = state.rules[0]
    rule["directions"], rule["action"], rule["internal_port_high"], rule["remote_port_high"] = 3, ACCEPT, 65535, 65535
    state.limits[1]["sessions"], state.limits[1]["mappings"] = 10_000, 10_000
    state.accounts["limits"] = 1


def _share(state: State, shard: int, subscribers: int, externals: int) -> None:
    """The prefix, the pool and the replica side of a shard; of the second one this core is the backup."""
    prefix, pool, row = state.prefixes[shard], state.pools[shard], state.shards[shard]
    row["id"], row["epoch"], row["side"] = shard, 1 + shard, shard
    row["role"], row["creates"] = ACTIVE, 1
    prefix["network"], prefix["mask"], prefix["realm"] = _INSIDE[shard], 0xFFE00000, 1
    prefix["first_account"], prefix["pool"], prefix["shard"] = 1 + shard * subscribers, shard, shard
    pool["first_external"], pool["externals"], pool["shard"] = shard * externals, externals, shard
    pool["block_size"], pool["blocks_each"] = 64, 8
    pool["first_block"], pool["end_block"], pool["blocks_free"] = 16, 1024, externals * 1008
    pool["loose_block"] = pool["first_block"]
    mine = slice(shard * externals, (shard + 1) * externals)
    state.externals["address"][mine] = _POOL + np.arange(shard * externals, (shard + 1) * externals)
    state.externals["pool"][mine] = shard
    state.chunks["side"][mine] = shard


def _gateway(state: State, port: int, address: int, mac: bytes) -> int:
    row = neighbours.want(state, port, address, NOW)
    for own in ("", "own_"):
        state.neighbours[row][f"{own}mac"] = np.frombuffer(mac, np.uint8)
        state.neighbours[row][f"{own}state"] = REACHABLE
    return row


def _frames(flows: Array, protocol: int, flags: int, external: Array | None = None) -> Array:
    """Frames of 60 bytes, FRAME_BYTES apart: from the subscriber as he sends them, or to his external endpoint; flat uint8."""
    frames = np.zeros((len(flows), FRAME_BYTES), np.uint8)
    packets = packets_of(frames)
    internal = internal_endpoint(flows).astype(np.int64)
    remote = (_OUTSIDE + flows % 200) << 16 | 443
    source, destination = (internal, remote) if external is None else (remote, external)
    macs = _INSIDE_MAC + _CLIENT_MAC if external is None else _OUTSIDE_MAC + _ROUTER_MAC
    packets[:, 0:14] = np.frombuffer(macs + b"\x08\x00", np.uint8)
    packets[:, 14:26] = np.frombuffer(bytes([0x45, 0, 0, 46, 0, 0, 0x40, 0, TTL, protocol, 0, 0]), np.uint8)
    for at, values, size in ((26, source >> 16, 4), (30, destination >> 16, 4), (34, source, 2), (36, destination, 2)):
        put(packets, at, values, size)
    if protocol == TCP:
        packets[:, 46], packets[:, 47] = 0x50, flags
    else:
        packets[:, 39] = 26
    write_checksums(packets, protocol)
    return frames.reshape(-1)


def internal_endpoint(flows: Array) -> Array:
    """Subscriber endpoint of each flow: address << 16 | port. Subscribers are the two shards' by turns."""
    subscriber = flows // PORTS_EACH
    address = np.where(subscriber % 2, _INSIDE[1], _INSIDE[0]) + 2 + subscriber // 2
    endpoints: Array = (address << 16 | (1024 + flows % PORTS_EACH)).astype(np.uint64)
    return endpoints


def packets_of(frames: Array) -> Array:
    """The frames without their headroom: (rows, PACKET_BYTES), a view."""
    return frames.reshape(-1, FRAME_BYTES)[:, HEADROOM : HEADROOM + PACKET_BYTES]


def write_checksums(packets: Array, protocol: int = UDP) -> None:
    """Set the checksums of IPv4 and of what it carries."""
    at = _CHECK[protocol]
    packets[:, 24:26] = 0
    packets[:, at : at + 2] = 0
    put(packets, 24, ~ip_sum(packets) & 0xFFFF, 2)
    check = ~transport_sum(packets) & 0xFFFF
    put(packets, at, np.where((check == 0) & (protocol == UDP), 0xFFFF, check), 2)  # 0 would say that there is none (RFC 768)


def ip_sum(packets: Array) -> Array:
    """Folded sum over each IPv4 header: 0xFFFF where its checksum is right."""
    return _sum(packets[:, 14:34])


def transport_sum(packets: Array) -> Array:
    """Folded sum over each datagram or segment and its pseudo header: 0xFFFF where its checksum is right."""
    return _sum(packets[:, 26:60], packets[:, 23].astype(np.uint32) + 26)  # addresses stand before it; protocol and length


def put(packets: Array, at: int, values: Array, size: int) -> None:
    """Write a field of `size` bytes, big-endian, at the same offset of each."""
    for k in range(size):
        packets[:, at + k] = (values >> (8 * (size - 1 - k))) & 0xFF


def _sum(data: Array, more: Array | int = 0) -> Array:
    """Folded sum over each row, and `more`. Summed in the machine's order and swapped then, which is the same (RFC 1071 2B)."""
    words = np.ascontiguousarray(data).view("<u2")
    total = np.zeros(len(words), np.uint32)
    for column in words.T:  # a quarter of the time that sum(axis=1) takes
        total += column
    return _fold(_fold(total).astype(np.uint16).byteswap() + np.asarray(more, np.uint32))


def _fold(total: Array) -> Array:
    total = (total & 0xFFFF) + (total >> 16)
    folded: Array = (total & 0xFFFF) + (total >> 16)
    return folded


@hot
def run(state: State, frames: Array, burst: Burst, rows: int, ports: int, now: int) -> None:
    """Every row once through the whole path, burst by burst, columns filled as the rings would; row k comes in by k % ports."""
    for first in range(0, rows, BURST):
        count = min(BURST, rows - first)
        for i in range(count):
            burst.at[i] = (first + i) * FRAME_BYTES + HEADROOM
            burst.length[i] = PACKET_BYTES
            burst.port[i] = (first + i) % ports
            burst.deadline[i] = 0
        pipeline.process(state, frames, burst, count, now)
        pipeline.settle(state, burst, count)


def _number(packets: Array, at: int, size: int) -> Array:
    value = np.zeros(len(packets), np.int64)
    for k in range(size):
        value = value << 8 | packets[:, at + k]
    return value
