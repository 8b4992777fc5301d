"""The values a configuration holds: prefixes, endpoints, port ranges, choices; each read from text and written back as text.

A value that is understood but not built yet is refused here, with a sentence that says so: accepting it and then doing nothing
would be a silent blackhole.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_network
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import core_schema

from shards import protocols

PORTS = 65536

# Never a host's address (RFC 6890), so never a subscriber's nor a pool's.
NEVER_HOSTS = tuple(IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"))

# Never a link's; a link between two routers may well be link-local.
NEVER_LINKS = tuple(never for never in NEVER_HOSTS if not never.is_link_local)

# Keys that other products or later releases have; a better answer than "unknown key".
PLANNED_KEYS: Mapping[str, str] = {
    "address-pooling": "pooling is always paired (RFC 4787 REQ-2)",
    "bfd": "BFD is not implemented in this release",
    "cores": "a configuration is of one core: run one for each, and name them in the map of a [cluster] (docs/replication.md)",
    "h323": "there is no gateway for H.323: its endpoints have H.460.18 and H.460.19 for NATs",
    "file": "the log of NAT events stays in memory in this release; `krononat events --follow -o jsonl` writes it out",
    "ipfix": "export of NAT events is not implemented in this release; `krononat events` reads them",
    "ipv6": "IPv6 is a matter of `prefix6` of [[subscribers]] and `address6` of the interfaces",
    "mode": "`allocation` of a pool is dynamic or deterministic (RFC 7422); one-to-one NAT is not implemented in this release",
    "nat64": "NAT64 is not implemented in this release",
    "pools": "each pool is a [[pool]], and subscribers name one of them as `pool`; several are not implemented in this release",
    "pptp": "PPTP needs no gateway: its GRE is one of `other-protocols` of [nat] (docs/protocols.md)",
    "realm": "several realms (tenants) are not implemented in this release",
    "replication": "replication is a matter of [cluster]",
    "rtsp": "there is no gateway for RTSP: players have RTP over TCP for NATs (RFC 7826 14)",
    "sip": "there is no gateway for SIP, which breaks more than it mends: clients have STUN, TURN and ICE (RFC 8445)",
    "syslog": "export of NAT events is not implemented in this release; `krononat events` reads them",
    "tftp": 'there is no gateway for TFTP: with `filtering = "endpoint-independent"` of the pool it needs none',
}


class PortRange(NamedTuple):
    """Ports `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.low <= port <= self.high

    @property
    def size(self) -> int:
        """How many ports these are."""
        return self.high - self.low + 1


EVERY_PORT = PortRange(0, PORTS - 1)


class Endpoint(NamedTuple):
    """An address and a port."""

    address: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.port else str(self.address)


def _text(value: Any, example: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text such as {example!r}")
    return value.strip()


def _refuse_ipv6(text: str) -> None:
    if text.count(":") > 1:
        raise ValueError("is an IPv6 address; here one of IPv4 is wanted (`prefix6`, `address6`, `gateway6` are IPv6's)")


def read_address(value: Any) -> IPv4Address:
    """Address from dotted text; ValueError says what is wrong with it."""
    if isinstance(value, IPv4Address):
        return value
    text = _text(value, "192.0.2.1")
    _refuse_ipv6(text)
    try:
        return IPv4Address(text)
    except ValueError:
        raise ValueError("is not an IPv4 address") from None


def read_prefix(value: Any) -> IPv4Network:
    """Prefix from "a.b.c.d/n"; a bare address is a /32; bits beyond the length are refused, and the network meant is named."""
    if isinstance(value, IPv4Network):
        return value
    text = _text(value, "192.0.2.0/24")
    _refuse_ipv6(text)
    try:
        network = IPv4Network(text, strict=False)
    except ValueError:
        raise ValueError("is not an IPv4 prefix such as 192.0.2.0/24") from None
    if network.network_address != IPv4Address(text.partition("/")[0]):
        raise ValueError(f"has bits set beyond its length; did you mean {network}?")
    return network


def read_host_prefix(value: Any) -> IPv4Network:
    """Prefix whose addresses belong to hosts: not loopback, multicast, link-local or reserved; read ones are right."""
    if isinstance(value, IPv4Network):
        return value
    network = read_prefix(value)
    _refuse_overlap(network, NEVER_HOSTS)
    return network


def _refuse_overlap(network: IPv4Network, nevers: tuple[IPv4Network, ...]) -> None:
    for never in nevers:
        if network.overlaps(never):
            raise ValueError(f"overlaps {never}, which never holds hosts (RFC 6890)")


def read_route(value: Any) -> str:
    """A prefix of IPv4 or IPv6 that is told to the network, as text; bits beyond the length are refused."""
    text = _text(value, "192.0.2.0/24")
    try:
        return str(ip_network(text))
    except ValueError:
        raise ValueError("is not a prefix such as 192.0.2.0/24 or 2001:db8::/48") from None


def read_community(value: Any) -> str:
    """A community "AS:NUMBER", 16 bits each (RFC 1997)."""
    text = _text(value, "65010:100")
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) < 1 << 16 for part in parts):
        raise ValueError('is not a community such as "65010:100", two numbers below 65536')
    return ":".join(str(int(part)) for part in parts)


def read_interface_address(value: Any) -> IPv4Interface:
    """Address with the length of its on-link network, "192.0.2.2/24"."""
    if isinstance(value, IPv4Interface):
        return value
    text = _text(value, "192.0.2.2/24")
    _refuse_ipv6(text)
    if "/" not in text:
        raise ValueError(f"needs the length of its network, such as {text}/24")
    try:
        interface = IPv4Interface(text)
    except ValueError:
        raise ValueError("is not an IPv4 address with a prefix length, such as 192.0.2.2/24") from None
    _refuse_overlap(interface.network, NEVER_LINKS)
    return interface


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= PORTS:
        raise ValueError(f"{text!r} is not a port (0 to {PORTS - 1})")
    return int(text)


def read_ports(value: Any) -> PortRange:
    """Port range from "1024-65535", "25" or 25."""
    if isinstance(value, PortRange):
        return value
    text = str(value) if type(value) is int else _text(value, "1024-65535")
    if "," in text:
        raise ValueError("lists of ports are not implemented in this release; write one rule for each range")
    low, dash, high = (part.strip() for part in text.partition("-"))
    ports = PortRange(_port(low), _port(high if dash else low))
    if ports.low > ports.high:
        raise ValueError(f"is reversed; did you mean {ports.high}-{ports.low}?")
    return ports


def read_endpoint(value: Any) -> Endpoint:
    """Endpoint from "192.0.2.1:80"; port 0 is refused."""
    if isinstance(value, Endpoint):
        return value
    text = _text(value, "192.0.2.1:80")
    _refuse_ipv6(text)
    address, colon, port = text.partition(":")
    if not colon:
        raise ValueError(f"needs a port, such as {text}:80")
    endpoint = Endpoint(read_address(address), _port(port))
    if endpoint.port == 0:
        raise ValueError("port 0 cannot be translated")
    return endpoint


def read_mapping_end(value: Any) -> Endpoint:
    """What a static mapping is for: an endpoint, or an address alone (port 0) where its protocol has no ports."""
    if isinstance(value, str) and ":" not in value:
        return Endpoint(read_address(value), 0)
    return read_endpoint(value)


class Protocol(str):
    """Name of an IP protocol, its number in digits where it has none; of a rule also "any"."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> core_schema.CoreSchema:
        """As a default value it is written like any text."""
        return core_schema.str_schema()


def read_protocol(value: Any) -> Protocol:
    """Name of an IP protocol from its name, or its number 0 to 255; one without a name keeps its number, in digits."""
    text = str(value) if type(value) is int else _text(value, "gre").lower()
    if text in protocols.BY_NAME:
        return Protocol(text)
    if not text.isascii() or not text.isdigit() or int(text) > 255:
        known = ", ".join(protocols.BY_NAME)
        raise ValueError(f"{text!r} is not a protocol: there are {known}, and numbers up to 255")
    return Protocol(protocols.name(int(text)))


def read_rule_protocol(value: Any) -> Protocol:
    """What a rule is for: a protocol, or "any"."""
    name = Protocol(value) if value == "any" else read_protocol(value)
    if name in ("icmp6", "0"):
        raise ValueError('is "icmp" in rules, for IPv4 and IPv6' if name == "icmp6" else 'is no protocol; write "any" for all')
    return name


def read_generic_protocol(value: Any) -> Protocol:
    """A protocol other than TCP, UDP and ICMP that can be translated by its addresses alone."""
    name = read_protocol(value)
    if name in ("icmp", "tcp", "udp"):
        raise ValueError(f"{name} is translated always; here are the others")
    reason = protocols.UNTRANSLATABLE.get(protocols.number(name))
    if reason:
        raise ValueError(f"{name} cannot be translated: {reason}")
    return name


def read_mapping_protocol(value: Any) -> Protocol:
    """A protocol that a static mapping may be for."""
    name = read_protocol(value)
    if name == "icmp":
        raise ValueError("static mappings for ICMP are not implemented in this release; use one of: tcp, udp, gre, esp, ...")
    return name if name in ("tcp", "udp") else read_generic_protocol(name)


def one_of(words: tuple[str, ...], planned: Mapping[str, str] | None = None) -> BeforeValidator:
    """Validator of a choice: `words` are accepted, `planned` ones are known and refused with their sentence."""

    def read(value: Any) -> Any:
        if isinstance(value, str) and planned and value in planned:
            raise ValueError(f"{planned[value]}; use one of: {', '.join(words)}")
        return value

    return BeforeValidator(read)


def _as_text(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


_QUAD = r"\d{1,3}(\.\d{1,3}){3}"
_WRITE = PlainSerializer(str, return_type=str)

Address = Annotated[IPv4Address, PlainValidator(read_address), _WRITE, _as_text(f"^{_QUAD}$", "192.0.2.1")]
Prefix = Annotated[IPv4Network, PlainValidator(read_prefix), _WRITE, _as_text(rf"^{_QUAD}(/\d+)?$", "192.0.2.0/24")]
HostPrefix = Annotated[IPv4Network, PlainValidator(read_host_prefix), _WRITE, _as_text(rf"^{_QUAD}(/\d+)?$", "100.64.0.0/16")]
InterfaceAddress = Annotated[
    IPv4Interface, PlainValidator(read_interface_address), _WRITE, _as_text(rf"^{_QUAD}/\d+$", "192.0.2.2/24")
]
Ports = Annotated[PortRange, PlainValidator(read_ports), _WRITE, _as_text(r"^\d+(-\d+)?$", "1024-65535")]
EndpointText = Annotated[Endpoint, PlainValidator(read_endpoint), _WRITE, _as_text(rf"^{_QUAD}:\d+$", "192.0.2.1:80")]
MappingEnd = Annotated[Endpoint, PlainValidator(read_mapping_end), _WRITE, _as_text(rf"^{_QUAD}(:\d+)?$", "192.0.2.1:80")]


_PROTOCOL = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1, "maximum": 255}], "examples": ["gre", 47]}
)
RuleProtocol = Annotated[Protocol, PlainValidator(read_rule_protocol), _WRITE, _PROTOCOL]
MappingProtocol = Annotated[Protocol, PlainValidator(read_mapping_protocol), _WRITE, _PROTOCOL]
GenericProtocol = Annotated[Protocol, PlainValidator(read_generic_protocol), _WRITE, _PROTOCOL]
RoutePrefix = Annotated[str, BeforeValidator(read_route)]
Community = Annotated[str, BeforeValidator(read_community)]
