"""Drained addresses and the network: an empty one is withdrawn; one that returns is announced before anybody gets it."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any, cast

import pytest

from krononat import appliance, config, drained, reload
from krononat.announcer import LOOK_EACH, Announcer, Property, standings
from krononat.drained import Drained
from krononat.speaking import orders
from replication.roles import Post
from routing.announcements import PIECES, Policy, Route, routes, without
from routing.health import Facts
from shards.membership import RETURNING
from shards.state import ACTIVE, DRAINED, OPEN, PASSIVE
from tests.test_announcer import Far
from tests.test_config import RIGHT

BGP = """
[bgp]
local-as = 65010
[[bgp.peer]]
address = "192.0.2.1"
as = 65001
"""
LAST = int(IPv4Address("203.0.113.3"))


@pytest.mark.parametrize("seed", range(20))
def test_the_rest_of_a_prefix_is_told_by_the_fewest_prefixes(seed: int) -> None:
    dice = random.Random(seed)
    whole = IPv4Network((0xCB007100, dice.randint(24, 32)))
    absent = {host for host in whole if dice.random() < 0.2}
    parts = [IPv4Network(part) for part in without([str(whole)], map(int, absent))]
    assert sorted(host for part in parts for host in part) == sorted(set(whole) - absent)
    assert parts == list(collapse_addresses([IPv4Network(host) for host in whole if host not in absent]))


def test_what_is_whole_stays_as_it_was_written() -> None:
    assert without(["203.0.113.0/31", "203.0.113.2/31", "2001:db8::/32"], [LAST]) == (
        "203.0.113.0/31", "203.0.113.2/32", "2001:db8::/32"
    )  # fmt: skip


def test_a_peer_is_not_told_more_prefixes_than_it_may_take() -> None:
    """Every other address of a /23 would be 256 of them; half of a /20, in one piece, is one."""
    whole, other, second = IPv4Network("203.0.112.0/20"), IPv4Network("198.18.0.0/23"), IPv4Network("198.18.2.0/23")
    scattered = {int(host) for host in other if int(host) % 2}
    assert without([str(other)], scattered) == (str(other),)
    assert without([str(second), str(other)], scattered) == (str(second), str(other)), "in the order of the file"
    half = set(range(int(whole[0]), int(whole[2048])))
    assert without([str(whole)], half) == ("203.0.120.0/21",)
    lengths = [len(without([str(other)], sorted(scattered)[:count])) for count in range(257)]
    assert PIECES - 8 < max(lengths) <= PIECES and lengths[-1] == 1


def test_only_who_is_alone_and_well_leaves_anything_out() -> None:
    """In a cluster a part would beat the whole of whoever has the shard meanwhile, or is to be preferred."""
    place, empty = Property(0, ("203.0.113.0/30",), (), 1, True), frozenset([LAST - 3])
    (told,) = standings([place], None, (), True, empty)
    assert told.external == ("203.0.113.1/32", "203.0.113.2/31")
    (told,) = standings([place], None, (), False, empty)
    assert told.external == place.external, "unfit"
    for primary, post in ((True, Post(ACTIVE, 1, 0, 0)), (False, Post(ACTIVE, 2, 0, 0)), (False, Post(PASSIVE, 1, 0, 0))):
        for fit in (True, False):
            (told,) = standings([place._replace(primary=primary)], {0: post}, (), fit, empty)
            assert told.external == place.external


def _most_specific(told: dict[str, list[Route]], host: str) -> str:
    """Who gets what is sent to an address: longest prefix first, then the lowest MED."""
    ways = [(-IPv4Network(each.prefix).prefixlen, each.med or 0, who) for who, all_of in told.items() for each in all_of
            if IPv4Address(host) in IPv4Network(each.prefix)]  # fmt: skip
    return min(ways)[2]


@pytest.mark.parametrize("preference", ["med", "longest-prefix"])
@pytest.mark.parametrize("what", ["unfit", "draining", "cut off"])
def test_who_is_to_be_preferred_gets_the_packets_whatever_is_drained(what: str, preference: Any) -> None:
    """The owner has an empty drained address, the backup knows of none; then the backup is, or should be, the owner."""
    place, empty = Property(0, ("203.0.113.0/24",), (), 1, True), frozenset([LAST])
    policy = Policy(65010, preference, draining=what == "draining")
    stale = standings([place], {0: Post(ACTIVE, 1, 0, 0)}, (), what != "unfit", empty)
    heir = standings([place._replace(primary=False)], {0: Post(ACTIVE, 2, 0, 0)}, (), True)
    told = {"stale": list(routes(stale, policy)), "heir": list(routes(heir, policy._replace(draining=False)))}
    assert {_most_specific(told, f"203.0.113.{host}") for host in range(256)} == {"heir"}


def test_who_is_about_to_go_announces_the_whole() -> None:
    read = config.read(RIGHT.replace("/28", "/30") + BGP)
    state = appliance.offline(read)
    reload.close(state, reload.drained(read, [IPv4Address("203.0.113.0")], False))
    said = Announcer(cast(Any, orders(read, None)), None, lambda now: Facts(), Drained(state))
    said.turn(0)
    assert [route.prefix for route in said.routes] == ["203.0.113.1/32", "203.0.113.2/31"]
    said.drain(True)
    said.turn(20)
    assert [route.prefix for route in said.routes] == ["203.0.113.0/30"]


def test_an_empty_address_is_withdrawn_and_announced_before_anybody_gets_it() -> None:
    read = config.read(RIGHT.replace("/28", "/30") + BGP)
    state = appliance.offline(read)
    closed = state.externals["closed"][:4]
    said = Announcer(cast(Any, orders(read, None)), None, lambda now: Facts(), Drained(state))
    far = Far()
    said.attach(far.descriptor, 0)

    def passes(at: int) -> list[str]:
        for now in range(at, at + LOOK_EACH, 20):
            said.turn(now)
            done = [told["n"] for told in far.hear() if "routes" in told]
            for number in done:
                far.stream.send(b'{"done": %d}' % number)
        return [route.prefix for route in said.routes]

    assert passes(0) == ["203.0.113.0/30"]
    state.chunks["used"][1, 20] = 1  # a mapping of the second address
    reload.close(state, reload.drained(read, [IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2")], False))
    assert closed.tolist() == [OPEN, DRAINED, DRAINED, OPEN]
    passes(200)
    assert passes(400) == ["203.0.113.0/31", "203.0.113.3/32"]
    state.chunks["used"][1, 20] = 0  # it has ended
    passes(600)
    assert passes(800) == ["203.0.113.0/32", "203.0.113.3/32"]
    reload.close(state, read)
    assert closed.tolist() == [OPEN, RETURNING, RETURNING, OPEN]
    assert passes(1000) == ["203.0.113.0/30"]
    assert closed.tolist() == [OPEN, RETURNING, RETURNING, OPEN], "not before the speaker has it"
    passes(1200)
    assert closed.tolist() == [OPEN] * 4


def test_who_announces_nothing_opens_at_once() -> None:
    read = config.read(RIGHT)
    state = appliance.offline(read)
    reload.close(state, reload.drained(read, [IPv4Address("203.0.113.1")], False))
    reload.close(state, read)
    assert not state.externals["closed"].any()


def test_what_was_closed_again_meanwhile_stays_closed() -> None:
    state = appliance.offline(config.read(RIGHT))
    state.externals["closed"][:3] = (RETURNING, DRAINED, RETURNING)
    Drained(state).open({0, 1})
    assert state.externals["closed"][:3].tolist() == [OPEN, DRAINED, RETURNING]


def test_a_look_at_thousands_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a /20 are 64 MB of chunks: too much for a pause between two packets."""
    monkeypatch.setattr(drained, "AT_ONCE", 32)
    state = appliance.offline(config.read(RIGHT.replace("203.0.113.0/28", "203.0.113.0/24")))
    state.externals["closed"][:256] = DRAINED
    looked, last = Drained(state), int(state.externals["address"][255])
    assert [len(looked.look().empty) for _ in range(9)] == [*range(32, 257, 32), 256]
    state.chunks["used"][255, 7] = 1
    assert [last in looked.look().empty for _ in range(9)] == [True] * 6 + [False] * 3, "when its turn comes"
    state.externals["closed"][0] = OPEN
    assert len(looked.look().empty) == 254, "at once"
