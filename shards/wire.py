"""Header fields as named readers and writers. Names and offsets: RFC 791 (IPv4), 8200 (IPv6), 9293 (TCP), 768 (UDP),
792 (ICMP), 4443 (ICMPv6).

Frames are one flat array of bytes; a field is read at an absolute offset. Wider fields are instructions, see `native`.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, inlined, whole
from shards.native import Word, read16, read32, read64, write16
from shards.state import Array

ETHERNET_BYTES, TAG_BYTES, IPV4_BYTES, IPV6_BYTES = 14, 4, 20, 40
ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_TAG = 0x0800, 0x86DD, 0x8100

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

ECHO_REPLY, UNREACHABLE, SOURCE_QUENCH, REDIRECT, ECHO, TIME_EXCEEDED, PARAMETER_PROBLEM, TIMESTAMP, TIMESTAMP_REPLY = (
    0, 3, 4, 5, 8, 11, 12, 13, 14,
)  # fmt: skip


@inlined
def read8(memory: Array, at: int) -> int:
    """Byte at `at`."""
    return whole(memory[np.uint64(at)])


@inlined
def mac_at(memory: Array, at: int) -> int:
    """MAC address at `at`, as a number; two more bytes behind it must be there."""
    return (read64(memory, at) >> 16) & 0xFFFF_FFFF_FFFF


@inlined
def word_at(memory: Array, at: int) -> Word:
    """Big-endian 64 bits, unsigned: half an IPv6 address."""
    return np.uint64(read32(memory, at)) << np.uint64(32) | np.uint64(read32(memory, at + 4))


@inlined
def write8(memory: Array, at: int, value: int) -> None:
    """Store a byte."""
    memory[np.uint64(at)] = value & 0xFF


@hot
def sum16(memory: Array, at: int, length: int) -> int:
    """Unfolded ones'-complement sum of `length` bytes, an odd last byte padded with zero (RFC 1071)."""
    total = 0
    for i in range(at, at + (length & ~1), 2):
        total += read16(memory, i)
    if length & 1:
        total += read8(memory, at + length - 1) << 8
    return total


@inlined
def fold(total: int) -> int:
    """Ones'-complement fold of a sum below 2**48 to 16 bits."""
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@hot
def checksum(memory: Array, at: int, length: int) -> int:
    """Internet checksum of `length` bytes: 0 over data that carries a right one."""
    return ~fold(sum16(memory, at, length)) & 0xFFFF


@hot
def difference(old: int, new: int) -> int:
    """What a field's change from `old` to `new` (32 bits each) adds to a checksum's *sum*: RFC 1624, ~m + m', folded."""
    return fold((~old & 0xFFFF) + ((~old >> 16) & 0xFFFF) + (new & 0xFFFF) + (new >> 16))


@inlined
def adjusted(check: int, delta: int) -> int:
    """Checksum after its sum grew by `delta` (RFC 1624 equation 3: HC' = ~(~HC + ~m + m'))."""
    return ~fold((~check & 0xFFFF) + delta) & 0xFFFF


@inlined
def negated(delta: int) -> int:
    """The difference the other way round."""
    return ~delta & 0xFFFF


@inlined
def adjust(memory: Array, at: int, delta: int) -> None:
    """Apply `adjusted` to the checksum field at `at`."""
    write16(memory, at, adjusted(read16(memory, at), delta))
