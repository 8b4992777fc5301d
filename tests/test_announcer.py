"""What a core says of itself: from posts to roles, on a connection that comes and goes; and who gives it that connection."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from krononat import announcer, speaking
from krononat.announcer import FAREWELL, Announcer, Examiner, Property, role_of
from krononat.crew import Crew
from krononat.drained import Seen
from krononat.herald import REFUSED_EACH, TRY_EACH, Herald
from replication.roles import Post
from routing.announcements import GRACEFUL_SHUTDOWN, Role
from routing.health import Facts
from shards.frames import XDP
from shards.state import ABSENT, ACTIVE, DRAINING, EXTERNAL, INTERNAL, JOINING, PASSIVE, PORT, SYNCING
from shards.verdict import POOL_EXHAUSTED, TABLE_FULL
from tests.test_speaker import core

FULL = Facts(table_fill=1.0)


def post(role: int, epoch: int = 1, **more: Any) -> Post:
    """A post."""
    return Post(role, epoch, 0, 0, **more)


class Far:
    """The speaker's end of a connection."""

    def __init__(self) -> None:
        ours, self.stream = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = ours.detach()
        self.stream.setblocking(False)
        self.beats = 0

    def hear(self) -> list[dict[str, Any]]:
        """What has come, without beats, which are counted."""
        found: list[dict[str, Any]] = []
        while True:
            try:
                message = self.stream.recv(1 << 18)
            except BlockingIOError:
                return found
            told = json.loads(message)
            self.beats += "beat" in told
            found += [told] if "beat" not in told else []

    def routes(self) -> dict[str, int] | None:
        """MED by prefix of the last whole set that has come; None: none has."""
        parts: list[Any] = []
        last = None
        for told in self.hear():
            if "routes" in told:
                parts += told["routes"]
                if not told["more"]:
                    last, parts = {prefix: med for prefix, _, med, *_ in parts}, []
        return last


def made(posts: dict[int, Post] | None, facts: list[Facts] | None = None) -> Announcer:
    """An announcer of the core of `test_speaker`: shards 0 and 1, of which it is the primary by the map, at epoch 1."""
    orders = json.loads(json.dumps(speaking.orders(core(), None)))
    orders["shards"] = [[shard, external, inside, 1, True] for shard, external, inside, *_ in orders["shards"]]
    conductor = SimpleNamespace(posts=posts) if posts is not None else None
    return Announcer(orders, cast(Any, conductor), lambda now: (facts or [Facts()])[-1])


def turn(told: Announcer, begin: int, end: int) -> bool:
    """Turns of a while."""
    return all([told.turn(now) for now in range(begin, end)])


PLACE = Property(0, (), (), 1, True)


@pytest.mark.parametrize(
    ("told", "role"),
    [
        (post(ACTIVE), "primary"), (post(ACTIVE, 2), "promoted"), (post(PASSIVE), "backup"), (post(SYNCING), "rejoining"),
        (post(JOINING), "silent"), (post(ABSENT), "silent"), (post(DRAINING, authority="s2/0"), "backup"),
    ],
)  # fmt: skip
def test_roles_by_post(told: Post, role: Role) -> None:
    assert role_of(told, PLACE, "silent") == role


def test_who_hands_over_stays_what_it_was_until_it_is_taken() -> None:
    for before in ("primary", "promoted"):
        assert role_of(post(DRAINING), PLACE, before) == before


def test_only_the_maps_primary_is_one() -> None:
    assert role_of(post(ACTIVE), PLACE._replace(primary=False), "silent") == "promoted"


def test_a_core_alone_says_all_at_once_and_then_beats() -> None:
    told, far = made(None), Far()
    told.turn(0)
    told.attach(far.descriptor, 60)
    assert turn(told, 1, 1001)
    hello, routes = far.hear()
    assert hello == {"core": "s1/0", "linger": 60, "alarms": []}
    assert (routes["n"], routes["more"], len(routes["routes"])) == (1, False, 5)
    assert 45 <= far.beats <= 51
    assert told.due(1001) <= announcer.BEAT


def test_rfc8326_who_is_emptied_goes_on_announcing_all_it_has_and_marks_its_copies() -> None:
    told = made({0: post(ACTIVE), 1: post(PASSIVE)})
    told.turn(0)
    before = told.routes
    told.drain(True)
    told.turn(1)
    assert [route.prefix for route in told.routes] == [route.prefix for route in before] and before
    assert {(route.med, route.communities) for route in told.routes} == {(151, ()), (200, (GRACEFUL_SHUTDOWN,))}
    told.drain(False)
    told.turn(2)
    assert told.routes == before


