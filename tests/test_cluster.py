"""Maps of a cluster: what is refused, with its place; what a core writes into its memory of one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from krononat import appliance, cluster, config, doctor
from krononat.cli import root
from krononat.client import Trouble
from krononat.config import ConfigError
from replication import keys
from shards.state import ABSENT, JOINING, State, new_state

MAP = """\
version = 1

[[core]]
name = "s1/0"
replication = "192.168.77.1:7600"
shunt = "192.0.2.1"
key = "{}"

[[core]]
name = "s2/0"
replication = "192.168.77.2:7600"
shunt = "192.0.2.2"
key = "{}"

[[core]]
name = "s2/1"
replication = "192.168.77.3:7600"
shunt = "192.0.2.3"
key = "{}"

[[shard]]
id = 0
primary = "s1/0"
backup = "s2/0"

[[shard]]
id = 1
primary = "s2/1"
backup = "s1/0"
epoch = 4
""".format("a" * 40, "b" * 40, "c" * 40)

CONFIG = """\
[server]
name = "s1"
[interfaces.internal]
name = "in0"
address = "100.64.0.1/24"
[interfaces.external]
name = "out0"
address = "192.0.2.1/24"
gateway = "192.0.2.254"
[[subscribers]]
prefix = "100.64.0.0/24"
pool = "a"
[[subscribers]]
prefix = "100.65.0.0/24"
pool = "b"
[[pool]]
name = "a"
prefixes = ["203.0.113.0/31"]
[[pool]]
name = "b"
shard = 1
prefixes = ["203.0.113.2/31"]
block-size = 128
[memory]
sessions = 10000
[cluster]
map = "{map}"
key-file = "{key}"
""".replace('address = "100.64.0.1/24"', 'address = "100.64.0.1/24"\ngateway = "100.64.0.254"')


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('name = "s2/1"', 'name = "s2/0"', "map:16:8: core[2].name: s2/0 is another core's, too"),
        ('name = "s2/1"', 'name = "s2"', "core[2].name: String should match"),
        ("192.0.2.3", "192.0.2.2", "core[2].shunt: 192.0.2.2 is another core's, too"),
        ("c" * 40, "c" * 39, "core[2].key: String should match"),
        ('"192.168.77.3:7600"', '"192.168.77.3"', "core[2].replication: needs a port, such as 192.168.77.3:80"),
        ('primary = "s2/1"', 'primary = "s3/1"', "shard[1].primary: there is no core 's3/1'; there are: s1/0, s2/0, s2/1"),
        ('backup = "s1/0"', 'backup = "s2/0"', "shard[1].backup: s2/0 is of the same server as the primary"),
        ('backup = "s1/0"', 'backup = "s2/1"', "shard[1].backup: s2/1 is of the same server as the primary"),
        ("id = 1", "id = 0", "shard[1].id: shard 0 stands here twice"),
        ("id = 1", "id = 2", "shard: shard 1 is missing: numbers begin at 0, without gaps"),
        ("epoch = 4", "epoch = 0", "shard[1].epoch: must be greater than or equal to 1; got 0"),
        ("epoch = 4", "age = 4", "shard[1].age: Extra inputs are not permitted"),
        ("version = 1", "version = ", "not TOML"),
    ],
)
def test_refused_with_its_place(before: str, after: str, complaint: str) -> None:
    assert MAP.count(before) == 1 or before in ('name = "s2/1"',)
    with pytest.raises(ConfigError) as refused:
        cluster.read(MAP.replace(before, after))
    assert complaint in str(refused.value)


def _files(folder: Path, map_text: str = MAP, config_text: str = CONFIG, own_key: bool = True) -> config.Config:
    if not (folder / "key").exists():
        keys.write(folder / "key", keys.generate())
    told = config.read(config_text.format(map=folder / "map.toml", key=folder / "key"))
    public = keys.read(folder / "key").public.decode() if own_key else "d" * 40
    (folder / "map.toml").write_text(map_text.replace({"s1": "a", "s2": "b"}[told.server.name] * 40, public))
    return told


def test_a_core_and_its_map_must_agree(tmp_path: Path) -> None:
    for before, after, complaint in (
        ('"s1/0"', '"s9/0"', "there is no core 's1/0', which this configuration is of"),
        ("192.0.2.1", "192.0.2.9", "192.0.2.9 is no address of an interface of s1/0"),
        ("[[shard]]\nid = 1", "[[shard]]\nid = 1\n[[shard]]\nprimary = 's1/0'\nid = 2", ""),
    ):
        told = _files(tmp_path, MAP.replace(before, after))
        with pytest.raises((ConfigError, Trouble)) as refused:
            cluster.of(told)
        assert complaint in str(refused.value)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    told = _files(tmp_path)
    os.chmod(tmp_path / "key", 0o644)
    with pytest.raises(Trouble) as refused:
        cluster.of(told)
    assert "chmod 600" in refused.value.why


def test_a_key_that_the_map_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Trouble) as refused:
        cluster.of(_files(tmp_path, own_key=False))
    assert refused.value.status == 78 and f"the map has {'d' * 40} for s1/0" in refused.value.why
    assert keys.read(tmp_path / "key").public.decode() in refused.value.remedy


def test_shards_without_a_gap() -> None:
    with pytest.raises(ConfigError, match="no pool is of shard 1"):
        config.read(CONFIG.format(map="m", key="k").replace("shard = 1", "shard = 2"))


@pytest.fixture
def state(tmp_path: Path) -> State:
    told = _files(tmp_path)
    found = cluster.of(told)
    assert found and found.me == "s1/0" and str(found.core.shunt) == "192.0.2.1"
    made = new_state(appliance.compose(told, found))
    links = [appliance.Link(bytes(6), 1500, False)] * 2
    appliance.fill(made, told, links, bytes(16), bytes(16), found)
    return made


def test_what_a_core_remembers_of_its_map(state: State) -> None:
    """It has shard 0 as its primary and shard 1 as its backup; it creates nothing before it has asked."""
    assert state.shards["role"].tolist() == [JOINING, JOINING] and state.shards["creates"].tolist() == [0, 0]
    assert state.shards["side"].tolist() == [0, 1] and state.shards["epoch"].tolist() == [1, 4]
    assert state.shards["authority"].tolist() == [0, 2]
    # Itself, the others, and room for those that a newer map has.
    assert [int(address) & 0xFF for address in state.peers["address"]] == [1, 2, 3] + [0] * 13
    assert state.prefixes["shard"].tolist() == [0, 1] and state.pools["shard"].tolist() == [0, 1]


def test_another_core_has_none_of_it(tmp_path: Path) -> None:
    told = _files(tmp_path, MAP, CONFIG.replace('name = "s1"', 'name = "s2"').replace("192.0.2.1/24", "192.0.2.2/24"))
    found = cluster.of(told)
    made = new_state(appliance.compose(told, found))
    appliance.fill(made, told, [appliance.Link(bytes(6), 1500, False)] * 2, bytes(16), bytes(16), found)
    assert made.shards["role"].tolist() == [JOINING, ABSENT] and made.shards["side"].tolist() == [1, 2]
    assert made.shards["authority"].tolist() == [1, 2]


def test_each_replica_has_ports_of_every_block(state: State) -> None:
    """Blocks of 512: seven in eight are side 0's but for their last chunk. Blocks of 128: of two chunks one each."""
    rows = state.chunks["side"][state.pools["first_external"][:2]]
    large, small = rows[0].reshape(-1, 8), rows[1].reshape(-1, 2)
    assert large[0].tolist() == [0] * 7 + [1] and large[7].tolist() == [1] * 7 + [0]
    assert np.array_equal(large[:7], large[8:15])
    assert small[0].tolist() == [0, 1] and small[7].tolist() == [1, 0]


