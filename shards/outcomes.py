"""What becomes of a frame at a port before the pipeline sees it, whoever decides that (`steering`, `tap`)."""

from __future__ import annotations

from typing import NamedTuple

PASS, DROP, REDIRECT = "pass", "drop", "redirect"

BFD_PORT = 3784  # UDP, single hop (RFC 5881); the kernel's where no session is configured
SHUNT_PORT = 7655  # UDP; Krononat's own choice. To the core's address and this port is not the kernel's: see `shunt`


class Outcome(NamedTuple):
    """What becomes of a frame at the port; `name` is the word in counters."""

    number: int
    name: str
    fate: str
    sentence: str


_PICTURE = """
redirect  redirected           given to the AF_XDP socket of its queue
redirect  control              given to the control socket of its queue: BFD, or shunted by another core
drop      no_socket            its queue has no AF_XDP socket for it
pass      not_ip               neither IPv4 nor IPv6: ARP, LLDP and the like
pass      broadcast            to an IPv4 broadcast address
pass      multicast            to a multicast address
pass      link_local           to a link-local address
pass      neighbour_discovery  ICMPv6 of RFC 4861
pass      own_address          to an address of the core itself
drop      quarantined          was in hand at two deaths of the worker
"""


def _parse(picture: str) -> tuple[Outcome, ...]:
    rows = [line.split(None, 2) for line in picture.strip().splitlines()]
    return tuple(Outcome(number, name, fate, sentence) for number, (fate, name, sentence) in enumerate(rows))


OUTCOMES = _parse(_PICTURE)
(
    REDIRECTED, CONTROL, NO_SOCKET, NOT_IP, BROADCAST, MULTICAST, LINK_LOCAL, NEIGHBOUR_DISCOVERY, OWN_ADDRESS, QUARANTINED,
) = range(10)  # fmt: skip
assert len(OUTCOMES) == 10
