"""Seeded frames, half of them wrong in some way: `python -m tests.fuzz --frames 1000000 --seed 1`.

Traffic is made of what a NAT meets (new and open connections both ways, hairpins, queries, errors with their embedded packets,
scans), some of it in fragments of any order, a few of which are lost, doubled or overlap. A part of it is then damaged: bits
flipped with and without a header checksum that fits, cut, lengthened, retagged.
Where there are other cores, a part of it comes shunted, and a part of that is damaged as well.
Every frame goes through model and pipeline (`pair`), in bursts; so nothing is emitted that checker or model find wrong. Beds
that run out of rows, index or neighbours have no model, because it has none of these: there the checker alone watches.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

from shards import invariants, sessions
from shards.verdict import DROP, VERDICTS
from tests import checker, frames, shunts
from tests.admission import blanked
from tests.bare_core import Core
from tests.bed import Bed, fill_shards
from tests.frames import ICMP, TCP, UDP, Packet, address, build, build_frame, mac_of
from tests.fuzz6 import RICH6, STICK6, compared6
from tests.pair import EPOCH, Pair, described, sender_of

BURST = 64

# Drops that no frame can bring about here, and why.
OUT_OF_REACH = {
    "tx_full": "there are no rings: tests of the rings fill one",
    "hold_overflow": "the loop decides it, which is above the pipeline: see test_shard",
    "needs_fragmenting": "and this, too",
    "fragment_limit": "the model does not say who makes room: see test_fragments",
} | {verdict.name: "the bed speaks no BFD: see test_bfd" for verdict in VERDICTS if verdict.name.startswith("bfd_")}
FIRST_CHECKS = {
    "runt", "foreign_mac", "vlan_unexpected", "not_ip", "ipv6_not_served", "bad_ip_header", "bad_length", "bad_ip_checksum",
    "bad_icmp_checksum", "source_routed", "martian_source", "martian_destination", "land", "bad_l4_header",
    "bad_tcp_flags", "protocol_not_served", "icmp_type_not_served",
}  # fmt: skip

RICH = """
pool 203.0.113.0/30 block 64 blocks 2 name homes filtering endpoint-independent
pool 203.0.113.8/32 block 64 blocks 1 name shops filtering address-dependent ports 1024-1535
pool 203.0.113.12/32 block 64 blocks 8 name labs filtering address-and-port-dependent
subscribers 100.64.0.0/24 pool homes
subscribers 100.64.1.0/24 each 28 pool shops sessions 400
subscribers 100.64.2.0/24 pool labs ports 20
subscriber 100.64.0.4/32 ports 12 udp-ports 6 tcp-reserve 4 per-port 9
subscriber 100.64.0.3/32 rate 1 burst 2
device 100.64.1.16/28 each 32 of 100.64.1.16/28 sessions 20
static tcp 203.0.113.1:8080 to 100.64.0.7:80
static udp 203.0.113.12:53 to 100.64.2.7:53
static gre 203.0.113.12 to 100.64.2.7
protocols gre esp sctp ipip 6in4 200
rule outbound tcp remote-ports 25 reject
rule outbound udp remote 198.51.100.0/28 remote-ports 1-99 drop
rule both icmp internal 100.64.0.64/26 reject
rule inbound any remote 192.0.2.128/25 drop
bypass udp remote 198.51.100.32/27
bypass any internal 100.64.0.128/26 inbound
inside address 172.16.0.1/24 gateway 172.16.0.2 partial
outside address 192.0.2.2/24 gateway 192.0.2.1 vlan 77 mtu 1400
failed 192.0.2.66
unsolicited unreachable
refusal-code 1
timeout-port udp 53 7.5
timeout-port tcp 80 90.5
mss 1300
timeout udp 20.5
timeout icmp 10.5
timeout generic 18.5
timeout transitory 15.5
timeout established 60.5
hold-down 7
errors 40
"""
STICK = """
pool 203.0.113.0/31 block 64 blocks 8
subscribers 100.64.0.0/22
stick address 192.0.2.2/24 gateway 192.0.2.1 inside-gateway 192.0.2.3 vlan 9
hairpin off
refresh inbound
timeout udp 20.5
timeout icmp 10.5
timeout transitory 15.5
timeout established 60.5
hold-down 0
"""
CROWDED = """
pool 203.0.113.0/24 block 64
subscribers 10.0.0.0/16
inside address 10.0.0.1/16
outside address 192.0.2.2/24 gateway 192.0.2.1
refusal-code 13
"""


CLUSTER = """
unsolicited unreachable
peer 192.0.2.9 mtu 1300
peer 192.0.2.10 dead
pool 203.0.113.0/30 block 64 blocks 4
pool 203.0.113.4/30 block 128 blocks 4 name other shard 1 filtering address-dependent
pool 203.0.113.8/30 block 64 blocks 4 name third shard 2
subscribers 100.64.0.0/24
subscribers 100.64.1.0/24 pool other
subscribers 100.64.2.0/24 pool third
shard 0 epoch 3
shard 1 role passive authority 192.0.2.9 epoch 2
shard 2 role passive authority 192.0.2.10
sides two
inside address 172.16.0.1/24 gateway 172.16.0.2
outside address 192.0.2.2/24 gateway 192.0.2.1 vlan 77
mss 1300
timeout udp 20.5
timeout icmp 10.5
timeout transitory 15.5
timeout established 60.5
hold-down 7
errors 40
"""

# Timers end half a second beside the seconds in which frames come: how soon the wheel sweeps is not the model's affair.


def bed(statements: str, **sizes: int) -> Bed:
    """The bed that the lines describe."""
    made = Bed(**sizes)  # type: ignore[arg-type]
    for line in statements.strip().splitlines():
        made.say(line)
    return made.complete()


NETWORKS = [address(text) for text in ("198.51.100.0", "192.0.2.64", "8.8.8.0")]  # where the remotes are
GENERIC = (47, 47, 47, 50, 50, 132, 4, 41, 200, 51, 98, 0, 255)
NOWHERE = [address(text) for text in ("0.0.0.0", "100.64.0.9", "127.0.0.1", "224.0.0.1", "255.255.255.255")]


class Traffic:
    """An endless source of (side, frame) for a bed; the same for the same seed and the same endpoints to aim at."""

    def __init__(self, seed: int, given: Bed, known: Callable[[], list[tuple[int, tuple[int, int], tuple[int, int]]]]) -> None:
        self.random = random.Random(seed)
        self.bed = given
        self.known = known  # (protocol, external endpoint, internal endpoint) of mappings there are
        self.targets: list[tuple[int, tuple[int, int], tuple[int, int]]] = []
        self.parts: list[tuple[str, Packet, bytes]] = []  # fragments on their way: side, of what, datagram

    def burst(self, count: int) -> list[tuple[str, bytes]]:
        """The next `count` frames."""
        self.targets = self.known()
        return [self.frame() for _ in range(count)]

    def frame(self) -> tuple[str, bytes]:
        """One frame: a third of them damaged."""
        side, packet, data = self._datagram()
        port = self.bed.inside if side == "inside" else self.bed.outside
        to, vlan, ethertype = mac_of(port.address), port.vlan, 0x0800
        damage = self.random.random()
        if damage < 0.22:
            data = self._damaged(data)
        elif damage < 0.26:
            to, vlan, ethertype = self._misdirected(to, vlan)
        frame = build_frame(to, sender_of(self.bed, side, packet), data, vlan, ethertype)
        if self.bed.peers and self.random.random() < 0.4:
            side, frame = self._shunted(side, data)
        if 0.26 < damage < 0.28:
            frame = frame[: self.random.randrange(len(frame))]
        elif 0.28 < damage < 0.32:
            frame += self.random.randbytes(self.random.randrange(40))  # Ethernet padding
        return side, frame[:3000]

    def _datagram(self) -> tuple[str, Packet, bytes]:
        """Side, packet, and its bytes or those of a fragment of it."""
        if self.random.random() < 0.03:
            side, packet = self._packet()
            whole = replace(packet, fragment=packet.fragment & 0x4000, id=self.random.randrange(8), ip_options=b"")
            self.parts += [(side, packet, part) for part in self._cut(build(whole))]
        if self.parts and self.random.random() < 0.4:
            return self.parts.pop(0)
        side, packet = self._packet()
        return side, packet, build(packet)

    def _cut(self, data: bytes) -> list[bytes]:
        """The fragments of a datagram in any order."""
        size, chance = len(data) - 20, self.random.random
        ends = sorted({8 * self.random.randrange(1, size // 8 + 2) for _ in range(self.random.choice((1, 1, 2, 3)))} - {size})
        spans = list(zip([0, *ends], [*ends, size], strict=True))
        parts = [frames.piece(data, first, min(last, size)) for first, last in spans if first < size]
        if not parts:  # nothing behind the header
            return []
        if chance() < 0.1:
            first = 8 * self.random.randrange(size // 8 + 1)
            parts.append(frames.piece(data, first, min(first + 8 * self.random.randrange(4), size)))
        if chance() < 0.1:
            parts.append(self.random.choice(parts))
        if chance() < 0.6:
            self.random.shuffle(parts)
        return parts[1:] if chance() < 0.1 else parts

    def _shunted(self, side: str, inner: bytes) -> tuple[str, bytes]:
        """A datagram as another core passes it to us: one in three is not as it should be."""
        if side == "inside":
            inner = _concealed(inner)
        turned = side == "outside" and self.random.random() < 0.2
        if turned and self.targets:
            inner = build(self._varied(self._turned()))
        sender = self.random.choice((*self.bed.peers, *self.bed.peers, address("192.0.2.77")))
        shard, epoch = self.random.choice((0, 0, 0, 0, 0, 1, 2, 3, 65535)), self.random.choice((1, 2, 3, 3, 3, 4))
        packet = shunts.wrap(shunts.Wrapping(sender, self.bed.outside.address, side, shard, epoch, turned), inner)
        packet = replace(packet, residue=self.random.choice((None, None, None, 0, 0, 99)))
        if self.random.random() < 0.2:
            wrong = bytearray(packet.payload)
            at = min(int(self.random.expovariate(1 / 12)), len(wrong) - 1)
            wrong[at] ^= 1 << self.random.randrange(8)
            packet = replace(packet, payload=bytes(wrong[: self.random.choice((len(wrong), len(wrong), at))]))
        here = "outside" if self.random.random() < 0.95 else "inside"
        port = self.bed.outside if here == "outside" else self.bed.inside
        data = build(packet) if self.random.random() < 0.95 else self._damaged(build(packet))
        return here, build_frame(mac_of(port.address), mac_of(sender), data, port.vlan)

    def _turned(self) -> Packet:
        """The second half of a hairpin: between two external endpoints."""
        (protocol, near, _), (_, far, _) = self.random.choice(self.targets), self.random.choice(self.targets)
        if protocol == ICMP:
            return Packet(ICMP, far[0], near[0], 0, near[1], kind=0x0000)
        return Packet(protocol, far[0], near[0], far[1], near[1], self._flags() if protocol == TCP else 0)

    def _packet(self) -> tuple[str, Packet]:
        chance = self.random.random()
        if chance < 0.45 or not self.targets:
            return "inside", self._varied(self._outbound())
        if chance < 0.70:
            return "outside", self._varied(self._inbound())
        if chance < 0.78:
            return "inside", self._varied(self._hairpin())
        return self._error()

    def _outbound(self) -> Packet:
        prefix = self.random.choice(self.bed.subscribers)
        source = int(prefix.network.network_address) + self.random.randrange(prefix.network.num_addresses)
        if self.random.random() < 0.6:  # those who have much traffic
            source = int(prefix.network.network_address) + self.random.randrange(20)
        if self.random.random() < 0.02:
            source = self.random.getrandbits(32)
        return self._to(source, 4000 + self.random.randrange(60), *self._remote())

    def _remote(self) -> tuple[int, int]:
        host = self.random.choice(NETWORKS) + self.random.randrange(9)
        if self.random.random() < 0.03:
            host = self.random.choice((self.random.getrandbits(32), *NOWHERE))
        # With 0.0.0.0 goes port 0: that pair stands in the key of a mapping.
        return host, self.random.choice((25, 53, 80, 443, 8080)) if host else 0

    def _to(self, source: int, source_port: int, destination: int, destination_port: int) -> Packet:
        protocol = self.random.choice((UDP, UDP, UDP, TCP, TCP, TCP, TCP, ICMP, self.random.choice(GENERIC)))
        if protocol == ICMP:
            kind = self.random.choice((0x0800, 0x0800, 0x0D00, 0x0000, 0x1100))
            return Packet(ICMP, source, destination, source_port if kind in (0x0800, 0x0D00) else 0, kind=kind)
        return Packet(protocol, source, destination, source_port, destination_port, self._flags() if protocol == TCP else 0)

    def _flags(self) -> int:
        return self.random.choice((2, 2, 2, 2, 18, 16, 16, 24, 17, 17, 4, 20, 0, 1, 3, 6, 41, 0xC2))

    def _inbound(self) -> Packet:
        protocol, (host, port), _ = self.random.choice(self.targets)
        remote, remote_port = self._remote()
        if self.random.random() < 0.15:
            host, port = address("203.0.113.0") + self.random.randrange(16), self.random.randrange(65536)
        if protocol == ICMP:
            kind = self.random.choice((0x0000, 0x0000, 0x0E00, 0x0800))
            return Packet(ICMP, remote, host, port if kind == 0x0800 else 0, port if kind != 0x0800 else 0, kind=kind)
        return Packet(protocol, remote, host, remote_port, port, self._flags() if protocol == TCP else 0)

    def _hairpin(self) -> Packet:
        packet = self._outbound()
        protocol, (host, port), _ = self.random.choice(self.targets)
        if protocol == ICMP:
            return Packet(ICMP, packet.source, host, port, kind=0x0800)
        return Packet(protocol, packet.source, host, packet.source_port or 4001, port, 2 if protocol == TCP else 0)

    def _error(self) -> tuple[str, Packet]:
        """An error about a packet that may have passed: from outside about one we sent, from inside about one we delivered."""
        protocol, external, internal = self.random.choice(self.targets)
        side = self.random.choice(("inside", "outside"))
        remote = self._remote() if self.random.random() < 0.8 else self.random.choice(self.targets)[1]
        near, far = (external, remote) if side == "outside" else (remote, internal)
        about = Packet(protocol, near[0], far[0], near[1], far[1], 16 if protocol == TCP else 0, payload=frames.filler(30))
        if protocol == ICMP:
            identifier = external[1] if side == "outside" else internal[1]
            about = Packet(ICMP, near[0], far[0], 0, identifier, kind=0x0000, payload=frames.filler(30))
            if side == "outside":
                about = replace(about, source_port=identifier, destination_port=0, kind=0x0800)
        about = self._quoted(about)
        if self.random.random() < 0.1:
            broken = self._damaged(build(about))[: self.random.randrange(60)]
            return side, Packet(ICMP, far[0], near[0], kind=self.random.choice((0x0303, 0x0B00)), payload=broken)
        kind = self.random.choice((0x0300, 0x0301, 0x0303, 0x0304, 0x0B00, 0x0C00, 0x0400, 0x0501))
        speaker = self.random.choice((far[0], far[0], address("192.0.2.77")))
        return side, self._varied(Packet(ICMP, speaker, near[0], kind=kind, about=about, rest=self.random.choice((0, 1300))))

    def _quoted(self, about: Packet) -> Packet:
        about = replace(about, residue=self.random.choice((0, 0, 77)), ip_options=self._options())
        data = build(about)
        quote = self.random.choice((8, 8, 20, 28, len(data), len(data)))
        return frames.dissect(data[: 20 + len(about.ip_options) + quote], embedded=True)

    def _options(self) -> bytes:
        return self.random.choice((b"",) * 30 + tuple(frames.OPTION_NAMES.values()))

    def _varied(self, packet: Packet) -> Packet:
        """With the odd things that are right all the same, or nearly."""
        chance = self.random.random
        size = self.random.choice((0, 1, 18, 33, 600)) if chance() < 0.97 else self.random.choice((1372, 1380, 1450))
        return replace(
            packet,
            ttl=64 if chance() < 0.95 else self.random.choice((0, 1, 2, 255)),
            fragment=0x4000 if chance() < 0.5 else 0 if chance() < 0.97 else self.random.getrandbits(14),
            ip_options=self._options(),
            residue=0 if chance() < 0.9 or packet.protocol == ICMP else self._residue(packet.protocol),
            payload=packet.payload if packet.about else frames.filler(size),
            tcp_options=self._tcp_options() if packet.protocol == TCP else b"",
            id=self.random.getrandbits(16),
        )

    def _residue(self, protocol: int) -> int | None:
        return self.random.choice((None if protocol == UDP else 0, -1, 99))

    def _tcp_options(self) -> bytes:
        return bytes.fromhex(self.random.choice(("", "020405b4", "01020405b4010101", "0101080a0000000000000000", "020305b4")))

    def _damaged(self, data: bytes) -> bytes:
        """Bits flipped, near the beginning rather than the end; for half of them the header's checksum is made to fit again."""
        wrong = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 5))):
            wrong[min(int(self.random.expovariate(1 / 25)), len(wrong) - 1)] = self.random.getrandbits(8)
        if self.random.random() < 0.7:
            header = 4 * (wrong[0] & 15)
            wrong[10:12] = b"\0\0"
            wrong[10:12] = (-frames.ones_sum(bytes(wrong[:header])) % 0xFFFF).to_bytes(2, "big")
        return bytes(wrong) if self.random.random() < 0.95 else self.random.randbytes(self.random.randrange(100))

    def _misdirected(self, to: bytes, vlan: int) -> tuple[bytes, int, int]:
        told = ((b"\xff" * 6, vlan, 0x0800), (to, vlan + 1, 0x0800), (to, vlan, 0x86DD), (to, vlan, 0x0806))
        return self.random.choice(told)