def test_key_and_check_by_hand(tmp_path: Path) -> None:
    """The key is made once, mode 0600; the map's table, or its complaints with exit status 78."""
    call = CliRunner().invoke
    first, again = (call(root, ["cluster", "key", str(tmp_path / "key")]) for _ in range(2))
    assert first.exit_code == again.exit_code == 0 and first.output == again.output and len(first.output) == 41
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "map").write_text(MAP)
    told = call(root, ["cluster", "check", str(tmp_path / "map")])
    assert told.exit_code == 0 and [line.split() for line in told.output.splitlines()[1:]] == [
        ["0", "s1/0", "s2/0", "1"],
        ["1", "s2/1", "s1/0", "4"],
    ]
    (tmp_path / "map").write_text(MAP.replace("epoch = 4", "epoch = 'x'"))
    refused = call(root, ["cluster", "check", str(tmp_path / "map")])
    assert isinstance(refused.exception, ConfigError) and refused.exception.status == 78
    (tmp_path / "s1.toml").write_text(CONFIG.format(map=tmp_path / "map", key=tmp_path / "key"))
    words = ["cluster", "check", str(tmp_path / "map"), "-c", str(tmp_path / "s1.toml")]
    (tmp_path / "map").write_text(MAP)
    refused = call(root, words)
    assert isinstance(refused.exception, Trouble) and "nobody would speak to it" in refused.exception.why
    (tmp_path / "map").write_text(MAP.replace("a" * 40, first.output.strip()))
    assert call(root, words).exit_code == 0


