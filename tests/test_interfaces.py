"""What the appliance changes about its interfaces, in real namespaces: exactly that is taken back, what was there stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from krononat import interfaces
from krononat.client import BAD_CONFIG, Trouble
from krononat.config import Config, read
from krononat.interfaces import Step, left_behind, record
from tests.netns import Namespace, namespace
from tests.place import until

CONFIG = """
[interfaces.internal]
name = "in0"
address = "100.64.0.1/16"
gateway = "100.64.0.2"
[interfaces.external]
name = "out0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
mtu = 1400
[[subscribers]]
prefix = "100.80.0.0/16"
pool = "main"
[[pool]]
name = "main"
prefixes = ["192.0.2.64/30"]
"""


@pytest.fixture
def core() -> Iterator[Namespace]:
    with namespace("krnif-core") as core, namespace("krnif-peer") as peer:
        for name, other in (("in0", "a0"), ("out0", "b0")):
            core.ip(f"link add {name} numrxqueues 2 numtxqueues 2 type veth peer name {other} netns {peer.name}")
            peer.ip(f"link set {other} up")
        peer.ip("addr add 192.0.2.1/24 dev b0")
        yield core


def wanted() -> Config:
    return read(CONFIG)


def everything(core: Namespace) -> str:
    """All that could have been changed, as text."""
    told = [core.ip("-o addr"), core.ip("route show table all"), core.ip("-o -d link").split("promiscuity")[0]]
    told += [core.run("ethtool", "-k", name).stdout for name in ("in0", "out0")]
    told += [core.run("sh", "-c", f"grep . /proc/sys/net/ipv4/conf/{name}/*").stdout for name in ("in0", "out0")]
    return "\n".join(told)


def carry_out(core: Namespace, config: Config) -> list[interfaces.Step]:
    steps = interfaces.decide(config, interfaces.observe(config))
    for step in steps:
        interfaces.act(step)
    return steps


@pytest.mark.lab
def test_what_was_set_up_is_taken_back(core: Namespace) -> None:
    config = wanted()
    with core.entered():
        before = everything(core)
        steps = carry_out(core, config)
        late = interfaces.decide_late(config)
        for step in late:
            interfaces.act(step)
        assert "100.64.0.1/16" in core.ip("addr show in0")
        assert core.link("out0")["mtu"] == 1400
        assert core.link("in0")["flags"].count("UP") == 1
        assert "default via 192.0.2.1 dev out0" in core.ip("route")
        assert "100.80.0.0/16 via 100.64.0.2 dev in0" in core.ip("route")
        assert "local 192.0.2.64/30 dev out0" in core.ip("route show table local")
        assert core.run("cat", "/proc/sys/net/ipv4/conf/in0/arp_ignore").stdout == "1\n"
        again = interfaces.decide(config, interfaces.observe(config))
        assert {step.kind for step in again} == {"route"}  # those we made ourselves are made again, to be taken back at last
        for step in again + late:
            interfaces.act(step)
        assert [told for step in reversed(steps + late) if (told := interfaces.undo(step))] == []
        assert everything(core) == before


def test_steps_are_remembered_until_they_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "sock.undo"
    steps = [Step("sysctl", "in0", "net/ipv4/conf/in0/rp_filter", "0", "1"), Step("address", "in0", "", "192.0.2.2/24")]
    assert left_behind(str(path)) == []
    with record(str(path)) as note:
        for step in steps:
            note(step)
        kept = path.read_bytes()
        assert left_behind(str(path)) == steps
    assert not path.exists()
    path.write_bytes(kept)
    path.chmod(0o600)
    assert left_behind(str(path)) == steps
    with record(str(path)):
        assert left_behind(str(path)) == []


@pytest.mark.parametrize(
    ("told", "mode", "complaint"),
    [
        (b"\xff\x00", 0o600, "it is damaged"),
        (b'here\n["sysctl", "in0"', 0o600, "it is damaged"),
        (b'here\n["format", "in0", "", ""]\n', 0o600, "it is damaged"),
        (b"", 0o600, "another network namespace"),
        (b"here\n", 0o600, "another network namespace"),
        (b"here\n", 0o666, "somebody else may have written it"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, told: bytes, mode: int, complaint: str) -> None:
    path = tmp_path / "sock.undo"
    path.write_bytes(told)
    path.chmod(mode)
    with pytest.raises(Trouble, match="is passed over") as trouble:
        left_behind(str(path))
    assert complaint in trouble.value.why
    link = tmp_path / "link.undo"
    link.symlink_to(path)
    with pytest.raises(Trouble, match="is passed over"):
        left_behind(str(link))


@pytest.mark.lab
def test_what_was_there_stays(core: Namespace) -> None:
    config = wanted()
    core.ip("addr add 192.0.2.2/24 dev out0")
    core.ip("link set out0 mtu 1400")
    core.ip("link set out0 up")
    core.ip("route add default via 192.0.2.9")
    with core.entered():
        steps = carry_out(core, config)
        touched = {(step.kind, step.key) for step in steps if step.interface == "out0"}
        assert not touched & {("address", ""), ("mtu", ""), ("link", ""), ("route", "default")}
        for step in reversed(steps):
            interfaces.undo(step)
    assert "192.0.2.2/24" in core.ip("addr show out0")
    assert "default via 192.0.2.9" in core.ip("route")


@pytest.mark.lab
def test_facts_for_the_ports(core: Namespace) -> None:
    config = wanted()
    with core.entered():
        host = interfaces.observe(config)
    inside, outside = interfaces.links(config, host)
    assert inside.mac.hex(":") == core.mac("in0")
    assert (inside.mtu, outside.mtu, inside.partial) == (1500, 1400, True)
    assert host.interfaces["in0"].queues == 2


@pytest.mark.lab
def test_a_missing_interface_is_named(core: Namespace) -> None:
    config = read(CONFIG.replace("out0", "out7"))
    with core.entered(), pytest.raises(Trouble, match="no interface 'out7'") as told:
        interfaces.observe(config)
    assert told.value.status == BAD_CONFIG
    assert "in0" in told.value.why


@pytest.mark.lab
def test_a_tagged_port_has_its_address_on_the_vlan(core: Namespace) -> None:
    config = read(CONFIG.replace("mtu = 1400", "vlan = 100"))
    with core.entered():
        steps = interfaces.decide(config, interfaces.observe(config))
    there = [(step.kind, step.key, step.value) for step in steps if step.interface == "out0.100"]
    assert there[0] == ("vlan", "out0", "100")
    assert ("address", "", "192.0.2.2/24") in there and ("route", "default", "192.0.2.1") in there
    assert [step.kind for step in steps if step.interface == "out0"][-1] == "link"  # the device below comes up first
    assert not any(step.kind in ("address", "route") for step in steps if step.interface == "out0")


@pytest.mark.lab
def test_neighbours_find_pool_addresses_on_link_by_arp(core: Namespace) -> None:
    config = wanted()
    with core.entered():
        carry_out(core, config)
        for step in interfaces.decide_late(config):
            interfaces.act(step)
    peer = Namespace("krnif-peer")
    peer.run("ping", "-c1", "-W1", "192.0.2.66", check=False)
    assert core.mac("out0") in peer.ip("neigh show 192.0.2.66")


@pytest.mark.lab
def test_an_interface_that_vanished_does_not_stop_the_undoing(core: Namespace) -> None:
    config = wanted()
    with core.entered():
        steps = carry_out(core, config)
        core.ip("link del in0")
        told = [told for step in reversed(steps) if (told := interfaces.undo(step))]
    assert told and all("in0" in line for line in told)
    assert "192.0.2.2/24" not in core.ip("addr show out0")


LEGS = """
[[interfaces.internal]]
name = "in0"
address = "10.1.0.2/30"
gateway = "10.1.0.1"
[[interfaces.internal]]
name = "in1"
address = "10.1.1.2/30"
gateway = "10.1.1.1"
[[interfaces.external]]
name = "out0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
[[interfaces.external]]
name = "out1"
address = "198.18.0.2/24"
gateway = "198.18.0.1"
[interfaces.loopback]
address = "10.254.0.1/24"
[[subscribers]]
prefix = "100.80.0.0/16"
pool = "main"
[[pool]]
name = "main"
prefixes = ["198.18.0.64/30"]
"""


def test_each_leg_has_routes_of_a_metric_of_its_own() -> None:
    config = read(LEGS)
    found = {name: interfaces.Facts(n, bytes(6), 1500, True, "veth", 1, frozenset(), {}, {}) for n, name in enumerate(NAMES)}
    steps = interfaces.decide(config, interfaces.Host(found, frozenset(), {}))
    routes = {(step.interface, step.key): step.value for step in steps if step.kind == "route"}
    assert routes == {
        ("in0", "100.80.0.0/16"): "10.1.0.1", ("in1", "100.80.0.0/16"): "10.1.1.1 metric 4243",
        ("in0", "10.254.0.0/24"): "10.1.0.1", ("in1", "10.254.0.0/24"): "10.1.1.1 metric 4243",
        ("out0", "default"): "192.0.2.1", ("out1", "default"): "198.18.0.1 metric 4243",
    }  # fmt: skip
    assert steps[-1] == Step("address", "lo", "", "10.254.0.1/32")
    assert interfaces.decide_late(config) == [Step("local route", "out1", "", "198.18.0.64/30")]
    again = interfaces.again(config, interfaces.Host(found, frozenset(), {}), 3)
    assert [(step.interface, step.kind) for step in again] == [("out1", "route"), ("out1", "local route")]


NAMES = ("in0", "in1", "out0", "out1")


@pytest.mark.lab
def test_routes_of_several_legs_stand_together_and_are_taken_back() -> None:
    with namespace("krnif-core") as core, namespace("krnif-peer") as peer:
        for name in NAMES:
            core.ip(f"link add {name} type veth peer name {name} netns {peer.name}")
            peer.ip(f"link set {name} up")
        config = read(LEGS)
        with core.entered():
            steps = carry_out(core, config)
            assert core.ip("route show default").count("default") == 2
            assert "dev out0" in core.ip("route get 8.8.8.8")
            peer.ip("link set out0 down")
            until(lambda: "dev out1" in core.ip("route get 8.8.8.8"), 3)  # what has no carrier is passed over
            assert "dev in0" in core.ip("route get 10.254.0.9")
            assert "inet 10.254.0.1/32" in core.ip("addr show lo")
            assert [told for step in reversed(steps) if (told := interfaces.undo(step))] == []
        assert core.ip("route show default") == "" and "10.254" not in core.ip("addr show lo")
