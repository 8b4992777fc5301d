"""Coverage-guided fuzz of the parsers, on the pure-Python twin: `python -m tests.fuzz_guided --seconds 60 --seed 1`.

A frame that takes a step from line to line of the watched code that none before it has taken (`sys.settrace`) joins the corpus,
and is changed further. So comparisons are passed one after the other that a blind fuzz would have to pass all at once.

Every frame goes through model and pipeline (`pair`), with what waits of its like: an exception, a frame that the checker does
not like, or anything that the two do not agree on is a finding, and is printed with the frame that led there.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any

from shards import datagrams, fragments, icmp, icmp6, parse, parse6, shunt
from shards.jit import PURE
from tests import frames, frames6
from tests.frames import build_frame, mac_of, spell
from tests.fuzz import bed
from tests.fuzz6 import addresses_of
from tests.pair import Pair, described, sender_of, sender_of6

Step = tuple[CodeType, int, int]

WATCHED = frozenset(str(module.__file__) for module in (datagrams, fragments, icmp, icmp6, parse, parse6, shunt))
EDGES = (0, 1, 4, 5, 6, 7, 8, 15, 16, 17, 20, 28, 40, 44, 58, 60, 0x40, 0x45, 0x60, 0x7F, 0x80, 0xFF)
LONGEST = 3000  # bytes of a frame

GIVEN = """
peer 192.0.2.9
pool 203.0.113.0/30 block 64 blocks 8
subscribers 100.64.0.0/24
subscribers6 2400:c0de::/48 each 56 of 100.64.0.0/24
inside address 172.16.0.1/24 gateway 172.16.0.2 address6 2400:c0de:fff::1/64 gateway6 fe80::2
outside address 192.0.2.2/24 gateway 192.0.2.1 address6 2600:1::2/64 gateway6 fe80::1 mtu 1280
"""
OPENERS = (
    "udp 100.64.0.2:4000 > 198.51.100.9:53 len 20", "tcp 100.64.0.2:4001 > 198.51.100.9:80 syn mss 1460",
    "echo 100.64.0.2:77 > 198.51.100.9 len 20", "udp [2400:c0de:0:700::5]:4000 > [2600::9]:53 len 20",
    "tcp [2400:c0de:0:700::5]:4001 > [2600::9]:80 syn mss 1460", "echo [2400:c0de:0:700::5]:77 > [2600::9] len 20",
)  # fmt: skip
SEEDS = (
    ("inside", "udp 100.64.0.2:4000 > 198.51.100.9:53 options record-route len 60"),
    ("inside", "udp 100.64.0.3:4000 > $udp len 40"),
    ("inside", "port-unreachable 100.64.0.2 > 198.51.100.9 about [udp 198.51.100.9:53 > 100.64.0.2:4000 len 20]"),
    ("outside", "udp 198.51.100.9:53 > $udp len 60"),
    ("outside", "tcp 198.51.100.9:80 > $tcp syn ack mss 1460 len 20"),
    ("outside", "port-unreachable 198.51.100.9 > @udp about [udp $udp > 198.51.100.9:53 options record-route len 20]"),
    ("outside", "time-exceeded 192.0.2.77 > @tcp about [tcp $tcp > 198.51.100.9:80 syn quote 8]"),
    ("outside", "prohibited 192.0.2.77 > @icmp about [echo $icmp > 198.51.100.9 len 20]"),
    ("inside", "udp [2400:c0de:0:700::5]:4000 > [2600::9]:53 len 60 with hop-by-hop destination fragment/0/0/7 ah"),
    ("inside", "port-unreachable [2400:c0de:0:700::5] > [2600::9] about [udp [2600::9]:53 > [2400:c0de:0:700::5]:4000 len 20]"),
    ("outside", "udp [2600::9]:53 > [2400:c0de:0:700::5]:4000 len 60 with routing/2/0 fragment/0/0/7"),
    ("outside", "tcp [2600::9]:80 > [2400:c0de:0:700::5]:4001 syn ack mss 1460"),
    ("outside", "too-big [2600::77] > [2400:c0de:0:700::5] mtu 1280 about [udp [2400:c0de:0:700::5]:4000 > [2600::9]:53]"),
    ("outside", "time-exceeded [2600::77] > [2400:c0de:0:700::5] about [echo [2400:c0de:0:700::5]:77 > [2600::9] len 20]"),
)  # fmt: skip


class Guided:
    """A corpus that grows by what leads somewhere new; with `guided` off it stays as it began, for comparison."""

    def __init__(
        self, target: Callable[[bytes], None], corpus: Iterable[bytes], seed: int, watched: frozenset[str] = WATCHED,
        guided: bool = True,
    ) -> None:  # fmt: skip
        self.target, self.watched, self.guided = target, watched, guided
        self.random = random.Random(seed)
        self.corpus = list(corpus)
        self.steps: set[Step] = set()
        self.words = set(EDGES)  # and every constant of code that has run
        self.runs = 0
        for data in self.corpus:
            self._run(data)
        self.learned = len(self.corpus)

    def go_on(self, count: int) -> None:
        """So many runs more."""
        for _ in range(count):
            data = self._changed(self._chosen())
            if self._run(data) and self.guided:
                self.corpus.append(data)

    def _chosen(self) -> bytes:
        """Something of the corpus, what came last rather than what has been there for long."""
        recent = self.random.random() < 0.5
        return self.random.choice(self.corpus[-20:] if recent else self.corpus)

    # --- where it leads ---------------------------------------------------------------------------------------------------

    def _run(self, data: bytes) -> bool:
        """Whether it took a new step."""
        before, outer = len(self.steps), sys.gettrace()
        self.runs += 1
        sys.settrace(self._enter)
        try:
            self.target(data)
        finally:
            sys.settrace(outer)
        return len(self.steps) > before

    def _enter(self, frame: FrameType, event: str, told: Any) -> Callable[..., Any] | None:
        code, steps, last = frame.f_code, self.steps, 0
        if code.co_filename not in self.watched:
            return None
        self.words.update(value for value in code.co_consts if isinstance(value, int) and 0 <= value < 1 << 16)

        def follow(frame: FrameType, event: str, told: Any) -> Any:
            nonlocal last
            steps.add((code, last, frame.f_lineno))
            last = frame.f_lineno
            return follow

        return follow

    # --- how it is changed ------------------------------------------------------------------------------------------------

    def _changed(self, data: bytes) -> bytes:
        """A frame changed in one place to four; mostly with lengths and checksums made to fit, or nothing deeper is met."""
        wrong = bytearray(data)
        for _ in range(self.random.choice((1, 1, 1, 2, 4))):
            self.random.choice((self._flip, self._put, self._put, self._put_word, self._count, self._move, self._cut))(wrong)
        changed = bytes(wrong[: LONGEST + 1]) or data[:1]
        return repaired(changed) if self.random.random() < 0.8 else changed

    def _at(self, data: bytearray, room: int = 1) -> int:
        return self.random.randrange(max(len(data) - room + 1, 1))

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] ^= 1 << self.random.randrange(8)

    def _put(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] = self.random.choice((*self.words, self.random.getrandbits(8))) & 0xFF

    def _put_word(self, data: bytearray) -> None:
        at = self._at(data, 2)
        data[at : at + 2] = self.random.choice((*self.words, len(data), self.random.getrandbits(16))).to_bytes(2, "big")

    def _count(self, data: bytearray) -> None:
        if data:
            at = self._at(data)
            data[at] = (data[at] + self.random.choice((-8, -4, -1, 1, 4, 8))) & 0xFF

    def _move(self, data: bytearray) -> None:
        """Bytes of another of the corpus, or of itself, over or between its own."""
        other = self.random.choice((*self.corpus[-5:], bytes(data)))
        size, source, at = self.random.choice((1, 4, 8, 20, 40)), self.random.randrange(len(other) + 1), self._at(data)
        data[at : at + self.random.choice((0, size))] = other[source : source + size]

    def _cut(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self.random.choice((1, 4, 8, len(data)))]


# --- what frames are ------------------------------------------------------------------------------------------------------


def repaired(data: bytes) -> bytes:
    """With lengths and checksums that fit, as far as it can be read: a byte for the side, then an untagged frame."""
    head, packet = data[:15], bytearray(data[15:])
    if len(packet) >= 28 and packet[0] >> 4 == 4:
        _repair4(packet)
    elif len(packet) >= 48 and packet[0] >> 4 == 6:
        packet[4:6] = (len(packet) - 40).to_bytes(2, "big")
        if packet[6] == 58:
            pseudo = bytes(packet[8:40]) + (len(packet) - 40).to_bytes(4, "big") + b"\0\0\0\x3a"
            _sum(packet, 40, 42, len(packet), pseudo)
    return bytes(head + packet)


def _repair4(packet: bytearray) -> None:
    header = max(4 * (packet[0] & 15), 20)
    packet[2:4] = len(packet).to_bytes(2, "big")
    _sum(packet, 0, 10, header)
    if packet[9] == 1 and len(packet) > header + 28:
        inner = header + 8
        _sum(packet, inner, inner + 10, inner + max(4 * (packet[inner] & 15), 20))
        _sum(packet, header, header + 2, len(packet))


def _sum(packet: bytearray, begin: int, field: int, end: int, pseudo: bytes = b"") -> None:
    if field + 2 <= len(packet):
        packet[field : field + 2] = b"\0\0"
        packet[field : field + 2] = (-frames.ones_sum(pseudo + bytes(packet[begin:end])) % 0xFFFF).to_bytes(2, "big")


class Bench:
    """A pair that takes frame after frame; what waits is served now and then, and time passes."""

    def __init__(self) -> None:
        self.pair = Pair(bed(GIVEN))
        self.pair.core.resolve(*range(frames.address("192.0.2.0"), frames.address("192.0.3.0")))
        self.pair.core.resolve(*(frames6.address6(host) for host in ("fe80::1", "fe80::2")))
        self.taken = 0
        self.openers = [self.frame("inside", line) for line in OPENERS]
        for data in self.openers:
            self.take(data)

    def seeds(self) -> list[bytes]:
        """What to begin with: about the mappings that are open, and fragments of it all."""
        names: dict[str, str] = {}
        for (protocol, external), _ in self.pair.model.owners.items():
            word = {1: "icmp", 6: "tcp", 17: "udp"}[protocol]
            names |= {f"${word}": spell(*external), f"@{word}": spell(external[0], 0)}
        lines = list(SEEDS)
        for name, text in names.items():
            lines = [(side, line.replace(name, text)) for side, line in lines]
        whole = [self.frame(side, line) for side, line in lines]
        return [*self.openers, *whole, *(part for data in whole for part in _parts(data))]

    def frame(self, side: str, line: str) -> bytes:
        """A line as an input."""
        port = self.pair.bed.at(side)[1]
        if frames6.is_six(line):
            packet6 = frames6.read(line)
            sender, data, ethertype = sender_of6(self.pair.bed, side, packet6), frames6.build(packet6), 0x86DD
        else:
            packet = frames.read(line)
            sender, data, ethertype = sender_of(self.pair.bed, side, packet), frames.build(packet), 0x0800
        return bytes([side == "outside"]) + build_frame(mac_of(port.address), sender, data, ethertype=ethertype)

    def take(self, data: bytes) -> None:
        """Serve one input; AssertionError with the frame where something is wrong with that."""
        side, frame = ("inside", "outside")[data[0] & 1], data[1:]
        if frames6.is_six_frame(frame):
            self.pair.core.resolve(*addresses_of(frame))
        try:
            self.pair.receive([(side, frame)])
            self.taken += 1
            if self.taken % 64 == 0:
                self._rest()
        except Exception as wrong:
            raise AssertionError(f"{side}: {described(frame) if len(frame) > 13 else frame.hex()}: {wrong}") from wrong

    def _rest(self) -> None:
        self.pair.pass_time(self.pair.now + 7777)  # no lifetime is a multiple: when the wheel sweeps is not the model's affair
        self.pair.wait()
        self.pair.receive([("inside", data[1:]) for data in self.openers])


def _parts(data: bytes) -> list[bytes]:
    """Two fragments of a packet that may be cut."""
    head, packet = data[:15], data[15:]
    if packet[0] >> 4 == 4 and len(packet) > 60 and packet[0] == 0x45:
        return [head + frames.piece(packet, 0, 24), head + frames.piece(packet, 24, len(packet) - 20)]
    if packet[0] >> 4 == 6 and b"\0\0\0\0\7" in packet[40:72]:
        return [head + frames6.piece(packet, 0, 48), head + frames6.piece(packet, 48, len(packet))]
    return []


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_guided", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="let the corpus not grow, to see what that is worth")
    asked = parser.parse_args()
    if not PURE:  # compiled code has no lines
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.fuzz_guided", *sys.argv[1:]], os.environ | {"NUMBA_DISABLE_JIT": "1"}
        )
    bench = Bench()
    guided = Guided(bench.take, bench.seeds(), asked.seed, guided=not asked.blind)
    print(f"{guided.learned} seeds take {len(guided.steps)} steps", flush=True)
    until = time.monotonic() + asked.seconds
    while time.monotonic() < until:
        guided.go_on(100)
    print(
        f"{guided.runs} frames take {len(guided.steps)} steps; {len(guided.corpus) - guided.learned} of them led somewhere new"
    )
    bench.pair.check()
    return 0


if __name__ == "__main__":
    sys.exit(main())
