"""What switches are told, as text; whether BIRD and FRR understand it; and what they say, understood."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from krononat import config
from krononat import fabric as fabrics
from krononat.cli import root
from krononat.client import Trouble
from krononat.lab import cluster, fabric, legs, overview, routers, seen
from krononat.lab.cluster import Wanted
from krononat.lab.overview import Owned, Place
from routing import arista, bird, cisco, frr, sonic
from routing.fabric import (
    ACCESS,
    CORE,
    INTERNET,
    Fabric,
    Instance,
    Range,
    believed,
    communities,
    instance,
    instances,
    rules,
    told_to,
)

ONE = Wanted(2, 4, tor="bird", cores=2)
TWO = Wanted(2, 4, tor="bird", tors=2)
REDUCED = Wanted(2, 4, tor="bird", domains=1)
ALL = (ONE, TWO, REDUCED)
RENDERERS = (bird.render, frr.render, arista.render, cisco.render, sonic.render)


def _instances(wanted: Wanted) -> list[tuple[Fabric, Instance]]:
    told = fabric.value(wanted)
    return [(told, one) for switch in told.switches for one in instances(told, switch)]


def _inside(wanted: Wanted) -> tuple[Fabric, Instance]:
    return next((told, one) for told, one in _instances(wanted) if one.inside)


# --- what is believed -------------------------------------------------------------------------------------------------------


def test_a_core_is_believed_about_shard_addresses_inside_and_pools_outside_and_nothing_else() -> None:
    told, one = _inside(ONE)
    core = one.of(CORE)[0]
    assert believed(told, core) == (Range(IPv4Network("10.255.0.0/22"), 22, 32),)
    assert told_to(told, core) == ()
    outside = instance(told, "a", "outside")
    assert believed(told, outside.of(CORE)[0]) == (Range(IPv4Network("203.0.113.0/24"), 24, 32),)


@pytest.mark.parametrize("wanted", ALL)
def test_nobody_inside_is_believed_about_a_default_route(wanted: Wanted) -> None:
    told, one = _inside(wanted)
    for neighbour in one.neighbours:
        everywhere = any(each.prefix.prefixlen == 0 for each in believed(told, neighbour))
        assert everywhere == (neighbour.kind == "internet")


def test_who_knows_no_core_tells_routers_inside_no_default_route() -> None:
    """It is any shard's, by a pipe that takes none that leads nowhere."""
    for wanted in (*ALL, ONE._replace(six=True)):
        told, one = _inside(wanted)
        text = bird.render(told, one)
        for shard, version in [(shard, version) for shard in told.shards for version in (4, 6) if version == 4 or wanted.six]:
            table = f"table master{version}; peer table shard{shard.number}v{version}; import filter leads{version};"
            assert text.count(table) == 1
        assert "route 0.0.0.0/0 recursive" not in text[: text.index("protocol static policy0")]
        assert ("import filter leads6" in text) is wanted.six
        to_access = text[text.index("filter to_access_inside4") :]
        assert "dest != RTD_UNICAST then reject" in to_access[: to_access.index("}\n")]


_REACHING_OUT = re.compile(r"^protocol (?:bgp|kernel|bfd|direct) (?:[^\n]*}\n|[^\n]*{\n.*?^}\n)", re.MULTILINE | re.DOTALL)
_SHARDS_AS_TOLD = """
ipv4 table told;
protocol pipe access { table told; peer table master4; import filter to_access_inside4; export none; }
"""


@pytest.mark.lab
def test_the_default_route_inside_stays_while_any_shard_has_a_core(tmp_path: Path) -> None:
    """A switch of which nothing is left but its tables; a static route is a shard's address that some core announces."""
    if not shutil.which("bird"):
        pytest.skip("BIRD is not installed")
    told, one = _inside(ONE)
    text = _REACHING_OUT.sub("", bird.render(told, one)) + _SHARDS_AS_TOLD
    lines = [f'protocol static a{n} {{ ipv4; route {shard.address}/32 via "lo"; }}\n' for n, shard in enumerate(told.shards)]
    path, control = tmp_path / "switch.conf", str(tmp_path / "control")
    path.write_text(text + "".join(lines))

    def ask(*words: str) -> str:
        return subprocess.run(["birdc", "-s", control, *words], capture_output=True, text=True, timeout=10).stdout

    def comes(wanted: bool) -> bool:
        deadline = time.monotonic() + 5
        while ("0.0.0.0/0" in ask("show", "route", "table", "told")) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        return ("0.0.0.0/0" in ask("show", "route", "table", "told")) == wanted

    with subprocess.Popen(["bird", "-f", "-c", str(path), "-s", control, "-P", str(tmp_path / "pid")]) as process:
        try:
            assert comes(True)
            for number in range(len(told.shards) - 1):
                ask("disable", f"a{number}")
                time.sleep(0.2)
                assert comes(True), f"shard {number} has taken it from the others"
            ask("disable", f"a{len(told.shards) - 1}")
            assert comes(False), "nobody is there"
            ask("enable", "a1")
            assert comes(True)
        finally:
            process.terminate()


