"""Real programs through the IPv6 firewall: ping, curl and traceroute out, nothing unasked in, path MTU discovery, pinholes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from krononat import client
from krononat.lab import namespaces
from krononat.lab.laboratory import PROGRAMS, Lab, laboratory
from krononat.lab.topology import SIX

pytestmark = pytest.mark.company

H1, H2, C1, C2, C3 = (SIX.address6(node) for node in ("h1", "h2", "c1", "c2", "c3"))


def test_the_laboratory_with_ipv6_is_the_first_one_with_more() -> None:
    assert (H1, C3) == ("2001:db8:198:1::10", "2001:db8:65:d::13")
    assert [end.mtu for link in SIX.links for end in link if end.name in ("isp.h2", "h2.eth0")] == [1400, 1500]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The laboratory, with IPv6."""
    try:
        namespaces.need(*PROGRAMS)
    except client.Trouble as trouble:
        pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure
    with laboratory("kn6", SIX) as built:
        yield built


def ping(lab: Lab, node: str, host: str, *more: str) -> int:
    """How many of three are answered."""
    done = lab.run(node, "ping", "-6", "-n", "-c", "3", "-i", "0.1", "-W", "2", *more, host)
    found = re.search(r"(\d+) received", done.stdout)
    return int(found[1]) if found else 0


def drops(lab: Lab) -> dict[str, int]:
    return {row["reason"]: row["packets"] for row in json.loads(lab.krononat("drops", "-o", "json").stdout)}


@pytest.mark.lab
@pytest.mark.parametrize("node", ["c1", "c2", "c3"])
def test_ping_goes_out_and_comes_back(lab: Lab, node: str) -> None:
    assert ping(lab, node, H1) == 3 and ping(lab, node, H2) == 3


@pytest.mark.lab
def test_the_core_itself_is_the_kernels(lab: Lab) -> None:
    assert ping(lab, "c1", "2001:db8:64::1") == 3 and ping(lab, "isp", "2001:db8:192::2") == 3


@pytest.mark.lab
@pytest.mark.parametrize("node", ["c1", "c3"])
def test_curl_fetches_by_tcp(lab: Lab, node: str) -> None:
    done = lab.run(node, "curl", "-6", "-sS", "--max-time", "10", f"http://[{H1}]/index.html")
    assert done.stdout == "h1\n", done.stderr
    listed = json.loads(lab.krononat("sessions", "list", "-p", "tcp", "-d", H1, "-o", "json").stdout)
    assert {row["remote"] for row in listed} == {H1} and {row["protocol"] for row in listed} == {"tcp"}


@pytest.mark.lab
def test_nobody_comes_in_unasked(lab: Lab) -> None:
    before = drops(lab).get("unsolicited", 0)
    with ThreadPoolExecutor() as at_once:  # each of them waits in vain
        pings = [at_once.submit(ping, lab, "h1", host) for host in (C1, C3)]
        done = lab.run("h1", "curl", "-6", "-sS", "--max-time", "2", f"http://[{C2}]:8081/")
    assert done.returncode != 0 and [told.result() for told in pings] == [0, 0]
    assert drops(lab)["unsolicited"] >= before + 7


@pytest.mark.lab
def test_a_pinhole_lets_in(lab: Lab) -> None:
    done = lab.run("h1", "curl", "-6", "-sS", "--max-time", "5", f"http://[{C2}]:8080/index.html")
    assert done.stdout == "c2\n", done.stderr


@pytest.mark.lab
def test_traceroute_sees_the_core_and_the_router_beyond(lab: Lab) -> None:
    done = lab.run("c1", "traceroute", "-6", "-n", "-q", "1", "-w", "2", H1)
    hops = re.findall(r"^ *\d+ +([0-9a-f:]+) ", done.stdout, re.MULTILINE)
    assert hops == ["2001:db8:64::1", "2001:db8:192::1", H1], done.stdout


@pytest.mark.lab
def test_path_mtu_discovery_works_through_the_firewall(lab: Lab) -> None:
    """`isp` cannot pass 1500 bytes to h2 and says so to c3, by an error about a session."""
    lab.run("c3", "ip", "-6", "route", "flush", "cache")
    told = lab.run("c3", "ping", "-6", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1452", H2)
    assert "Packet too big" in told.stdout + told.stderr or "message too long" in (told.stdout + told.stderr).lower()
    assert "mtu 1400" in lab.run("c3", "ip", "-6", "route", "get", H2).stdout
    sent = lab.run("c3", "curl", "-6", "-sS", "--max-time", "20", "-T", str(lab.config), f"http://[{H2}]/upload/small")
    assert sent.returncode == 0, sent.stderr


@pytest.mark.lab
def test_a_large_upload_finds_its_size(lab: Lab) -> None:
    """Its first full segments are refused by the router beyond; the rest is cut to fit."""
    big = lab.folder / "big.bin"
    big.write_bytes(bytes(2_000_000))
    sent = lab.run("c1", "curl", "-6", "-sS", "--max-time", "30", "-T", str(big), f"http://[{H2}]/upload/big.bin", timeout_s=40)
    assert sent.returncode == 0, sent.stderr
    assert (lab.folder / "h2" / "www" / "upload" / "big.bin").stat().st_size == 2_000_000


@pytest.mark.lab
def test_spoofers_stay_inside_and_the_kernel_forwards_nothing(lab: Lab) -> None:
    before = drops(lab).get("spoofed_source", 0)
    lab.run("c1", "ip", "-6", "address", "add", "2001:db8:99::1/128", "dev", "eth0", "nodad")
    answered = ping(lab, "c1", H1, "-I", "2001:db8:99::1")
    lab.run("c1", "ip", "-6", "address", "del", "2001:db8:99::1/128", "dev", "eth0")
    assert answered == 0
    assert drops(lab)["spoofed_source"] >= before + 3
    told = lab.run("nat", "cat", "/proc/net/snmp6").stdout
    assert re.search(r"Ip6OutForwDatagrams\s+0\b", told), told


@pytest.mark.lab
def test_killing_the_worker_ends_no_session(lab: Lab) -> None:
    from krononat.lab import crash

    assert ping(lab, "c1", H1) == 3
    outcome = crash.kill_worker(lab)
    assert outcome.held, outcome.told
    assert ping(lab, "c1", H1) == 3 and ping(lab, "h1", C1) == 0
