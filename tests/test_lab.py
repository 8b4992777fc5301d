"""Real programs through the appliance: the laboratory, a router on a stick, and an appliance that knows no laboratory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from krononat import client
from krononat.lab import conservation, crash, demo, namespaces, traffic
from krononat.lab.laboratory import PROGRAMS, RUN, Lab, laboratory
from krononat.lab.topology import ROUTER, STICK
from tests.netns import Namespace, namespace

pytestmark = pytest.mark.company

KRONONAT = (sys.executable, "-m", "krononat")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The laboratory with two on-link clients and a routed one."""
    _need_a_laboratory()
    with laboratory("knt") as built:
        yield built


@pytest.fixture(scope="module")
def stick() -> Iterator[Lab]:
    """The laboratory whose appliance has one interface."""
    _need_a_laboratory()
    with laboratory("kns", STICK) as built:
        yield built


def _need_a_laboratory() -> None:
    try:
        namespaces.need(*PROGRAMS)
    except client.Trouble as trouble:
        pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure


# --- without a laboratory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "x/y", "", "a b", "Upper", "toolonganame"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    done = subprocess.run([*KRONONAT, "lab", "up", "--name", name], capture_output=True, text=True)
    assert done.returncode == 2 and "is no name for a laboratory" in done.stderr


def test_the_picture_names_every_node_once() -> None:
    assert ROUTER.nodes == ("c1", "access", "c2", "c3", "nat", "isp", "h1", "h2")
    assert [(own.interface, peer.name) for own, peer in ROUTER.ports()] == [("inside0", "access.nat"), ("outside0", "isp.nat")]
    assert ROUTER.address("h1") == "198.51.100.10"


def test_an_equation_that_does_not_hold_is_told() -> None:
    assert conservation.Line("sent = got", 5, 5).holds
    assert not conservation.Line("sent = got", 5, 4).holds


def test_the_longest_gap_between_pings() -> None:
    told = "PING x\n[10.0] 64 bytes from x\n[10.02] 64 bytes from x\n[11.52] 64 bytes from x\n[11.54] 64 bytes from x\n"
    assert crash.longest_gap_s(told) == 1.5
    assert crash.longest_gap_s("PING x\n[10.0] 64 bytes from x\n") == float("inf")


# --- the laboratory -----------------------------------------------------------------------------------------------------------


@pytest.mark.lab
@pytest.mark.parametrize("kind", traffic.ALL)
def test_traffic(lab: Lab, kind: str) -> None:
    outcome = traffic.throughput(lab, seconds=1) if kind == "throughput" else traffic.ALL[kind](lab)
    assert outcome.held, outcome.told


@pytest.mark.lab
@pytest.mark.parametrize("sender", ["c2", "c3"])
def test_partial_checksums_of_veth_senders_are_finished(lab: Lab, sender: str) -> None:
    """c1 computes its own; c2 and c3 leave them to whoever sends the packet out of the machine."""
    outcome = traffic.upload(lab, sender)
    assert outcome.held, outcome.told


@pytest.mark.lab
def test_every_packet_is_accounted_for(lab: Lab) -> None:
    with conservation.watching(lab) as ledger:
        for make in (traffic.ping, traffic.dns, traffic.download, traffic.refused):
            make(lab)
        outcome, lines, counts = ledger.close()
    assert outcome.held, outcome.told
    assert len(lines) == 7
    assert counts["forwarded"] > 10_000
    assert counts["no_mapping"] >= 3
    assert counts["spoofed_source"] == 3
    assert counts["rule_rejected"] >= 1
    assert demo.kernel_forwarded_nothing(lab).held


@pytest.mark.lab
def test_ping_to_the_core_itself_is_answered_by_the_kernel(lab: Lab) -> None:
    assert " 3 received" in lab.run("c1", "ping", "-c", "3", "-i", "0.05", "-W", "2", "100.64.0.1").stdout
    assert " 3 received" in lab.run("isp", "ping", "-c", "3", "-i", "0.05", "-W", "2", "192.0.2.2").stdout


@pytest.mark.lab
def test_no_inside_address_is_seen_outside(lab: Lab) -> None:
    words = ("tcpdump", "-n", "-i", "nat", "-c", "1", "src", "net", "100.64.0.0/10")
    watch = lab.start("isp", "tcpdump", words)
    assert traffic.route(lab).held
    assert traffic.dns(lab).held
    time.sleep(0.3)
    watch.send_signal(signal.SIGINT)
    watch.wait(10)
    assert "\n0 packets captured" in lab.log("tcpdump").read_text()


