"""IP protocols by number and name, and which of them a translation of addresses alone does no harm.

*Generic* ones (RFC 6092 REC-12) are all but ICMP, TCP and UDP: nothing in them is a port to us, so a NAT can only replace their
addresses. That works for whatever has no checksum over these: GRE (RFC 2784), ESP (RFC 4303, in tunnel mode, or where nobody
checks the transport inside), SCTP (its CRC32c covers no pseudo header: RFC 9260 6.8), tunnels of IP (RFC 2003, 4213).

Nothing here needs the compiler, so the CLI can read it.
"""

from __future__ import annotations

IPIP, SIX_IN_FOUR, GRE, ESP, AH, SCTP = 4, 41, 47, 50, 51, 132

# number  name      what its header has at least, in bytes
_PICTURE = """
1         icmp      8
2         igmp      8
4         ipip      20
6         tcp       20
17        udp       8
33        dccp      12
41        6in4      40
46        rsvp      8
47        gre       4
50        esp       8
51        ah        12
58        icmp6     8
88        eigrp     20
89        ospf      16
97        etherip   2
103       pim       4
108       ipcomp    4
112       vrrp      8
115       l2tp      4
132       sctp      12
135       mobility  8
136       udp-lite  8
137       mpls      4
139       hip       8
140       shim6     8
"""
_ROWS = [line.split() for line in _PICTURE.strip().splitlines()]
NAMES = {int(number): name for number, name, _ in _ROWS}
BY_NAME = {name: number for number, name in NAMES.items()}
LEAST = {int(number): int(least) for number, _, least in _ROWS}

# Those that are never translated by address alone, and why.
_CHECKSUM = "its checksum covers the addresses, and this release does not correct it"
_NEXT_HEADER = "it is a header inside IPv6 packets, and no protocol of IPv4"
UNTRANSLATABLE = {
    0: _NEXT_HEADER,
    2: "it is between hosts and their own routers (RFC 3376) and never goes through one",
    33: f"{_CHECKSUM} (RFC 4340 9.1)",
    43: _NEXT_HEADER,
    44: _NEXT_HEADER,
    51: "its integrity check covers the addresses, so no NAT can pass it (RFC 4302 3.3.3.1); ESP can be used instead",
    58: f"{_CHECKSUM}, and it belongs into IPv6",
    59: _NEXT_HEADER,
    60: _NEXT_HEADER,
    135: _NEXT_HEADER,
    136: f"{_CHECKSUM} (RFC 3828 3.1)",
    139: f"{_CHECKSUM} (RFC 7401 5.1.1)",
    140: _NEXT_HEADER,
    255: "it is reserved (IANA)",
}
# What is translated where the configuration does not say: what tunnels and VPNs of subscribers are made of, and SCTP.
DEFAULT = ("gre", "esp", "sctp", "ipip", "6in4")


def name(number: int) -> str:
    """What people call a protocol; its number where it has no name here."""
    return NAMES.get(number, str(number))


def number(name: str) -> int:
    """Number of a protocol by its name, or by its number in digits."""
    return BY_NAME[name] if name in BY_NAME else int(name)
