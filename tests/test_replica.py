"""What a core says of its shards while their copies are kept by others: alarms that no other test brings about."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from krononat.replica import Replica
from replication import keys, sender
from replication.frames import VERSION, Frame
from shards import invariants
from shards.state import ABSENT, ACTIVE, JOINING, NO_SIDE
from tests.bare_core import Core
from tests.exchanges import ticks
from tests.fuzz import bed
from tests.replicas import mappings
from tests.test_growth import have
from tests.test_replication6 import BED, MANY, hand
from tests.twins import ready, say

pytestmark = pytest.mark.alone

PATIENCE_S = 60.0


def orders(me: str, port: int, key: keys.Key, peer: tuple[str, int, keys.Key]) -> dict[str, Any]:
    """As `krononat.cluster.orders` has them: shard 0, primary s1/0, backup s2/0."""
    name, its_port, its_key = peer
    return {
        "me": me, "endpoint": f"tcp://127.0.0.1:{port}", "key": [key.public.decode(), key.secret.decode()], "mark": [1, 1],
        "peers": [[name, f"tcp://127.0.0.1:{its_port}", its_key.public.decode(), 1, 0x7F000001]],
        "shards": [[0, "s1/0", "s2/0", ""]], "dead_after": 150, "times": [100, 100, 100, 100, "apart"], "threshold": 0,
        "holds": True, "cpus": [],
    }  # fmt: skip


def free_ports() -> tuple[int, int]:
    """Two that nobody listens at."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def given(core: Core, side: int) -> Core:
    """A core that has just begun with an empty table."""
    core.state.shards["role"], core.state.shards["side"], core.state.shards["epoch"] = ABSENT, NO_SIDE, 1
    core.state.shards[0]["role"], core.state.shards[0]["side"] = JOINING, side
    return core


def until(happened: Any, *replicas: Replica) -> None:
    last = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < last, [replica.alarms(0) for replica in replicas]
        for replica in replicas:
            replica.turn(ticks(), called=True)
        time.sleep(0.0003)


def alarm(replica: Replica) -> list[str]:
    return [told for told in replica.alarms(0) if "IPv6" in told]


def met(one: Core, other: Core) -> tuple[Replica, Replica]:
    """Both, connected."""
    ours, theirs = keys.generate(), keys.generate()
    first, second = free_ports()
    return (
        Replica(one.state, orders("s1/0", first, ours, ("s2/0", second, theirs)), ticks()),
        Replica(other.state, orders("s2/0", second, theirs, ("s1/0", first, ours)), ticks()),
    )


