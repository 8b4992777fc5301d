"""Fragments in the loop: frames that wait have an owner and a cap, floods harm nobody else, pieces have frames of their own."""

from __future__ import annotations

import pytest

from shards import fragments, invariants, recovery, rings, shard
from shards.burst import new_burst
from shards.fragment_rows import FRAGMENTS
from shards.frames import census
from shards.jit import PURE
from shards.verdict import BY_NAME, PIECES, RECEIVED, SENT
from tests import frames
from tests.bare_core import Core
from tests.bed import Bed, answer, new_bed_state
from tests.fake_kernel import FakeKernel
from tests.frames import address, build, build_frame, mac_of, read, split_frame
from tests.pair import EPOCH

START = 50_000_000
ETHERNET = 14


class Loop:
    """A core with its loop and the far side of its rings."""

    def __init__(self, *given: str, frames: int = 2048, entries: int = 512) -> None:
        self.bed = Bed()
        for statement in given:
            self.bed.say(statement)
        self.bed.complete()
        self.state = new_bed_state(self.bed, START)
        recovery.attach(self.state, START)
        answer(self.state, self.bed)
        self.kernel = FakeKernel((1, 1), entries=entries, frames=frames)
        self.rings = self.kernel.attach()
        rings.take_over(self.rings)
        rings.flush(self.rings)
        self.burst, self.waiting = new_burst(), shard.new_waiting()
        self.deliver("udp 100.64.0.2:4000 > 198.51.100.9:53")  # so that everybody is known
        self.breathe(START)
        answer(self.state, self.bed)
        self.breathe(START + 1)
        self.kernel.sent.clear()

    def breathe(self, now: int) -> None:
        """A breath at tick `now`, and what the kernel does with it; every frame is somebody's then."""
        shard.breathe(self.state, self.rings, self.rings.frames, self.burst, self.waiting, now, 4, 1)
        self.kernel.transmit()
        rings.flush(self.rings)
        core = self.state.core[0]
        assert core["parts"] == core["parted"] and core["cuts"] == 0
        held = int(core["held"]) + int(core["parted"])
        invariants.check(self.state, int(self.state.counters[RECEIVED, 0]) + held, held)
        assert census(self.rings)["hand"] == held and self.rings.ledger[0]["refused"] == 0

    def deliver(self, line: str, *pieces: tuple[int, int]) -> None:
        """A packet from inside, or these fragments of it."""
        packet = read(line)
        data = build(packet)
        for part in [frames.piece(data, *span) for span in pieces] or [data]:
            assert self.kernel.deliver(0, build_frame(mac_of(address("100.64.0.1")), mac_of(packet.source), part))

    def count(self, verdict: str) -> int:
        """Packets with a verdict."""
        return int(self.state.counters[BY_NAME[verdict].number, 0])

    def sent(self) -> list[bytes]:
        """Datagrams that have left."""
        return [split_frame(frame)[4] for frame in self.kernel.sent]


LINE = "udp 100.64.0.2:4000 > 198.51.100.9:53 len 1000 id {}"


def test_fragments_before_their_first_leave_right_behind_it() -> None:
    loop = Loop()
    loop.deliver(LINE.format(7), (800, 1008))
    loop.deliver(LINE.format(8), (800, 1008))
    loop.breathe(START + 10)
    loop.deliver(LINE.format(7), (400, 800))
    loop.breathe(START + 20)
    assert loop.kernel.sent == [] and loop.state.core[0]["parted"] == 3
    loop.deliver(LINE.format(7), (0, 400))
    loop.breathe(START + 30)
    first, *others = loop.sent()
    assert loop.state.core[0]["parted"] == 1  # of the other datagram
    whole = frames.dissect(frames.put_together([first, *reversed(others)]))
    assert whole.payload == frames.filler(1000) and whole.residue == 0
    assert whole.source == address("203.0.113.1") and loop.state.core[0]["fragmented"] == 1


def test_orphans_are_given_up_after_two_seconds_and_counted() -> None:
    loop = Loop()
    loop.deliver(LINE.format(7), (800, 1008), (400, 800))
    loop.breathe(START + 10)
    loop.breathe(START + 10 + fragments.HELD_TICKS - 1)
    assert loop.count("fragment_orphan") == 0
    loop.breathe(START + 10 + fragments.HELD_TICKS + 50)
    assert loop.count("fragment_orphan") == 2 and loop.kernel.sent == []
    assert loop.state.core[0]["fragmented"] == 0


def test_a_successor_knows_of_no_fragments() -> None:
    loop = Loop()
    loop.deliver(LINE.format(7), (800, 1008))
    loop.breathe(START + 10)
    fragments.forget(loop.state)
    assert not loop.state.core[0]["parts"] and not loop.state.core[0]["parted"] and not loop.state.shares.any()


def test_who_floods_with_fragments_fills_what_is_his() -> None:
    loop = Loop()
    flood = [(8 * (k + 2), 8 * (k + 3)) for k in range(100)]
    for k, span in enumerate(flood):
        loop.deliver(LINE.format(100 + k), span)
    loop.breathe(START + 10)
    assert loop.state.core[0]["parted"] == fragments.PARTS_EACH
    assert loop.count("fragment_limit") == 100 - fragments.PARTS_EACH
    # Another subscriber's fragments wait as ever; and whole packets of everybody go.
    loop.deliver("udp 100.64.0.3:4000 > 198.51.100.9:53 len 1000 id 1", (400, 1008))
    loop.deliver(LINE.format(1))
    loop.breathe(START + 20)
    assert (
        loop.state.core[0]["parted"] == fragments.PARTS_EACH + 1 and loop.count("fragment_limit") == 100 - fragments.PARTS_EACH
    )
    answer(loop.state, loop.bed)
    loop.deliver("udp 100.64.0.3:4000 > 198.51.100.9:53 len 1000 id 1", (0, 400))
    loop.breathe(START + 30)
    answer(loop.state, loop.bed)
    loop.breathe(START + 40)
    assert sorted(len(data) for data in loop.sent()) == [420, 628, 1028]


