"""The speaker without its processes: the ledger, ExaBGP as text, plans from configurations, what is refused of them."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from krononat import config, speaking
from krononat.cli.bgp import bgp
from krononat.cli.speaker import speaker
from krononat.client import Trouble
from krononat.cluster import Map
from krononat.control import lock
from routing import announcements
from routing.speaker import exabgp, sessions
from routing.speaker.exabgp import News
from routing.speaker.keeper import Keeper
from routing.speaker.ledger import ORPHANED, Change, Ledger, Route, Said, route
from routing.speaker.sessions import Plan, Session, Voice, Way

DEAD_AFTER = 150


def plan(cores: int = 2, one_session: bool = False) -> Plan:
    """A server's cores with one switch; a session each, or one for all."""
    made = tuple(Session("10.1.0.1", f"10.1.0.{11 + core}", 65000, 65010) for core in range(1 if one_session else cores))
    ways = [Way(made[0 if one_session else core].name, "both", f"10.1.0.{11 + core}") for core in range(cores)]
    return Plan("/s", "/m", made, {f"s1/{core}": Voice(DEAD_AFTER, (way,)) for core, way in enumerate(ways)})


A, B = "10.1.0.11 > 10.1.0.1", "10.1.0.12 > 10.1.0.1"


def told(prefix: str, med: int = 100) -> Route:
    """A route as a core wants it said."""
    return Route(prefix, "outside", med, 0, (), ())


