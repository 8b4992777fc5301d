"""Drained addresses and the network: an empty one is withdrawn; one that returns is announced before anybody gets it."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any, cast

import pytest

from krononat import appliance, config, reload
from krononat.announcer import LOOK_EACH, Announcer, Property, standings
from krononat.drained import RETURNING, Drained
from krononat.speaking import orders
from replication.roles import Post
from routing.announcements import without
from routing.health import Facts
from shards.state import DRAINED, OPEN, PASSIVE
from tests.test_announcer import Far
from tests.test_config import RIGHT

BGP = """
[bgp]
local-as = 65010
[[bgp.peer]]
address = "192.0.2.1"
as = 65001
"""


@pytest.mark.parametrize("seed", range(20))
def test_the_rest_of_a_prefix_is_told_by_the_fewest_prefixes(seed: int) -> None:
    dice = random.Random(seed)
    whole = IPv4Network((0xCB007100, dice.randint(24, 32)))
    absent = {host for host in whole if dice.random() < 0.2}
    parts = [IPv4Network(part) for part in without([str(whole)], map(str, absent))]
    assert sorted(host for part in parts for host in part) == sorted(set(whole) - absent)
    assert parts == list(collapse_addresses([IPv4Network(host) for host in whole if host not in absent]))


def test_what_is_whole_stays_as_it_was_written() -> None:
    assert without(["203.0.113.0/31", "203.0.113.2/31", "2001:db8::/32"], ["203.0.113.3"]) == (
        "203.0.113.0/31", "203.0.113.2/32", "2001:db8::/32"
    )  # fmt: skip


def test_only_who_has_the_shard_leaves_anything_out() -> None:
    """A backup's routes would be narrower than those of the owner, and draw his packets to it."""
    place = Property(0, ("203.0.113.0/30",), (), 1, False)
    (told,) = standings([place._replace(primary=True)], None, (), True, frozenset(["203.0.113.0"]))
    assert told.external == ("203.0.113.1/32", "203.0.113.2/31")
    (told,) = standings([place], {0: Post(PASSIVE, 1, 0, 0)}, (), True, frozenset(["203.0.113.0"]))
    assert (told.role, told.external) == ("backup", ("203.0.113.0/30",))


def test_an_empty_address_is_withdrawn_and_announced_before_anybody_gets_it() -> None:
    read = config.read(RIGHT.replace("/28", "/30") + BGP)
    state = appliance.offline(read)
    closed = state.externals["closed"]
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
