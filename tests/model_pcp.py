"""Mappings that are asked for, as a dictionary: the obvious table for `pcp_server`, and requests in words."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from krononat import pcp
from krononat.pcp_server import ADOPTED, ENDED, NAT_PMP, PCP, STATIC, Held, Wish
from tests.frames import address

EXTERNAL = address("203.0.113.1")
NONCE = bytes(range(12))


@dataclass
class Plain:
    """One external address, ports from 2000 on; `used`: internal endpoints whose mappings some session uses.

    Every host is a subscriber of its own, but for those of `together`.
    """

    each: int = 4
    since_s: int = 0
    ours: bool = True
    together: set[int] = field(default_factory=set)
    used: set[tuple[int, int, int]] = field(default_factory=set)
    held: dict[tuple[int, int, int], Held] = field(default_factory=dict)

    def epoch_s(self, internal: int, now_s: int) -> int:
        """Seconds since the beginning."""
        return now_s - self.since_s

    def may_ask_for(self, source: int, internal: int) -> bool:
        """Whether both are of one subscriber."""
        return {source, internal} <= self.together

    def address_of(self, internal: int) -> int:
        """The external address, if the host is ours."""
        return EXTERNAL if self.ours else 0

    def find(self, internal: int, protocol: int, port: int) -> Held | None:
        """The mapping of an internal endpoint."""
        return self.held.get((internal, protocol, port))

    def grant(self, wish: Wish, nonce: bytes, origin: str, expires_s: int, now_s: int) -> Held | int:
        """Make one, or keep what is there."""
        mine = [held for (host, _, _), held in self.held.items() if host == wish.internal]
        if sum(held.origin in (PCP, NAT_PMP, ADOPTED) for held in mine) >= self.each:
            return pcp.USER_EX_QUOTA
        key = wish.internal, wish.protocol, wish.port
        taken = {held.external_port for held in self.held.values() if held.protocol == wish.protocol}
        at = next(port for port in range(2000, 65536) if port not in taken)
        if wish.wanted_port >= 1024 and wish.wanted_port not in taken:
            at = wish.wanted_port
        fits = wish.wanted in (0, EXTERNAL) and wish.wanted_port in (0, at)
        if key in self.held:
            at = self.held[key].external_port
        elif wish.exact and not fits:
            return pcp.CANNOT_PROVIDE_EXTERNAL
        self.held[key] = Held(len(self.held) + 1, wish.protocol, wish.port, EXTERNAL, at, origin, expires_s, nonce)
        return self.held[key]

    def renew(self, held: Held, nonce: bytes, origin: str, expires_s: int) -> None:
        """Have it live until then."""
        for key, known in self.held.items():
            if known == held:
                self.held[key] = held._replace(nonce=nonce, origin=origin, expires_s=expires_s)

    def end(self, held: Held) -> None:
        """Have it end, or be that of its sessions."""
        for key in [key for key, known in self.held.items() if known == held]:
            del self.held[key]
            if key in self.used:
                self.held[key] = held._replace(origin=ENDED)

    def end_all(self, internal: int, protocol: int) -> bool:
        """Have all of a host and protocol end that have no nonce; whether one is left that was asked for, or is static."""
        mine = [held for (host, number, _), held in self.held.items() if (host, number) == (internal, protocol)]
        for held in mine:
            if held.origin in (NAT_PMP, ADOPTED):
                self.end(held)
        return any(held.origin in (PCP, STATIC) for held in mine)


def header(opcode: int, client: str, lifetime_s: int = 0, version: int = 2) -> bytes:
    """Header of a request."""
    return struct.pack("!BBHI", version, opcode, 0, lifetime_s) + pcp.mapped(address(client))


def map_request(
    client: str, protocol: int, port: int, lifetime_s: int = 3600, nonce: bytes = NONCE, wanted: str = "0.0.0.0:0",
    options: bytes = b"",
) -> bytes:  # fmt: skip
    """A MAP request."""
    host, _, wanted_port = wanted.partition(":")
    told = nonce + struct.pack("!B3xHH", protocol, port, int(wanted_port)) + pcp.mapped(address(host))
    return header(pcp.MAP, client, lifetime_s) + told + options


def option(code: int, value: bytes = b"") -> bytes:
    """An option, padded."""
    return struct.pack("!BxH", code, len(value)) + value + bytes(-len(value) % 4)


def pmp_request(opcode: int, port: int = 0, wanted_port: int = 0, lifetime_s: int = 7200) -> bytes:
    """A request of NAT-PMP."""
    return struct.pack("!BBHHHI", 0, opcode, 0, port, wanted_port, lifetime_s) if opcode else b"\0\0"


@dataclass(frozen=True)
class Told:
    """What an answer to a MAP, or its header alone, says."""

    opcode: int
    result: int
    lifetime_s: int
    epoch_s: int
    nonce: bytes = b""
    protocol: int = 0
    port: int = 0
    external_port: int = 0
    external: int = 0
    options: bytes = b""


def read_answer(datagram: bytes) -> Told:
    """Read as a client would; AssertionError where it is no answer (RFC 6887 8.3)."""
    assert 24 <= len(datagram) <= 1100 and len(datagram) % 4 == 0
    version, opcode, reserved, result, lifetime_s, epoch_s, more = struct.unpack("!BBBBII12s", datagram[:24])
    assert version == 2 and opcode & 0x80 and reserved == 0
    assert more == bytes(12) or result in (pcp.UNSUPP_VERSION, pcp.MALFORMED_REQUEST, pcp.MALFORMED_OPTION)  # RFC 6887 7.2
    told = Told(opcode & 0x7F, result, lifetime_s, epoch_s)
    if opcode & 0x7F != pcp.MAP or len(datagram) < 60:
        return told
    nonce, protocol, port, external_port, external = struct.unpack("!12sB3xHH16s", datagram[24:60])
    return Told(pcp.MAP, result, lifetime_s, epoch_s, nonce, protocol, port, external_port, pcp.ipv4(external), datagram[60:])
