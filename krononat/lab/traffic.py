"""Real traffic, one function a claim: each makes it with an everyday program and says what came of it.

Every function takes a laboratory that is up and hands back an `Outcome`; none raises because the network failed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from krononat.lab import servers
from krononat.lab.laboratory import Lab

IN_FLIGHT = 2000
_CLOSED_ADDRESS = "203.0.113.14"  # of the pool; nothing is mapped there


class Outcome(NamedTuple):
    """A claim and whether it held."""

    name: str
    held: bool
    told: str
    figures: dict[str, Any]


def clients(lab: Lab) -> list[str]:
    """The subscribers of this laboratory."""
    return [node for node in lab.namespace if node.startswith("c")]


def hosts(lab: Lab) -> list[str]:
    """The hosts of its Internet that answer."""
    return [node for node in ("h1", "h2") if node in lab.namespace]


def ping(lab: Lab) -> Outcome:
    """Echo requests of every client to every Internet host (ICMP query sessions)."""
    wanted = answered = 0
    for client in clients(lab):
        for host in hosts(lab):
            done = lab.run(client, "ping", "-n", "-c", "5", "-i", "0.05", "-W", "3", lab.topology.address(host))
            found = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
            wanted += 5
            answered += int(found[2]) if found else 0
    return Outcome("ping", wanted == answered, f"{answered} of {wanted} answered", {"sent": wanted, "answered": answered})


def dns(lab: Lab) -> Outcome:
    """A name asked by UDP, and a long answer by TCP, from every client."""
    server = f"@{lab.topology.address('h1')}"
    right = 0
    for client in clients(lab):
        short = lab.run(client, "dig", server, servers.HOST_NAME, "A", "+short", "+tries=2", "+time=3").stdout.strip()
        long = lab.run(client, "dig", server, f"long.{servers.HOST_NAME}", "TXT", "+short", "+tcp", "+time=3").stdout
        right += (short == lab.topology.address("h1")) + ("y" * 250 in long)
    wanted = 2 * len(clients(lab))
    told = f"{right} of {wanted} answers right, by UDP and by TCP"
    return Outcome("dns", right == wanted, told, {"asked": wanted, "right": right})


def sha256(path: Path) -> str:
    """Hex digest of a file; empty if there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transfer(name: str, arrived: Path, lab: Lab, client: str, *words: str) -> Outcome:
    timing = ("-sS", "--fail", "--max-time", "60", "-w", "%{time_total}")
    done = lab.run(client, "curl", *timing, *words, timeout_s=90)
    wanted, found = sha256(servers.payload(lab.folder)), sha256(arrived)
    arrived.unlink(missing_ok=True)
    seconds = float(done.stdout or 0)
    held = done.returncode == 0 and wanted == found
    figures = {"bytes": servers.PAYLOAD_BYTES, "seconds": seconds, "sha256": found, "sha256_wanted": wanted, "client": client}
    if not held:
        return Outcome(name, False, done.stderr.strip() or f"sha256 differs: {found or 'nothing arrived'}", figures)
    mbit = servers.PAYLOAD_BYTES * 8 / seconds / 1e6
    return Outcome(name, True, f"100 MB in {seconds:.1f} s ({mbit:.0f} Mbit/s), sha256 equal: {found[:16]}…", figures)


def download(lab: Lab, client: str = "c1") -> Outcome:
    """100 MB by HTTP from h1; what arrived has the same sha256."""
    arrived = lab.folder / "download.bin"
    url = f"http://{lab.topology.address('h1')}/payload.bin"
    return _transfer("download", arrived, lab, client, "-o", str(arrived), url)


def upload(lab: Lab, client: str = "c1") -> Outcome:
    """100 MB by HTTP PUT to h1; what arrived has the same sha256."""
    arrived = lab.folder / "h1" / "www" / "upload" / "payload.bin"
    url = f"http://{lab.topology.address('h1')}/upload/payload.bin"
    return _transfer("upload", arrived, lab, client, "-T", str(servers.payload(lab.folder)), url)


def in_flight(lab: Lab, client: str = "c1", count: int = IN_FLIGHT) -> Outcome:
    """`count` HTTP requests at once: h2 answers none of them before all have arrived."""
    words = (sys.executable, "-m", "krononat.lab.gathering", "ask", lab.topology.address("h2"), str(servers.GATHER), str(count))
    done = lab.run(client, *words, timeout_s=90)
    if done.returncode:
        return Outcome("in_flight", False, done.stderr.strip()[-300:], {})
    figures = json.loads(done.stdout)
    held = figures["answered"] == figures["together"] == count
    told = f"{figures['answered']} of {count} answered, {figures['together']} in flight together, {figures['seconds']:.1f} s"
    return Outcome("in_flight", held, told, figures)