def test_rfc8326_who_was_emptied_before_a_failure_promoted_it_is_preferred_to_who_returns_from_that() -> None:
    """Both cores by what they say themselves."""
    emptied = made(found := {0: post(PASSIVE), 1: post(PASSIVE)})
    emptied.drain(True)
    emptied.turn(0)
    assert {route.communities for route in emptied.routes} == {(GRACEFUL_SHUTDOWN,)}
    found.update({0: post(ACTIVE, 2), 1: post(ACTIVE, 2)})  # whoever had them is dead
    emptied.turn(1)
    for role, marked in ((SYNCING, (GRACEFUL_SHUTDOWN,)), (PASSIVE, ())):
        back = made({0: post(role, 2), 1: post(role, 2)})
        back.turn(0)
        assert [(mine.prefix, mine.communities) for mine in emptied.routes] == [(his.prefix, ()) for his in back.routes]
        assert {his.communities for his in back.routes} == {marked}
        assert all((mine.med or 0) < (his.med or 0) for mine, his in zip(emptied.routes, back.routes, strict=True))


def test_every_worker_is_told_once_that_its_routes_are_to_be_marked(tmp_path: Path) -> None:
    staff = Staff()
    herald = Herald(str(tmp_path / "bgp"), 60, cast(Crew, staff), lambda line: None)
    marks = [{"do": "drain", "on": True}]
    for each, worker in ((True, 100), (True, 101), (False, 101)):
        herald.draining, before = each, len(staff.told)
        if worker != staff.pid:
            staff.pid = worker
            herald.hurry()
        for now in range(0, 400, 50):
            herald.turn(now)
        assert staff.told[before:] == (marks if each else [{"do": "drain", "on": False}])


def test_a_change_of_role_is_said_in_the_same_turn() -> None:
    posts = {0: post(ACTIVE), 1: post(PASSIVE)}
    told, far = made(posts), Far()
    told.attach(far.descriptor, 0)
    told.turn(0)
    assert far.routes() == {
        "10.255.0.0/32": 100, "10.255.0.1/32": 200, "203.0.113.0/28": 100, "203.0.113.16/28": 200, "203.0.113.32/28": 100,
    }  # fmt: skip
    posts[1] = post(ACTIVE, 2)
    told.turn(1)
    assert (far.routes() or {})["203.0.113.16/28"] == 50
    posts[1] = post(ACTIVE, 2)._replace(since=99)  # nothing that routes are made of
    told.turn(2)
    assert far.routes() is None


def test_a_worker_in_living_memory_says_nothing_before_it_knows_what_it_is() -> None:
    """Meanwhile the speaker goes on with what the worker before it said, or has withdrawn it."""
    posts = {0: post(JOINING, backup="s2/0"), 1: post(PASSIVE)}
    told, far = made(posts), Far()
    told.attach(far.descriptor, 0)
    turn(told, 0, 100)
    assert far.routes() is None and far.beats
    posts[0] = post(ACTIVE)
    told.turn(100)
    assert len(far.routes() or {}) == 5
    posts[0] = post(JOINING)
    told.turn(101)
    assert len(far.routes() or {}) == 2, "later it is silent about it"


def test_it_does_not_keep_the_speaker_waiting_for_ever() -> None:
    told, far = made({0: post(JOINING), 1: post(PASSIVE)}), Far()
    told.attach(far.descriptor, 0)
    turn(told, 0, announcer.SETTLES + 1)
    assert far.routes() == {"10.255.0.1/32": 200, "203.0.113.16/28": 200}


def test_a_cold_core_is_silent_at_once() -> None:
    told, far = made({0: post(JOINING, cold=True), 1: post(JOINING, cold=True)}), Far()
    told.attach(far.descriptor, 0)
    told.turn(0)
    assert far.routes() == {}


def test_a_lost_connection_is_told_once_and_everything_said_anew_on_the_next() -> None:
    told, far = made(None), Far()
    told.attach(far.descriptor, 0)
    assert told.turn(0)
    far.stream.close()
    assert not told.turn(announcer.BEAT + 1)
    assert turn(told, 30, 100) and not told.attached
    again = Far()
    told.attach(again.descriptor, 0)
    told.turn(101)
    assert len(again.routes() or {}) == 5


def test_who_is_cut_off_says_nothing_until_he_is_not() -> None:
    told, far = made(None), Far()
    told.attach(far.descriptor, 0)
    told.turn(0)
    before = far.routes()
    told.sever("internal")
    turn(told, 0, 5)
    assert before and far.routes() == {}
    told.sever("")
    turn(told, 5, 10)
    assert far.routes() == before