def test_doctor_looks_at_what_a_cluster_needs(tmp_path: Path) -> None:
    """Map, keys, where it listens, who answers, what fits: each wrong once, then all right."""

    def found(**files: Any) -> dict[str, doctor.Finding]:
        machine = doctor.Machine(tmp_path, _files(tmp_path, **files))
        return {finding.id: finding for finding in doctor.cluster(machine)}

    def results(told: dict[str, doctor.Finding]) -> dict[str, str]:
        return {name: finding.result for name, finding in told.items()}

    lacking = CONFIG.replace("[cluster]\n", f'[cluster]\nport-key-file = "{tmp_path}/ports"\n')
    assert results(found(map_text="nonsense", config_text=lacking)) == {"cluster-map": "FAIL", "port-key": "FAIL"}
    (tmp_path / "ports").write_bytes(bytes(32))
    (tmp_path / "ports").chmod(0o600)
    (tmp_path / "sys/class/net/out0").mkdir(parents=True)
    (tmp_path / "sys/class/net/out0/mtu").write_text("1500\n")
    with socket.socket() as here, socket.socket() as there:
        here.bind(("127.0.0.1", 0))
        there.bind(("127.0.0.1", 0))
        wrong = found(map_text=MAP.replace("192.168.77.", "127.0.0."), config_text=lacking, own_key=False)
        assert results(wrong) == {
            "cluster-map": "OK", "cluster-key": "FAIL", "cluster-listen": "OK", "cluster-reach": "WARN", "shunt-mtu": "WARN",
            "port-key": "OK",
        }  # fmt: skip
        assert "0 of 2 answer; not s2/0 (Connection refused)" in wrong["cluster-reach"].measured
        assert all(finding.fix for finding in wrong.values() if finding.result != "OK")
        there.listen()
        ends = (f"127.0.0.1:{end.getsockname()[1]}" for end in (there, here))
        (tmp_path / "sys/class/net/out0/mtu").write_text("1544\n")
        told = MAP[: MAP.index('[[core]]\nname = "s2/1"')] + MAP[MAP.index("[[shard]]") :].replace("s2/1", "s2/0")
        told = told.replace("192.168.77.2:7600", next(ends)).replace("192.168.77.1:7600", next(ends))
        here.close()
        right = found(map_text=told, config_text=lacking)
        assert set(results(right).values()) == {"OK"} and right["cluster-reach"].measured == "1 of 1 answer"
        assert right["port-key"].measured.startswith("fingerprint ")
