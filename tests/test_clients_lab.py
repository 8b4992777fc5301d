"""Other people's programs through the appliance: what they find out about it is what is configured, and they get on with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from krononat import client
from krononat.lab import namespaces, servers
from krononat.lab.laboratory import PROGRAMS as LABORATORY
from krononat.lab.laboratory import Lab
from tests.clients import FILTERINGS, PROGRAMS, SHOWN, STUN, TOPOLOGY, clients_laboratory

pytestmark = pytest.mark.lab
H1, H2 = (TOPOLOGY.address(node) for node in ("h1", "h2"))
FETCHED = 10_000_000  # bytes
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The laboratory of clients."""
    try:
        namespaces.need(*LABORATORY, *PROGRAMS)
    except client.Trouble as trouble:
        pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure
    with clients_laboratory("knp") as built:
        yield built


def everywhere(lab: Lab, *words: str) -> dict[str, str]:
    """What a program prints in each client, all at once."""
    with ThreadPoolExecutor(len(FILTERINGS)) as at_once:
        done = at_once.map(lambda node: lab.run(node, *words), FILTERINGS)
        return {node: told.stdout + told.stderr for node, told in zip(FILTERINGS, done, strict=True)}


# --- STUN -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def discovered(lab: Lab) -> dict[str, str]:
    """What coturn's turnutils_natdiscovery finds out (RFC 5780 4.3, 4.4), in each client."""
    return everywhere(lab, "turnutils_natdiscovery", "-m", "-f", STUN[0])


@pytest.mark.parametrize("node", FILTERINGS)
def test_rfc4787_req1_natdiscovery_finds_endpoint_independent_mapping(discovered: dict[str, str], node: str) -> None:
    assert re.findall(r"NAT with (.*) Mapping", discovered[node]) == ["Endpoint Independent"], discovered[node]


@pytest.mark.parametrize("node", FILTERINGS)
def test_rfc4787_req8_natdiscovery_finds_the_filtering_that_is_configured(discovered: dict[str, str], node: str) -> None:
    wanted = FILTERINGS[node].replace("-", " ").title().replace("And", "and")
    assert re.findall(r"NAT with (.*) Filtering", discovered[node]) == [wanted], discovered[node]


def test_rfc4787_req9_natdiscovery_finds_hairpinning(lab: Lab) -> None:
    """It writes to one of its sockets from another, so where the remote's address counts the filtering refuses that."""
    told = lab.run("c1", "turnutils_natdiscovery", "-H", STUN[0]).stdout
    assert "successful hairpinning" in told and "timeout" not in told, told


def test_rfc4787_req1_8_9_an_older_client_of_stun_comes_to_the_same(lab: Lab) -> None:
    """An older client by other authors, with the messages of RFC 3489."""
    told = everywhere(lab, "stun", STUN[0])
    words = {"c1": "Independent Filter", "c2": "Address Dependent Filter", "c3": "Port Dependent Filter"}
    for node, filtering in words.items():
        found = re.search(r"Primary: (.*)", told[node])
        assert found and "Independent Mapping" in found[1] and filtering in found[1], told[node]
        assert "will hairpin" in found[1], told[node]


# --- the way --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [(), ("-I",), ("-T", "-p", "80")], ids=["udp", "icmp", "tcp"])
@pytest.mark.parametrize("node", ["c1", "c2"])
def test_rfc5508_req4a_4b_4c_10a_traceroute_shows_every_hop(lab: Lab, node: str, kind: tuple[str, ...]) -> None:
    done = lab.run(node, "traceroute", "-n", "-q", "1", "-N", "1", "-w", "3", "-m", "6", *kind, H1)
    assert re.findall(r"^ *\d+ +(\S+)", done.stdout, re.MULTILINE) == ["100.64.0.1", "192.0.2.1", H1], done.stdout