def test_why_a_speaker_refuses_is_remembered_until_the_next_connection() -> None:
    told, far = made(None), Far()
    told.attach(far.descriptor, 0)
    told.turn(0)
    far.stream.send(json.dumps({"refused": "it is in nobody's plan"}).encode())
    far.stream.close()
    assert not turn(told, 1, 2 + announcer.BEAT)
    assert told.refusal == "it is in nobody's plan" and not told.attached
    told.attach(Far().descriptor, 0)
    assert told.refusal == ""


def test_acknowledgements_are_remembered() -> None:
    told, far = made(None), Far()
    told.attach(far.descriptor, 0)
    told.turn(0)
    far.stream.send(b'{"done": 1}')
    told.turn(announcer.BEAT)
    assert told.acknowledged == 1


def test_a_speaker_that_does_not_read_costs_no_packet_and_gets_all_later() -> None:
    posts = {0: post(ACTIVE), 1: post(PASSIVE)}
    told, far = made(posts), Far()
    told.attach(far.descriptor, 0)
    for now in range(4000):
        posts[1] = post(ACTIVE if now % 2 else PASSIVE, 2)
        assert told.turn(now)
    last: dict[str, int] = {}
    for now in range(4000, 9000):
        last = far.routes() or last
        told.turn(now)
        if not told.waiting:
            break
    last = far.routes() or last
    assert last["203.0.113.16/28"] == 50


def test_bad_health_is_told_and_makes_every_route_worse() -> None:
    facts = [Facts()]
    told, far = made(None, facts), Far()
    told.attach(far.descriptor, 0)
    turn(told, 0, 300)
    assert set((far.routes() or {}).values()) == {100}
    facts.append(FULL)
    turn(told, 300, 2000)
    heard = far.hear()
    assert {"alarms": ["the table of sessions is 100% full"]} in heard
    (routes,) = [each["routes"] for each in heard if "routes" in each]
    assert {med for _, _, med, *_ in routes} == {251}


def test_leaving_withdraws_everything_and_lingers_no_more() -> None:
    told, far = made(None), Far()
    told.attach(far.descriptor, 60)
    told.turn(0)
    far.hear()
    told.leave()
    told.turn(1)
    assert {"linger": 0} in (heard := far.hear())
    assert {"routes": [], "n": 2, "more": False} in heard
    assert FAREWELL > announcer.BEAT


def test_a_new_map_changes_who_is_primary() -> None:
    told, far = made({0: post(ACTIVE, 2), 1: post(PASSIVE, 2)}), Far()
    told.attach(far.descriptor, 0)
    told.turn(0)
    assert (far.routes() or {})["203.0.113.0/28"] == 50
    orders = speaking.orders(core(), None)
    assert orders
    told.replace([[shard, *made_of[:2], 2, True] for shard, *made_of in orders["shards"]])
    told.turn(1)
    assert (far.routes() or {})["203.0.113.0/28"] == 100


# --- facts ------------------------------------------------------------------------------------------------------------------


class Room:
    """Memory and rings as far as an examiner looks at them."""

    def __init__(self) -> None:
        self.counters = np.zeros((128, 1), np.uint64)
        self.core = np.zeros(1, [("index_entries", "u4")])
        self.ports = np.zeros(3, PORT)
        self.ports["side"] = INTERNAL, EXTERNAL, EXTERNAL
        self.state = SimpleNamespace(counters=self.counters, core=self.core, tags=np.zeros((100, 8)), ports=self.ports)
        self.words = np.zeros(2, np.uint32)  # producer, consumer
        queues, rx = np.zeros(1, [("kind", "i8")]), np.array([(0, 1)], [("producer", "i8"), ("consumer", "i8")])
        queues["kind"] = XDP
        rings = SimpleNamespace(queues=queues, rx=rx, words=self.words)
        self.examine = Examiner(cast(Any, self.state), cast(Any, rings))


def test_a_side_is_cut_off_when_its_last_leg_is() -> None:
    room = Room()
    assert room.examine.cut() == ""
    room.ports["carrier_lost"][1] = 1
    room.ports["peer_lost"][:] = 1  # a switch's daemon may be away everywhere at once
    assert room.examine.cut() == ""
    room.ports["carrier_lost"][2] = 1
    assert room.examine.cut() == "external"
    room.ports["carrier_lost"][1:], room.ports["carrier_lost"][0] = 0, 1
    assert room.examine.cut() == "internal"


