"""No turn of the table of grants is long: what is much is done in some turns, and who asks meanwhile is answered right."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from krononat import pcp, pcp_index, pcp_table
from krononat.pcp import UDP
from shards import grants
from tests.grant_server import DAY_S, HOST, OTHER, PLAIN, Server, hand_over, reached, server, twin_servers
from tests.model_pcp import Told, pmp_request


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn does two of everything."""
    for name in ("WORK_AT_ONCE", "ENDED_AT_ONCE", "LOADED_AT_ONCE", "KNOWN_AT_ONCE", "LOOKED_AT_ONCE"):
        monkeypatch.setattr(pcp_table, name, 2)


def rows(given: Server) -> list[int]:
    """Who asked for what each row is about; 0: the row is free."""
    told: list[int] = given.state.grants["origin"].tolist()
    return told


def changes(given: Server, act: Callable[[], object]) -> int:
    """How many rows are others after it."""
    before = rows(given)
    act()
    return sum(was != now for was, now in zip(before, rows(given), strict=True))


def six(given: Server, **more: Any) -> list[Told]:
    """Mappings that a host asks for."""
    return [given.map(5000 + number, **more) for number in range(6)]


@pytest.mark.usefixtures("slow")
def test_what_is_due_at_once_is_ended_in_some_turns() -> None:
    given = server()
    six(given, lifetime_s=120)
    given.now += 121_000
    assert [changes(given, lambda: given.table.turn(given.now)) for _ in range(4)] == [2, 2, 2, 0]
    assert given.listed() == []


@pytest.mark.usefixtures("slow")
def test_rfc6887_sec8_5_a_shard_that_others_had_is_forgotten_at_once_and_freed_in_some_turns() -> None:
    """No nonce of before is asked for from then on, and no lifetime is over that was told before."""
    given = server()
    told = six(given, lifetime_s=120)
    given.state.shards[0]["epoch"] += 1
    given.table.begin(given.now)
    assert rows(given).count(1) == 6 and len(given.table) == 0
    again = given.map(5003, nonce=bytes(12))
    assert (again.result, again.external_port) == (pcp.SUCCESS, told[3].external_port)
    turns = [changes(given, lambda: given.table.turn(given.now)) for _ in range(40)]
    assert max(turns) == 2 and turns[-1] == 0
    assert sorted(filter(None, rows(given))) == [1, *5 * [3]] and len(given.table) == 6
    given.pass_time(121)
    assert len(given.listed()) == 6


@pytest.mark.usefixtures("slow")
def test_a_table_that_is_full_is_adopted_whole_though_its_rows_are_yet_to_be_freed() -> None:
    given = server(each=99)
    told = [given.map(5000 + number) for number in range(32)]
    given.state.shards[0]["epoch"] += 1
    given.table.begin(given.now)
    assert given.map(5031).external_port == told[31].external_port
    for _ in range(60):
        given.table.turn(given.now)
    assert [told[1:3] for told in given.listed()] == [*((5000 + number, "adopted") for number in range(31)), (5031, "pcp")]
    assert given.map(6000).result == pcp.NO_RESOURCES


@pytest.mark.usefixtures("slow")
def test_what_was_granted_elsewhere_lives_on_where_all_rows_are_taken() -> None:
    """A core with two rows: what is reached stays reached, who asks is told to come later, and a row that is free is used."""
    twins, one = twin_servers()
    told = six(one)
    twins.settle(one.now)
    twins.other.state = twins.other.state._replace(grants=twins.other.state.grants[:3])
    hand_over(twins, one.now)
    other = Server(twins.other, now=one.now)
    for kept in (6, 5, 4):
        for _ in range(4):
            other.turns()
        known = [port for _, port, _, left_s in other.listed() if left_s is not None]
        others = [port for _, port, _, left_s in other.listed() if left_s is None]
        assert (len(known), len(others)) == (2, kept - 2)
        assert {port for _, port, origin, _ in other.listed() if origin == "adopted"} == {*known, *others}
        assert all(reached(other, told[port - 5000]) == f"{HOST}:{port}" for port in (*known, *others))
        assert [other.map(others[0], lifetime_s=left_s).result for left_s in (3600, 0)] == 2 * [pcp.NO_RESOURCES]
        assert other.ask(pmp_request(1, others[0]))[3] == 4  # out of resources (RFC 6886 3.5)
        assert other.map(known[0], lifetime_s=0).result == pcp.SUCCESS


@pytest.mark.usefixtures("slow")
def test_what_was_granted_elsewhere_is_adopted_in_some_turns_and_for_who_asks_at_once() -> None:
    twins, one = twin_servers()
    told = six(one)
    twins.settle(one.now)
    hand_over(twins, one.now)
    other = Server(twins.other, now=one.now)
    assert all(reached(other, answer) for answer in told)  # whatever is known of it
    assert other.map(5005).external_port == told[5].external_port
    turns = [changes(other, lambda: other.table.turn(other.now)) for _ in range(40)]
    assert max(turns) == 2 and sum(turns) >= 5
    assert [told[2] for told in other.listed()] == [*5 * ["adopted"], "pcp"]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("pick", [range(6), (0, 3, 4), (5,), ()])
