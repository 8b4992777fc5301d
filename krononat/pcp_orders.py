"""Where a core answers to PCP, and by which rules: what a configuration tells a worker (see `pcp_listener`)."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

from krononat.models import Config

ANYCAST = IPv4Address("192.0.0.9")  # RFC 7723


def anycast(config: Config) -> list[IPv4Address]:
    """The address that is every PCP server's, if it is wanted."""
    return [ANYCAST] if config.pcp.enabled and config.pcp.anycast else []


def addresses(config: Config) -> list[IPv4Address]:
    """Own addresses of the core that subscribers reach."""
    told = config.interfaces
    inside = [port.address.ip for side, port in told.named() if side != "external"]
    loopback = [told.loopback.address.ip] if told.loopback and told.loopback.side == "internal" else []
    return [*inside, *loopback, *anycast(config)] if config.pcp.enabled else []


def orders(config: Config, indices: Sequence[int]) -> dict[str, Any] | None:
    """What the worker is told, None: there is nothing to do. `indices`: the kernel's of each port, in their order.

    Without subscribers who may ask, mappings of that kind may still come from cores where they may, and must end here.
    """
    told = config.pcp
    if not told.enabled and not config.cluster:
        return None
    inside = [index for (side, _), index in zip(config.interfaces.named(), indices, strict=True) if side != "external"]
    return {
        "addresses": list(map(str, addresses(config))),
        "interfaces": inside,
        "minimum_s": told.min_lifetime_s,
        "maximum_s": told.max_lifetime_s,
        "nat_pmp": told.nat_pmp,
        "third_party": told.third_party,
        "each": told.mappings_each,
        "rate": told.requests_per_second,
        "each_rate": told.requests_each,
    }
