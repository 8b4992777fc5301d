"""Frames of the generators as they are written and read: Ethernet, IPv4 without options, and TCP or UDP with 12 bytes at most.

Every frame has the same places, so that an answer is its question turned round. Checksums are computed in full.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot
from shards.native import read16, read32, write16, write32
from shards.state import TCP, Array
from shards.wire import ETHERTYPE_IPV4, checksum, fold, read8, sum16, write8

IP, L4 = 14, 34
UDP_DATA, TCP_DATA = 42, 54
SHORTEST = 60  # bytes of a frame without its check sequence (IEEE 802.3)
TTL = 64
_WINDOW = 0xFFFF

SOURCE, DESTINATION = 26, 30
PROTOCOL, LENGTH = 23, 16
SEQUENCE, ACKNOWLEDGED, FLAGS = 38, 42, 47


def macs(station: bytes, source: bytes) -> Array:
    """Both as six 16-bit numbers, in the order of a frame."""
    return np.frombuffer(station + source, ">u2").astype(np.int64)


@hot
def begin(memory: Array, at: int, macs: Array, protocol: int, source: int, destination: int, ports: int) -> None:
    """Ethernet and IPv4 headers up to the lengths; `ports`: source << 16 | destination."""
    for i in range(6):
        write16(memory, at + 2 * i, macs[i])
    write16(memory, at + 12, ETHERTYPE_IPV4)
    write32(memory, at + IP, 0x45000000)
    write32(memory, at + IP + 4, 0x00004000)
    write8(memory, at + IP + 8, TTL)
    write8(memory, at + PROTOCOL, protocol)
    write32(memory, at + SOURCE, source)
    write32(memory, at + DESTINATION, destination)
    write32(memory, at + L4, ports)


@hot
def turn(memory: Array, at: int) -> None:
    """Back to where it came from: stations, addresses, ports."""
    for i in range(3):
        to, source = read16(memory, at + 2 * i), read16(memory, at + 6 + 2 * i)
        write16(memory, at + 2 * i, source)
        write16(memory, at + 6 + 2 * i, to)
    source, destination = read32(memory, at + SOURCE), read32(memory, at + DESTINATION)
    write32(memory, at + SOURCE, destination)
    write32(memory, at + DESTINATION, source)
    ports = read32(memory, at + L4)
    write32(memory, at + L4, (ports & 0xFFFF) << 16 | ports >> 16)
    write8(memory, at + IP + 8, TTL)


@hot
def end_tcp(memory: Array, at: int, sequence: int, acknowledged: int, flags: int, data: int) -> int:
    """The rest of a segment with `data` bytes, written already; the frame's length."""
    write32(memory, at + SEQUENCE, sequence & 0xFFFFFFFF)
    write32(memory, at + ACKNOWLEDGED, acknowledged & 0xFFFFFFFF)
    write16(memory, at + 46, 0x5000 | flags)
    write16(memory, at + 48, _WINDOW)
    write32(memory, at + 50, 0)  # checksum, urgent pointer
    _end_ip(memory, at, 40 + data)
    write16(memory, at + 50, _transport(memory, at, 20 + data))
    return max(TCP_DATA + data, SHORTEST)


@hot
def end_udp(memory: Array, at: int, data: int) -> int:
    """The rest of a datagram with `data` bytes, written already; the frame's length."""
    write16(memory, at + 38, 8 + data)
    write16(memory, at + 40, 0)
    _end_ip(memory, at, 28 + data)
    check = _transport(memory, at, 8 + data)
    write16(memory, at + 40, check if check else 0xFFFF)
    return max(UDP_DATA + data, SHORTEST)


@hot
def _end_ip(memory: Array, at: int, length: int) -> None:
    write16(memory, at + LENGTH, length)
    write16(memory, at + 24, 0)
    write16(memory, at + 24, checksum(memory, at + IP, 20))


@hot
def _transport(memory: Array, at: int, length: int) -> int:
    pseudo = sum16(memory, at + SOURCE, 8) + read8(memory, at + PROTOCOL) + length
    return ~fold(pseudo + sum16(memory, at + L4, length)) & 0xFFFF


@hot
def is_whole(memory: Array, at: int, length: int) -> bool:
    """Whether it is IPv4 with TCP or UDP, and both checksums are right: what an appliance changed must still fit together."""
    if length < SHORTEST - 18 or read16(memory, at + 12) != ETHERTYPE_IPV4 or read8(memory, at + IP) != 0x45:
        return False
    total = read16(memory, at + LENGTH)
    least = 40 if read8(memory, at + PROTOCOL) == TCP else 28
    if total < least or IP + total > length or checksum(memory, at + IP, 20) != 0:
        return False
    return _transport(memory, at, total - 20) == 0