def test_how_full_the_table_is_and_what_is_refused_a_second() -> None:
    room = Room()
    room.examine(1000)
    room.core["index_entries"] = 600
    room.counters[TABLE_FULL] += np.uint64(50)
    room.counters[POOL_EXHAUSTED] += np.uint64(10)
    assert room.examine(1500)[3:] == (0.75, 100, 20)
    assert room.examine(2000)[3:] == (0.75, 0, 0)


def test_the_longest_time_between_two_turns() -> None:
    room = Room()
    for now in (0, 1, 400, 401):
        room.examine.turned(now)
    assert room.examine(401).stall_ms == 399
    room.examine.turned(402)
    assert room.examine(402).stall_ms == 1


def test_stalls_are_counted_for_half_a_minute_and_one_changes_no_route() -> None:
    room, now = Room(), 0
    orders = json.loads(json.dumps(speaking.orders(core(), None)))
    told = Announcer(orders, None, room.examine)
    found = []
    for stall in (1, 700, 700, 499, 700):
        begun = now + stall
        for now in range(begun, begun + 5000, 20):
            room.examine.turned(now)
            told.turn(now)
        found.append((len(told.health.alarms), {route.med for route in told.routes}))
    assert found == [(0, {100}), (1, {100}), (1, {100}), (1, {100}), (2, {251})]
    assert room.examine(now + 30_000).stalls == 0


def test_a_ring_is_stuck_when_frames_wait_and_none_is_taken() -> None:
    room = Room()
    assert room.examine(0).rx_stuck_ms == 0
    room.words[0] = 5
    assert room.examine(200).rx_stuck_ms == 0, "they may just have come"
    assert room.examine(400).rx_stuck_ms == 200
    room.words[1] = 3
    assert room.examine(600).rx_stuck_ms == 0
    room.words[1] = 5
    assert room.examine(800).rx_stuck_ms == 0
    room.words[0] = 6
    assert room.examine(1000).rx_stuck_ms == 0


# --- the supervisor's part ---------------------------------------------------------------------------------------------------


class Staff:
    """A crew, as far as a herald looks at it."""

    def __init__(self) -> None:
        self.ready_at, self.pid, self.ready, self.replacing = 1, 100, False, False
        self.told: list[dict[str, Any]] = []
        self.given: list[int] = []

    def spare(self) -> str:
        """Of the spare."""
        return "ready" if self.ready else "starting"

    def send(self, message: dict[str, Any], descriptors: Any = ()) -> bool:
        """To the worker, which has its own copy of what it is given."""
        self.told.append(message)
        self.given += map(os.dup, descriptors)
        return True


def listener(path: Path) -> socket.socket:
    """A speaker's socket."""
    path.unlink(missing_ok=True)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream.bind(str(path))
    stream.listen(4)
    stream.settimeout(2)
    return stream


def test_a_herald_connects_when_there_is_somebody_and_keeps_no_copy(tmp_path: Path) -> None:
    staff, said = Staff(), list[str]()
    herald = Herald(str(tmp_path / "bgp"), 60, cast(Crew, staff), said.append)
    for now in range(0, 1000, 50):
        herald.turn(now)
    assert len(said) == 1 and "nothing is announced" in said[0] and not staff.told
    with listener(tmp_path / "bgp") as speaker:
        herald.turn(1000)
        near, _ = speaker.accept()
        assert staff.told == [{"do": "speaker", "linger": 0}]
        os.close(staff.given.pop())
        near.settimeout(2)
        assert near.recv(10) == b"", "the worker's copy was the last one"
        near.close()


def test_a_herald_tells_how_long_to_linger_when_a_spare_is_ready(tmp_path: Path) -> None:
    staff = Staff()
    herald = Herald(str(tmp_path / "bgp"), 60, cast(Crew, staff), lambda line: None)
    with listener(tmp_path / "bgp"):
        herald.turn(0)
        staff.ready = True
        herald.turn(1)
        herald.turn(2)
        staff.ready = False
        herald.turn(3)
    assert staff.told == [{"do": "speaker", "linger": 0}, {"do": "linger", "ms": 60}, {"do": "linger", "ms": 0}]
    assert len(staff.given) == 1
    os.close(staff.given[0])


