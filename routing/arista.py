"""Arista EOS: a VRF for each domain, recursive next hops in a policy on the ports that subscribers come by. Untested.

https://www.arista.com/en/um-eos/eos-policy-based-routing (`set nexthop recursive`), https://www.arista.com/en/um-eos/eos-vrf-lite
"""

from __future__ import annotations

from collections.abc import Iterator

from routing import fabric as fabrics
from routing.fabric import Fabric, Instance, Neighbour, Range


def render(fabric: Fabric, one: Instance) -> str:
    """The part of a running-config that one domain of a switch needs."""
    lines = [f"! Arista EOS, switch {one.switch.name}, domain {one.domain}: UNTESTED, read it before you use it"]
    lines += [f"vrf instance {one.domain}", f"ip routing vrf {one.domain}", "!"]
    for each in one.neighbours:
        lines += _port(fabric, one, each)
    for domain in dict.fromkeys(each.domain for each in one.neighbours):
        ranges = fabric.inside if domain == fabrics.INSIDE else fabric.outside
        lines += [*prefix_list(f"CORES-{domain}", ranges), *_route_map(fabric, domain), "!"]
    lines += list(_policy(fabric)) if one.inside else []
    return "\n".join([*lines, *_bgp(fabric, one), ""])


def prefix_list(name: str, ranges: tuple[Range, ...]) -> list[str]:
    """What may be announced, IPv4."""
    told = [each for each in ranges if each.prefix.version == 4]
    return [
        f"ip prefix-list {name} seq {10 * number} permit {each.prefix}" + (f" le {each.longest}" if _wider(each) else "")
        for number, each in enumerate(told, 1)
    ]


def _wider(each: Range) -> bool:
    return each.longest > each.prefix.prefixlen


def _port(fabric: Fabric, one: Instance, to: Neighbour) -> list[str]:
    lines = [f"interface {to.device}", "   no switchport", f"   vrf {one.domain}", f"   ip address {to.own}"]
    if fabric.bfd:
        interval, times = fabric.bfd
        lines.append(f"   bfd interval {interval} min-rx {interval} multiplier {times}")
    return [*lines, "!"]


def _route_map(fabric: Fabric, domain: str) -> Iterator[str]:
    """Communities first, then everything that may be announced."""
    for number, mark in enumerate(reversed(fabrics.communities(fabric)), 1):
        name = f"MARK-{mark.high}-{mark.low}"
        yield f"ip community-list {name} permit {mark.high}:{mark.low}"
        yield f"route-map CORES-{domain} permit {10 * number}"
        yield f"   match ip address prefix-list CORES-{domain}"
        yield f"   match community {name}"
        yield f"   set local-preference {mark.preference}"
    yield f"route-map CORES-{domain} permit 1000"
    yield f"   match ip address prefix-list CORES-{domain}"


def _policy(fabric: Fabric) -> Iterator[str]:
    """One class for each shard; the last one drops what subscribers send and no shard takes: the floor."""
    for shard in fabric.shards:
        yield f"ip access-list SHARD-{shard.number}"
        yield from (f"   permit ip {source} any" for source in shard.sources if source.version == 4)
        yield f"class-map type pbr match-any SHARD-{shard.number}"
        yield f"   match ip access-group SHARD-{shard.number}"
    yield "ip access-list SUBSCRIBERS"
    yield from (f"   permit ip {each} any" for each in fabric.floor if each.version == 4)
    yield from ("class-map type pbr match-any SUBSCRIBERS", "   match ip access-group SUBSCRIBERS")
    yield "policy-map type pbr KRONONAT"
    for shard in fabric.shards:
        yield f"   class SHARD-{shard.number}"
        yield f"      set nexthop recursive {shard.address}"
    yield from ("   class SUBSCRIBERS", "      drop", "! on every port that subscribers come by:")
    yield from ("! interface ETHERNET", "!    service-policy type pbr input KRONONAT", "!")


def _bgp(fabric: Fabric, one: Instance) -> Iterator[str]:
    yield from (f"router bgp {one.switch.asn}", f"   vrf {one.domain}", f"      router-id {one.switch.router_id}")
    yield f"      timers bgp {max(fabric.hold_s // 3, 1)} {fabric.hold_s}"
    yield "      maximum-paths 1"
    for to in one.of(fabrics.CORE):
        him = f"      neighbor {to.address}"
        yield from (f"{him} remote-as {to.asn}", f"{him} description {to.name}", f"{him} passive")
        yield from (f"{him} route-map CORES-{to.domain} in", f"{him} maximum-routes 4096")
        yield from (f"{him} bfd",) if fabric.bfd else ()
