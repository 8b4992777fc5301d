"""Other people's programs through the appliance: what they find out about it is what is configured, and they get on with it."""

from __future__ import annotations

import json
import os
import re
import signal
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

pytestmark = [pytest.mark.lab, pytest.mark.company]
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


# --- mappings that are asked for ------------------------------------------------------------------------------------------

ANYCAST = "192.0.0.9"
_CALL = """
import socket, sys
calling = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
calling.settimeout(3)
calling.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
print(calling.recvfrom(2000))
"""
# libtorrent asks for its TCP and its UDP port by PCP, and falls back on NAT-PMP where that is not spoken.
_TORRENT = """
import libtorrent, time
session = libtorrent.session({
    "listen_interfaces": "0.0.0.0:6881", "enable_natpmp": True, "enable_upnp": False, "enable_lsd": False, "enable_dht": False,
    "alert_mask": libtorrent.alert.category_t.port_mapping_notification,
})
until = time.monotonic() + 30
while time.monotonic() < until:
    session.wait_for_alert(100)
    for alert in session.pop_alerts():
        print(type(alert).__name__, getattr(alert, "external_port", ""), alert.message(), flush=True)
"""


def natpmpc(lab: Lab, node: str, *words: str, port: int = 7, protocol: str = "udp", lifetime_s: int = 3600) -> tuple[str, int]:
    """(external address, external port) that a client of NAT-PMP is told."""
    asked = ("natpmpc", *words, "-a", "0", str(port), protocol, str(lifetime_s))
    told = lab.run(node, *asked).stdout
    found = re.search(r"Public IP address : ([\d.]+)(?:.|\n)*Mapped public port (\d+) protocol \w+ to local port", told)
    assert found, told
    return found[1], int(found[2])


def listed(lab: Lab, origin: str) -> list[tuple[str, int, str, int]]:
    """Mappings of an origin: (host, port, external address, external port)."""
    done = lab.krononat("mappings", "list", "--origin", origin, "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert all(row["expires_s"] > 0 for row in rows)
    return sorted((row["internal"], row["internal_port"], row["external"], row["external_port"]) for row in rows)


@pytest.mark.parametrize(("node", "words"), [("c1", ()), ("c3", ("-g", ANYCAST))])
def test_rfc6886_natpmpc_asks_for_a_mapping_and_a_stranger_comes_in_by_it(lab: Lab, node: str, words: tuple[str, ...]) -> None:
    """c3 is behind a router, so it asks at the anycast address (RFC 7723); its pool filters by address and port."""
    answering = lab.start(node, f"answers-{node}", (sys.executable, "-c", _ECHO))
    try:
        _until_said(lab, f"answers-{node}")
        address, port = natpmpc(lab, node, *words)
        assert (TOPOLOGY.address(node), 7, address, port) in listed(lab, "nat-pmp")
        told = lab.run("h2", sys.executable, "-c", _CALL, address, str(port)).stdout
        assert told == f"(b'hello', ('{address}', {port}))\n"
        assert natpmpc(lab, node, *words) == (address, port)
        assert lab.run(node, "natpmpc", *words, "-a", "0", "7", "udp", "0").returncode == 0
        assert listed(lab, "nat-pmp") == []
    finally:
        answering.kill()
        answering.wait()


def test_rfc6888_req9_libtorrent_asks_by_pcp_and_a_stranger_connects(lab: Lab) -> None:
    peer = lab.start("c2", "torrent", ("/usr/bin/python3", "-c", _TORRENT))
    try:
        until = time.monotonic() + 15
        while len(rows := listed(lab, "pcp")) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        told = lab.log("torrent").read_text()
        assert [row[:2] for row in rows] == 2 * [(TOPOLOGY.address("c2"), 6881)], told
        tcp = re.search(r"portmap_alert (\d+) .*TCP", told)
        assert tcp and "error" not in told, told
        done = lab.run("h2", sys.executable, "-c", _CONNECT, rows[0][2], tcp[1])
        assert done.stdout == "connected\n", done.stderr
        assert lab.status()["worker"]["late_compilations"] == 0
    finally:
        peer.kill()
        peer.wait()


_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3); print('connected')"


def test_nobody_outside_is_answered(lab: Lab) -> None:
    assert lab.run("h1", "natpmpc", "-g", "192.0.2.2").returncode != 0


def test_rfc6887_sec8_5_a_worker_that_is_killed_has_a_successor_that_knows_what_was_granted(lab: Lab) -> None:
    before, epoch_s = natpmpc(lab, "c1", port=4711), _epoch(lab)
    killed = lab.worker()
    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 20
    while not ((worker := lab.status()["worker"])["ready"] and worker["pid"] != killed) and time.monotonic() < until:
        time.sleep(0.05)  # in between the kernel says that nobody listens
    assert natpmpc(lab, "c1", port=4711) == before
    assert _epoch(lab) >= epoch_s > 0


def _epoch(lab: Lab) -> int:
    """Seconds since the server began, as natpmpc is told."""
    found = re.search(r"epoch = (\d+)", lab.run("c1", "natpmpc").stdout)
    assert found
    return int(found[1])


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
