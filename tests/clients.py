"""A laboratory for other people's programs: three subscribers with a pool and a filtering each, and ways that are narrow.

c1 and c2 are on one bridge whose ports are isolated, so they meet by the NAT or not at all; c3 is behind the access router,
over a link of 1,400 bytes, as h2 is behind `isp`. h1 has two addresses, for a STUN server that can answer from another one
(RFC 5780).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from krononat.lab.laboratory import Lab, laboratory
from krononat.lab.topology import ROUTER, End

FILTERINGS = {"c1": "endpoint-independent", "c2": "address-dependent", "c3": "address-and-port-dependent"}
SHOWN = {"c1": "203.0.113.0", "c2": "203.0.113.4", "c3": "203.0.113.8"}  # of each pool the first of two addresses
STUN = ("198.51.100.10", "198.51.100.11")
STUN_PORT = 3478
NARROW = {"isp.h2": 1400, "access.c3": 1400}
PROGRAMS = ("turnserver", "turnutils_natdiscovery", "stun", "nmap", "traceroute", "tracepath", "natpmpc")

_CONFIG = """
[server]
name = "nat1"

[interfaces.internal]
name = "inside0"
address = "100.64.0.1/22"
gateway = "100.64.0.2"

[interfaces.external]
name = "outside0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"

[memory]
sessions = 100000

[pcp]
enabled = true
anycast = true
"""
_SUBSCRIBER = """
[[pool]]
name = "{name}"
prefixes = ["{shown}/31"]
ports = "1024-65535"
block-size = 512
max-blocks-per-subscriber = 8
filtering = "{filtering}"

[[subscribers]]
prefix = "{address}/32"
pool = "{name}"
"""


def _narrowed(end: End) -> End:
    return end._replace(mtu=NARROW.get(end.name, end.mtu))


def _config() -> str:
    told = [
        _SUBSCRIBER.format(name=f"of-{node}", shown=SHOWN[node], filtering=filtering, address=ROUTER.address(node))
        for node, filtering in FILTERINGS.items()
    ]
    return _CONFIG + "".join(told)


TOPOLOGY = ROUTER._replace(
    links=tuple((_narrowed(one), _narrowed(other)) for one, other in ROUTER.links), appliances={"nat": _config()}
)


@contextmanager
def clients_laboratory(name: str) -> Iterator[Lab]:
    """It, with a STUN server."""
    with laboratory(name, TOPOLOGY) as lab:
        for port in ("c1", "c2"):
            _must(lab, "access", "bridge", "link", "set", "dev", port, "isolated", "on")
        _must(lab, "h1", "ip", "address", "add", f"{STUN[1]}/25", "dev", "eth0")
        _must(lab, "h1", "sysctl", "-q", "-w", "net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=100000")
        _start_stun(lab)
        yield lab


def _start_stun(lab: Lab) -> None:
    """Coturn without TURN: no relaying, no keys, no files beside the laboratory's own."""
    listening = [word for address in STUN for word in ("--listening-ip", address)]
    words = (
        "turnserver",
        "-n",
        *listening,
        "--listening-port",
        str(STUN_PORT),
        "--stun-only",
        "--no-tls",
        "--no-dtls",
        "--no-cli",
    )
    files = (
        "--no-cli",
        "--log-file",
        "stdout",
        "--userdb",
        str(lab.folder / "turndb"),
        "--pidfile",
        str(lab.folder / "turnserver.pid"),
    )
    lab.start("h1", "turnserver", (*words, *files))
    until = time.monotonic() + 20
    while lab.run("h1", "ss", "-Hlun", f"sport = :{STUN_PORT + 1}").stdout.count("\n") < 2:
        assert time.monotonic() < until, lab.log("turnserver").read_text()
        time.sleep(0.05)


def _must(lab: Lab, node: str, *words: str) -> None:
    done = lab.run(node, *words)
    assert done.returncode == 0, done.stderr