def test_rfc6887_sec8_5_rows_of_a_worker_before_are_read_in_some_turns(pick: tuple[int, ...]) -> None:
    """Meanwhile mappings forward, and nothing is answered; after it every row is known, be it taken or free."""
    given = server(each=99)
    told = six(given)
    for number in set(range(6)) - set(pick):
        given.map(5000 + number, lifetime_s=0)
    given.table = pcp_table.GrantTable(given.state, 99, DAY_S, given.now)
    assert given.table.busy
    assert [reached(given, told[number]) for number in pick] == [f"{HOST}:{5000 + number}" for number in pick]
    turns = 0
    while not given.table.ready:
        given.table.turn(given.now)
        turns += 1
    assert turns == len(pick) // 2 + 1 and len(given.table) == len(pick)
    for number in pick:
        assert given.map(5000 + number, nonce=bytes(12)).result == pcp.NOT_AUTHORIZED
        assert given.map(5000 + number).external_port == told[number].external_port
    free = len(given.state.grants) - 1 - len(pick)
    results = [given.map(7000 + number).result for number in range(free + 1)]
    assert results == [*free * [pcp.SUCCESS], pcp.NO_RESOURCES]


def test_rows_of_an_epoch_that_is_over_are_free_for_a_successor() -> None:
    """The worker before had begun another epoch, and did not come to it."""
    given = server()
    given.map(5000)
    given.now += 10_000
    given.state.shards[0]["granting_since"] = given.now // 1000
    given.restart()
    given.turns()
    assert [told[2] for told in given.listed()] == ["adopted"] and len(given.table) == 1


@pytest.mark.usefixtures("slow")
def test_rfc6886_all_of_a_host_are_given_up_at_once_and_ended_in_some_turns() -> None:
    """What is asked for anew meanwhile is another one, and stays; what others have costs nothing."""
    given = server(each=7)
    for number in range(6):
        given.ask(pmp_request(1, 5000 + number))
    given.map(5000, source=OTHER)
    assert changes(given, lambda: given.ask(pmp_request(1, 0, 0, 0))) == 2
    (kept,) = [told[1] for told in given.listed()[:1]]
    assert given.map(kept).result == pcp.SUCCESS
    assert changes(given, lambda: given.table.turn(given.now)) == 2
    for _ in range(3):
        given.table.turn(given.now)
    assert [told[:3] for told in given.listed()] == [(HOST, kept, "pcp"), (OTHER, 5000, "pcp")]
    assert given.ask(pmp_request(2, 0, 0, 0))[3] == 0 and given.ask(pmp_request(1, 0, 0, 0))[3] == 2


def test_rfc6886_a_static_mapping_is_not_ended_with_all_others_and_that_is_told() -> None:
    given = server(f"{PLAIN}\nstatic tcp 203.0.113.0:8080 to 100.64.0.7:80")
    given.ask(pmp_request(2, 5001))
    assert given.ask(pmp_request(2, 0, 0, 0))[3] == 2 and given.ask(pmp_request(1, 0, 0, 0))[3] == 0
    assert [told[1:3] for told in given.listed()] == [(80, "static")]


@pytest.mark.usefixtures("slow")
def test_mappings_that_ended_otherwise_do_not_count_for_ever() -> None:
    """Who has enough is looked at, some of his in each request."""
    given = server(each=6)
    six(given)
    half, life = (int(given.state.grants[name][6]) for name in ("half", "generation"))
    assert grants.revoke(given.state, half, life, given.now)
    results = [given.map(6000 + number).result for number in range(3)]
    assert results == [pcp.USER_EX_QUOTA, pcp.USER_EX_QUOTA, pcp.SUCCESS]


def test_an_index_is_as_small_as_what_it_is_about() -> None:
    """Whatever is asked for and given up leaves nothing behind, but seconds that were once of interest."""
    dice, index, plain = random.Random(5), pcp_index.Index(), dict[int, tuple[pcp_index.Fact, int]]()
    for step in range(4000):
        number = dice.randrange(1, 40)
        if number in plain and dice.random() < 0.5:
            index.drop(number)
            del plain[number]
        elif number in plain:
            plain[number] = plain[number][0], dice.randrange(500)
            index.await_end(number, plain[number][1])
        else:
            fact = pcp_index.Fact(1000 + number, step, dice.randrange(3), dice.randrange(5), UDP, dice.random() < 0.5)
            plain[number] = fact, dice.randrange(500)
            index.enter(number, *plain[number])
        assert len(index) == len(plain)
        assert index.knows(1000 + number, step) == (number in plain and plain[number][0].life == step)
        assert index.count(1) == sum(fact.subscriber == 1 for fact, _ in plain.values())
        assert index.has_nonced(2, UDP) == any((fact.host, fact.nonced) == (2, True) for fact, _ in plain.values())
    due = {number for number, (_, second) in plain.items() if second <= 250}
    found = set()
    for number in index.due(250):
        if number:
            found.add(number)
            index.drop(number)
    assert found == due
    while index.take_any():
        pass
    assert len(index) == 0 and index.count(1) == 0 and not index.has_nonced(2, UDP) and not any(index.due(1000))