@pytest.mark.parametrize("version", [VERSION - 1, VERSION])
def test_an_alarm_says_that_the_backup_s_version_knows_no_ipv6(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """Only where there are such sessions, and only at who would lose them."""
    opened = sender.Sender.opened

    def as_before(one: sender.Sender, frame: Frame, now: int) -> None:
        opened(one, frame._replace(version=version), now)

    monkeypatch.setattr(sender.Sender, "opened", as_before)
    one, other = (given(Core(bed(BED + "peer 127.0.0.1\n"), ticks()), side) for side in (0, 1))
    replicas = met(one, other)
    try:
        exchange = replicas[0].exchange
        until(lambda: replicas[0].conductor.posts[0].role == ACTIVE and exchange.synced(0, "s2/0"), *replicas)
        assert alarm(replicas[0]) == []
        assert hand(one, "inside", MANY[0], ticks()) == "forwarded_out"
        until(lambda: exchange.flushed(0, "s2/0"), *replicas)
        expected = "shard 0 would lose its sessions of IPv6: s2/0 is of a version that knows none"
        assert alarm(replicas[0]) == ([expected] if version < VERSION else []) and alarm(replicas[1]) == []
    finally:
        for replica in replicas:
            replica.exchange.close()


def test_rows_with_an_address_that_is_unknown_to_a_backup_come_once_it_knows_it() -> None:
    """The authority has added it first: what the copy lacks is counted, told, and asked for again; nothing wrong is taken."""
    text = "pool 203.0.113.8/32 block 64 blocks 2 ports 1024-1151 spare 1\nsubscribers 100.64.0.0/24\npeer 127.0.0.1\n"
    one, other = (given(Core(bed(text), ticks()), side) for side in (0, 1))
    ready(one, other)
    replicas = met(one, other)
    exchange = replicas[0].exchange
    try:
        until(lambda: replicas[0].conductor.posts[0].role == ACTIVE and exchange.synced(0, "s2/0"), *replicas)
        have(one.state, "203.0.113.4/32", "203.0.113.8/32")
        for host in range(2, 6):
            assert say(one, f"udp 100.64.0.{host}:4000 > 198.51.100.9:53", ticks()).verdict == "forwarded_out"
        until(lambda: replicas[1].exchange.refused_of(0) > 0 and exchange.flushed(0, "s2/0"), *replicas)
        assert any("lacks" in told for told in replicas[1].alarms(0))
        assert len(mappings(other.state)) == 2 and invariants.complaints(other.state) == []
        replicas[0].enlarge(ticks())
        asked = {"do": "migrate", "shard": 0, "target": "s2/0", "dry_run": True}
        assert "has not said yet" in replicas[0].answer(asked)["error"]["why"]
        assert replicas[0].answer(asked)["error"]["next"] == "try again in a moment"
        until(lambda: "does not know 1 of its" in replicas[0].answer(asked)["error"]["why"], *replicas)
        assert "know the same prefixes" in replicas[0].answer(asked)["error"]["next"]
        have(other.state, "203.0.113.4/32", "203.0.113.8/32")
        replicas[1].enlarge(ticks())
        until(lambda: sorted(mappings(other.state)) == sorted(mappings(one.state)), *replicas)
        assert len(mappings(one.state)) == 4 and replicas[1].exchange.refused_of(0) == 0
        assert not any("lacks" in told for told in replicas[1].alarms(0)) and invariants.complaints(other.state) == []
        until(lambda: replicas[0].answer(asked)["ok"], *replicas)
    finally:
        for replica in replicas:
            replica.exchange.close()


def test_a_copy_that_may_not_come_home_is_an_alarm_and_a_refusal_says_what_to_do_about_its_own_reason() -> None:
    """A newer map wants it at s3/0, which knows other external addresses, and is away besides."""
    text = "pool 203.0.113.8/32 block 64 blocks 2 ports 1024-1151\nsubscribers 100.64.0.0/24\npeer 127.0.0.1\npeer 127.0.0.2\n"
    one, other = (given(Core(bed(text), ticks()), side) for side in (0, 1))
    ours, theirs, third = (keys.generate() for _ in range(3))
    first, second = free_ports()
    told = orders("s1/0", first, ours, ("s2/0", second, theirs))
    newer = orders("s1/0", first, ours, ("s3/0", free_ports()[0], third)) | {"shards": [[0, "s1/0", "s3/0", ""]]}
    newer["peers"][0][3:] = [2, 0x7F000002]
    newer["peers"] += told["peers"]
    replicas = (
        Replica(one.state, told, ticks()),
        Replica(other.state, orders("s2/0", second, theirs, ("s1/0", first, ours)), ticks()),
    )
    exchange, conductor = replicas[0].exchange, replicas[0].conductor
    try:
        until(lambda: conductor.posts[0].role == ACTIVE and exchange.synced(0, "s2/0"), *replicas)
        replicas[0].follow(newer, ticks())
        assert not any("elsewhere" in alarm for alarm in replicas[0].alarms(0))
        conductor.addresses.told_digest("s3/0", 7)
        unsaid = "s3/0 knows other external addresses than s1/0, and has not said yet which"
        stays = "the copy of shard 0 stays at s2/0, though the map has it elsewhere"
        assert f"{stays}: {unsaid}" in replicas[0].alarms(0)
        refused = replicas[0].answer({"do": "migrate", "shard": 0, "target": "s3/0"})["error"]
        assert refused["why"] != unsaid and refused["next"] == "krononat server list"
    finally:
        for replica in replicas:
            replica.exchange.close()
