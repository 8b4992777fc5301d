"""Routes as a pure function; and a model of BGP's decision, which prefers the better role, whoever hears them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from ipaddress import ip_address, ip_network
from itertools import combinations
from typing import NamedTuple, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import announcements
from routing.announcements import SITUATIONS, Policy, Preference, Role, Route, Standing, routes

PREFERENCES: tuple[Preference, ...] = ("med", "prepend", "community", "longest-prefix")
LOCAL_AS, AS_A, AS_B = 65010, 65000, 65001
EXTERNAL, UNSPLIT, IPV6 = "203.0.113.0/28", "203.0.113.16/31", "2001:db8:5::/48"


def policy(preference: Preference, **more: object) -> Policy:
    """A policy with addresses of shards."""
    return Policy(LOCAL_AS, preference, shard_addresses="10.255.0.0/22", shard_addresses6="fd00:255::/112")._replace(**more)  # type: ignore[arg-type]


def standing(role: Role, fit: bool = True, shard: int = 3) -> Standing:
    """A standing of a shard with all kinds of prefixes."""
    return Standing(shard, role, 7, (EXTERNAL, UNSPLIT), (IPV6,), fit)


# --- the obvious model: RFC 4271 9.1, as far as it matters here ------------------------------------------------------------


class Heard(NamedTuple):
    """A route as a switch has it: whose it is, and over which path it came."""

    core: str
    prefix: str
    path: tuple[int, ...]
    med: int
    communities: tuple[str, ...]


def heard(core: str, told: Iterable[Route], over: tuple[int, ...] = ()) -> list[Heard]:
    """What a switch hears; over other ASes (RFC 4271 5.1.4) without the MED."""
    return [
        Heard(
            core, each.prefix, (*over, *[LOCAL_AS] * (1 + each.prepend)), 0 if over else each.med or 0,
            tuple(each.communities),
        )
        for each in told
    ]  # fmt: skip


def local_pref(route: Heard, mapped: bool) -> int:
    """By a switch's policy: communities of ours mapped to it; RFC 8326: graceful shutdown is 0."""
    if announcements.GRACEFUL_SHUTDOWN in route.communities:
        return 0
    own = [int(text.partition(":")[2]) for text in route.communities if mapped and text.startswith(f"{LOCAL_AS}:")]
    return 1000 - own[0] if own else 100


def chosen(table: Iterable[Heard], address: str, mapped: bool = False) -> set[str]:
    """Cores to which a switch may send a packet: longest prefix, LOCAL_PREF, path length, MED within one neighbouring AS."""
    found = [route for route in table if ip_address(address) in ip_network(route.prefix)]
    steps: tuple[Callable[[Heard], int], ...] = (
        lambda route: -ip_network(route.prefix).prefixlen,
        lambda route: -local_pref(route, mapped),
        lambda route: len(route.path),
    )
    for better in steps:
        best = min(map(better, found), default=0)
        found = [route for route in found if better(route) == best]
    least = {route.path[0]: min(other.med for other in found if other.path[0] == route.path[0]) for route in found}
    return {route.core for route in found if route.med == least[route.path[0]]}


def targets(preference: Preference) -> list[str]:
    """An address of every route of the standing."""
    inside = [announcements.shard_address(text, 3, preference) for text in ("10.255.0.0/22", "fd00:255::/112")]
    return ["203.0.113.0", "203.0.113.15", "203.0.113.17", "2001:db8:5::1", "2001:db8:5:ffff::1", *inside]


RANKED: tuple[Role, ...] = ("promoted", "primary", "backup")


class Core(NamedTuple):
    """What there is to know of a core: its role, whether it is fit, whether it is being emptied."""

    role: Role
    fit: bool = True
    draining: bool = False


# Best first. An authority that is emptied is behind one that is not, and before every copy; a copy there behind anything else
# that is complete, unfit or not.
CORES = [
    *(Core(role) for role in ("promoted", "primary")), *(Core(role, draining=True) for role in ("promoted", "primary")),
    Core("backup"), *(Core(role, fit=False) for role in RANKED),
    *(Core("backup", fit, draining=True) for fit in (True, False)), Core("rejoining"),
]  # fmt: skip
BETTER = list(combinations(CORES, 2))


@cache
def told_by(core: Core, preference: Preference) -> tuple[Route, ...]:
    """What a core says of the standing's shard."""
    return routes([standing(core.role, core.fit)], policy(preference, draining=core.draining))


@pytest.mark.parametrize("preference", PREFERENCES)
def test_the_better_role_has_the_packets_on_one_switch(preference: Preference) -> None:
    assert len(BETTER) == 55
    for better, worse in BETTER:
        table = heard("good", told_by(better, preference)) + heard("bad", told_by(worse, preference))
        for address in targets(preference):
            assert chosen(table, address, preference == "community") == {"good"}, (better, worse, address)


