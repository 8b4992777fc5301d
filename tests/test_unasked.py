"""Who asks for a connection that nothing permits (RFC 6092 REC-34, RFC 5382 REQ-4): floods and rings, beside the scenarios."""

from __future__ import annotations

import pytest

from krononat import config
from shards import icmp, recovery, rings, shard
from shards.burst import new_burst
from shards.frames import census
from shards.unasked import WAIT_TICKS
from shards.unasked_rows import UNASKED_ROWS
from shards.verdict import METER_NAMES, METERS, RECEIVED
from tests import model_unasked
from tests.bare_core import Core
from tests.bed import Bed, answer, new_bed_state
from tests.fake_kernel import FakeKernel
from tests.frames import address, build, build_frame, dissect, mac_of, read, split_frame
from tests.test_config import RIGHT
from tests.test_config6 import SIX

START = 50_000_000
SYN = "tcp 198.51.100.9:{} > 203.0.113.1:7 syn"


def given(*statements: str) -> Bed:
    bed = Bed()
    for statement in ("unsolicited unreachable", *statements):
        bed.say(statement)
    return bed.complete()


def frame(line: str) -> bytes:
    """From the gateway outside."""
    return build_frame(mac_of(address("192.0.2.2")), mac_of(address("192.0.2.1")), build(read(line)))


def count(core: Core, meter: str) -> int:
    return int(core.state.counters[METERS + METER_NAMES.index(meter), 0])


def test_model_and_pipeline_wait_alike() -> None:
    assert (model_unasked.WAIT, model_unasked.ROOM) == (WAIT_TICKS, UNASKED_ROWS)
    assert WAIT_TICKS > 6000


def test_rfc5382_req4_a_flood_fills_a_ring_and_nothing_else() -> None:
    """Who finds it full is not told; who waits is told as the rate allows; then there is room again."""
    core = Core(given("errors 50"), START)
    for first in range(0, UNASKED_ROWS + 64, 64):
        core.receive([("outside", frame(SYN.format(1024 + first + n))) for n in range(64)], START)
    assert count(core, "unasked_overflow") == 64
    core.pass_time(START + WAIT_TICKS)
    assert count(core, "unasked_told") == len(core.said([])) == count(core, "originated") == 50
    assert count(core, "suppressed") == UNASKED_ROWS - 50 and count(core, "unasked_withdrawn") == 0
    core.receive([("outside", frame(SYN.format(9)))], START + WAIT_TICKS)
    core.pass_time(START + 2 * WAIT_TICKS)
    assert [dissect(split_frame(told.sent or b"")[4]).kind for told in core.said([])] == [0x0303]


def test_rfc5382_req4_scans_take_nothing_of_the_other_errors() -> None:
    core = Core(given("errors 1"), START)
    core.receive([("outside", frame(SYN.format(1024 + n))) for n in range(3)], START)
    core.pass_time(START + WAIT_TICKS)
    now = START + WAIT_TICKS
    assert not icmp.rate_allows(core.state, icmp.UNASKED_BUCKET, now)
    assert all(icmp.rate_allows(core.state, bucket, now) for bucket in range(icmp.UNASKED_BUCKET))


@pytest.mark.parametrize(("name", "value"), [("unasked", 0), ("icmp_rate", 0), ("quiet", 2)])
def test_rfc5382_req4a_whoever_wants_silence_meanwhile_has_it(name: str, value: int) -> None:
    core = Core(given(), START)
    core.receive([("outside", frame(SYN.format(9)))], START)
    core.state.settings[0][name] = value
    core.pass_time(START + WAIT_TICKS)
    assert core.said([]) == [] and core.state.core[0]["unasked"] == core.state.core[0]["unasked_done"] == 1
    core.receive([("outside", frame(SYN.format(10)))], START + WAIT_TICKS)
    assert core.state.core[0]["unasked"] == 1


class Loop:
    """A core with its loop and the far side of its rings."""

    def __init__(self) -> None:
        bed = given()
        self.state = new_bed_state(bed, START)
        recovery.attach(self.state, START)
        answer(self.state, bed)
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


def test_rfc5382_req4_the_loop_says_it_by_the_port_it_was_asked_at() -> None:
    loop = Loop()
    assert all(loop.kernel.deliver(1, frame(SYN.format(1024 + n))) for n in range(3))
    loop.breathe(START)
    assert loop.breathe(START + WAIT_TICKS - 1) == 0 and loop.kernel.sent == []
    assert loop.breathe(START + WAIT_TICKS) == 3
    packets = [dissect(split_frame(sent)[4]) for sent in loop.kernel.sent]
    assert [(packet.kind, packet.destination) for packet in packets] == [(0x0303, address("198.51.100.9"))] * 3
    assert [split_frame(sent)[0] for sent in loop.kernel.sent] == [mac_of(address("192.0.2.1"))] * 3
    assert census(loop.rings)["hand"] == 0 and loop.state.counters[RECEIVED, 0] == 3
    assert loop.breathe(START + 3 * WAIT_TICKS) == 0


def test_who_is_to_be_told_waits_while_no_frame_is_free() -> None:
    loop = Loop()
    assert loop.kernel.deliver(1, frame(SYN.format(9)))
    loop.breathe(START)
    free = int(loop.rings.local[0]["free"])
    loop.rings.local[0]["free"] = 0
    assert loop.breathe(START + WAIT_TICKS) == 0 and loop.kernel.sent == []
    loop.rings.local[0]["free"] = free
    assert loop.breathe(START + WAIT_TICKS) == 1 and len(loop.kernel.sent) == 1


# --- configuration --------------------------------------------------------------------------------------------------------


def test_answers_that_reach_nobody_are_doubted() -> None:
    told = RIGHT + '[nat]\nunsolicited-syn = "unreachable"\n[icmp]\ntowards = ["internal"]\n'
    (doubt,) = config.warnings(config.read(told), told, "nat.toml")
    assert 'nat.unsolicited-syn: tells nobody outside: `icmp.towards` has no "external"' in doubt
    told = SIX.replace("echo = false", 'unsolicited-syn = "prohibited"') + "[icmp]\nerrors-per-second = 0\n"
    doubts = "\n".join(config.warnings(config.read(told), told, "nat.toml"))
    assert "firewall6.unsolicited-syn: tells nobody outside: `icmp.errors-per-second` is 0" in doubts
    silent = RIGHT + "[icmp]\nerrors-per-second = 0\n"
    assert config.warnings(config.read(silent), silent, "nat.toml") == []
