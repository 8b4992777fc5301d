"""Traffic in memory: established flows as frames that lie far apart, laid down by numpy in bulk.

A flow is one subscriber endpoint talking to one remote; its session is made by the real miss path, from a first packet, so
what is measured afterwards is served exactly as in life.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shards import neighbours, pipeline, recovery
from shards.burst import BURST, Burst, new_burst
from shards.jit import hot
from shards.state import EXTENT_LINES, EXTERNAL, INTERNAL, REACHABLE, Array, Sizes, State, new_state
from shards.verdict import FORWARDED_OUT

FRAME_BYTES = 256  # room of one frame: headroom, then 60 bytes (64 on the wire with its check sequence)
HEADROOM = 64
PACKET_BYTES = 60
NOW = 100_000_000
TTL = 64
PORTS_EACH = 63  # sessions a subscriber, as in CSIT's NAT44 ladder

_INSIDE_NETWORK, _OUTSIDE, _POOL = 0x64400000, 0xC6336400, 0xCB007100  # 100.64/10, 198.51.100.0, 203.0.113.0
_INSIDE_MAC, _OUTSIDE_MAC, _CLIENT_MAC, _ROUTER_MAC = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3, 4))


class Scene(NamedTuple):
    """A core with `flows` sessions and frames of theirs in random order: even rows outbound, odd rows inbound."""

    state: State
    frames: Array  # uint8, FRAME_BYTES a row
    burst: Burst
    order: Array  # row k holds a packet of flow order[k]
    flows: int


def build(flows: int, rows: int, seed: int = 1) -> Scene:
    """A scene of established UDP flows; `rows` >= `flows`."""
    state = _state(flows)
    recovery.attach(state, NOW)
    order = np.random.default_rng(seed).permutation(rows) % flows
    scene = Scene(state, _outbound_frames(order), new_burst(), order, flows)
    _establish(scene)
    return scene


def _state(flows: int) -> State:
    subscribers = -(-flows // PORTS_EACH)
    externals = -(-subscribers // 900) + 1  # 64-port blocks: 1,008 of them an address, with room to spare
    lines = flows + 2 * EXTENT_LINES
    buckets = 1 << int(np.ceil(np.log2(flows * 3 / 8 / 0.8)))
    sizes = Sizes(
        extents=-(-lines // EXTENT_LINES) + -(-(lines // 2) // EXTENT_LINES) + 2, buckets=buckets, externals=externals,
        accounts=subscribers + 4, prefixes=1, devices=1, limits=1, pools=1, rules=1, statics=1, ports=2, shards=1,
        neighbours=64,
    )  # fmt: skip
    state = new_state(sizes)
    _settings(state, externals)
    for row, side, mac, address in ((0, INTERNAL, _INSIDE_MAC, 0x0A000001), (1, EXTERNAL, _OUTSIDE_MAC, 0xC0000202)):
        port = state.ports[row]
        port["side"], port["mtu"], port["address"], port["mask"] = side, 1500, address, 0xFFFFFF00
        port["mac"], port["network"] = np.frombuffer(mac, np.uint8), address & 0xFFFFFF00
        port["internal_realm"] = 1
        gateway = _gateway(state, row, (address & 0xFFFFFF00) + 254, _CLIENT_MAC if side == INTERNAL else _ROUTER_MAC)
        port["internal_gateway" if side == INTERNAL else "external_gateway"] = gateway
    return state


def _settings(state: State, externals: int) -> None:
    row = state.settings[0]
    row["seed"], row["secret"] = (0x0123456789ABCDEF, 0xFEDCBA9876543210), (11, 22)
    row["tcp_established"], row["tcp_transitory"], row["udp"], row["icmp"] = 7_440_000, 240_000, 300_000, 60_000
    row["hold_down_s"], row["neighbour_wait"], row["icmp_rate"], row["icmp_burst"] = 120, 1000, 100, 100
    row["prefixes"], row["pools"], row["ports"], row["shards"] = 1, 1, 2, 1
    row["external_port"], row["hairpin"] = 1, 1
    prefix, pool = state.prefixes[0], state.pools[0]
    prefix["network"], prefix["mask"], prefix["realm"], prefix["first_account"] = _INSIDE_NETWORK, 0xFFC00000, 1, 1
    pool["externals"], pool["block_size"], pool["blocks_each"] = externals, 64, 8
    pool["first_block"], pool["end_block"], pool["blocks_free"] = 16, 1024, externals * 1008
    state.externals["address"] = _POOL + np.arange(externals)


def _gateway(state: State, port: int, address: int, mac: bytes) -> int:
    row = neighbours.want(state, port, address, NOW)
    state.neighbours[row]["mac"] = np.frombuffer(mac, np.uint8)
    state.neighbours[row]["state"] = REACHABLE
    return row


def _outbound_frames(order: Array) -> Array:
    """UDP frames of 60 bytes from the subscriber, as he sends them."""
    rows = len(order)
    frames = np.zeros((rows, FRAME_BYTES), np.uint8)
    packets = packets_of(frames)
    packets[:, 0:14] = np.frombuffer(_INSIDE_MAC + _CLIENT_MAC + b"\x08\x00", np.uint8)
    packets[:, 14:26] = np.frombuffer(bytes([0x45, 0, 0, 46, 0, 0, 0x40, 0, TTL, 17, 0, 0]), np.uint8)
    put(packets, 26, _INSIDE_NETWORK + 2 + order // PORTS_EACH, 4)
    put(packets, 30, _OUTSIDE + order % 200, 4)
    put(packets, 34, 1024 + order % PORTS_EACH, 2)
    put(packets, 36, np.full(rows, 443), 2)
    put(packets, 38, np.full(rows, 26), 2)
    write_checksums(packets)
    return frames.reshape(-1)


def internal_endpoint(flows: Array) -> Array:
    """Subscriber endpoint of each flow: address << 16 | port."""
    address = _INSIDE_NETWORK + 2 + flows // PORTS_EACH
    endpoints: Array = (address << 16 | (1024 + flows % PORTS_EACH)).astype(np.uint64)
    return endpoints


def _turn_round(packets: Array, translated: Array) -> None:
    """Make outbound frames the answers to what left as `translated`."""
    packets[:, 0:12] = np.frombuffer(_OUTSIDE_MAC + _ROUTER_MAC, np.uint8)
    packets[:, 26:30], packets[:, 30:34] = translated[:, 30:34], translated[:, 26:30]
    packets[:, 34:36], packets[:, 36:38] = translated[:, 36:38], translated[:, 34:36]
    write_checksums(packets)


def packets_of(frames: Array) -> Array:
    """The frames without their headroom: (rows, PACKET_BYTES), a view."""
    return frames.reshape(-1, FRAME_BYTES)[:, HEADROOM : HEADROOM + PACKET_BYTES]


def write_checksums(packets: Array) -> None:
    """Write the IPv4 and the UDP checksum of each."""
    packets[:, 24:26] = 0
    packets[:, 40:42] = 0
    put(packets, 24, ~ip_sum(packets) & 0xFFFF, 2)
    check = ~udp_sum(packets) & 0xFFFF
    put(packets, 40, np.where(check == 0, 0xFFFF, check), 2)  # 0 would say that there is none (RFC 768)


def ip_sum(packets: Array) -> Array:
    """Folded sum over each IPv4 header: 0xFFFF where its checksum is right."""
    return _sum(packets[:, 14:34])


def udp_sum(packets: Array) -> Array:
    """Folded sum over each UDP datagram and its pseudo header: 0xFFFF where its checksum is right."""
    pseudo = np.zeros((len(packets), 38), np.uint8)
    pseudo[:, 0:8], pseudo[:, 9], pseudo[:, 11] = packets[:, 26:34], 17, 26
    pseudo[:, 12:38] = packets[:, 34:60]
    return _sum(pseudo)


def put(packets: Array, at: int, values: Array, size: int) -> None:
    """Write a field of `size` bytes, big-endian, at the same offset of each."""
    for k in range(size):
        packets[:, at + k] = (values >> (8 * (size - 1 - k))) & 0xFF


def _sum(data: Array) -> Array:
    words = data.reshape(len(data), -1, 2).astype(np.uint32)
    total = (words[:, :, 0] << 8 | words[:, :, 1]).sum(axis=1)
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


def _establish(scene: Scene) -> None:
    """Open every session by a first packet outbound, then lay the frames anew: half of them are answers now."""
    state, frames = scene.state, scene.frames
    original = frames.copy()
    run(state, frames, scene.burst, len(scene.order), 1, NOW)
    opened = int(state.counters[FORWARDED_OUT, 0])
    if opened != len(scene.order) or int(state.shards[0]["sessions"]) != scene.flows:
        raise RuntimeError(f"{len(scene.order) - opened} of {len(scene.order)} first packets were not forwarded")
    _turn_round(packets_of(original)[1::2], packets_of(frames)[1::2].copy())
    frames[:] = original