def test_rfc5508_req4a_4b_4c_tracepath_finds_the_narrow_link_behind(lab: Lab) -> None:
    told = lab.run("c1", "tracepath", "-n", "-m", "8", H2).stdout
    assert re.search(r"Resume: pmtu 1400 hops 3", told), told
    assert "100.64.0.1" in told and "192.0.2.1" in told


def test_rfc5508_req5a_5b_5c_downloads_with_df_pass_a_narrow_link_inside(lab: Lab) -> None:
    """The router before c3 says that it is too big; h1 hears that with the addresses that it knows, and sends less."""
    _fetch(lab, "c3", H1)
    shown = lab.run("h1", "ip", "route", "show", "cache").stdout
    assert re.search(r"203\.0\.113\.[89] .*\n? *cache expires \d+sec mtu 1400", shown), shown


def test_rfc5508_req4a_4c_uploads_with_df_pass_a_narrow_link_outside(lab: Lab) -> None:
    file = lab.folder / "upload.bin"
    file.write_bytes(bytes(range(256)) * (FETCHED // 256))
    done = lab.run("c1", "curl", "-sS", "--fail", "--max-time", "30", "-T", str(file), f"http://{H2}/upload/upload.bin")
    assert done.returncode == 0, done.stderr
    assert (lab.folder / "h2" / "www" / "upload" / "upload.bin").read_bytes() == file.read_bytes()
    assert "mtu 1400" in lab.run("c1", "ip", "route", "get", H2).stdout


def _fetch(lab: Lab, node: str, host: str) -> None:
    """The first bytes of the laboratory's payload, as they are in the file."""
    arrived = lab.folder / f"{node}.bin"
    words = ("--max-time", "30", "-r", f"0-{FETCHED - 1}", "-o", str(arrived), f"http://{host}/payload.bin")
    done = lab.run(node, "curl", "-sS", "--fail", *words)
    assert done.returncode == 0, done.stderr
    with servers.payload(lab.folder).open("rb") as file:
        assert arrived.read_bytes() == file.read(FETCHED)


# --- peers ----------------------------------------------------------------------------------------------------------------


class Peer:
    """A running tests.ice_peer."""

    def __init__(self, lab: Lab, node: str, name: str, server: str) -> None:
        words = namespaces.inside(lab.namespace_of(node), (sys.executable, "-m", "tests.ice_peer", name, server))
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.name = name

    def hear(self) -> dict[str, Any]:
        """Its next line."""
        assert self.process.stdout
        told: dict[str, Any] = json.loads(self.process.stdout.readline() or '{"heard": "it has ended"}')
        return told

    def tell(self, told: dict[str, Any]) -> None:
        """Give it a line."""
        assert self.process.stdin
        print(json.dumps(told), file=self.process.stdin, flush=True)

    def end(self) -> None:
        """It is over, or has to be."""
        self.process.terminate()
        self.process.communicate(timeout=10)


def meet(lab: Lab, first: str, second: str) -> list[dict[str, Any]]:
    """Let a peer in one node, and one in another, exchange messages; what each says at the end."""
    nodes = {"controlling": first, "controlled": second}
    peers = [Peer(lab, node, name, STUN[0] if node != "h2" else "none") for name, node in nodes.items()]
    try:
        offers = [peer.hear() for peer in peers]
        for peer, offer in zip(peers, reversed(offers), strict=True):
            assert len(offer["candidates"]) == 1, offer
            peer.tell(offer)
        return [peer.hear() for peer in peers]
    finally:
        for peer in peers:
            peer.end()


def _all_heard(told: list[dict[str, Any]]) -> None:
    for one, other in zip(told, ("controlled", "controlling"), strict=True):
        assert one["heard"] == [f"{other} {number}" for number in range(100)]


@pytest.mark.parametrize(("first", "second"), [("c1", "c2"), ("c2", "c3"), ("c3", "c1")])
def test_rfc4787_req9_9a_ice_peers_behind_one_translator_meet_by_its_hairpin(lab: Lab, first: str, second: str) -> None:
    """Whatever the filtering of each: both send, so both let the other in."""
    told = meet(lab, first, second)
    _all_heard(told)
    for one, node in zip(told, (second, first), strict=True):
        assert {host.rpartition(".")[2] for host in one["remotes"]} <= _addresses_of(node), told


def _addresses_of(node: str) -> set[str]:
    """Last bytes of the two addresses of a client's pool."""
    first = int(SHOWN[node].rpartition(".")[2])
    return {str(first), str(first + 1)}


def test_the_peers_have_no_other_way(lab: Lab) -> None:
    assert lab.run("c1", "ping", "-c", "1", "-W", "1", TOPOLOGY.address("c2")).returncode != 0
    assert lab.run("c1", "ping", "-c", "1", "-W", "1", TOPOLOGY.address("c3")).returncode != 0


@pytest.mark.parametrize(("first", "second"), [("c1", "h2"), ("h2", "c2"), ("c3", "h2")])
def test_an_ice_peer_inside_and_one_outside_meet(lab: Lab, first: str, second: str) -> None:
    _all_heard(meet(lab, first, second))


# --- a scan ---------------------------------------------------------------------------------------------------------------

_ECHO = """
import socket
answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
answers.bind(("", 7))
print("ready", flush=True)
while True:
    answers.sendto(*answers.recvfrom(2000))
"""
_STREAM = """
import socket, sys, time
stream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
stream.settimeout(1)
heard, sent, began = set(), 0, time.monotonic()
print("ready", flush=True)
while time.monotonic() - began < float(sys.argv[2]):
    stream.sendto(str(sent).encode(), (sys.argv[1], 7))
    sent += 1
    while time.monotonic() - began < 0.005 * sent:
        stream.settimeout(max(0.005 * sent - (time.monotonic() - began), 0.0001))
        try:
            heard.add(int(stream.recv(2000)))
        except TimeoutError:
            pass
stream.settimeout(1)
while len(heard) < sent:
    try:
        heard.add(int(stream.recv(2000)))
    except TimeoutError:
        break
print(sent, len(heard))
"""
SCANS = {
    "syn": (("-sS", "-p", "20-120"), {53: "open", 80: "open", 22: "closed", 119: "closed"}),
    "udp": (("-sU", "-p", "50-70"), {53: "open", 60: "closed", 69: "closed"}),
}


@pytest.mark.parametrize("kind", SCANS)
def test_nmap_finds_what_is_there_and_hurts_no_other_subscriber(lab: Lab, kind: str) -> None:
    """c2 scans; c1 has a stream of 200 datagrams a second meanwhile, of which none may be missing."""
    words, wanted = SCANS[kind]
    echo = lab.start("h1", f"echo-{kind}", (sys.executable, "-c", _ECHO))
    try:
        _until_said(lab, f"echo-{kind}")
        stream = lab.start("c1", f"stream-{kind}", (sys.executable, "-c", _STREAM, H1, "4"))
        _until_said(lab, f"stream-{kind}")
        done = lab.run("c2", "nmap", "-n", "-Pn", "--max-retries", "2", "-oG", "-", *words, H1)
        stream.wait(20)
    finally:
        echo.kill()
        echo.wait()
    found = {int(port): state for port, state in re.findall(r"(\d+)/(\w+(?:\|\w+)?)/", done.stdout)}
    counted = re.search(r"Ignored State: (\w+)", done.stdout)
    states = {port: found.get(port, counted[1] if counted else "") for port in wanted}
    assert states == wanted, done.stdout
    sent, heard = map(int, lab.log(f"stream-{kind}").read_text().split()[-2:])
    assert heard == sent > 400


def _until_said(lab: Lab, label: str) -> None:
    until = time.monotonic() + 10
    while not lab.log(label).read_text() and time.monotonic() < until:
        time.sleep(0.02)
