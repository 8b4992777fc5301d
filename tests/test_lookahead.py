"""Looking ahead: it asks, and changes nothing; what it reads and asks for lies inside the arrays, whatever came in."""

from __future__ import annotations

import random

import numpy as np
import pytest

from shards import cuckoo, invariants, lookahead, nat, parse, pipeline, sessions
from shards.jit import PURE
from shards.state import NAT_SESSION, Array, State
from tests import fuzz
from tests.bare_core import FRAME_BYTES, HEADROOM, Core
from tests.bed import Bed
from tests.frames import TCP, UDP, Packet, address, build, build_frame, mac_of
from tests.pair import EPOCH, Pair

OUTSIDE = address("198.51.100.9")


def frame(side: str, packet: Packet) -> tuple[str, bytes]:
    to, sender = (address("100.64.0.1"), packet.source) if side == "inside" else (address("192.0.2.2"), address("192.0.2.1"))
    return side, build_frame(mac_of(to), mac_of(sender), build(packet))


def new_flow(host: int, port: int, protocol: int = UDP, remote: int = OUTSIDE) -> tuple[str, bytes]:
    """The first packet of a flow from 100.64.0.`host`."""
    flags = 2 if protocol == TCP else 0
    source = address("100.64.0.0") + host
    return frame("inside", Packet(protocol, source, remote, source_port=port, destination_port=53, flags=flags))


def new_pair(*statements: str) -> Pair:
    bed = Bed()
    for statement in statements:
        bed.say(statement)
    pair = Pair(bed.complete())
    pair.core.resolve(*(address("100.64.0.0") + n for n in range(2, 40)))
    return pair


# --- bursts of new flows --------------------------------------------------------------------------------------------------


def test_a_new_flow_that_comes_many_times_in_one_burst_is_one_session() -> None:
    pair = new_pair()
    results = pair.receive([new_flow(2, 4000)] * 40)
    assert {result.verdict for result in results} == {"forwarded_out"}
    assert len({result.sent for result in results}) == 1 and len(invariants.living(pair.core.state)) == 1
    pair.check()


def test_a_burst_of_new_flows_some_with_a_common_endpoint() -> None:
    pair = new_pair("pool 203.0.113.0/30 block 64 filtering address-dependent")
    chance = random.Random(1)
    flows = [new_flow(2 + n % 17, 4000 + n % 5, (UDP, TCP)[n & 1], OUTSIDE + n % 3) for n in range(60)]
    for _ in range(4):
        chance.shuffle(flows)
        pair.receive(flows)
        pair.check()


def test_a_burst_in_which_blocks_and_ports_run_out() -> None:
    pair = new_pair("pool 203.0.113.1/32 block 64 blocks 2 ports 1024-1279")
    results = pair.receive([new_flow(host, 4000 + n) for host, count in ((2, 140), (3, 20), (4, 80)) for n in range(count)])
    assert {result.verdict for result in results} == {"forwarded_out", "ports_exhausted", "pool_exhausted"}
    pair.check()


def test_a_session_that_ended_and_one_that_begins_in_the_same_burst() -> None:
    pair = new_pair("hold-down 0")
    pair.receive([new_flow(2, 4000 + n) for n in range(30)])
    pair.now = pair.model.now = EPOCH + 300_001  # due, and the wheel has not been served
    pair.receive([new_flow(2, 4000 + n % 45) for n in range(60)])
    pair.pass_time(EPOCH + 300_200)
    pair.check()


# --- hostile input --------------------------------------------------------------------------------------------------------


def arrive(core: Core, arrivals: list[tuple[str, bytes]]) -> int:
    """Take frames as far as the fast path does; how many rows."""
    burst, state = core.burst, core.state
    for i, (side, data) in enumerate(arrivals):
        burst.at[i], burst.length[i] = i * FRAME_BYTES + HEADROOM, len(data)
        burst.port[i] = 0 if side == "inside" or core.bed.stick else 1
        core.frames[burst.at[i] : burst.at[i] + len(data)] = np.frombuffer(data, np.uint8)
    pipeline.clear(burst, len(arrivals))
    for i in range(len(arrivals)):
        parse.parse(state, core.frames, burst, i)
        nat.choose_key(state, burst, i)
    cuckoo.lookup_bulk(state, burst.key0, burst.key1, burst.ref, burst.verdict, len(arrivals))
    return len(arrivals)