def test_the_map_of_a_laboratory_may_be_in_a_store() -> None:
    wanted = ONE._replace(etcd=True)
    for text in fabric.topology(wanted, Path("/nowhere")).appliances.values():
        told = config.read(text).cluster
        assert told and told.store == ["http://192.168.77.254:2379"] and told.map == "/nowhere/map.toml"
    assert fabric.topology(wanted, Path("/nowhere")).bridges == {"fabric": "192.168.77.254/24"}
    with pytest.raises(ValueError, match="no etcd"):
        cluster.check(wanted._replace(clustered=False))


def test_communities_rank_as_meds_do_and_who_goes_is_last() -> None:
    found = communities(fabric.value(ONE))
    assert [each.preference for each in found] == sorted((each.preference for each in found), reverse=True)
    assert (found[-1].high, found[-1].low, found[-1].preference) == (65535, 0, 0)
    assert (found[0].high, found[0].low) == (65010, 50)


def test_what_is_to_be_taken_last_is_so_by_the_way_over_the_other_switch_too() -> None:
    """Else a switch would prefer that way to a core's own: two of them, each other's."""
    for render, words in (
        (bird.render, r"filter from_{}_inside4 {{\n.*\n(  if .* = \d+;\n)*  if \(65535, 0\) ~"),
        (frr.render, r"route-map from-{}-inside permit \d+\n.*\n match community mark-65535-0\n"),
    ):
        text = render(*_inside(TWO))
        found = [kind for kind in ("core", "switch", "access") if re.search(words.format(kind), text)]
        assert found == ["core", "switch"]


@pytest.mark.parametrize("render", [frr.render, arista.render, cisco.render])
def test_whose_rules_end_with_the_first_that_fits_looks_for_what_is_taken_last_first(render: Any) -> None:
    """A copy on a server that is drained has both marks where communities rank; BIRD's filter goes on to the last one."""
    text = render(*_inside(ONE))
    found = re.findall(r"match community (?:mark|MARK)-([0-9-]+)\n\s*set local-preference (\d+)", text)
    assert found[0] == ("65535-0", "0") and {"65010-200", "65010-150"} <= {name for name, _ in found}


def test_who_does_not_exist_is_told() -> None:
    with pytest.raises(ValueError, match="there are: a inside, a outside"):
        instance(fabric.value(ONE), "b", "inside")


# --- the floor ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ALL)
def test_every_shard_has_a_rule_and_the_floor_is_beneath_all_of_them(wanted: Wanted) -> None:
    lines = rules(*_inside(wanted))
    numbers = {line.rpartition("pref ")[2].split()[0]: line for line in lines}
    floor = next(int(number) for number, line in numbers.items() if line.endswith("from 100.64.0.0/10 blackhole"))
    shards = [int(number) for number, line in numbers.items() if "lookup 10" in line]
    assert len(shards) == wanted.shards and max(shards) < floor < 32766  # the main table's rule


def test_outside_there_are_no_subscribers_and_no_rules() -> None:
    told = fabric.value(ONE)
    assert rules(told, instance(told, "a", "outside")) == []


def test_only_two_domains_send_routers_own_packets_to_a_core() -> None:
    assert any("lookup 900" in line for line in rules(*_inside(ONE)))
    assert not any("lookup 900" in line for line in rules(*_inside(REDUCED)))  # there the main table leads outside


def test_an_address_that_nobody_announces_does_not_resolve_by_a_default_route() -> None:
    told, one = _inside(REDUCED)
    assert "route 10.255.0.0/22 blackhole;" in bird.render(told, one)
    assert "no ip nht resolve-via-default" in frr.files(told, one)["zebra"]