# --- protocols without ports: by raw sockets, since a kernel need not have more of them ---------------------------------------

_PROTOCOLS = [("gre", 47, "c1"), ("esp", 50, "c2"), ("sctp", 132, "c3"), ("ipip", 4, "c1")]
_ECHO = """
import socket, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(sys.argv[1]))
print("ready", flush=True)
data, (host, _) = heard.recvfrom(2000)
print(host, data[20:].hex(), flush=True)
heard.sendto(data[20:], (host, 0))
"""
_ASK = """
import socket, sys
asks = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(sys.argv[1]))
hears = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) if "error" in sys.argv else asks
hears.settimeout(5)
asks.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[2], 0))
print(hears.recvfrom(2000)[0].hex())
"""


@pytest.mark.lab
@pytest.mark.parametrize(("name", "number", "node"), _PROTOCOLS)
def test_rfc6888_req1_protocols_without_ports_go_out_and_come_back(lab: Lab, name: str, number: int, node: str) -> None:
    sent = "00000800" + bytes(range(100, 140)).hex()
    echo = lab.start("h1", f"echo-{name}", (sys.executable, "-c", _ECHO, str(number)))
    until = time.monotonic() + 10
    while not lab.log(f"echo-{name}").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    done = lab.run(node, sys.executable, "-c", _ASK, str(number), ROUTER.address("h1"), sent)
    echo.wait(10)
    assert done.returncode == 0, done.stderr
    answer = bytes.fromhex(done.stdout)
    assert answer[20:].hex() == sent and answer[12:16] == bytes(map(int, ROUTER.address("h1").split(".")))
    _, external, heard = lab.log(f"echo-{name}").read_text().split()
    assert heard == sent and not external.startswith("100.")
    (listed,) = json.loads(lab.krononat("sessions", "list", "-p", name, "-o", "json").stdout)
    assert (listed["external"], listed["internal"], listed["state"]) == (external, ROUTER.address(node), "generic")


@pytest.mark.lab
def test_what_a_kernel_says_of_a_protocol_that_it_has_not_comes_back(lab: Lab) -> None:
    """Protocol unreachable (RFC 1122 3.2.2.1), with our own packet in it as it was sent."""
    done = lab.run("c2", sys.executable, "-c", _ASK, "47", ROUTER.address("h2"), "00000800" + "55" * 40, "error")
    assert done.returncode == 0, done.stderr
    error = bytes.fromhex(done.stdout)
    assert (error[20:22], error[28 + 9]) == (b"\x03\x02", 47)
    assert error[28 + 12 : 28 + 16] == bytes(map(int, ROUTER.address("c2").split(".")))
    assert error[28 + 20 : 28 + 24].hex() == "00000800"


@pytest.mark.lab
def test_killing_the_worker_ends_no_download(lab: Lab) -> None:
    outcome = crash.kill_worker(lab)
    assert outcome.held, outcome.told
    assert traffic.ping(lab).held


