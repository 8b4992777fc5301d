"""Two rooms in the laboratory, with real switches: the first one is lost, the second one serves, the first one returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from krononat import client
from krononat.lab import chaos, cluster, leaks, namespaces, overview, switches, traffic
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import KRONONAT, PROGRAMS, Lab, living

WANTED = Wanted(3, 2, sessions=20_000, tor="bird", rooms=2)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """All of it."""
    try:
        namespaces.need(*PROGRAMS, *switches.programs(WANTED))
    except client.Trouble as trouble:
        pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure
    with living(Lab.of_cluster("krr", WANTED)) as built:
        yield built


def until(holds: Callable[[], bool], patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


def ways(lab: Lab) -> set[str]:
    """Where the switch sends packets, both ways."""
    return {way for place in overview.places(WANTED, overview.look(lab)) for way in (place.outbound, place.inbound)}


def rows(lab: Lab, core: str) -> list[dict[str, object]]:
    return client.rows(str(lab.socket_of(lab.label(core))), "shards")[1]


@pytest.mark.lab
def test_a_room_is_lost_and_comes_back(lab: Lab) -> None:
    until(lambda: ways(lab) == {"s1/0", "s2/0"})
    assert traffic.ping(lab).held
    assert {row["role"] for row in rows(lab, "s3/0")} == {"absent"}
    chaos.fail(lab, "blackout", "A")
    until(lambda: traffic.ping(lab).held)
    until(lambda: ways(lab) == {"s3/0"})
    assert traffic.dns(lab).held
    chaos.heal(lab, "blackout", "A")
    until(lambda: all(row["in_sync"] for row in rows(lab, "s3/0") if row["role"] == "active"))
    until(lambda: ways(lab) == {"s3/0"})  # nobody takes a shard back
    assert {row["role"] for row in rows(lab, "s3/0")} == {"active"}
    for server in cluster.servers_of(WANTED, "A"):
        done = lab.run("s1", *KRONONAT, "server", "undrain", server, "--yes", "--socket", str(lab.folder), timeout_s=60)
        assert done.returncode == 0, done.stderr
    until(lambda: ways(lab) == {"s1/0", "s2/0"} and overview.lacks(lab) == [])
    until(lambda: {row["role"] for row in rows(lab, "s3/0")} == {"absent"})
    assert traffic.ping(lab).held and leaks.counted(lab) == 0