def test_a_worker_that_is_being_replaced_is_told_to_linger_with_a_spare_and_without(tmp_path: Path) -> None:
    for ready, told in ((True, [60, 0]), (False, [0, 60, 0])):
        staff = Staff()
        herald = Herald(str(tmp_path / "bgp"), 60, cast(Crew, staff), lambda line: None)
        with listener(tmp_path / "bgp"):
            staff.ready = ready
            herald.turn(0)
            staff.ready, staff.replacing = False, True  # the spare was dismissed: it is of the code before
            herald.turn(1)
            staff.replacing = False  # it came to nothing
            herald.turn(2)
        assert [each.get("linger", each.get("ms")) for each in staff.told] == told
        os.close(staff.given[0])


def test_a_herald_that_is_refused_says_why_once_and_waits_for_longer(tmp_path: Path) -> None:
    staff, lines = Staff(), list[str]()
    herald = Herald(str(tmp_path / "bgp"), 0, cast(Crew, staff), lines.append)
    with listener(tmp_path / "bgp"):
        for now in (0, REFUSED_EACH, 2 * REFUSED_EACH):
            herald.turn(now)
            herald.turn(now + TRY_EACH)
            herald.lost("it is in nobody's plan")
    assert len(staff.told) == 3 and sum("nobody's plan" in line for line in lines) == 1
    for descriptor in staff.given:
        os.close(descriptor)


def test_a_herald_connects_anew_for_another_worker_and_after_a_loss(tmp_path: Path) -> None:
    staff = Staff()
    herald = Herald(str(tmp_path / "bgp"), 0, cast(Crew, staff), lambda line: None)
    with listener(tmp_path / "bgp"):
        herald.turn(0)
        herald.turn(1000)
        assert len(staff.told) == 1
        herald.lost("")
        assert herald.due(250) == TRY_EACH
        herald.turn(1000 + TRY_EACH)
        assert len(staff.told) == 2
        staff.pid = 101
        herald.hurry()
        herald.turn(1000 + TRY_EACH + 1)
        assert len(staff.told) == 3
    for descriptor in staff.given:
        os.close(descriptor)


def test_a_worker_of_a_killed_run_that_has_no_connection_gets_one(tmp_path: Path) -> None:
    for attached, told in ((True, ["linger"]), (False, ["speaker"])):
        staff = Staff()
        herald = Herald(str(tmp_path / "bgp"), 60, cast(Crew, staff), lambda line: None)
        with listener(tmp_path / "bgp"):
            herald.resume(draining=True, attached=attached)
            herald.turn(TRY_EACH)
        assert [each["do"] for each in staff.told] == told and herald.draining
        for descriptor in staff.given:
            os.close(descriptor)


def test_an_address_that_returns_waits_for_a_speaker_that_is_new_too() -> None:
    opened: list[frozenset[int]] = []
    seen = Seen(frozenset(), frozenset({3}))
    told, far = made(None), Far()
    told._drained = cast(Any, SimpleNamespace(look=lambda: seen, open=lambda rows: opened.append(rows)))
    told._seen = seen
    told.attach(far.descriptor, 0)
    turn(told, 1, 10)
    far.stream.send(b'{"done": 1}')
    turn(told, 10, 100)
    other = Far()
    told.attach(other.descriptor, 0)  # the speaker was killed meanwhile, and this one has heard of no route
    turn(told, 100, 2 * announcer.LOOK_EACH)
    assert other.routes() and not opened
    other.stream.send(b'{"done": 1}')
    turn(told, 2 * announcer.LOOK_EACH, 4 * announcer.LOOK_EACH)
    assert opened and set(opened) == {frozenset({3})}


def test_a_fault_in_announcing_is_told_once_and_ends_the_connection_only(capsys: pytest.CaptureFixture[str]) -> None:
    from krononat.worker import Worker  # late: it decides whether compiled code is loaded (see shards.jit)

    worker, detached = object.__new__(Worker), list[bool]()
    worker._faults, worker._lost = 0, False
    worker._examiner = cast(Any, SimpleNamespace(turned=lambda now: 1 // 0))
    told = cast(Any, SimpleNamespace(detach=lambda: detached.append(True)))
    worker._guarded(told, 0)
    worker._guarded(told, 1)
    assert (worker._faults, worker._lost, len(detached)) == (2, True, 2)
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1


def test_a_fault_in_announcing_ends_nothing_where_nobody_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from krononat.worker import Worker

    worker = object.__new__(Worker)
    worker._faults, worker._lost = 0, False
    worker._examiner = cast(Any, SimpleNamespace(turned=lambda now: 1 // 0))
    nobody, ours = os.pipe()
    os.close(nobody)
    with open(ours, "w", buffering=1) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        worker._guarded(cast(Any, SimpleNamespace(detach=lambda: None)), 0)
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    assert (worker._faults, worker._lost) == (1, True)