@pytest.mark.lab
def test_what_another_process_finds(lab: Lab) -> None:
    told = lab.krononat("sessions", "count")
    assert told.returncode == 0, told.stderr
    done = subprocess.run(
        [*KRONONAT, "lab", "exec", "--name", "knt", "h1", "--", "hostname", "-I"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["198.51.100.10"]
    done = subprocess.run([*KRONONAT, "lab", "exec", "--name", "knt", "h9", "--", "true"], capture_output=True, text=True)
    assert done.returncode == client.NOT_FOUND
    assert "h1" in done.stderr
    assert {row["node"] for row in Lab.find("knt").nodes()} == set(ROUTER.nodes)


@pytest.mark.lab
@pytest.mark.parametrize("kind", sorted(set(traffic.ALL) - {"port_mapping", "throughput"}))
def test_router_on_a_stick(stick: Lab, kind: str) -> None:
    outcome = traffic.ALL[kind](stick)
    assert outcome.held, outcome.told
    assert demo.kernel_forwarded_nothing(stick).held


@pytest.mark.lab
def test_a_killed_laboratory_is_cleared_away_by_the_next() -> None:
    _need_a_laboratory()
    script = "from krononat.lab.laboratory import Lab; import os; Lab('knk').up(appliance=False); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    left = namespaces.processes("knk-h1")
    assert left
    assert (RUN / "knk.json").exists()
    with_names = [each for each in namespaces.existing() if each.startswith("knk-")]
    assert len(with_names) == len(ROUTER.nodes)

    again = Lab("knk")
    again.up(appliance=False)
    assert not set(left) & set(namespaces.processes("knk-h1"))
    Lab.find("knk").down()
    assert demo.cleaned("knk").held
    assert not (RUN / "knk.json").exists()
    with pytest.raises(client.Trouble):
        Lab.find("knk")


@pytest.mark.lab
def test_two_hours_and_four_minutes_pass_at_once(lab: Lab) -> None:
    """RFC 5382 REQ-5, to the end: a TCP session that nobody closes ends after 7,440 s, and not one second before."""
    assert "stands" in lab.krononat("lab", "clock", "stop").stdout
    holding = "import socket, time; opened = socket.create_connection(('198.51.100.10', 80)); time.sleep(100)"
    held = lab.start("c1", "held-open", [sys.executable, "-c", holding])
    try:
        _until(lambda: _established(lab) == 1)
        for seconds, alive in ((7439, 1), (2, 0)):
            assert "stands" in lab.krononat("lab", "clock", f"+{seconds}").stdout
            assert _established(lab) == alive
    finally:
        held.kill()
        held.wait()
    assert "goes" in lab.krononat("lab", "clock", "go").stdout
    assert traffic.ping(lab).held


def _established(lab: Lab) -> int:
    told = lab.krononat("sessions", "list", "-s", "100.64.0.11", "--dport", "80", "--state", "established", "-o", "json").stdout
    return len(json.loads(told))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.lab
@pytest.mark.parametrize(("verb", "number"), [("demo", signal.SIGINT), ("demo", signal.SIGTERM), ("up", signal.SIGTERM)])
def test_an_interrupted_laboratory_leaves_nothing(tmp_path: Path, verb: str, number: signal.Signals) -> None:
    _need_a_laboratory()
    words = [*KRONONAT, "lab", verb, "--name", "kni", *(("--report", str(tmp_path)) if verb == "demo" else ())]
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # who runs these tests in the background ignores it
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=heeding)
    deadline = time.monotonic() + 60
    while "kni-h2" not in namespaces.existing() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.0)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert demo.cleaned("kni").held
    assert not (RUN / "kni.json").exists()


# --- no laboratory: an appliance that has its configuration and two veths ---------------------------------------------------

BARE = """
[interfaces.internal]
name = "in0"
address = "10.7.0.1/24"
[interfaces.external]
name = "out0"
address = "192.0.2.2/30"
gateway = "192.0.2.1"
[memory]
sessions = 10000
[[subscribers]]
prefix = "10.7.0.0/24"
pool = "only"
[[pool]]
name = "only"
prefixes = ["203.0.113.77/32"]
[control]
socket = "{socket}"
"""


class Bare:
    """A subscriber, the appliance and a gateway with a web and a DNS server, wired by hand."""

    def __init__(self, stack: ExitStack, folder: Path, name: str) -> None:
        self.folder = folder
        self.socket = folder / "bare.sock"
        self.inside, self.nat, self.outside = (stack.enter_context(namespace(f"{name}-{node}")) for node in ("c", "nat", "g"))
        self._wire("in0", self.inside, "eth0", "10.7.0.9/24")
        self._wire("out0", self.outside, "eth0", "192.0.2.1/30")
        self.inside.ip("route add default via 10.7.0.1")
        self.outside.ip("route add 203.0.113.77/32 via 192.0.2.2")
        (folder / "bare.toml").write_text(BARE.format(socket=self.socket))
        self.appliance = self._start(stack, self.nat, *KRONONAT, "run", "-c", str(folder / "bare.toml"))
        self._start(stack, self.outside, sys.executable, "-m", "http.server", "-d", str(folder), "80")
        names = ("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--address=/a.test/192.0.2.1")
        self._start(stack, self.outside, "dnsmasq", "--keep-in-foreground", "--user=root", *names)
        self._wait()

    def _wire(self, port: str, peer: Namespace, interface: str, address: str) -> None:
        peer.ip(f"link add {interface} type veth peer name {port} netns {self.nat.name}")
        peer.ip(f"address add {address} dev {interface}")
        peer.ip(f"link set {interface} up")

    def _start(self, stack: ExitStack, where: Namespace, *words: str) -> subprocess.Popen[str]:
        process = where.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        return process

    def _wait(self) -> None:
        deadline = time.monotonic() + 120
        while self.appliance.poll() is None and time.monotonic() < deadline:
            try:
                client.ask(str(self.socket), {"do": "status"})
                return
            except client.Trouble:
                time.sleep(0.05)
        pytest.fail("the appliance did not start")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """An appliance in a namespace of its own."""
    with ExitStack() as stack:
        yield Bare(stack, tmp_path_factory.mktemp("bare"), "knb")


