"""IPv6 in the laboratory whose switches route: what is announced and steered, and a download that outlives its core."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from krononat import client
from krononat.config import read
from krononat.lab import chaos, cluster, fabric, namespaces, sixth, switches
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import PROGRAMS, Lab, living

WANTED = Wanted(2, 2, sessions=20_000, tor="bird", six=True)
BYTES, RATE = 24_000_000, "4M"
URL = f"http://[{sixth.H1}]/payload.bin"


@pytest.mark.parametrize("tors", [1, 2])
def test_every_link_has_a_network_of_its_own_and_both_ends_agree(tors: int) -> None:
    wanted = WANTED._replace(tors=tors, cores=2)
    drawn = fabric.topology(wanted, Path("/x"))
    addresses = [address for _, _, address in drawn.six]
    assert len(set(addresses)) == len(addresses)
    ends = {(node, interface): ip_address(address.split("/")[0]) for node, interface, address in drawn.six}
    assert ends["core", "switch_a"] == ends["aout", "core"] + 1
    for core in cluster.cores(wanted):
        config = read(drawn.appliances[cluster.label(wanted, core)].replace("/x/", "/nowhere/"))
        for port, link in zip((port for _, port in config.interfaces.named()), fabric.core_legs(wanted, core), strict=True):
            assert port.address6 and port.address6.ip == ends[link.node, link.port] + 1
        assert [str(group.prefix6) for group in config.subscribers] == [str(sixth.subscribers_of(shard)) for shard in (0, 1)]
    assert all(sixth.of_client(cluster.subscribers_of(shard)[11]) in sixth.subscribers_of(shard) for shard in (0, 1))
    with pytest.raises(ValueError, match="--tor bird"):
        Lab.of_cluster("knx", Wanted(2, 2, six=True))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two servers behind one switch."""
    try:
        namespaces.need(*PROGRAMS, *switches.programs(WANTED))
    except client.Trouble as trouble:
        pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure
    with living(Lab.of_cluster("kf6", WANTED)) as built:
        yield built


def until(holds: Callable[[], bool], patience_s: float = 40.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.1)


def way(lab: Lab, node: str, *table: str) -> str:
    """By which device a switch sends IPv6 packets of shard 0's subscribers, or to them."""
    to = () if table else (str(sixth.subscribers_of(0)),)
    told = lab.run(node, "ip", "-6", "route", "show", *table, *to).stdout.split()
    return told[told.index("dev") + 1] if "dev" in told else ""


def by_core(lab: Lab, name: str) -> bool:
    """Whether both directions of shard 0 are steered to a core."""
    return (way(lab, "ain", "table", "1000"), way(lab, "aout")) == (f"{name}in", f"{name}out")


def fetch(lab: Lab, into: Path) -> subprocess.CompletedProcess[str]:
    words = ("curl", "-6", "-sS", "-o", str(into), "--max-time", "60", "--limit-rate", RATE, "-r", f"0-{BYTES - 1}", URL)
    return lab.run("c1", *words, timeout_s=70.0)


@pytest.mark.lab
def test_a_download_by_ipv6_goes_on_when_its_core_dies(lab: Lab, tmp_path: Path) -> None:
    until(lambda: by_core(lab, "s1c0"))
    until(lambda: "h1" in lab.run("c1", "curl", "-6", "-sS", "--max-time", "2", f"http://[{sixth.H1}]/").stdout)
    done: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: done.append(fetch(lab, tmp_path / "got")))
    thread.start()
    until(lambda: bool(done) or ((tmp_path / "got").exists() and (tmp_path / "got").stat().st_size > BYTES // 6))
    assert not done, done
    chaos.fail(lab, "core", "s1/0")
    until(lambda: by_core(lab, "s2c0"))
    assert thread.is_alive()  # most of it comes by the other one
    thread.join()
    assert done[0].returncode == 0, done[0].stderr
    with (lab.folder / "h1" / "www" / "payload.bin").open("rb") as file:
        assert (tmp_path / "got").read_bytes() == file.read(BYTES)
    words = (sys.executable, "-m", "krononat", "sessions", "list", "-p", "tcp", "-d", str(sixth.H1), "-o", "json")
    assert str(sixth.H1) in lab.run("s2", *words, "--socket", str(lab.socket_of("s2.0"))).stdout
