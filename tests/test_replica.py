"""What a core says of its shards while their copies are kept by others: alarms that no other test brings about."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from krononat.replica import Replica
from replication import keys, sender
from replication.frames import VERSION, Frame
from shards.state import ABSENT, ACTIVE, JOINING, NO_SIDE
from tests.bare_core import Core
from tests.bed import Bed
from tests.exchanges import ticks
from tests.fuzz import bed
from tests.test_replication6 import BED, MANY, hand

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


@pytest.mark.parametrize("version", [VERSION - 1, VERSION])
def test_an_alarm_says_that_the_backup_s_version_knows_no_ipv6(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    """Only where there are such sessions, and only at who would lose them."""
    opened = sender.Sender.opened

    def as_before(one: sender.Sender, frame: Frame, now: int) -> None:
        opened(one, frame._replace(version=version), now)

    monkeypatch.setattr(sender.Sender, "opened", as_before)
    ours, theirs = keys.generate(), keys.generate()
    made: Bed = bed(BED + "peer 127.0.0.1\n")
    one, other = (given(Core(made, ticks()), side) for side in (0, 1))
    first, second = free_ports()
    replicas = (
        Replica(one.state, orders("s1/0", first, ours, ("s2/0", second, theirs)), ticks()),
        Replica(other.state, orders("s2/0", second, theirs, ("s1/0", first, ours)), ticks()),
    )
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
