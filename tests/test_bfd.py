"""BFD: what is compiled against the model, over wires that lose and delay, with clocks turned by hand; and every refusal."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from shards import bfd, invariants, pipeline
from shards.burst import new_burst
from shards.jit import PURE
from shards.state import REACHABLE, WANTED
from shards.verdict import BY_NAME, RECEIVED, VERDICTS
from tests import bfd_model
from tests.bed import Bed, new_bed_state
from tests.bfd_model import DOWN, INIT, UP, decode, encode
from tests.frames import address, mac_of
from tests.test_shard import GATEWAY

START = 1 << 32  # ticks wrap here
PORT = 1
L3 = 256
OURS, THEIRS = "192.0.2.2", GATEWAY


class Speaker:
    """A core with one session, and its model beside it: both hear the same, and must say the same at the same time."""

    def __init__(
        self, own: str, peer: str, discriminator: int, interval: int = 50_000, multiplier: int = 3, seed: int = 1
    ) -> None:
        bed = Bed()
        bed.complete()
        self.state, self.burst, self.frames = new_bed_state(bed, START), new_burst(), np.zeros(4096, np.uint8)
        port, self.row = self.state.ports[PORT], self.state.bfd[0]
        port["address"] = self.own = address(own)
        self.peer = address(peer)
        port["mac"] = np.frombuffer(mac_of(self.own), np.uint8)
        given = {
            "address": self.peer, "port": PORT, "discriminator": discriminator, "interval": interval, "multiplier": multiplier,
            "desired": max(interval, bfd.SLOW), "remote_required": 1, "state": bfd.DOWN, "random": seed,
            "mac": int.from_bytes(mac_of(self.peer), "big"), "transmit_at": START & 0xFFFFFFFF,
        }  # fmt: skip
        for name, value in given.items():
            self.row[name] = value
        self._random = seed
        self.model = bfd_model.Session(discriminator, interval, multiplier, self._percent, START)

    def _percent(self, low: int, high: int) -> int:
        x = self._random
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        self._random = x
        return low + x % (high - low + 1)

    def frame(self, raw: bytes, ttl: int = 255, source: int | None = None, destination: int | None = None) -> bytes:
        """A frame with these bytes from the peer, its checksums right."""
        source, destination = source or self.peer, destination or self.own
        ends = source.to_bytes(4, "big") + destination.to_bytes(4, "big")
        udp = (49152).to_bytes(2, "big") + (3784).to_bytes(2, "big") + (8 + len(raw)).to_bytes(2, "big")
        check = internet_checksum(ends + b"\0\x11" + udp[4:6] + udp + b"\0\0" + raw)
        head = b"\x45\xc0" + (28 + len(raw)).to_bytes(2, "big") + b"\0\0\0\0" + bytes([ttl, 17])
        total = internet_checksum(head + b"\0\0" + ends)
        return (
            mac_of(self.own) + mac_of(source) + b"\x08\0" + head + total.to_bytes(2, "big") + ends + udp
            + check.to_bytes(2, "big") + raw
        )  # fmt: skip

    def hear_frame(self, frame: bytes, now: int) -> str:
        """Have a frame served; its verdict."""
        self.frames[L3 : L3 + len(frame)] = np.frombuffer(frame, np.uint8)
        self.burst.port[0], self.burst.at[0], self.burst.length[0], self.burst.deadline[0] = PORT, L3, len(frame), 0
        pipeline.process(self.state, self.frames, self.burst, 1, now)
        pipeline.settle(self.state, self.burst, 1)
        assert self.burst.out_length[0] == 0, "BFD is answered by a packet of its own, and refused in silence"
        return VERDICTS[int(self.burst.verdict[0])].name

    def hear(self, raw: bytes, now: int) -> str:
        """Have a packet of the peer heard by both; the verdict."""
        refused = self.model.hear(raw, now)
        verdict = self.hear_frame(self.frame(raw), now)
        assert verdict == (refused or "bfd_taken")
        self.compare()
        return verdict

    def turn(self, now: int) -> list[bytes]:
        """Time has passed; the packets that are sent."""
        bfd.expire(self.state, now)
        self.model.expire(now)
        if self.row["mac"] == 0:  # who it is was asked anew
            self.row["mac"] = int.from_bytes(mac_of(self.peer), "big")
        self.compare()
        sent = []
        while bfd.due(self.state, 0, now):
            assert self.model.is_due(now), f"nothing is due at {now - START}"
            at = bfd.write(self.state, self.frames, L3, 0, now)
            raw = bytes(self.frames[L3 + 28 : L3 + 52])
            assert bytes(self.frames[at:L3]) == mac_of(self.peer) + mac_of(self.own) + b"\x08\0"
            assert decode(raw) == decode(self.model.send(now))
            sent.append(raw)
            self.compare()
        assert not self.model.is_due(now), f"something is due at {now - START}"
        return sent

    def close(self, now: int) -> None:
        """End it in order."""
        bfd.part(self.state, now)
        self.model.close(now)
        self.compare()

    def compare(self) -> None:
        """Row and model say the same."""
        facts = self.model.facts()
        assert {name: int(self.row[name]) for name in facts} == facts
        assert int(self.row["transmit_at"]) == self.model.next_at & 0xFFFFFFFF
        if self.model.silent_at is not None:
            assert int(self.row["detect_at"]) == self.model.silent_at & 0xFFFFFFFF


def internet_checksum(raw: bytes) -> int:
    """RFC 1071."""
    raw += b"\0" * (len(raw) % 2)
    total = sum(int.from_bytes(raw[at : at + 2], "big") for at in range(0, len(raw), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Wire:
    """Two speakers and what is on its way between them."""

    def __init__(self, first: Speaker, second: Speaker, seed: int = 0) -> None:
        self.ends, self.chance, self.now = (first, second), random.Random(seed), START
        self.flying: list[tuple[int, int, bytes]] = []
        self.loss, self.delay = 0.0, 0

    def run(self, ms: int) -> None:
        """Let time pass."""
        for _ in range(ms):
            self.now += 1
            arrived = [each for each in self.flying if each[0] <= self.now]
            self.flying = [each for each in self.flying if each[0] > self.now]
            for _, to, raw in arrived:
                self.ends[to].hear(raw, self.now)
            for at, end in enumerate(self.ends):
                for raw in end.turn(self.now):
                    if self.chance.random() >= self.loss:
                        self.flying.append((self.now + self.chance.randint(0, self.delay), 1 - at, raw))

    def states(self) -> tuple[int, int]:
        """State of both."""
        return int(self.ends[0].row["state"]), int(self.ends[1].row["state"])


def wire(seed: int = 0, **second: int) -> Wire:
    """Two that never heard of each other."""
    return Wire(Speaker(OURS, THEIRS, 0x1111, seed=7 + seed), Speaker(THEIRS, OURS, 0x2222, seed=99 + seed, **second), seed)


def test_two_come_up_and_find_their_pace() -> None:
    made = wire()
    made.run(10)
    assert made.states() == (UP, UP)
    made.run(990)
    first = made.ends[0]
    assert first.row["polling"] == 0 and first.row["remote_discriminator"] == 0x2222
    before = int(first.row["sent"])
    made.run(10_000)
    each = 10_000 / (int(first.row["sent"]) - before)
    assert 37 <= each <= 46, "50 ms less up to a quarter, and up to a tick"
    assert bfd.detection_ticks(first.row) == 150 and first.row["flaps"] == 0


def test_a_multiplier_of_one_leaves_a_tenth_for_the_way() -> None:
    made = wire(interval=200_000, multiplier=1)
    made.run(3000)
    second, gaps = made.ends[1], []
    last = None
    for _ in range(20_000):
        before = int(second.row["sent"])
        made.run(1)
        if int(second.row["sent"]) != before:
            gaps.append(made.now - last if last else 150)
            last = made.now
    assert made.states() == (UP, UP) and min(gaps) >= 150 and max(gaps) <= 181


@pytest.mark.parametrize("silent", [0, 1])
def test_silence_ends_it_after_the_detection_time_and_sound_begins_it_again(silent: int) -> None:
    made = wire(interval=30_000)
    made.run(2000)
    made.loss = 1.0
    began, heard = made.now, int(made.ends[silent].row["detect_at"])
    while made.states() == (UP, UP):
        made.run(1)
    assert made.now - began <= 151 and (heard - began) & 0xFFFFFFFF <= 151
    made.run(200)
    assert made.states() == (DOWN, DOWN)
    assert all(end.row["diagnostic"] == bfd.EXPIRED and end.row["flaps"] == 1 and bfd.is_dead(end.row) for end in made.ends)
    assert bfd.port_is_dead(made.ends[0].state, PORT) and not bfd.port_is_dead(made.ends[0].state, 1 - PORT)
    made.loss = 0.0
    made.run(1100)
    assert made.states() == (UP, UP) and not bfd.port_is_dead(made.ends[0].state, PORT)


def test_one_that_starts_anew_is_told_so_and_comes_back() -> None:
    made = wire()
    made.run(1000)
    made.ends = (made.ends[0], Speaker(THEIRS, OURS, 0x3333, seed=5))
    made.run(20)
    assert made.ends[0].row["flaps"] == 1 and made.ends[0].row["diagnostic"] in (bfd.SIGNALLED, bfd.NO_DIAGNOSTIC)
    made.run(1500)
    assert made.states() == (UP, UP) and made.ends[0].row["remote_discriminator"] == 0x3333


def test_closing_in_order_is_no_failure_and_a_successor_opens_again() -> None:
    made = wire()
    made.run(1000)
    made.ends[0].close(made.now)
    made.run(3000)
    assert made.states() == (bfd.ADMIN_DOWN, DOWN)
    other = made.ends[1].row
    assert other["remote_diagnostic"] == bfd.ADMINISTRATIVE and other["diagnostic"] == bfd.SIGNALLED
    assert not bfd.is_dead(other) and not bfd.port_is_dead(made.ends[1].state, PORT)
    bfd.begin(made.ends[0].state, made.now)
    made.ends[0].model._become(DOWN, bfd.ADMINISTRATIVE, made.now)
    made.run(1500)
    assert made.states() == (UP, UP)


@pytest.mark.parametrize("hold", [0, 2000])
def test_a_peer_that_was_lost_is_used_again_only_when_it_has_been_up_for_a_while(hold: int) -> None:
    made = wire()
    state = made.ends[0].state
    made.ends[0].row["hold"] = hold

    def lost(ms: int) -> bool:
        for _ in range(ms):
            made.run(1)
            bfd.publish(state, made.now)
        return bool(state.ports[PORT]["peer_lost"])

    assert not lost(20) and made.states() == (UP, UP), "one that comes up for the first time is used at once"
    made.loss = 1.0
    assert lost(200)
    made.loss = 0.0
    while made.states()[0] != UP:
        made.run(1)
    assert not hold or lost(hold - 1)
    assert not lost(1)
    made.ends[1].close(made.now)
    assert not lost(500) and made.states()[0] == DOWN, "an administrator says nothing of the way"


def test_a_hold_ends_with_the_session_that_it_is_of() -> None:
    made = wire()
    state = made.ends[0].state
    made.ends[0].row["hold"] = 2000
    state.ports[PORT]["peer_lost"] = 1
    made.run(20)
    bfd.publish(state, made.now)
    assert state.ports[PORT]["peer_lost"] and made.states() == (UP, UP)
    made.ends[1].close(made.now)
    made.run(100)
    bfd.publish(state, made.now)
    assert not state.ports[PORT]["peer_lost"] and not state.ports[1 - PORT]["peer_lost"]


def test_a_peer_that_cannot_keep_pace_is_waited_for() -> None:
    made = wire(interval=300_000)
    made.run(3000)
    first = made.ends[0]
    before = int(first.row["sent"])
    made.run(6000)
    assert 20 <= int(first.row["sent"]) - before <= 27 and bfd.detection_ticks(first.row) == 900


def test_a_peer_that_wants_no_packets_gets_none_but_answers() -> None:
    made = wire()
    made.run(1000)
    first, packet = made.ends[0], told(made.ends[1])
    for quiet in ({"required": 0}, {"demand": 1}):
        first.hear(encode(packet | quiet), made.now)
        assert [first.turn(made.now + ms) for ms in range(100)] == [[]] * 100
        first.hear(encode(packet | quiet | {"poll": 1}), made.now + 100)
        sent = first.turn(made.now + 100)
        assert [(decode(raw)["final"], decode(raw)["poll"]) for raw in sent] == [(1, 0)]
        made.now += 100


def told(speaker: Speaker) -> bfd_model.Packet:
    """A packet as this speaker would send it."""
    return decode(speaker.model.send(START + 1))


REFUSED: dict[str, tuple[dict[str, int], str]] = {
    "version": ({"version": 0}, "bfd_malformed"),
    "short": ({"length": 23}, "bfd_malformed"),
    "long": ({"length": 25}, "bfd_malformed"),
    "no multiplier": ({"multiplier": 0}, "bfd_malformed"),
    "multipoint": ({"multipoint": 1}, "bfd_malformed"),
    "nobody's": ({"mine": 0}, "bfd_malformed"),
    "another's": ({"yours": 0x1112}, "bfd_unknown_session"),
    "nobody's, and up": ({"yours": 0, "state": UP}, "bfd_unknown_session"),
    "nobody's, and coming up": ({"yours": 0, "state": INIT}, "bfd_unknown_session"),
    "too short to be authenticated": ({"authenticated": 1}, "bfd_malformed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_must_not_be_heeded_is_counted_and_changes_nothing(name: str) -> None:
    made = wire()
    made.run(1000)
    first, (changed, verdict) = made.ends[0], REFUSED[name]
    packet = told(made.ends[1]) | {"state": DOWN, "desired": 1, "poll": 1} | changed
    assert untouched(first, lambda: first.hear(encode(packet), made.now)) == verdict


def untouched(speaker: Speaker, deed: Any) -> str:
    """Verdict of a packet that was counted as refused and did nothing else."""
    before = speaker.row.copy()
    verdict: str = deed()
    before["refused"] = int(before["refused"]) + (0 if verdict == "bfd_unknown_peer" else 1)
    assert speaker.row == before and speaker.state.counters[BY_NAME[verdict].number, 0] == 1
    return verdict


def test_strangers_far_ones_and_damage_are_refused() -> None:
    made = wire()
    made.run(1000)
    first = made.ends[0]
    raw = encode(told(made.ends[1]) | {"state": DOWN})
    good = first.frame(raw)
    stranger = first.frame(raw, source=address("192.0.2.77"))
    frames = {
        "bfd_hops": first.frame(raw, ttl=254),
        "bfd_unknown_peer": stranger,
        "bfd_malformed": good[:-1] + bytes([good[-1] ^ 1]),  # its checksum is wrong
        "bfd_authenticated": first.frame(encode(told(made.ends[1]) | {"authenticated": 1, "length": 26}) + b"\1\2"),
    }
    for verdict, frame in frames.items():
        assert untouched(first, lambda frame=frame: first.hear_frame(frame, made.now)) == verdict
    first.close(made.now)
    assert first.hear_frame(good, made.now) == "bfd_closed"
    cut = first.frame(raw[:20])
    assert first.hear_frame(cut, made.now) == "bfd_malformed"
    invariants.check(first.state, int(first.state.counters[RECEIVED, 0]), 0)


def test_a_packet_without_a_checksum_is_heeded() -> None:
    made = wire()
    made.run(1000)
    frame = bytearray(made.ends[0].frame(encode(told(made.ends[1]))))
    frame[40:42] = b"\0\0"
    assert made.ends[0].hear_frame(bytes(frame), made.now) == "bfd_taken"


def test_without_a_session_bfd_is_a_packet_as_any_other() -> None:
    first = Speaker(OURS, THEIRS, 1)
    first.row["address"] = 0
    assert not first.hear_frame(first.frame(encode(told(first))), START).startswith("bfd")


def test_who_is_not_known_yet_is_asked_for_like_any_neighbour() -> None:
    first = Speaker(OURS, THEIRS, 1)
    first.row["mac"] = 0
    rows = first.state.neighbours
    assert not bfd.due(first.state, 0, START)
    wanted = rows[(rows["address"] == address(THEIRS)) & (rows["port"] == PORT)]
    assert len(wanted) == 1 and wanted["own_state"][0] in (WANTED, REACHABLE)
    at = int(np.flatnonzero((rows["address"] == address(THEIRS)) & (rows["port"] == PORT))[0])
    rows[at]["own_mac"] = np.frombuffer(mac_of(address(THEIRS)), np.uint8)
    rows[at]["own_state"] = REACHABLE
    assert not bfd.due(first.state, 0, START + bfd.ASK_AGAIN - 1)
    assert bfd.due(first.state, 0, START + bfd.ASK_AGAIN)
    assert first.row["mac"] == int.from_bytes(mac_of(address(THEIRS)), "big")


def test_how_long_it_may_sleep() -> None:
    made = wire()
    made.run(1000)
    first = made.ends[0]
    gap = (int(first.row["transmit_at"]) - made.now) & 0xFFFFFFFF
    assert bfd.wait(first.state, made.now) == min(max(gap, 1), bfd.ASK_AGAIN) and bfd.wait(first.state, made.now + 500) == 1
    first.row["address"] = first.row["watched"] = 0
    assert bfd.wait(first.state, made.now) == bfd.ASK_AGAIN


def nonsense(chance: random.Random, packet: bfd_model.Packet) -> bytes:
    """A packet with something about it that is unusual, or impossible."""
    odd = {
        "version": [0, 1, 7], "state": [0, 1, 2, 3], "poll": [0, 1], "final": [0, 1], "authenticated": [0, 1], "demand": [0, 1],
        "multipoint": [0, 1], "multiplier": [0, 1, 3, 255], "length": [0, 24, 26, 255], "mine": [0, 0x2222, 0xFFFFFFFF],
        "yours": [0, 0x1111, 5], "desired": [0, 1, 20_000, 0xFFFFFFFF], "required": [0, 1, 20_000, 2_000_000],
    }  # fmt: skip
    for _ in range(chance.randint(0, 3)):
        name = chance.choice(list(odd))
        packet = packet | {name: chance.choice(odd[name])}
    return encode(packet)[: chance.choice([24, 24, 24, 24, 23])]


@pytest.mark.parametrize("seed", range(4 if PURE else 6))
def test_whatever_comes_row_and_model_agree(seed: int) -> None:
    chance = random.Random(seed)
    made = wire(seed, interval=chance.choice([20_000, 50_000, 400_000]), multiplier=chance.choice([1, 2, 3]))
    for _ in range(40):
        made.loss, made.delay = chance.choice([0.0, 0.0, 0.3, 1.0]), chance.choice([0, 0, 5, 40])
        made.run(chance.choice([1, 20, 200]))
        if chance.random() < 0.5:
            end = made.ends[0]
            end.hear(nonsense(chance, told_by(made.ends[1])), made.now)
    made.loss, made.delay = 0.0, 0
    made.ends[0].hear(encode(told_by(made.ends[1])), made.now)  # what wanted nothing, or next to nothing, is over
    made.run(5000)
    assert made.states() == (UP, UP)
    invariants.check(made.ends[0].state, int(made.ends[0].state.counters[RECEIVED, 0]), 0)


def told_by(speaker: Speaker) -> bfd_model.Packet:
    """As `told`, without a trace at the speaker."""
    model = speaker.model
    packet = {"version": 1, "diagnostic": 0, "poll": 0, "final": 0, "independent": 0, "authenticated": 0, "demand": 0}
    packet |= {"multipoint": 0, "multiplier": model.multiplier, "length": 24, "mine": model.discriminator, "yours": 0x1111}
    return packet | {"state": model.state, "desired": model.desired, "required": model.wanted, "echo": 0}