def throughput(lab: Lab, client: str = "c1", seconds: int = 3) -> Outcome:
    """iperf3, TCP, both ways in turn. A figure of veth interfaces, never of a network card."""
    figures: dict[str, Any] = {}
    for way, flag in (("outbound", ()), ("inbound", ("-R",))):
        words = ("iperf3", "-c", lab.topology.address("h1"), "-t", str(seconds), "-J", *flag)
        done = lab.run(client, *words, timeout_s=seconds + 30.0)
        try:
            end = json.loads(done.stdout)["end"]
            figures[f"{way}_mbit_s"] = round(end["sum_received"]["bits_per_second"] / 1e6)
            figures[f"{way}_retransmits"] = end["sum_sent"]["retransmits"]
        except (ValueError, KeyError):
            return Outcome("throughput", False, f"{way}: {done.stdout[-300:]}{done.stderr}", figures)
    held = min(figures["outbound_mbit_s"], figures["inbound_mbit_s"]) > 0
    told = f"{figures['outbound_mbit_s']} Mbit/s outbound, {figures['inbound_mbit_s']} Mbit/s inbound (one TCP, veth)"
    return Outcome("throughput", held, told, figures)


def route(lab: Lab) -> Outcome:
    """Traceroute of every client; the appliance is a hop, and every hop answers."""
    target = lab.topology.address("h1")
    configs = "".join(lab.config_of(node).read_text() for node in lab.topology.appliances)
    own = re.findall(r'^address = "([\d.]+)/', configs, re.MULTILINE)
    hops: dict[str, list[str]] = {}
    for client in clients(lab):
        done = lab.run(client, "traceroute", "-n", "-q", "1", "-w", "3", "-N", "2", "-m", "5", target)
        hops[client] = re.findall(r"^ *\d+ +(\S+)", done.stdout, re.MULTILINE)
    held = all(path and path[-1] == target and "*" not in path and set(own) & set(path) for path in hops.values())
    return Outcome("route", held, "; ".join(f"{client} → {' → '.join(path)}" for client, path in hops.items()), {"hops": hops})


def port_mapping(lab: Lab) -> Outcome:
    """A static mapping: h1 from outside and c1 from inside (hairpinning) reach c2's server by its external address."""
    answers = {}
    for node in ("h1", "c1"):
        url = f"http://203.0.113.1:{servers.FORWARDED}/"
        answers[node] = lab.run(node, "curl", "-sS", "--max-time", "5", url).stdout.strip()
    held = set(answers.values()) == {"c2"}
    told = "reached from outside and, hairpinned, from inside" if held else f"answers: {answers}"
    return Outcome("port_mapping", held, told, answers)


def refused(lab: Lab) -> Outcome:
    """What must not pass: unasked packets from outside, a spoofed source from inside, and SMTP, which a rule rejects."""
    lab.run("c1", "ip", "address", "add", "10.9.9.9/32", "dev", "lo")
    three = ("ping", "-c", "3", "-i", "0.05", "-W", "1")
    in_vain = (
        ("c1", *three, "-I", "10.9.9.9", lab.topology.address("h1")),
        ("h1", *three, _CLOSED_ADDRESS),
        ("h1", "curl", "-sS", "--max-time", "1", f"http://{_CLOSED_ADDRESS}/"),
    )
    with ThreadPoolExecutor(len(in_vain)) as at_once:  # each of them waits for an answer that does not come
        spoofed, unasked, scanned = at_once.map(lambda words: lab.run(*words), in_vain)
    lab.run("c1", "ip", "address", "delete", "10.9.9.9/32", "dev", "lo")
    smtp = lab.run("c1", "curl", "-sS", "--max-time", "5", f"http://{lab.topology.address('h1')}:{servers.SMTP}/")
    passed = [done.args[3] for done in (spoofed, unasked, scanned, smtp) if done.returncode == 0]
    held = not passed and smtp.returncode == 7  # curl could not connect and knew at once: an ICMP error said so (silence: 28)
    told = "nothing passed; who was rejected was told so" if held else f"passed: {passed}; SMTP: {smtp.stderr.strip()}"
    return Outcome("refused", held, told, {"passed": passed})


def kinds(lab: Lab) -> dict[str, Callable[[Lab], Outcome]]:
    """What this laboratory has the nodes for, in the order in which it is made."""
    lacking = [make for make, there in ((port_mapping, "c2"), (in_flight, "h2")) if there not in lab.namespace]
    if lab.wanted:  # a cluster's configuration has neither static mappings nor rules
        lacking += [port_mapping, refused]
    return {name: make for name, make in ALL.items() if make not in lacking}


ALL: dict[str, Callable[[Lab], Outcome]] = {
    "ping": ping,
    "dns": dns,
    "download": download,
    "upload": upload,
    "in_flight": in_flight,
    "throughput": throughput,
    "route": route,
    "port_mapping": port_mapping,
    "refused": refused,
}
