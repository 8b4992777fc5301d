"""From configurations of cores to the switches that they talk to, as `routing.fabric` has them. Pure.

A switch is known by its AS: peers of one AS are one switch (two of one AS would have to be told apart by hand). What a switch
calls its ports no configuration says; they are called after the core at their other end, s1c0in, for you to replace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, collapse_addresses, ip_network
from string import ascii_lowercase

from krononat.checks_bgp import domain_of, leg_of
from krononat.client import BAD_CONFIG, Trouble
from krononat.models import Config
from krononat.models_bgp import Bgp, BgpPeer
from routing import announcements
from routing.fabric import CORE, INSIDE, OUTSIDE, Bfd, Fabric, Legs, Neighbour, Range, Shard, Switch

_SHORT = {INSIDE: "in", OUTSIDE: "out"}


def of(configs: Sequence[Config], domains: int = 2) -> Fabric:
    """The switches of these cores; Trouble where a core says nothing of any, or two disagree."""
    bgp = _agreed(configs)
    asns = sorted({peer.as_ for config in configs for peer in _bgp(config).peer})
    networks = {leg for config in configs for leg in (*_legs(config), *_loopbacks(config))}
    six = [group.prefix6 for group in configs[0].subscribers if group.prefix6]
    return Fabric(
        shards=tuple(_shards(configs[0], bgp)),
        inside=tuple(_range(each) for each in (bgp.shard_addresses, bgp.shard_addresses6) if each),
        outside=(*_outside(configs[0]), *(Range(each, each.prefixlen, 128) for each in collapse_addresses(six))),
        floor=(*(group.prefix for group in configs[0].subscribers), *six),
        legs=tuple(sorted(networks, key=str)),
        switches=tuple(_switch(ascii_lowercase[number], asn, configs) for number, asn in enumerate(asns)),
        core_asn=bgp.local_as,
        domains=domains,
        hold_s=bgp.hold_time_s,
        bfd=_bfd(configs[0]),
        third_party=bgp.profile == "per-server",
        meds=_meds(bgp),
    )


def _bgp(config: Config) -> Bgp:
    if config.bgp is None:
        raise Trouble(f"{config.core_name} tells no switch anything", "its configuration has no [bgp]", "", BAD_CONFIG)
    return config.bgp


def _agreed(configs: Sequence[Config]) -> Bgp:
    """What is the same for all cores; Trouble that says what is not."""
    first = _bgp(configs[0])
    for config in configs:
        for field in ("local_as", "shard_addresses", "shard_addresses6", "preference", "hold_time_s", "med", "profile"):
            if getattr(_bgp(config), field) != getattr(first, field):
                told = f"{configs[0].core_name} has {getattr(first, field)}, {config.core_name} {getattr(config.bgp, field)}"
                raise Trouble(f"the cores do not agree about bgp.{field.replace('_', '-')}", told, "", BAD_CONFIG)
    return first


def _bfd(config: Config) -> Bfd | None:
    return Bfd(config.bfd.interval_ms, config.bfd.multiplier) if config.bfd and config.bfd.enabled else None


def _meds(bgp: Bgp) -> tuple[int, ...]:
    med = bgp.med
    unfit = (med.unfit, med.unfit + 1, med.unfit + 2)
    return (med.promoted, med.primary, med.leaving, med.leaving + 1, med.backup, *unfit, med.rejoining)


def _shards(config: Config, bgp: Bgp) -> Iterator[Shard]:
    pools = {pool.name: pool.shard for pool in config.pool}
    for shard in sorted(set(pools.values())):
        groups = [group for group in config.subscribers if pools[group.pool] == shard]
        sources = (*(group.prefix for group in groups), *(group.prefix6 for group in groups if group.prefix6))
        addresses = (
            announcements.shard_address(network, shard, bgp.preference) if network else None
            for network in (bgp.shard_addresses, bgp.shard_addresses6)
        )
        four, six = (ip_network(each).network_address if each else None for each in addresses)
        yield Shard(shard, sources, four, six)  # type: ignore[arg-type]  # of these versions by the configuration's rules


def _range(network: str) -> Range:
    told = ip_network(network)
    return Range(told, told.prefixlen, told.max_prefixlen)


def _outside(config: Config) -> tuple[Range, ...]:
    """External prefixes, neighbouring ones as one, and aggregates: they may be announced in parts."""
    aggregates = [ip_network(each) for each in _bgp(config).aggregates]
    inside = [ip_network(each) for each in (_bgp(config).shard_addresses, _bgp(config).shard_addresses6) if each]
    own = [each for each in aggregates if isinstance(each, IPv4Network) and not any(each == home for home in inside)]
    prefixes = [prefix for pool in config.pool for prefix in pool.prefixes] + own
    return tuple(Range(each, each.prefixlen, 32) for each in collapse_addresses(prefixes))


def _legs(config: Config) -> Iterator[Legs]:
    for peer in _bgp(config).peer:
        leg = leg_of(config, peer)
        if leg:
            yield Legs(_side(config, peer), leg[1].address.network)
            if leg[1].address6:
                yield Legs(_side(config, peer), leg[1].address6.network)


def _loopbacks(config: Config) -> Iterator[Legs]:
    told = config.interfaces.loopback
    if told:
        yield Legs(INSIDE if told.side == "internal" else OUTSIDE, told.address.network)


def _side(config: Config, peer: BgpPeer) -> str:
    """A neighbour of both domains is of the inside: it is what steers."""
    return OUTSIDE if domain_of(config, peer) == OUTSIDE else INSIDE


def _switch(name: str, asn: int, configs: Sequence[Config]) -> Switch:
    neighbours = [
        each for config in configs for peer in _bgp(config).peer if peer.as_ == asn for each in _neighbour(config, peer)
    ]
    return Switch(name, asn, neighbours[0].own.ip, tuple(neighbours))


def _neighbour(config: Config, peer: BgpPeer) -> Iterator[Neighbour]:
    leg = leg_of(config, peer)
    if leg is None:
        return
    side, port = _side(config, peer), leg[1]
    name = "".join(filter(str.isalnum, config.server.name)) + f"c{config.server.core}{_SHORT[side]}"
    own = IPv4Interface(f"{peer.address}/{port.address.network.prefixlen}")
    address, own6 = peer.local or port.address.ip, getattr(port, "gateway6", None)  # a stick has one for each side
    address6 = port.address6.ip if port.address6 else None
    asn, loopback = _bgp(config).local_as, _loopback(config, side)
    yield Neighbour(name, CORE, side, name[-15:], own, address, asn, loopback, own6, address6)


def _loopback(config: Config, side: str) -> IPv4Address | None:
    told = config.interfaces.loopback
    return told.address.ip if told and {"internal": INSIDE, "external": OUTSIDE}[told.side] == side else None
