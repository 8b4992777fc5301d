"""The hosts of a capture get other names: 100.64.0.0/16 and 2400:c0de::/48 inside, 198.18.0.0/15 and 2a00::/32 outside.

IPv4 is taken apart, changed and put together again, so a checksum that was wrong is wrong by as much. IPv6 addresses are
chosen so that their sums stay what they were (as RFC 6296 does), so no checksum changes. What comes in is addressed as its
sender would have: to the external endpoint that the translation has shown before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address, ip_network

from tests import frames
from tests.frames import Malformed, Packet, build, ones_sum
from tests.frames6 import transport_at
from tests.roles import IN, OUT, Endpoint, Look, Network, Scene, host_in, look_at
from tests.translation import identifier, with_destination, with_source

INSIDE, OUTSIDE = 0x64400000, 0xC6120000
INSIDE6, OUTSIDE6 = bytes.fromhex("2400c0de0000"), bytes.fromhex("2a0000000000")
# They keep their names: no router passes them on. 127/8 and ::1 do not, so captures of a loopback can be played.
NOWHERE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4", "::/128", "fe80::/10", "ff00::/8")
)

Known = Callable[[int, Endpoint], Endpoint]  # protocol and internal endpoint: the external one


class TooMany(Exception):
    """The capture has more hosts than there are names for."""


def has_no_name(host: int, six: bool) -> bool:
    """Whether an address names no host that a router would know a way to."""
    return any(host_in(host, six, network) for network in NOWHERE)


class Casting:
    """Gives the names; `known` says by which external endpoint an internal one is known outside."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.numbers: dict[tuple[str, bool, int], int] = {}

    def name(self, way: str, host: int, six: bool) -> int:
        """The name of a host: inside where it sends what goes out."""
        if has_no_name(host, six):
            return host
        number = self.numbers.setdefault((way, six, host), 1 + sum(key[:2] == (way, six) for key in self.numbers))
        if number >= (0x10000 if six or way == OUT else 0x20000):
            raise TooMany(f"it has more than {number - 1} hosts that are {'inside' if way == OUT else 'outside'}")
        if six:
            return self._neutral(host, (INSIDE6 if way == OUT else OUTSIDE6) + number.to_bytes(2, "big"))
        return (INSIDE if way == OUT else OUTSIDE) + number

    @staticmethod
    def _neutral(host: int, prefix: bytes) -> int:
        """An address in `prefix` with the ones'-complement sum of `host`."""
        old = host.to_bytes(16, "big")
        new = prefix + old[8:14]
        return int.from_bytes(new + ((ones_sum(old) - ones_sum(new)) % 0xFFFF).to_bytes(2, "big"), "big")

    def inner(self, scene: Scene) -> Endpoint:
        """The internal endpoint of a scene, under its new name."""
        assert scene.look
        about = scene.look.about
        look = about if about and scene.way == IN else scene.look
        ours = look.source if (scene.way == OUT or about) else look.destination
        return self.name(OUT, ours[0], look.six), ours[1]

    def datagram(self, scene: Scene) -> bytes:
        """The datagram as it reaches the NAT, with what stood behind it."""
        data, look = scene.caught.data, scene.look
        if look is None:
            return data
        if look.six:
            return self._six(data, scene.way)
        try:
            packet = frames.dissect(data)
        except Malformed:
            return self._readdressed(data, scene.way, look)
        return build(self._cast(packet, scene.way)) + data[int.from_bytes(data[2:4], "big") :]

    def _cast(self, packet: Packet, way: str) -> Packet:
        """With other names at both ends; also in what an error is about, which went the other way."""
        if way == OUT:
            about = packet.about and replace(
                packet.about,
                source=self.name(IN, packet.about.source, False),
                destination=self.name(OUT, packet.about.destination, False),
            )
            names = self.name(OUT, packet.source, False), self.name(IN, packet.destination, False)
            return replace(packet, source=names[0], destination=names[1], about=about)
        if packet.about:
            about = replace(packet.about, destination=self.name(IN, packet.about.destination, False))
            near = self._shown(about.protocol, about.source, about.source_port or identifier(about))
            about = with_source(about, near)
            names = self.name(IN, packet.source, False), near[0]
            return replace(packet, source=names[0], destination=names[1], about=about)
        packet = replace(packet, source=self.name(IN, packet.source, False))
        if has_no_name(packet.destination, False):
            return packet
        near = self._shown(packet.protocol, packet.destination, packet.destination_port or identifier(packet))
        return with_destination(packet, near) if not packet.fragment & 0x1FFF else replace(packet, destination=near[0])

    def _shown(self, protocol: int, host: int, port: int) -> Endpoint:
        return self.known(protocol, (self.name(OUT, host, False), port))

    def _readdressed(self, data: bytes, way: str, look: Look) -> bytes:
        """Something that is wrong in its headers: only addresses, and a header checksum that is wrong by as much as before."""
        ends = self.name(OUT if way == OUT else IN, look.source[0], False), self.name(IN, look.destination[0], False)
        if way == IN:
            ends = ends[0], self._shown(look.protocol, look.destination[0], 0)[0]
        size = 4 * (data[0] & 15)
        bare = data[:10] + b"\0\0" + b"".join(host.to_bytes(4, "big") for host in ends) + data[20:]
        check = (ones_sum(data[:size]) - ones_sum(bare[:size])) % 0xFFFF
        return bare[:10] + check.to_bytes(2, "big") + bare[12:]

    def _six(self, data: bytes, way: str) -> bytes:
        """Both addresses, and both of what an error quotes."""
        look, cast = look_at(data), self._named6(data, way)
        if look is None or look.about is None:
            return cast
        end = 40 + int.from_bytes(data[4:6], "big")
        at = quote_at(data)
        return cast[:at] + self._named6(cast[at:end], IN if way == OUT else OUT) + cast[end:]

    def _named6(self, data: bytes, way: str) -> bytes:
        ends = [int.from_bytes(data[at : at + 16], "big") for at in (8, 24)]
        names = self.name(way, ends[0], True), self.name(IN if way == OUT else OUT, ends[1], True)
        return data[:8] + b"".join(host.to_bytes(16, "big") for host in names) + data[40:]


def quote_at(data: bytes) -> int:
    """Where what an ICMPv6 error quotes begins."""
    return transport_at(data) + 8


def spelt(host: int) -> str:
    """An address of either kind."""
    return frames.dotted(host) if host < 1 << 32 else str(IPv6Address(host))