def fuzzed(statements: str, bursts: int) -> tuple[Core, fuzz.Traffic]:
    """A core that has seen some traffic, and what sends it more."""
    pair = Pair(fuzz.bed(statements))
    pair.core.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
    known = pair.model.owners
    traffic = fuzz.Traffic(11, pair.bed, lambda: [(p, external, m.internal) for (p, external), m in known.items()])
    for number in range(bursts):
        pair.pass_time(EPOCH + 1000 * number)
        pair.receive(traffic.burst(fuzz.BURST))
    return pair.core, traffic


@pytest.mark.parametrize("statements", [fuzz.RICH, fuzz.STICK])
def test_looking_ahead_changes_nothing_but_ref(statements: str) -> None:
    core, traffic = fuzzed(statements, 6)
    count = arrive(core, traffic.burst(fuzz.BURST))
    state = {name: array.copy() for name, array in core.state._asdict().items() if array.nbytes < 1 << 26}
    burst = {name: column.copy() for name, column in core.burst._asdict().items() if name != "ref"}
    lookahead.misses(core.state, core.burst, count)
    assert all(np.array_equal(array, getattr(core.state, name)) for name, array in state.items())
    assert all(np.array_equal(column, getattr(core.burst, name)) for name, column in burst.items())


if PURE:

    @pytest.mark.parametrize("statements", [fuzz.RICH, fuzz.STICK])
    def test_what_is_asked_for_lies_inside(statements: str, monkeypatch: pytest.MonkeyPatch) -> None:
        core, traffic = fuzzed(statements, 6)
        asked: list[int] = []

        def ask(array: Array, index: int) -> None:
            assert 0 <= index < len(array)
            asked.append(index)

        for module in (lookahead, cuckoo, sessions):
            monkeypatch.setattr(module, "prefetch", ask)
        monkeypatch.setattr(cuckoo, "prefetch_line", ask)
        now = EPOCH + 9000
        for number in range(12):
            core.receive(traffic.burst(fuzz.BURST), now)
            core.resolve()
            core.again(now)
            now += 3000 * (number % 4)
            core.pass_time(now)
        assert len(asked) > 3000
        assert invariants.complaints(core.state) == []


# --- ends -----------------------------------------------------------------------------------------------------------------


def living(state: State) -> int:
    return len(invariants.living(state))


def test_only_the_lives_that_are_meant_are_deleted() -> None:
    pair = new_pair()
    pair.receive([new_flow(2, 4000 + n) for n in range(5)])
    state = pair.core.state
    lines = np.flatnonzero(state.sessions["kind"] == NAT_SESSION)[:5]
    lives = np.stack([lines, state.sessions["generation"][lines]], axis=1).astype(np.int64)
    lives[1, 1] += 1
    asked = np.concatenate([lives[:3], lives[:1], [[0, 0], [-1, 1], [1 << 40, 1]]])
    assert sessions.delete_lives(state, asked, EPOCH) == 2
    assert living(state) == 3 and invariants.complaints(state) == []


def test_ends_together_and_refreshed_ones_between_them() -> None:
    pair = new_pair()
    flows = [new_flow(2 + n % 20, 4000 + n) for n in range(150)]
    pair.receive(flows)
    pair.pass_time(EPOCH + 200_000)
    pair.receive(flows[::3])
    pair.pass_time(EPOCH + 301_000)
    assert len(invariants.living(pair.core.state)) == 50
    pair.check()
    pair.pass_time(EPOCH + 501_000)
    assert len(invariants.living(pair.core.state)) == 0
    pair.check()


@pytest.mark.parametrize("at_most", [1, 31, 32, 33, 149, 150, 151])
def test_the_wheel_looks_at_no_more_than_it_may(at_most: int) -> None:
    pair = new_pair()
    pair.receive([new_flow(2 + n % 20, 4000 + n) for n in range(150)])
    now = EPOCH + 301_000
    assert sessions.expire(pair.core.state, now, at_most) == min(at_most, 150)
    assert living(pair.core.state) == max(150 - at_most, 0)
    assert invariants.complaints(pair.core.state) == []
    rest = sum(sessions.expire(pair.core.state, now, at_most) for _ in range(150))
    assert rest == max(150 - at_most, 0) and living(pair.core.state) == 0
