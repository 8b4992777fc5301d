"""Shunted packets as the tests see them: an own reading of what `shards.shunt` describes, from bytes to bytes.

IPv4 | UDP 7655 > 7655 | "K", version << 4 | turned << 2 | side, shard, epoch, seal | the packet inside
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from tests import frames
from tests.frames import UDP, Packet

PORT, BYTES = 7655, 44
KEY = (0xA4093822299F31D0 ^ 0x73687561E1BADA55, 0x082EFA98EC4E6C89 ^ 0x73687561E1BADA55)  # of the bed's secret
SIDES = {"inside": 1, "outside": 2}
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Wrapping:
    """Who passes a packet on to whom, and what that core is told."""

    source: int
    destination: int
    side: str = "inside"
    shard: int = 0
    epoch: int = 1
    turned: bool = False


def siphash(word0: int, word1: int) -> int:
    """SipHash-2-4 of sixteen bytes (Aumasson and Bernstein, 2012), written once more."""
    v = [
        KEY[0] ^ 0x736F6D6570736575,
        KEY[1] ^ 0x646F72616E646F6D,
        KEY[0] ^ 0x6C7967656E657261,
        KEY[1] ^ 0x7465646279746573,
    ]
    for word in (word0, word1, 16 << 56):
        v[3] ^= word
        v = _rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xFF
    v = _rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _rounds(v: list[int], count: int) -> list[int]:
    a, b, c, d = v
    for _ in range(count):
        a, c = (a + b) & _WORD, (c + d) & _WORD
        b, d = _rotated(b, 13) ^ a, _rotated(d, 16) ^ c
        a = _rotated(a, 32)
        c, a = (c + b) & _WORD, (a + d) & _WORD
        b, d = _rotated(b, 17) ^ c, _rotated(d, 21) ^ a
        c = _rotated(c, 32)
    return [a, b, c, d]


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _WORD


def seal(header: bytes, inner: bytes) -> bytes:
    """Seal of the eight bytes of a header and the first 24 of the packet."""
    sealed = 40 if inner[0] >> 4 == 6 else 24
    words: list[int] = list(struct.unpack(f">{1 + sealed // 8}Q", header + inner[:sealed].ljust(sealed, b"\0")))
    told = words.pop(0)
    for word in words:
        told = siphash(told, word)
    return told.to_bytes(8, "big")


def _service(inner: bytes) -> int:
    if inner and inner[0] >> 4 == 6:
        return int.from_bytes(inner[:2], "big") >> 4 & 0xFF
    return inner[1] if len(inner) > 1 else 0


def wrap(told: Wrapping, inner: bytes) -> Packet:
    """The packet that carries `inner`."""
    shape = 1 << 4 | told.turned << 2 | SIDES[told.side]
    header = struct.pack(">BBHI", 0x4B, shape, told.shard, told.epoch)
    inner += bytes(max(28 - len(inner), 0))  # a last fragment may be shorter than what is sealed
    payload = header + seal(header, inner) + inner
    plain = Packet(UDP, told.source, told.destination, PORT, PORT, fragment=0x4000, residue=None, payload=payload)
    return replace(plain, tos=_service(inner))


def _length(inner: bytes) -> int:
    """What the packet inside says that it is long."""
    if inner[0] >> 4 == 6:
        return 40 + int.from_bytes(inner[4:6], "big")
    return int.from_bytes(inner[2:4], "big")


def unwrap(packet: Packet) -> tuple[Wrapping, bytes]:
    """What a shunted packet tells, and the packet inside; raises `Malformed` with what is wrong."""
    header, seal_, inner = packet.payload[:8], packet.payload[8:16], packet.payload[16:]
    if packet.udp_length or len(inner) < 28 or max(_length(inner), 28) != len(inner):
        raise frames.Malformed("shunt_malformed")
    magic, shape, shard, epoch = struct.unpack(">BBHI", header)
    if magic != 0x4B or shape not in (0x11, 0x12, 0x16) or packet.residue not in (0, None):
        raise frames.Malformed("shunt_malformed")
    if seal_ != seal(header, inner):
        raise frames.Malformed("shunt_foreign")
    side = "inside" if shape & 3 == 1 else "outside"
    return Wrapping(packet.source, packet.destination, side, shard, epoch, bool(shape & 4)), inner[: _length(inner)]
