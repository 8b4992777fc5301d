"""Seeded frames of IPv6 for `fuzz`: connections both ways, echo, errors, tunnels, chains of headers, some of it in fragments of
any order, a few of which are lost, doubled or overlap; a part is damaged.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from tests.bed import Bed
from tests.frames import TCP, UDP, Packet, build_frame, filler, mac_of
from tests.frames import build as build4
from tests.frames6 import (
    AUTHENTICATION,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    ICMP6,
    ROUTING,
    Packet6,
    address6,
    build,
    piece,
)
from tests.pair import EPOCH, Pair, sender_of, sender_of6

BURST = 64

RICH6 = """
pool 203.0.113.0/30 block 64 blocks 8
subscribers 100.64.0.0/24 sessions 60 udp-sessions 30 icmp-reserve 5
subscribers 100.64.1.0/24 rate 20 burst 20
subscribers 100.64.2.0/24
subscribers6 2400:c0de::/48 each 56 of 100.64.0.0/24
subscribers6 2400:c0df::/48 each 56 of 100.64.1.0/24 filtering endpoint-independent
subscribers6 2400:c0e0::/48 each 56 of 100.64.2.0/24 tcp address-dependent udp address-dependent
transparent 100.64.0.3
pinhole tcp internal 2400:c0de:0:500::/56 internal-ports 80-90
pinhole udp remote 2600::3/128
rule6 outbound tcp remote-ports 25 reject
rule6 both udp remote 2600::4/128 drop
rule6 inbound any remote 2600::5/128 drop
echo6 off
refusal-code 1 six 1
timeout-port udp 53 7.5
inside address 172.16.0.1/24 gateway 172.16.0.2 address6 2400:c0de:fff::1/64 gateway6 fe80::2 partial
outside address 192.0.2.2/24 gateway 192.0.2.1 address6 2600:1::2/64 gateway6 fe80::1 vlan 77 mtu 1400
failed 2600:1::66
mss 1300
timeout udp 20.5
timeout icmp 10.5
timeout transitory 15.5
timeout established 60.5
errors 40
"""
STICK6 = """
pool 203.0.113.0/30 block 64 blocks 8
unsolicited6 silent
ipsec6 drop
subscribers 100.64.0.0/24
subscribers6 2400:c0de::/48 each 56 of 100.64.0.0/24 udp endpoint-independent
stick address 192.0.2.2/24 gateway 192.0.2.1 inside-gateway 192.0.2.3
stick address6 2600:1::2/64 gateway6 fe80::1 inside-gateway6 fe80::2
hairpin off
refresh inbound
timeout udp 20.5
timeout icmp 10.5
timeout transitory 15.5
timeout established 60.5
"""

NOWHERE = [address6(text) for text in ("::1", "ff02::1", "fe80::9", "fd00::1", "100::1", "::ffff:1.2.3.4", "64:ff9b::808:808")]


class Traffic6:
    """An endless source of (side, frame) for a bed."""

    def __init__(self, seed: int, given: Bed) -> None:
        self.random = random.Random(seed)
        self.bed = given
        self.parts: list[tuple[str, Packet6, bytes]] = []  # fragments on their way: side, of what, datagram

    def frame(self) -> tuple[str, bytes]:
        """One frame; one in twenty is IPv4's, which shares accounts and index."""
        side = self.random.choice(("inside", "inside", "outside"))
        port = self.bed.inside if side == "inside" else self.bed.outside
        if side == "inside" and self.random.random() < 0.05:
            host = 0x64400000 + self.random.randrange(20)
            four = Packet(UDP, host, 0xC6336409, 4000 + self.random.randrange(9), 53)
            return side, build_frame(mac_of(port.address), sender_of(self.bed, side, four), build4(four), port.vlan)
        side, packet, data = self._datagram(side)
        damage = self.random.random()
        if damage < 0.2:
            data = self._damaged(data)
        frame = build_frame(mac_of(port.address), sender_of6(self.bed, side, packet), data, port.vlan, 0x86DD)
        if 0.2 < damage < 0.23:
            frame = frame[: self.random.randrange(14, len(frame))]
        elif 0.23 < damage < 0.27:
            frame += self.random.randbytes(self.random.randrange(40))
        return side, frame[:3000]

    def _datagram(self, side: str) -> tuple[str, Packet6, bytes]:
        """Side, packet, and its bytes or those of a fragment of it."""
        if self.random.random() < 0.04:
            packet = self._packet(side)
            before, after = self._headers()[:1], self._headers()[:1]
            header = FRAGMENT, b"\0\0\0" + self.random.randrange(8).to_bytes(4, "big")
            whole = build(replace(packet, headers=(*before, header, *after)))
            self.parts += [(side, packet, part) for part in self._cut(whole)]
        if self.parts and self.random.random() < 0.4:
            return self.parts.pop(0)
        packet = self._packet(side)
        return side, packet, build(packet)

    def _cut(self, data: bytes) -> list[bytes]:
        """The fragments of a datagram in any order; now and then one is lost, doubled, or overlaps others."""
        size, chance = len(data) - 48, self.random.random
        ends = sorted({8 * self.random.randrange(1, size // 8 + 2) for _ in range(self.random.choice((1, 1, 2, 3)))} - {size})
        parts = [piece(data, first, last) for first, last in zip([0, *ends], [*ends, size + 8], strict=True)]
        if chance() < 0.1:
            first = 8 * self.random.randrange(size // 8 + 1)
            parts.append(piece(data, first, first + 8 * self.random.randrange(4)))
        if chance() < 0.1:
            parts.append(self.random.choice(parts))
        if chance() < 0.6:
            self.random.shuffle(parts)
        return parts[1:] if chance() < 0.1 else parts

    def _packet(self, side: str) -> Packet6:
        near, far = self._subscriber(), self._remote()
        if side == "inside" and self.random.random() < 0.1:
            far = self._subscriber()
        packet = self._between(near, far, side == "inside")
        if self.random.random() < 0.15:
            # An error about a packet that went the other way.
            about = self._quoted(self._between(near, far, side == "outside"))
            kind = self.random.choice((0x0100, 0x0101, 0x0104, 0x0200, 0x0300, 0x0400))
            speaker = self.random.choice((packet.source, packet.source, address6("2600:77::1")))
            quote = self.random.choice((len(about), len(about), 48, 60, 44, self.random.randrange(80)))
            packet = Packet6(ICMP6, speaker, packet.destination, kind=kind, payload=about[:quote])
        chance = self.random.random
        return replace(
            packet,
            ttl=64 if chance() < 0.95 else self.random.choice((0, 1, 2, 255)),
            traffic=self.random.getrandbits(28),
            headers=self._headers(),
            payload=packet.payload if packet.is_error else filler(self.random.choice((0, 1, 18, 33, 600, 600, 1330, 1360))),
            residue=0 if chance() < 0.9 or packet.protocol == ICMP6 else self.random.choice((-1, 99)),
            tcp_options=bytes.fromhex(self.random.choice(("", "020405b4", "01020405b4010101")))
            if packet.protocol == TCP
            else b"",
        )

    def _subscriber(self) -> int:
        high = self.random.choice((0x2400C0DE, 0x2400C0DF, 0x2400C0E0)) << 32 | self.random.randrange(4) << 8
        host = high << 64 | 1 + self.random.randrange(2)
        return host if self.random.random() < 0.97 else self.random.choice((host ^ 1 << 82, self.random.getrandbits(128)))

    def _remote(self) -> int:
        if self.random.random() < 0.04:
            return self.random.choice(NOWHERE)
        return address6(self.random.choice(("2600::", "2600::", "2600::", "2600:1::"))) + self.random.choice(
            (1, 2, 3, 4, 5, 0x66)
        )

    def _between(self, near: int, far: int, out: bool) -> Packet6:
        protocol = self.random.choice((UDP, UDP, UDP, TCP, TCP, TCP, ICMP6, 50, 136, 132, 47, 59, 135, 41, 139))
        near_port, far_port = self.random.choice((80, 81, 80, 81, 500)), self.random.choice((25, 53, 53, 53))
        ends = (near, far, near_port, far_port) if out else (far, near, far_port, near_port)
        if protocol == ICMP6:
            kind = self.random.choice((0x8000, 0x8000, 0x8100, 0x8100, 0x8700, 0x8000))
            if not out:
                kind ^= 0x0100 if kind >> 9 == 0x40 else 0
            return Packet6(ICMP6, *ends[:2], near_port * (kind >> 8 == 128), near_port * (kind >> 8 == 129), kind=kind)
        if protocol not in (UDP, TCP, 136, 132):
            return Packet6(protocol, *ends[:2])
        flags = self.random.choice((2, 2, 2, 18, 16, 16, 24, 17, 4, 20, 0, 1, 3, 41)) if protocol == TCP else 0
        return Packet6(protocol, *ends, flags)

    def _quoted(self, about: Packet6) -> bytes:
        return build(replace(about, headers=self._headers(), payload=filler(30)))

    def _headers(self) -> tuple[tuple[int, bytes], ...]:
        if self.random.random() < 0.8:
            return ()
        known = {
            HOP_BY_HOP: b"\0\1\4\0\0\0\0", DESTINATION: b"\0\1\4\0\0\0\0", AUTHENTICATION: b"\4" + bytes(22),
            FRAGMENT: b"\0" + self.random.choice((0, 0, 0, 1, 8, 800)).to_bytes(2, "big") + b"\0\0\0\7",
            ROUTING: bytes([0, self.random.choice((0, 1, 2, 2, 3, 4)), self.random.randrange(2), 0, 0, 0, 0]),
        }  # fmt: skip
        kinds = self.random.choices([DESTINATION, AUTHENTICATION, FRAGMENT, ROUTING, HOP_BY_HOP], (5, 3, 2, 2, 1), k=3)
        kinds = kinds[: self.random.choice((1, 1, 1, 2, 3))] * self.random.choice((1, 1, 1, 1, 4))
        kinds = [HOP_BY_HOP, *kinds] if self.random.random() < 0.3 else kinds
        return tuple((kind, known[kind]) for kind in kinds) + (((140, bytes(7)),) if self.random.random() < 0.02 else ())

    def _damaged(self, data: bytes) -> bytes:
        wrong = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 5))):
            wrong[min(int(self.random.expovariate(1 / 30)), len(wrong) - 1)] = self.random.getrandbits(8)
        return bytes(wrong)


def compared6(given: Bed, count: int, seed: int) -> Counter[str]:
    """Run frames through model and pipeline; verdicts."""
    pair = Pair(given)
    traffic = Traffic6(seed, given)
    told: Counter[str] = Counter()
    for number in range(0, count, BURST):
        pair.pass_time(EPOCH + 1000 * (number // BURST // 4))
        arrivals = [traffic.frame() for _ in range(min(BURST, count - number))]
        pair.core.resolve(*(host for _, frame in arrivals for host in addresses_of(frame)))
        told.update(result.verdict for result in pair.wait())
        told.update(result.verdict for result in pair.receive(arrivals))
        if number // BURST % 50 == 0:
            pair.compare_sessions()
    pair.pass_time(pair.now + 5000)
    told.update(result.verdict for result in pair.wait())
    told["held"] = 0
    pair.check()
    return told


def addresses_of(frame: bytes) -> list[int]:
    """Whoever may be on-link, damaged addresses among them: in this bed everybody there answers."""
    at = 22 if frame[12:14] == b"\x86\xdd" else 26
    return [int.from_bytes(frame[at : at + 16], "big"), int.from_bytes(frame[at + 16 : at + 32], "big")]