# --- text ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("render", RENDERERS)
def test_every_session_and_every_shard_stands_in_every_kind_of_configuration(render: Any) -> None:
    for told, one in _instances(TWO):
        text = render(told, one)
        assert all(str(each.address) in text for each in one.of(CORE))
        for shard in told.shards if one.inside else ():
            assert f"{shard.address}" in text
        assert str(one.switch.asn) in text


def test_cores_are_waited_for_and_never_told_anything() -> None:
    told, one = _inside(ONE)
    text = bird.render(told, one)
    assert text.count("passive on;") == len(one.of(CORE))
    assert text.count("export none; gateway") == len(one.of(CORE))
    assert "graceful restart on" not in text


def test_the_only_switch_knows_the_routers_beside_it_while_bgp_is_silent_and_tells_nobody() -> None:
    """What is fixed leads out of the switch, below BGP; a default route that is offered inside is still a core's."""
    for one in (one for _, one in _instances(ONE)):
        text = bird.render(fabric.value(ONE), one)
        neighbour = next(each for each in one.neighbours if each.kind in (ACCESS, INTERNET))
        prefix = "100.64.0.0/10" if one.inside else "0.0.0.0/0"
        assert f"check link on;\n  route {prefix} via {neighbour.address};" in text and "preference 50" in text
        assert ('|| proto = "fixed4" || dest' in text) == one.inside
    for wanted in (TWO, REDUCED):
        assert all("protocol static fixed" not in bird.render(told, one) for told, one in _instances(wanted))


def test_third_party_next_hops_are_resolved() -> None:
    told, one = _inside(ONE)
    assert "gateway recursive" not in bird.render(told, one)
    assert "gateway recursive" in bird.render(told._replace(third_party=True), one)
    assert "disable-connected-check" in frr.render(told._replace(third_party=True), one)


def test_without_bfd_nobody_asks_for_it() -> None:
    told, one = _inside(ONE._replace(bfd_ms=0))
    assert "bfd" not in bird.render(told, one)
    assert "bfd" not in frr.render(told, one)
    assert "bfd" not in routers.render(ONE._replace(bfd_ms=0), "access")


def test_what_a_core_is_reached_by_is_watched_and_told_to_the_other_switch() -> None:
    told, one = _inside(TWO)
    text = bird.render(told, one)
    assert "route 10.254.1.0/32 via 10.1.1.2 bfd;" in text
    assert "10.254.0.0/16{16,32}" in text


@pytest.mark.lab
@pytest.mark.parametrize("wanted", ALL)
def test_bird_and_frr_understand_what_they_are_told(wanted: Wanted, tmp_path: Path) -> None:
    if not shutil.which("bird") or not shutil.which("vtysh"):
        pytest.skip("BIRD and FRR are not installed")
    for told, one in _instances(wanted):
        _checked(tmp_path, ["bird", "-p", "-c"], bird.render(told, one))
        _checked(tmp_path, ["vtysh", "-C", "-f"], frr.render(told, one))
    for node in routers.NODES:
        _checked(tmp_path, ["bird", "-p", "-c"], routers.render(wanted, node))


@pytest.mark.lab
def test_the_checks_would_refuse_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _checked(tmp_path, ["bird", "-p", "-c"], "protocol bgp x { neighbor 10.1 as x; }\n")
    with pytest.raises(AssertionError):
        _checked(tmp_path, ["vtysh", "-C", "-f"], "router bgp 65000\n neighbor 10.1 remote-as x\n")


