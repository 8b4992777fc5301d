"""The values of IPv6 that a configuration holds, read from text and written back as text (see `values`)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from krononat.values import read_prefix

# Addresses that cross no router here (RFC 6092 REC-3, 7; as `shards.parse6.martian`), so never a subscriber's.
NEVER_HOSTS = tuple(IPv6Network(text) for text in ("::/8", "100::/8", "fc00::/7", "fe00::/8", "ff00::/8"))


def _text(value: Any, example: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text such as {example!r}")
    return value.strip()


def read_address6(value: Any) -> IPv6Address:
    """Address from text; ValueError says what is wrong with it."""
    if isinstance(value, IPv6Address):
        return value
    try:
        return IPv6Address(_text(value, "fe80::1"))
    except ValueError as error:
        raise ValueError("is not an IPv6 address" if not str(error).startswith("must") else str(error)) from None


def read_prefix6(value: Any) -> IPv6Network:
    """Prefix from "2001:db8::/32"; a bare address is a /128; bits beyond the length are refused."""
    if isinstance(value, IPv6Network):
        return value
    text = _text(value, "2001:db8::/32")
    try:
        network = IPv6Network(text, strict=False)
    except ValueError:
        raise ValueError("is not an IPv6 prefix such as 2001:db8::/32") from None
    if network.network_address != IPv6Address(text.partition("/")[0]):
        raise ValueError(f"has bits set beyond its length; did you mean {network}?")
    return network


def read_host_prefix6(value: Any) -> IPv6Network:
    """Prefix whose addresses may cross the firewall."""
    network = read_prefix6(value)
    for never in NEVER_HOSTS:
        if network.overlaps(never):
            raise ValueError(f"overlaps {never}, whose addresses are not forwarded (RFC 6092 REC-3, REC-7)")
    return network


def read_interface_address6(value: Any) -> IPv6Interface:
    """Address with the length of its on-link network."""
    if isinstance(value, IPv6Interface):
        return value
    text = _text(value, "2001:db8::2/64")
    if "/" not in text:
        raise ValueError(f"needs the length of its network, such as {text}/64")
    try:
        return IPv6Interface(text)
    except ValueError:
        raise ValueError("is not an IPv6 address with a prefix length, such as 2001:db8::2/64") from None


def read_any_prefix(value: Any) -> IPv4Network | IPv6Network:
    """Prefix of either kind."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    return read_prefix6(value) if isinstance(value, str) and ":" in value else read_prefix(value)


def _as_text(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


_SIX = r"[0-9A-Fa-f:.]+"
_WRITE = PlainSerializer(str, return_type=str)

Address6 = Annotated[IPv6Address, PlainValidator(read_address6), _WRITE, _as_text(f"^{_SIX}$", "fe80::1")]
Prefix6 = Annotated[IPv6Network, PlainValidator(read_prefix6), _WRITE, _as_text(rf"^{_SIX}(/\d+)?$", "2001:db8:0:700::5/128")]
HostPrefix6 = Annotated[IPv6Network, PlainValidator(read_host_prefix6), _WRITE, _as_text(rf"^{_SIX}/\d+$", "2001:db8::/32")]
InterfaceAddress6 = Annotated[
    IPv6Interface, PlainValidator(read_interface_address6), _WRITE, _as_text(rf"^{_SIX}/\d+$", "2001:db8::2/64")
]
AnyPrefix = Annotated[
    IPv4Network | IPv6Network, PlainValidator(read_any_prefix), _WRITE, _as_text(r"^[0-9A-Fa-f:.]+(/\d+)?$", "192.0.2.0/24")
]
