"""Header fields as named readers and writers. Names and offsets: RFC 791 (IPv4), 9293 (TCP), 768 (UDP), 792 (ICMP).

Frames are one flat array of bytes; a field is read at an absolute offset. The unsigned index keeps the compiler from testing
for negative ones, so that a reader becomes one load and one byte swap.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, whole
from shards.state import Array, Row

ETHERNET_BYTES, TAG_BYTES, IPV4_BYTES = 14, 4, 20
ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_TAG = 0x0800, 0x86DD, 0x8100

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

ECHO_REPLY, UNREACHABLE, SOURCE_QUENCH, REDIRECT, ECHO, TIME_EXCEEDED, PARAMETER_PROBLEM, TIMESTAMP, TIMESTAMP_REPLY = (
    0, 3, 4, 5, 8, 11, 12, 13, 14,
)  # fmt: skip


@hot
def read8(memory: Array, at: int) -> int:
    """Byte at `at`."""
    return whole(memory[np.uint64(at)])


@hot
def read16(memory: Array, at: int) -> int:
    """Big-endian 16 bits at `at`."""
    return (whole(memory[np.uint64(at)]) << 8) | whole(memory[np.uint64(at + 1)])


@hot
def read32(memory: Array, at: int) -> int:
    """Big-endian 32 bits at `at`."""
    return (
        (whole(memory[np.uint64(at)]) << 24)
        | (whole(memory[np.uint64(at + 1)]) << 16)
        | (whole(memory[np.uint64(at + 2)]) << 8)
        | whole(memory[np.uint64(at + 3)])
    )


@hot
def read48(memory: Array, at: int) -> int:
    """A MAC address as a number."""
    return read16(memory, at) << 32 | read32(memory, at + 2)


@hot
def write48(memory: Array, at: int, mac: int) -> None:
    """Store a MAC address."""
    write16(memory, at, mac >> 32)
    write32(memory, at + 2, mac)


@hot
def mac_of(row: Row) -> int:
    """The six bytes of a row's `mac` as a number."""
    mac = row["mac"]
    number = 0
    for k in range(6):
        number = number << 8 | whole(mac[k])
    return number


@hot
def write8(memory: Array, at: int, value: int) -> None:
    """Store a byte."""
    memory[np.uint64(at)] = value & 0xFF


@hot
def write16(memory: Array, at: int, value: int) -> None:
    """Store 16 bits, big-endian."""
    memory[np.uint64(at)] = (value >> 8) & 0xFF
    memory[np.uint64(at + 1)] = value & 0xFF


@hot
def write32(memory: Array, at: int, value: int) -> None:
    """Store 32 bits, big-endian."""
    write16(memory, at, value >> 16)
    write16(memory, at + 2, value)


@hot
def sum16(memory: Array, at: int, length: int) -> int:
    """Unfolded ones'-complement sum of `length` bytes, an odd last byte padded with zero (RFC 1071)."""
    total = 0
    for i in range(at, at + (length & ~1), 2):
        total += read16(memory, i)
    if length & 1:
        total += read8(memory, at + length - 1) << 8
    return total


@hot
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


@hot
def adjusted(check: int, delta: int) -> int:
    """Checksum after its sum grew by `delta` (RFC 1624 equation 3: HC' = ~(~HC + ~m + m'))."""
    return ~fold((~check & 0xFFFF) + delta) & 0xFFFF


@hot
def negated(delta: int) -> int:
    """The difference the other way round."""
    return ~delta & 0xFFFF


@hot
def adjust(memory: Array, at: int, delta: int) -> None:
    """Apply `adjusted` to the checksum field at `at`."""
    write16(memory, at, adjusted(read16(memory, at), delta))