def _checked(folder: Path, words: list[str], text: str) -> None:
    path = folder / "switch.conf"
    path.write_text(text)
    done = subprocess.run([*words, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


# --- from configurations ------------------------------------------------------------------------------------------------------


def _configs(wanted: Wanted) -> list[str]:
    return [fabric.config(wanted, core, Path("/nowhere")) for core in sorted(cluster.cores(wanted))]


@pytest.mark.parametrize("wanted", [ONE, TWO, ONE._replace(preference="longest-prefix"), ONE._replace(six=True)])
def test_what_is_shown_for_cores_is_what_the_laboratory_has(wanted: Wanted) -> None:
    shown, built = fabrics.of([config.read(text) for text in _configs(wanted)]), fabric.value(wanted)
    assert shown.shards == built.shards
    assert shown.inside == built.inside
    for ours, theirs in zip(shown.switches, built.switches, strict=True):
        kept = [each._replace(device=each.name) for each in theirs.neighbours if each.kind == CORE]
        assert sorted(ours.neighbours) == sorted(kept)
        assert (ours.name, ours.asn) == (theirs.name, theirs.asn)
    assert (shown.bfd, shown.hold_s, shown.core_asn, shown.meds) == (built.bfd, built.hold_s, built.core_asn, built.meds)


def test_cores_that_do_not_agree_are_told() -> None:
    texts = _configs(ONE)
    read = [config.read(texts[0]), config.read(texts[1].replace('preference = "med"', 'preference = "prepend"'))]
    with pytest.raises(Trouble, match=r"do not agree about bgp\.preference"):
        fabrics.of(read)


def test_show_prints_what_is_asked_for(tmp_path: Path) -> None:
    paths = []
    for number, text in enumerate(_configs(ONE)):
        paths.append(str(tmp_path / f"{number}.toml"))
        Path(paths[-1]).write_text(text)
    shown = CliRunner().invoke(root, ["fabric", "show", "--tor", "frr", "--switch", "a", "--domain", "outside", *paths])
    assert shown.exit_code == 0 and "neighbor 198.18.1.2 remote-as 65010" in shown.output
    assert "10.255.0.0" not in shown.output
    shown = CliRunner().invoke(root, ["fabric", "show", "--rules", "--domain", "inside", *paths])
    assert shown.output.splitlines()[0] == "rule add pref 1000 from 100.64.0.0/20 lookup 1000"
    refused = CliRunner().invoke(root, ["fabric", "show", "--switch", "z", *paths])
    assert isinstance(refused.exception, Trouble) and "a inside" in refused.exception.remedy


# --- what they say ------------------------------------------------------------------------------------------------------------

_PROTOCOLS = """\
BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     18:33:47.645
s1c0in     BGP        ---        up     18:33:48.167  Established
s2c0in     BGP        ---        start  18:33:48.182  Active        Socket: Connection refused
otherin    BGP        ---        start  18:33:48.478  Passive
"""

_BFD = """\
BIRD 2.0.12 ready.
quick:
IP address                Interface  State      Since         Interval  Timeout
10.1.1.2                  s1c0in     Up         18:33:49.000    0.050    0.150
10.1.2.2                  s2c0in     Down       18:33:49.000    1.000    0.000
10.1.0.6                  other      Up         18:33:49.000    0.050    0.150
"""

_ROUTES = """\
Table master4:
10.255.0.2/32        unicast [s1c0in 18:33:48.213] * (100) [AS65010i]
\tvia 10.1.1.2 on s1c0in
\tType: BGP univ
\tBGP.as_path: 65010
\tBGP.med: 100
\tBGP.local_pref: 100
\tBGP.large_community: (65010, 2, 7)
                     unicast [s2c0in 18:33:48.225] (100-) [AS65010i]
\tvia 10.1.2.2 on s2c0in
\tType: BGP univ
\tBGP.as_path: 65010
\tBGP.med: 200
\tBGP.local_pref: 750
10.1.2.0/30          unicast [links 18:33:47.646] * (240)
\tdev s2c0in
\tType: device univ
"""


def test_bird_is_understood() -> None:
    view = seen.of_bird("ain", _PROTOCOLS, _BFD, _ROUTES)
    told = [(each.neighbour, each.state, each.bfd, each.up) for each in view.sessions]
    assert told == [
        ("s1c0in", "Established", "Up", True),
        ("s2c0in", "Active", "Down", False),
        ("otherin", "Passive", "Up", False),
    ]
    assert [(each.by, each.med, each.preference, each.best) for each in view.routes] == [
        ("s1c0in", 100, 100, True),
        ("s2c0in", 200, 750, False),
    ]
    best = view.best("10.255.0.2/32")
    assert best and best.large == "65010:2:7" and best.via == "10.1.1.2"
    assert seen.of_bird("ain", "", "", "") == seen.View("ain", (), ())


def test_frr_is_understood() -> None:
    paths = [
        {"bestpath": True, "metric": 100, "peerId": "10.1.1.2", "path": "65010", "nexthops": [{"ip": "10.1.1.2"}]},
        {"metric": 200, "locPrf": 0, "peerId": "10.1.2.2", "path": "65010", "nexthops": [{"ip": "10.1.2.2"}]},
    ]
    own = [{"bestpath": True, "peerId": "(unspec)", "path": "", "nexthops": [{"ip": "0.0.0.0"}]}]
    routes = json.loads(json.dumps({"routes": {"10.255.0.2/32": paths, "10.1.2.0/30": own}}))
    summary = {"ipv4Unicast": {"peers": {"10.1.1.2": {"state": "Established"}, "10.1.2.2": {"state": "Active"}}}}
    view = seen.of_frr("ain", {"10.1.1.2": "s1c0in"}, summary, [{"peer": "10.1.1.2", "status": "up"}], routes)
    assert [(each.neighbour, each.up, each.bfd) for each in view.sessions] == [("s1c0in", True, "Up"), ("10.1.2.2", False, "")]
    assert [(each.by, each.med, each.preference, each.best) for each in view.routes] == [
        ("s1c0in", 100, 100, True),
        ("10.1.2.2", 200, 0, False),
    ]
    assert seen.of_frr("ain", {}, {}, {}, {}) == seen.View("ain", (), ())


def test_a_neighbours_name_is_a_cores() -> None:
    names = {each.name: each for switch in fabric.value(TWO).switches for each in switch.neighbours if each.kind == CORE}
    assert {overview.core_of(name) for name in names} == set(cluster.cores(TWO))
    assert overview.core_of("otherin") == "other"


def test_packets_that_come_to_a_copy_are_a_lack() -> None:
    """Of two that say they have it the higher epoch counts; what the other switch gets that one's own row tells."""
    owned = [Owned(3, "s1/0", 4, True), Owned(3, "s2/0", 5, True), Owned(4, "s1/0", 6, True)]
    told = {way: overview.strayed(Place(3, "a", way, "", way, ""), owned) for way in ("s1/0", "s2/0", "other", "nowhere")}
    assert told["s1/0"] == ["switch a sends shard 3 to s1/0, but s2/0 has the authority"]
    assert told["s2/0"] == told["other"] == [] and len(told["nowhere"]) == 1
    (nobody,) = overview.strayed(Place(5, "a", "s1/0", "", "s1/0", ""), owned)
    assert nobody == "no core says that it has the authority over shard 5"


# --- what is drawn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [*ALL, Wanted(9, 16, tor="bird", cores=8, tors=2)])
def test_no_two_ends_have_the_same_address_or_name(wanted: Wanted) -> None:
    drawn = fabric.topology(wanted, Path("/nowhere"))
    ends = [end for link in drawn.links for end in link]
    names = [end.name for end in ends]
    assert len(set(names)) == len(names) and max(len(end.interface) for end in ends) <= 15
    addresses = [end.address for end in ends if end.address]
    assert len(set(addresses)) == len(addresses)
    assert len(set(fabric.shunts(wanted).values())) == len(cluster.cores(wanted))


def test_every_shard_has_its_backup_on_another_server_and_servers_share_them() -> None:
    wanted = Wanted(3, 12, tor="bird", cores=2)
    pairs = [(cluster.first_core(wanted, shard), cluster.backup_of(wanted, shard) or "") for shard in range(12)]
    assert all(cluster.node_of(primary) != cluster.node_of(backup) for primary, backup in pairs)
    assert len({primary for primary, _ in pairs}) == 6
    assert {cluster.node_of(backup) for primary, backup in pairs if primary == "s1/0"} == {"s2", "s3"}


@pytest.mark.parametrize(
    "wanted, why",
    [
        (Wanted(tor="bird", cores=9), "1 to 8 cores"),
        (Wanted(tor="bird", tors=2, domains=1), "two switches have two domains"),
        (Wanted(10, tor="bird"), "1 to 9 servers"),
    ],
)
def test_what_cannot_be_built_is_refused(wanted: Wanted, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fabric.topology(wanted, Path("/nowhere"))
    with pytest.raises(ValueError, match="each server has one core"):
        cluster.topology(Wanted(cores=2), Path("/nowhere"))


def test_both_ends_of_a_link_are_in_one_network() -> None:
    for switch, domain in (("a", "inside"), ("b", "outside")):
        link = legs.leg("s3/1", switch, domain)
        assert link.own.network == link.other.network and link.own != link.other