@pytest.mark.lab
def test_bare_ping_and_traceroute(bare: Bare) -> None:
    assert " 5 received" in bare.inside.run("ping", "-c", "5", "-i", "0.05", "-W", "3", "192.0.2.1").stdout
    hops = bare.inside.run("traceroute", "-n", "-q", "1", "-N", "1", "-m", "3", "192.0.2.1").stdout.splitlines()[1:]
    assert [line.split()[1] for line in hops] == ["10.7.0.1", "192.0.2.1"]


@pytest.mark.lab
def test_bare_dns(bare: Bare) -> None:
    assert bare.inside.run("dig", "@192.0.2.1", "a.test", "+short", "+time=3").stdout.strip() == "192.0.2.1"
    assert bare.inside.run("dig", "@192.0.2.1", "a.test", "+short", "+tcp", "+time=3").stdout.strip() == "192.0.2.1"


@pytest.mark.lab
def test_bare_download(bare: Bare) -> None:
    (bare.folder / "file.bin").write_bytes(os.urandom(20_000_000))
    bare.inside.run("curl", "-sS", "--fail", "-o", str(bare.folder / "got.bin"), "http://192.0.2.1/file.bin")
    wanted, got = (hashlib.sha256((bare.folder / name).read_bytes()).hexdigest() for name in ("file.bin", "got.bin"))
    assert got == wanted


SINK = """
import hashlib, socket
listener = socket.create_server(("192.0.2.1", 9000))
print("ready", flush=True)
stream, told = listener.accept()[0], hashlib.sha256()
while part := stream.recv(65536):
    told.update(part)
print(told.hexdigest(), flush=True)
"""
SOURCE = "import socket, sys; socket.create_connection(('192.0.2.1', 9000)).sendall(open(sys.argv[1], 'rb').read())"


@pytest.mark.lab
def test_bare_upload(bare: Bare) -> None:
    wanted = os.urandom(20_000_000)
    (bare.folder / "up.bin").write_bytes(wanted)
    with bare.outside.start(sys.executable, "-c", SINK, stdout=subprocess.PIPE) as sink:
        assert sink.stdout and sink.stdout.readline() == "ready\n"
        bare.inside.run(sys.executable, "-c", SOURCE, str(bare.folder / "up.bin"))
        assert sink.stdout.readline().strip() == hashlib.sha256(wanted).hexdigest()


@pytest.mark.lab
def test_bare_two_thousand_requests_in_flight_together(bare: Bare) -> None:
    program = (sys.executable, "-m", "krononat.lab.gathering")
    server = bare.outside.start(*program, "serve", "192.0.2.1", "8080", stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        told = json.loads(bare.inside.run(*program, "ask", "192.0.2.1", "8080", "2000").stdout)
        assert (told["answered"], told["together"]) == (2000, 2000)
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.lab
def test_bare_throughput_both_ways(bare: Bare) -> None:
    with bare.outside.start("iperf3", "-s", "-1", "--forceflush", "-B", "192.0.2.1", stdout=subprocess.PIPE) as server:
        assert server.stdout and any("listening" in line for line in server.stdout)
        told = json.loads(bare.inside.run("iperf3", "-c", "192.0.2.1", "-t", "2", "--bidir", "-J").stdout)["end"]
        assert min(told[way]["bytes"] for way in ("sum_received", "sum_received_bidir_reverse")) > 1_000_000


@pytest.mark.lab
def test_bare_the_server_sees_the_pool(bare: Bare) -> None:
    told = bare.nat.run(*KRONONAT, "sessions", "list", "-o", "json", "--socket", str(bare.socket)).stdout
    assert "203.0.113.77" in told
    assert "10.7.0.9" in told


@pytest.mark.lab
def test_bare_stopped_appliance_takes_back_what_it_did(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bare = Bare(stack, tmp_path, "knd")
        assert "xdp" in bare.nat.link("in0")
        bare.appliance.terminate()
        assert bare.appliance.wait(20) == 0
        assert "xdp" not in bare.nat.link("in0")
        assert "10.7.0.1" not in bare.nat.ip("address show")
        assert not namespaces.processes(bare.nat.name)
        assert not bare.socket.exists()