@pytest.mark.parametrize("preference", ["prepend", "longest-prefix"])
def test_a_switch_in_another_as_that_lost_the_better_core_sends_to_it_over_its_neighbour(preference: Preference) -> None:
    """Switch B hears the worse core itself, and the better one from switch A only: with a longer path, without its MED."""
    for better, worse in BETTER:
        table = heard("good", told_by(better, preference), over=(AS_A,)) + heard("bad", told_by(worse, preference))
        for address in targets(preference):
            assert chosen(table, address) == {"good"}, (better, worse, address)


def test_med_alone_fails_there_which_is_why_there_are_other_ways() -> None:
    told = policy("med")
    table = heard("good", routes([standing("primary")], told), over=(AS_A,)) + heard("bad", routes([standing("backup")], told))
    assert chosen(table, "203.0.113.1") == {"bad"}


@pytest.mark.parametrize("preference", PREFERENCES)
def test_two_switches_that_hear_both_cores_agree(preference: Preference) -> None:
    """Each server is on both switches, and each switch passes on to the other what it has chosen."""
    for better, worse in BETTER:
        own = heard("good", told_by(better, preference)) + heard("bad", told_by(worse, preference))
        for other in (AS_A, AS_B):
            passed_on = heard("good", told_by(better, preference), over=(other,))
            for address in targets(preference):
                assert chosen(own + passed_on, address, preference == "community") == {"good"}, (better, worse, other)


@given(
    st.sampled_from(PREFERENCES),
    st.sampled_from(range(len(CORES))),
    st.sampled_from(range(len(CORES))),
    st.integers(0, 255),
    st.integers(16, 32),
    st.integers(29, 128),
    st.integers(1, 65535),
)
def test_whatever_the_prefixes_two_cores_never_share_a_shard(
    preference: Preference, one: int, two: int, shard: int, length: int, length6: int, local_as: int
) -> None:
    external = (str(ip_network(f"198.18.0.0/{length}", strict=False)),)
    internal6 = (str(ip_network(f"2001:db8::/{length6}", strict=False)),)
    if one == two:
        return
    table = []
    for number in (one, two):
        core = CORES[number]
        each = Standing(shard, core.role, 1, external, internal6, core.fit)
        table += heard(str(number), routes([each], policy(preference, draining=core.draining)))
    for address in (external[0].partition("/")[0], internal6[0].partition("/")[0]):
        assert chosen(table, address, preference == "community") == {str(min(one, two))}


# --- one by one -----------------------------------------------------------------------------------------------------------


def by_prefix(told: Iterable[Route]) -> dict[str, Route]:
    """Routes by their prefix; each stands there once."""
    listed = list(told)
    found = {route.prefix: route for route in listed}
    assert len(found) == len(listed)
    return found


def test_external_prefixes_go_outside_and_the_shard_address_inside() -> None:
    found = by_prefix(routes([standing("primary")], policy("med")))
    assert {prefix: route.domain for prefix, route in found.items()} == {
        EXTERNAL: "outside", UNSPLIT: "outside", IPV6: "outside", "10.255.0.3/32": "inside", "fd00:255::3/128": "inside",
    }  # fmt: skip
    assert {route.med for route in found.values()} == {100}
    assert {route.large_communities for route in found.values()} == {("65010:3:7",)}
    assert all(not route.prepend and not route.communities for route in found.values())


def test_meds_by_role() -> None:
    told = [each.med for core in CORES for each in told_by(core, "med")[:1]]
    assert told == [50, 100, 150, 151, 200, 250, 251, 252, 200, 252, 300]
    assert routes([standing("silent")], policy("med")) == ()


def test_longest_prefix_splits_what_it_can() -> None:
    told = policy("longest-prefix")
    of = {role: by_prefix(routes([standing(role)], told)) for role in RANKED}
    assert EXTERNAL in of["backup"] and {"203.0.113.0/29", "203.0.113.8/29"} <= of["primary"].keys()
    assert {f"203.0.113.{at}/30" for at in (0, 4, 8, 12)} <= of["promoted"].keys()
    assert "10.255.0.12/30" in of["backup"] and "10.255.0.14/31" in of["primary"] and "10.255.0.12/32" in of["promoted"]
    assert of["backup"][UNSPLIT].prepend == 8 and of["primary"][UNSPLIT].prepend == 2 and of["promoted"][UNSPLIT].prepend == 0
    assert of["primary"][UNSPLIT].communities == ("65010:100",)
    assert "2001:db8:5::/50" in of["promoted"]