def _concealed(data: bytes) -> bytes:
    """A datagram as a core leaves it that gets it from inside: without the addresses that its options have recorded."""
    header = 4 * (data[0] & 15) if data else 0
    if not 20 < header <= len(data) or frames.ones_sum(data[:header]):
        return data
    bare = data[:10] + b"\0\0" + data[12:20] + blanked(data[20:header])
    check = (-frames.ones_sum(bare) % 0xFFFF).to_bytes(2, "big")
    return bare[:10] + check + bare[12:] + data[header:]


def compared(statements: str, count: int, seed: int) -> Counter[str]:
    """Run `count` frames through model and pipeline; verdicts. A disagreement raises."""
    pair = Pair(bed(statements))
    pair.core.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
    known = pair.model.owners
    traffic = Traffic(seed, pair.bed, lambda: [(p, external, m.internal) for (p, external), m in known.items()])
    told: Counter[str] = Counter()
    for number in range(0, count, BURST):
        pair.pass_time(EPOCH + 1000 * (number // BURST // 8))
        told.update(result.verdict for result in pair.wait())
        told.update(result.verdict for result in pair.receive(traffic.burst(min(BURST, count - number))))
        if number // BURST % 200 == 0:
            pair.compare_sessions()
    pair.pass_time(pair.now + 5000)
    told.update(result.verdict for result in pair.wait())
    told["held"] = 0
    pair.check()
    return told


def clustered(count: int, seed: int) -> Counter[str]:
    """Run frames through a core that has the authority over one shard of three; now and then it gets, and loses, another.

    Half a second a burst, so that what waits for somebody with the authority, over the third, does so for a burst or two.
    """
    pair = Pair(bed(CLUSTER, extents=8))
    pair.core.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
    known = pair.model.owners
    traffic = Traffic(seed, pair.bed, lambda: [(p, external, m.internal) for (p, external), m in known.items()])
    told: Counter[str] = Counter()
    for number in range(0, count, BURST):
        if number // BURST % 16 == 0:
            active = number // BURST % 32 == 16
            pair.bed.say(f"shard 1 role {'active' if active else 'passive'}")
            fill_shards(pair.core.state, pair.bed, pair.now)
            pair.pass_time(pair.now + sessions.LOOK_AGAIN + 64)  # by then the wheel has ended what was due already
        pair.pass_time(pair.now + 500)
        told.update(result.verdict for result in pair.wait())
        told.update(result.verdict for result in pair.receive(traffic.burst(min(BURST, count - number))))
        if number // BURST % 50 == 0:
            pair.compare_sessions()
    pair.pass_time(pair.now + sessions.LOOK_AGAIN + 64)
    told.update(result.verdict for result in pair.wait())
    told["held"] = 0
    pair.check()
    return told


def crowded(count: int, seed: int, **sizes: int) -> Counter[str]:
    """Run frames through a core that has too little of something; only the checker and the invariants watch."""
    core = Core(bed(CROWDED, **sizes), EPOCH)
    traffic = Traffic(seed, core.bed, lambda: [])
    told: Counter[str] = Counter()
    now = EPOCH
    for number in range(0, count, BURST):
        now += 10
        core.pass_time(now)
        arrivals = traffic.burst(min(BURST, count - number))
        for (_, frame), result in zip(arrivals, core.receive(arrivals, now), strict=True):
            told[result.verdict] += 1
            private = core.bed.private if result.port == 1 else []
            own = result.verdict not in ("forwarded_out", "forwarded_in", "hairpinned")
            wrong = checker.complaints(result.sent, None if own else frame, private) if result.sent else []
            assert not wrong, f"{described(frame)}: {wrong}"
        core.resolve()
        told.update(result.verdict for result in core.again(now))
    told.update(result.verdict for result in core.again(now + 5000))
    told["held"] = 0
    invariants.check(core.state, count, len(core.held))
    return told


def everything(count: int, seed: int) -> Iterator[tuple[str, Counter[str]]]:
    """All beds, with their names and verdicts: the longest one here, the others in a process beside it."""
    small = min(count // 20, 640)  # an arena of one extent is soon full
    beside: dict[str, partial[Counter[str]]] = {
        "ipv6": partial(compared6, bed(RICH6), count // 5, seed + 5),
        "ipv6 on a stick": partial(compared6, bed(STICK6), count // 10, seed + 6),
        "stick": partial(compared, STICK, count // 5, seed + 1),
        "cluster": partial(clustered, count // 5, seed + 4),
        "full index": partial(crowded, count // 20, seed + 2, buckets=64, neighbours=64),
        "full arena": partial(crowded, small, seed + 3, extents=1),
    }
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # whoever calls may have threads
        told = {name: pool.submit(run) for name, run in beside.items()}
        yield "rich", compared(RICH, count - 2 * (count // 5) - count // 20 - small, seed)
        yield from ((name, future.result()) for name, future in told.items())


def complain(told: Counter[str]) -> list[str]:
    """What the verdicts of a whole run leave to be wished for."""
    reached = {verdict.name for verdict in VERDICTS if told[verdict.name]}
    missed = [v.name for v in VERDICTS if v.fate == DROP and v.name not in reached and v.name not in OUT_OF_REACH]
    survived = 1 - sum(told[name] for name in FIRST_CHECKS) / told.total()
    wishes = [f"never reached: {', '.join(missed)}"] if missed else []
    return wishes + ([f"only {survived:.0%} survive the first checks"] if survived < 0.3 else [])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    total: Counter[str] = Counter()
    for name, told in everything(asked.frames, asked.seed):
        print(f"{name}: {told.total()} frames, {len(told)} verdicts", flush=True)
        total += told
    for name, number in total.most_common():
        print(f"{number:>10} {name}")
    wishes = complain(total)
    print(*wishes, sep="\n")
    return 1 if wishes else 0


if __name__ == "__main__":
    sys.exit(main())