def _core() -> Core:
    bed = Bed()
    bed.say("pool 203.0.113.0/28")
    core = Core(bed.complete(), EPOCH)
    core.resolve(*(address("100.64.0.0") + k for k in range(2, 300)))
    return core


def _fragment(source: int, number: int, span: tuple[int, int]) -> tuple[str, bytes]:
    packet = read(f"udp {frames.dotted(source)}:4000 > 198.51.100.9:53 len 100 id {number}")
    return "inside", build_frame(mac_of(address("100.64.0.1")), mac_of(source), frames.piece(build(packet), *span))


def test_one_address_has_a_share_of_the_datagrams_and_makes_room_for_itself() -> None:
    core, hers = _core(), address("100.64.0.2")
    count = fragments.DATAGRAMS_EACH
    assert {core.receive([_fragment(hers, n, (0, 48))], EPOCH)[0].verdict for n in range(count)} == {"forwarded_out"}
    told = [core.receive([_fragment(hers, n, (0, 48))], EPOCH)[0].verdict for n in range(count, 2 * count)]
    assert {*told} == {"forwarded_out", "fragment_limit"} and core.state.core[0]["fragmented"] == count
    # Whoever else comes finds all the room there is, and hers that were last are still known.
    assert core.receive([_fragment(hers + 1, 7, (0, 48))], EPOCH)[0].verdict == "forwarded_out"
    assert core.receive([_fragment(hers + 1, 7, (48, 108))], EPOCH)[0].verdict == "forwarded_out"
    last = count + len(told) - 1 - told[::-1].index("forwarded_out")
    assert core.receive([_fragment(hers, last, (48, 108))], EPOCH)[0].verdict == "forwarded_out"
    core.pass_time(EPOCH + fragments.KEPT_TICKS)
    assert core.state.core[0]["fragmented"] == 0 and not core.state.shares.any()


def test_what_many_addresses_fill_together_is_taken_from_whose_first_has_not_come() -> None:
    core, first = _core(), address("100.64.0.2")
    count = 200 if PURE else 290
    for k in range(count * 16):  # none of them waits: each is the first fragment of what never goes on
        core.receive([_fragment(first + k % count, k // count, (0, 48))], EPOCH + k)
    assert core.state.core[0]["fragmented"] <= FRAGMENTS
    mine = first + count
    assert (
        core.receive([_fragment(mine, 7, (0, 48)), _fragment(mine, 7, (48, 108))], EPOCH + 9000)[1].verdict == "forwarded_out"
    )


def test_a_datagram_in_too_many_pieces_is_refused_from_there_on() -> None:
    core = _core()
    packet = read("udp 100.64.0.2:4000 > 198.51.100.9:53 len 3000 id 7")
    data = build(packet)
    told = []
    for k in range(140):
        part = frames.piece(data, 8 * k, 8 * k + 8)
        frame = build_frame(mac_of(address("100.64.0.1")), mac_of(packet.source), part)
        told += [result.verdict for result in core.receive([("inside", frame)], EPOCH)]
    assert told == ["forwarded_out"] * 128 + ["fragment_limit"] * 12


# --- cut for the next link ------------------------------------------------------------------------------------------------


def test_what_is_cut_leaves_in_frames_of_its_own_and_in_order() -> None:
    loop = Loop("outside mtu 576")
    before = int(loop.state.counters[SENT, 0])
    for number in range(10):
        loop.deliver(f"udp 100.64.0.2:4000 > 198.51.100.9:53 len 1400 id {number}")
    loop.breathe(START + 10)
    sent = loop.sent()
    assert len(sent) == 30 and all(len(data) <= 576 for data in sent)
    for k in range(0, 30, 3):
        whole = frames.dissect(frames.put_together(sent[k : k + 3]))
        assert whole.payload == frames.filler(1400) and whole.residue == 0
    assert len({frames.dissect(data).id for data in sent}) == 10
    assert int(loop.state.counters[PIECES, 0]) == 30 and int(loop.state.counters[SENT, 0]) == before + 30
    assert loop.state.counters[PIECES, 1] == sum(len(data) + ETHERNET for data in sent)


def test_without_a_free_frame_nothing_is_cut_and_that_is_counted() -> None:
    loop = Loop("outside mtu 576", frames=16, entries=4)
    kept = int(loop.rings.local[0]["free"])
    for frame in loop.rings.free[:kept].tolist():  # as if all were on their way
        loop.rings.owners[frame] = (3 << 56) | 1
    loop.rings.local[0]["free"] = 0
    loop.deliver("udp 100.64.0.2:4000 > 198.51.100.9:53 len 1400 id 1")
    shard.breathe(loop.state, loop.rings, loop.rings.frames, loop.burst, loop.waiting, START + 10, 1, 1)
    loop.kernel.transmit()
    assert loop.count("needs_fragmenting") == 1 and loop.kernel.sent == []


@pytest.mark.parametrize("entries", [4])
def test_a_full_ring_takes_no_more_pieces_and_loses_no_frame(entries: int) -> None:
    loop = Loop("outside mtu 576", frames=64, entries=entries)
    for number in range(3):
        loop.deliver(f"udp 100.64.0.2:4000 > 198.51.100.9:53 len 1400 id {number}")
    loop.breathe(START + 10)  # three times three pieces into four entries
    assert loop.count("tx_full") == 2 and len(loop.kernel.sent) == 4