class Heard:
    """The far end: what a session has been told, by the changes."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.table: dict[str, dict[str, Said]] = {}

    def listen(self, now: int) -> list[Change]:
        """Take in what there is to say."""
        changes = self.ledger.changes(now)
        for change in changes:
            table = self.table.setdefault(change.session, {})
            for prefix in change.prefixes:
                if change.said:
                    table[prefix] = change.said
                else:
                    table.pop(prefix, None)
        return changes

    def prefixes(self, session: str) -> set[str]:
        """Prefixes a session has."""
        return set(self.table.get(session, {}))


def alive(ledger: Ledger, core: str, *routes: Route, now: int = 0) -> None:
    """A core comes and says what it wants."""
    ledger.hello(core, now)
    ledger.want(core, routes, 1)


def test_only_the_difference_is_said() -> None:
    ledger = Ledger(plan(), 0)
    heard = Heard(ledger)
    alive(ledger, "s1/0", told("203.0.113.0/28"), told("203.0.113.16/28"))
    first = heard.listen(0)
    assert [(change.session, change.prefixes) for change in first] == [(A, ("203.0.113.0/28", "203.0.113.16/28"))]
    assert heard.listen(1) == []
    ledger.want("s1/0", [told("203.0.113.0/28", 50), told("203.0.113.16/28")], 2)
    (change,) = heard.listen(2)
    assert change.prefixes == ("203.0.113.0/28",) and change.said and change.said.med == 50
    ledger.want("s1/0", [told("203.0.113.0/28", 50)], 3)
    assert heard.listen(3) == [Change(A, None, ("203.0.113.16/28",))]


def test_a_silent_core_is_withdrawn_and_comes_back_by_itself() -> None:
    ledger = Ledger(plan(), 0)
    heard = Heard(ledger)
    alive(ledger, "s1/0", told("203.0.113.0/28"))
    alive(ledger, "s1/1", told("203.0.113.0/28", 200))
    heard.listen(0)
    for now in range(20, 400, 20):
        ledger.beat("s1/1", now)
        ledger.tick(now)
        heard.listen(now)
        assert bool(heard.prefixes(A)) == (now <= DEAD_AFTER)
        assert heard.prefixes(B)
    ledger.beat("s1/0", 400)
    heard.listen(400)
    assert heard.prefixes(A) == {"203.0.113.0/28"}


def test_what_is_due_is_when_silence_becomes_death() -> None:
    ledger = Ledger(plan(), 0)
    assert ledger.due(0) == 1000
    alive(ledger, "s1/0", told("203.0.113.0/28"), now=5)
    assert ledger.due(100) == 5 + DEAD_AFTER + 1 - 100
    ledger.tick(5 + DEAD_AFTER)
    assert ledger.describe(200)[0]["state"] == "alive"
    ledger.tick(5 + DEAD_AFTER + 1)
    assert ledger.describe(200)[0]["state"] == "silent"


def test_a_core_that_hangs_up_is_withdrawn_at_once_or_after_it_lingered() -> None:
    ledger = Ledger(plan(), 0)
    heard = Heard(ledger)
    for core in ("s1/0", "s1/1"):
        alive(ledger, core, told("203.0.113.0/28"))
    heard.listen(0)
    ledger.hung_up("s1/0", 0, 10)
    ledger.hung_up("s1/1", 60, 10)
    heard.listen(10)
    assert (heard.prefixes(A), heard.prefixes(B)) == (set(), {"203.0.113.0/28"})
    assert ledger.due(10) == 60
    ledger.tick(69)
    heard.listen(69)
    assert heard.prefixes(B)
    ledger.tick(70)
    heard.listen(70)
    assert not heard.prefixes(B)
    ledger.hello("s1/1", 80)  # a successor says what it wants itself
    assert heard.listen(80) == []


def test_a_successor_in_time_changes_nothing() -> None:
    ledger = Ledger(plan(), 0)
    heard = Heard(ledger)
    alive(ledger, "s1/0", told("203.0.113.0/28"))
    heard.listen(0)
    ledger.hung_up("s1/0", 60, 10)
    ledger.tick(30)
    ledger.hello("s1/0", 40)
    ledger.tick(75)
    assert heard.listen(75) == []
    ledger.want("s1/0", [told("203.0.113.0/28")], 1)
    assert heard.listen(80) == []


def test_silence_and_then_the_end_leave_nothing_that_could_come_back() -> None:
    ledger = Ledger(plan(), 0)
    heard = Heard(ledger)
    alive(ledger, "s1/0", told("203.0.113.0/28"))
    heard.listen(0)
    ledger.tick(500)
    ledger.hung_up("s1/0", 60, 500)
    heard.listen(500)
    assert ledger.describe(500)[0]["state"] == "gone" and not heard.prefixes(A)


def test_what_a_dead_helper_said_is_kept_until_its_cores_had_time_to_come_back() -> None:
    before = Ledger(plan(), 0)
    alive(before, "s1/0", told("203.0.113.0/28"), told("203.0.113.16/28"))
    alive(before, "s1/1", told("203.0.113.0/28", 200))
    before.changes(0)
    ledger = Ledger(plan(), 0)
    ledger.remember(json.loads(json.dumps(before.memory())), 0)
    heard = Heard(ledger)
    assert heard.listen(0) == []
    alive(ledger, "s1/0", told("203.0.113.0/28"), now=300)
    assert [change.prefixes for change in heard.listen(300)] == [("203.0.113.0/28",)], "said again: it may never have been"
    ledger.beat("s1/0", ORPHANED)
    ledger.tick(ORPHANED)
    ends = {(change.session, change.prefixes) for change in heard.listen(ORPHANED) if change.said is None}
    assert ends == {(A, ("203.0.113.16/28",)), (B, ("203.0.113.0/28",))}


def test_what_was_refused_is_said_again_when_it_is_looked_at_anew() -> None:
    ledger = Ledger(plan(), 0)
    heard = Heard(ledger)
    alive(ledger, "s1/0", told("203.0.113.0/28"))
    (change,) = heard.listen(0)
    ledger.forget(change)
    assert heard.listen(1) == []
    ledger.touch(A)
    assert heard.listen(2) == [change]


def test_in_one_session_for_all_the_better_core_speaks_for_a_prefix() -> None:
    ledger = Ledger(plan(one_session=True), 0)
    heard = Heard(ledger)
    alive(ledger, "s1/0", told("203.0.113.0/28", 200))
    alive(ledger, "s1/1", told("203.0.113.0/28", 100))
    heard.listen(0)
    assert heard.table[A]["203.0.113.0/28"].next_hop == "10.1.0.12"
    ledger.hung_up("s1/1", 0, 10)
    heard.listen(10)
    assert heard.table[A]["203.0.113.0/28"].next_hop == "10.1.0.11"


def test_ipv6_needs_a_next_hop_of_its_own_and_domains_are_kept_apart() -> None:
    made = plan(1)
    ways = (Way(A, "inside", "self", ""),)
    ledger = Ledger(made._replace(cores={"s1/0": Voice(150, ways)}), 0)
    heard = Heard(ledger)
    inside6, outside, inside = (
        Route("2001:db8::/48", "inside", 1, 0, (), ()), told("203.0.113.0/28"), Route("10.255.0.1/32", "inside", 1, 0, (), ()),
    )  # fmt: skip
    alive(ledger, "s1/0", inside6, outside, inside)
    heard.listen(0)
    assert heard.prefixes(A) == {"10.255.0.1/32"}
    assert ledger.describe(0)[0]["untold"] == 2


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["hello", "beat", "hang up", "linger", "tick"]),
        st.sampled_from(["s1/0", "s1/1"]),
        st.sets(st.integers(0, 3)),
        st.integers(0, 200),
    ),
    max_size=40,
)


@given(EVENTS, st.booleans())
def test_the_far_end_always_has_what_living_cores_want(events: list[tuple[str, str, set[int], int]], one: bool) -> None:
    """By whatever way: after `changes`, each session has exactly the routes of cores that are alive or lingering."""
    made = plan(one_session=one)
    ledger, wanted, now = Ledger(made, 0), {"s1/0": set[str](), "s1/1": set[str]()}, 0
    heard, connected = Heard(ledger), set[str]()
    for event, core, numbers, later in events:
        now += later
        ledger.tick(now)
        if event == "hello":
            connected.add(core)
            wanted[core] = {f"203.0.113.{16 * number}/28" for number in numbers}
            alive(ledger, core, *map(told, wanted[core]), now=now)
        elif event == "beat" and core in connected:
            ledger.beat(core, now)
        elif event in ("hang up", "linger") and core in connected:
            connected.discard(core)
            ledger.hung_up(core, 60 * (event == "linger"), now)
        heard.listen(now)
        states = {row["core"]: row["state"] for row in ledger.describe(now)}
        for session in {way.session for voice in made.cores.values() for way in voice.ways}:
            cores = [name for name, voice in made.cores.items() if voice.ways[0].session == session]
            living = [name for name in cores if states[name] in ("alive", "lingering")]
            assert heard.prefixes(session) == set().union(*(wanted[name] for name in living))


@pytest.mark.parametrize(
    "nonsense",
    [
        [], ["203.0.113.0/28", "outside", 1, 0, []], ["203.0.113.0/28", "outside", "1", 0, [], []],
        [1, "outside", 1, 0, [], []],
        ["203.0.113.0/28 nlri 0.0.0.0/0", "outside", 1, 0, [], []], ["203.0.113.0/28\nshutdown", "outside", 1, 0, [], []],
        ["203.0.113.0/28", "outside", 1, 0, ["] med 0"], []],
    ],
)  # fmt: skip
def test_what_could_end_a_command_is_no_route(nonsense: list[Any]) -> None:
    with pytest.raises(ValueError, match="no route"):
        route(nonsense)


# --- ExaBGP as text ---------------------------------------------------------------------------------------------------------


def test_commands() -> None:
    session = plan().sessions[0]
    said = Said("s1/0", "self", 50, 2, ("65010:7", "65535:0"), ("65010:5:3",))
    assert exabgp.announce(session, said, ["203.0.113.0/28", "10.255.0.5/32"]) == (
        "neighbor 10.1.0.1 local-ip 10.1.0.11 announce attributes next-hop self med 50 as-path [ 65010 65010 65010 ] "
        "community [ 65010:7 65535:0 ] large-community [ 65010:5:3 ] nlri 203.0.113.0/28 10.255.0.5/32"
    )
    assert exabgp.withdraw(session, ["10.255.0.5/32"]) == (
        "neighbor 10.1.0.1 local-ip 10.1.0.11 withdraw attributes next-hop self nlri 10.255.0.5/32"
    )


def test_answers_and_news_and_everything_else() -> None:
    state = {
        "type": "state",
        "neighbor": {"address": {"local": "10.1.0.11", "peer": "10.1.0.1"}, "state": "down", "reason": "x"},
    }
    assert exabgp.read("done") is True
    assert exabgp.read("error") is False
    assert exabgp.read(json.dumps(state)) == News("10.1.0.1", "10.1.0.11", False, "x")
    for line in ("", "hello", "[]", '{"type": "update"}', "done done", "\x00"):
        assert exabgp.read(line) is None


def test_a_plan_is_read_as_it_was_written() -> None:
    assert sessions.read(sessions.write(plan(3))) == plan(3)


def test_exabgp_heeds_our_variables_and_nobody_elses(tmp_path: Any) -> None:
    keeper = Keeper(plan(), tmp_path, {"exabgp_tcp_port": "1", "EXABGP_ENVFILE": "/etc/other", "HOME": "/h"}, print)
    environment = keeper._environment
    assert environment["HOME"] == "/h" and "exabgp_tcp_port" not in environment
    assert environment["EXABGP_ENVFILE"] == str(tmp_path / "exabgp.env")
    assert environment["exabgp_api_cli"] == "false"
    assert sessions.read((tmp_path / "plan.json").read_text()) == plan()


# --- from configurations ----------------------------------------------------------------------------------------------------

CORE = """\
[server]
name = "s1"
core = {core}
[interfaces.internal]
name = "in{core}"
address = "10.1.1.{host}/24"
gateway = "10.1.1.1"
[interfaces.external]
name = "out{core}"
address = "10.2.1.{host}/24"
gateway = "10.2.1.1"
[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"
[[pool]]
name = "main"
prefixes = ["203.0.113.0/28", "203.0.113.32/28"]
[[subscribers]]
prefix = "100.64.1.0/24"
pool = "more"
[[pool]]
name = "more"
shard = 1
prefixes = ["203.0.113.16/28"]
[bgp]
local-as = 65010
shard-addresses = "10.255.0.0/22"
{more}
[[bgp.peer]]
address = "10.1.1.1"
as = 65000
[[bgp.peer]]
address = "10.2.1.1"
as = 65001
next-hop6 = "2001:db8:2::{host}"
"""


def core(number: int = 0, more: str = "") -> config.Config:
    """A core of a server with a leg in each domain."""
    return config.read(CORE.format(core=number, host=11 + number, more=more))


def test_each_leg_of_each_core_has_a_session_in_its_domain() -> None:
    made = speaking.plan([core(0), core(1)], "/m")
    assert [(session.local, session.peer, session.peer_as) for session in made.sessions] == [
        ("10.1.1.11", "10.1.1.1", 65000), ("10.2.1.11", "10.2.1.1", 65001),
        ("10.1.1.12", "10.1.1.1", 65000), ("10.2.1.12", "10.2.1.1", 65001),
    ]  # fmt: skip
    assert made.cores["s1/1"].ways == (
        Way("10.1.1.12 > 10.1.1.1", "inside", "self", ""),
        Way("10.2.1.12 > 10.2.1.1", "outside", "self", "2001:db8:2::12"),
    )
    assert made.socket == "/run/krononat/s1.bgp"


def test_one_session_per_server_names_the_cores_as_next_hops() -> None:
    made = speaking.plan([core(number, 'profile = "per-server"') for number in (0, 1)], "/m")
    assert [session.local for session in made.sessions] == ["10.1.1.11", "10.2.1.11"]
    assert [way.next_hop for voice in made.cores.values() for way in voice.ways] == ["self", "self", "10.1.1.12", "10.2.1.12"]


@pytest.mark.parametrize(
    ("cores", "why"),
    [
        ([core(0), core(0)], "two are of the same core"),
        ([core(0), core(1, 'preference = "prepend"')], "different things"),
        ([core(0), core(1, 'socket = "/tmp/other"')], "several sockets"),
        ([core(0), config.read(CORE.format(core=1, host=11, more=""))], "one address is two cores'"),
        ([core(0), config.read(CORE.format(core=1, host=12, more="").replace('"s1"', '"s2"'))], "several servers"),
    ],
)
def test_configurations_that_do_not_go_together(cores: list[config.Config], why: str) -> None:
    with pytest.raises(Trouble) as caught:
        speaking.plan(cores, "/m")
    assert why in caught.value.why


def test_a_core_without_a_cluster_has_all_its_shards() -> None:
    alone = speaking.standings(core(), None)
    assert [(each.shard, each.role, each.external) for each in alone] == [
        (0, "primary", ("203.0.113.0/28", "203.0.113.32/28")), (1, "primary", ("203.0.113.16/28",)),
    ]  # fmt: skip


def test_subscribers_of_ipv6_are_told_of_with_the_shard_of_their_pool() -> None:
    text = CORE.format(core=0, host=11, more="")
    for number, host in enumerate(("10.1.1.11/24", "10.2.1.11/24")):
        text = text.replace(f'address = "{host}"', f'address = "{host}"\naddress6 = "2001:db8:{number}::2/64"')
    text = text.replace('prefix = "100.64.1.0/24"', 'prefix = "100.64.1.0/24"\nprefix6 = "2600:c0de::/48"')
    made = speaking.properties(config.read(text))
    assert [each.internal6 for each in made.values()] == [(), ("2600:c0de::/48",)]
    assert made[0].external == ("203.0.113.0/28", "203.0.113.32/28")
    made_of = config.read(text)
    assert made_of.bgp
    told = announcements.routes(speaking.standings(made_of, None), speaking.policy(made_of.bgp))
    assert [(route.domain, route.med) for route in told if route.prefix == "2600:c0de::/48"] == [("outside", 100)]


def test_a_core_of_a_cluster_has_what_the_map_says() -> None:
    key = "x" * 40
    cores = [
        {
            "name": f"s{n}/0",
            "replication": f"10.9.0.{n}:7000",
            "shunt": f"10.9.0.{n}",
            "key": key,
            "room": "B" if n == 3 else "A",
        }
        for n in (1, 2, 3)
    ]
    shards = [{"id": 0, "primary": "s1/0", "backup": "s2/0", "epoch": 4}, {"id": 1, "primary": "s2/0", "reserve": "s3/0"}]
    told = Map.model_validate({"version": 1, "core": cores, "shard": shards})
    assert [(each.role, each.epoch) for each in speaking.standings(core(), told)] == [("primary", 4), ("silent", 1)]
    orders = json.loads(json.dumps(speaking.orders(core(), told)))
    assert orders["shards"][0] == [0, ["203.0.113.0/28", "203.0.113.32/28"], [], 4, True, ""]
    assert orders["shards"][1][3:] == [1, False, "s3/0"]


REFUSED = {
    'shard-addresses = "10.255.0.0/22"\npreference = "best"': "must be one of med, prepend, community, longest-prefix",
    'shard-addresses = "10.255.0.0/31"\npreference = "longest-prefix"': "has room for 0 shards (four addresses each)",
    'shard-addresses = "2001:db8::/64"': "is not a network of IPv4",
    'shard-addresses = "203.0.113.0/24"': "overlaps pool[0]",
    'shard-addresses = "10.1.0.0/16"': "overlaps interfaces.internal",
    'local-as = 65010\naggregates = ["0.0.0.0/0"]': "the way to everywhere",
    'local-as = 65010\naggregates = ["203.0.113.1/24"]': "is not a prefix",
    'local-as = 65010\ncommunities = ["65010:70000"]': "is not a community",
    'local-as = 70000\npreference = "community"': "16 bits each",
    "local-as = 65000": "sessions within one AS",
    "local-as = 65010\nmed = { primary = 198 }": "200 is not above primary and the two of leaving, which lie between them: 201",
    "local-as = 65010\nmed = { leaving = 199 }": "200 is not above leaving",
    "local-as = 65010\nmed = { leaving = 100 }": "100 is not above primary",
    "local-as = 65010\nmed = { primary = -1 }": "greater than or equal to 0",
    "local-as = 65010\nmed = { backup = 249, unfit = 250, rejoining = 252 }": "252 is not above unfit",
    'local-as = 65010\nsocket = "speaker"': "not an absolute path",
    'local-as = 65010\nsocket = "/run/a b;c"': "has ' ' ';' in it, which ExaBGP's configuration cannot name",
    'local-as = 65010\nsocket = "/run/ä"': "has 'ä' in it",
    "local-as = 65010\nhold-time-s = 2": "greater than or equal to 3",
}


@pytest.mark.parametrize(
    ("said", "leaving"),
    [
        ("", 150), ("primary = 150", 175), ("primary = 197", 198), ("backup = 151", 125), ("backup = 103", 101),
        ("primary = 110, backup = 120, leaving = 112", 112),
    ],
)  # fmt: skip
def test_a_file_that_is_older_than_leaving_has_it_between_primary_and_backup(said: str, leaving: int) -> None:
    text = CORE.format(core=0, host=11, more="").replace("[bgp]\n", f"[bgp]\nmed = {{ {said} }}\n")
    bgp = config.read(text, "nat.toml").bgp
    assert bgp and speaking.policy(bgp).meds.leaving == leaving
    assert bgp.med.primary < leaving and leaving + 1 < bgp.med.backup


@pytest.mark.parametrize(("said", "why"), REFUSED.items())
def test_what_is_refused(said: str, why: str) -> None:
    key = said.partition(" ")[0]
    text = "\n".join(line for line in CORE.format(core=0, host=11, more="").splitlines() if not line.startswith(key))
    with pytest.raises(config.ConfigError) as caught:
        config.read(text.replace("[bgp]\n", f"[bgp]\n{said}\n"), "nat.toml")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (('address = "10.1.1.1"', 'address = "10.9.1.1"'), "on-link at no interface"),
        (('address = "10.1.1.1"', 'address = "10.1.1.11"'), "the core's own address"),
        (('address = "10.1.1.1"', 'domain = "outside"\naddress = "10.1.1.1"'), "is at interfaces.internal"),
        (('address = "10.1.1.1"', 'local = "10.1.1.99"\naddress = "10.1.1.1"'), "no address of this core"),
        (('address = "10.2.1.1"\nas = 65001', 'address = "10.1.1.1"\nas = 65001'), "stands here twice"),
    ],
)
def test_which_switches_are_refused(change: tuple[str, str], why: str) -> None:
    text = CORE.format(core=0, host=11, more="")
    assert change[0] in text
    with pytest.raises(config.ConfigError) as caught:
        config.read(text.replace(*change), "nat.toml")
    assert why in str(caught.value)


# --- the command line -------------------------------------------------------------------------------------------------------


def run(tmp_path: Any, *words: str) -> Result:
    """`krononat bgp` with the configuration of a core."""
    (tmp_path / "core.toml").write_text(CORE.format(core=0, host=11, more=""))
    return CliRunner().invoke(bgp, [*words, "-c", str(tmp_path / "core.toml")])


def test_a_plan_needs_no_daemon(tmp_path: Any) -> None:
    done = run(tmp_path, "routes", "--plan", "-o", "json")
    rows = json.loads(done.output)
    configured = [row for row in rows if row["situation"] == "configured"]
    assert {(row["prefix"], row["domain"], row["med"]) for row in configured} == {
        ("10.255.0.0/32", "inside", 100), ("10.255.0.1/32", "inside", 100), ("203.0.113.0/28", "outside", 100),
        ("203.0.113.16/28", "outside", 100), ("203.0.113.32/28", "outside", 100),
    }  # fmt: skip
    assert all(ip_network(row["prefix"]) for row in rows)
    only = run(tmp_path, "routes", "--plan", "--situation", "unfit").output
    assert "251" in only and "configured" not in only


def test_a_second_speaker_is_told_that_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "core.toml").write_text(CORE.format(core=0, host=11, more=f'socket = "{tmp_path}/s1.bgp"'))
    with lock(f"{tmp_path}/s1.bgp"):
        done = CliRunner().invoke(speaker, ["run", str(tmp_path / "core.toml")])
    assert isinstance(done.exception, Trouble) and done.exception.what == "the speaker of this server is running already"
    assert "server.name" not in done.exception.remedy


def test_without_a_speaker_it_says_so(tmp_path: Any) -> None:
    done = run(tmp_path, "status", "--socket", str(tmp_path / "nobody"))
    assert isinstance(done.exception, Trouble) and done.exception.status == 3
    assert "krononat speaker run" in done.exception.remedy
