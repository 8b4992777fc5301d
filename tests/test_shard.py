"""The loop with its rings: a breath is packets, those that wait for a neighbour, and timers; no frame is lost on the way."""

from __future__ import annotations

from shards import invariants, recovery, rings, shard
from shards.burst import new_burst
from shards.frames import census
from shards.verdict import BY_NAME, RECEIVED
from tests.bed import NEIGHBOUR_WAIT, Bed, answer, new_bed_state
from tests.fake_kernel import FakeKernel
from tests.frames import address, build, build_frame, dissect, mac_of, read, split_frame

START = 50_000_000
GATEWAY = "192.0.2.1"


class Loop:
    """A core whose external gateway does not answer yet, with its loop and the far side of its rings."""

    def __init__(self) -> None:
        self.bed = Bed()
        self.bed.say(f"unresolved {GATEWAY}")
        self.bed.complete()
        self.state = new_bed_state(self.bed, START)
        recovery.attach(self.state, START)
        answer(self.state, self.bed)
        self.kernel = FakeKernel((1, 1), entries=512, frames=1024)
        self.rings = self.kernel.attach()
        rings.take_over(self.rings)
        rings.flush(self.rings)
        self.burst, self.waiting = new_burst(), shard.new_waiting()

    def breathe(self, now: int) -> int:
        """A breath at tick `now`, and what the kernel does with it; packets handled."""
        handled = shard.breathe(self.state, self.rings, self.rings.frames, self.burst, self.waiting, now, 4, 1)
        self.kernel.transmit()
        return int(handled)

    def deliver(self, *ports: int) -> None:
        """A frame from inside for each source port."""
        for port in ports:
            packet = read(f"udp 100.64.0.2:{port} > 198.51.100.9:53 id {port}")
            assert self.kernel.deliver(0, build_frame(mac_of(address("100.64.0.1")), mac_of(packet.source), build(packet)))

    def count(self, verdict: str) -> int:
        """Packets with a verdict."""
        return int(self.state.counters[BY_NAME[verdict].number, 0])

    def audit(self) -> None:
        """Nothing is out of place."""
        held = int(self.state.core[0]["held"])
        invariants.check(self.state, int(self.state.counters[RECEIVED, 0]) + held, held)
        assert census(self.rings)["hand"] == held


def test_what_waits_for_a_neighbour_leaves_in_its_order_once_that_answers() -> None:
    loop = Loop()
    loop.deliver(*range(4000, 4010))
    assert loop.breathe(START) == 10
    assert loop.breathe(START + 5) == 0
    assert loop.kernel.sent == [] and loop.state.core[0]["held"] == 10
    loop.audit()
    loop.bed.silent.clear()
    answer(loop.state, loop.bed)
    loop.deliver(4010)
    loop.breathe(START + 10)
    assert [dissect(split_frame(frame)[4]).id for frame in loop.kernel.sent] == list(range(4000, 4011))
    assert loop.count("forwarded_out") == 11 and loop.state.core[0]["held"] == 0
    loop.audit()


def test_what_has_waited_long_enough_is_dropped_and_its_sender_told() -> None:
    loop = Loop()
    answer(loop.state, loop.bed)
    loop.deliver(4000, 4001)
    loop.breathe(START)
    loop.breathe(START + NEIGHBOUR_WAIT - 1)
    assert loop.count("neighbour_unresolved") == 0
    loop.breathe(START + NEIGHBOUR_WAIT)
    assert loop.count("neighbour_unresolved") == 2
    told = [dissect(split_frame(frame)[4]) for frame in loop.kernel.sent]
    assert [(packet.kind, packet.destination) for packet in told] == [(0x0301, address("100.64.0.2"))] * 2
    loop.audit()


def test_only_so_many_frames_may_wait() -> None:
    loop = Loop()
    for first in (0, 200):
        loop.deliver(*range(4000 + first, 4200 + first))
        loop.breathe(START)
    assert loop.state.core[0]["held"] == shard.HELD_AT_MOST
    assert loop.count("hold_overflow") == 400 - shard.HELD_AT_MOST
    loop.audit()


def test_a_breath_ends_what_is_due_and_counts_itself() -> None:
    loop = Loop()
    loop.bed.silent.clear()
    loop.deliver(4000)
    loop.breathe(START)
    answer(loop.state, loop.bed)  # gateway and subscriber
    loop.breathe(START)
    assert loop.state.shards[0]["sessions"] == 1
    loop.breathe(START + 300_100)
    assert loop.state.shards[0]["sessions"] == 0 and loop.state.core[0]["breaths"] == 3
    loop.audit()


def test_a_breath_is_bounded_by_its_bursts() -> None:
    loop = Loop()
    loop.deliver(*range(1024, 1024 + 400))
    assert shard.breathe(loop.state, loop.rings, loop.rings.frames, loop.burst, loop.waiting, START, 1, 1) == 256