def test_unfit_is_worse_than_any_backup_or_says_nothing() -> None:
    unfit = routes([standing("primary", fit=False)], policy("med"))
    assert {route.med for route in unfit} == {251}
    assert routes([standing("primary", fit=False)], policy("med", withdraw_unfit=True)) == ()
    assert routes([standing("primary")], policy("med", withdraw_unfit=True)) != ()


def test_rfc8326_a_core_that_is_emptied_marks_its_copies_and_its_aggregates() -> None:
    told = routes(
        [standing("backup")], policy("community", draining=True, communities=("65010:1",), aggregates=("203.0.112.0/20",))
    )
    assert all(announcements.GRACEFUL_SHUTDOWN in route.communities for route in told)
    assert by_prefix(told)[EXTERNAL].communities == ("65010:1", "65010:200", "65535:0")
    for owner in (standing("primary"), standing("primary", fit=False)):
        others = heard("other", routes([owner], policy("community")))
        assert chosen(heard("emptied", told) + others, "203.0.113.1", mapped=True) == {"other"}


@pytest.mark.parametrize("preference", PREFERENCES)
@pytest.mark.parametrize("role", ["promoted", "primary"])
def test_rfc8326_who_was_emptied_and_then_promoted_keeps_the_packets_from_who_comes_back(
    preference: Preference, role: Role
) -> None:
    """Its mark outlives the move; a failure makes it the only one that has the shard, and the other returns with nothing."""
    emptied = told_by(Core(role, draining=True), preference)
    assert emptied and all(announcements.GRACEFUL_SHUTDOWN not in route.communities for route in emptied)
    for less in (Core("rejoining"), Core("backup"), Core("rejoining", draining=True)):
        table = heard("emptied", emptied) + heard("back", told_by(less, preference))
        assert [chosen(table, each, preference == "community") for each in targets(preference)] == [{"emptied"}] * 7
    for healthy in (Core("promoted"), Core("primary")):
        table = heard("emptied", emptied) + heard("healthy", told_by(healthy, preference))
        assert [chosen(table, each, preference == "community") for each in targets(preference)] == [{"healthy"}] * 7
    unfit = [told_by(Core(role, False, draining), preference) for draining in (False, True)]
    assert unfit[0] == unfit[1], "in bad health it is behind every healthy copy, emptied or not"


@pytest.mark.parametrize("preference", PREFERENCES)
def test_another_rooms_aggregates_are_the_second_line(preference: Preference) -> None:
    """Whoever of room A lives, at whatever rank, has its shard's packets; when all are gone, room B has them."""
    told = policy(preference, aggregates=("203.0.112.0/20", "10.255.0.0/16", "2001:db8::/32"))
    second = heard("B", routes([], told))
    assert {route.prefix for route in routes([], told) if route.domain == "inside"} == {"10.255.0.0/16"}
    addresses = ["203.0.113.1", announcements.shard_address("10.255.0.0/22", 3, preference), "2001:db8:5::1"]
    for role in (*RANKED, "rejoining"):
        first = heard("A", routes([standing(role, fit=False)], policy(preference)))
        assert [chosen(first + second, address) for address in addresses] == [{"A"}] * 3
    assert [chosen(second, address) for address in addresses] == [{"B"}] * 3


def test_a_network_has_room_for_so_many_shards_and_no_more() -> None:
    assert announcements.shards_in("10.255.0.0/22", "med") == 1024
    assert announcements.shards_in("10.255.0.0/22", "longest-prefix") == 256
    assert announcements.shard_address("10.255.0.0/22", 255, "longest-prefix") == "10.255.3.252"
    with pytest.raises(ValueError, match="no address for shard 256"):
        announcements.shard_address("10.255.0.0/22", 256, "longest-prefix")


def test_situations_are_made_of_roles_and_change_what_is_told() -> None:
    configured = [standing("primary"), standing("backup", shard=4)._replace(external=("203.0.113.32/28",), internal6=())]
    told = {each.name: announcements.in_situation(each, configured, policy("med")) for each in SITUATIONS}
    assert {word for each in SITUATIONS for word in (each.primary, each.backup)} <= set(get_args(Role))
    assert told["configured"] == routes(configured, policy("med"))
    assert told["drained"] == ()
    dead = by_prefix(told["partner-dead"])
    assert dead[EXTERNAL].med == 100 and dead["203.0.113.32/28"].med == 50
    assert dead["203.0.113.32/28"].large_communities == ("65010:4:8",)
    assert {route.med for route in told["returned"]} == {300}
    assert {route.med for route in told["unfit"]} == {251, 252}
    assert by_prefix(told["swapped"])[EXTERNAL].med == 200
    assert {route.med for route in told["draining"]} == {151, 200} and {route.med for route in told["called-back"]} == {150}
