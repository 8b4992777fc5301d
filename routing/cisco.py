"""Cisco IOS-XE and NX-OS alike: a VRF for each domain, `set ip next-hop recursive` where subscribers come by. Untested.

https://www.cisco.com/c/en/us/td/docs/ios-xml/ios/iproute_pi/configuration/xe-16/iri-xe-16-book/iri-pbr-rec-next-hop.html
"""

from __future__ import annotations

from collections.abc import Iterator

from routing import fabric as fabrics
from routing.arista import prefix_list
from routing.fabric import Fabric, Instance, Neighbour, Network


def render(fabric: Fabric, one: Instance) -> str:
    """The part of a configuration that one domain of a switch needs."""
    lines = [f"! Cisco IOS-XE, switch {one.switch.name}, domain {one.domain}: UNTESTED, read it before you use it"]
    lines += [f"vrf definition {one.domain}", " address-family ipv4", " exit-address-family", "!"]
    for each in one.neighbours:
        lines += _port(fabric, one, each)
    for domain in dict.fromkeys(each.domain for each in one.neighbours):
        ranges = fabric.inside if domain == fabrics.INSIDE else fabric.outside
        lines += [*prefix_list(f"CORES-{domain}", ranges), *_route_map(fabric, domain), "!"]
    lines += list(_policy(fabric)) if one.inside else []
    return "\n".join([*lines, *_bgp(fabric, one), ""])


def _port(fabric: Fabric, one: Instance, to: Neighbour) -> list[str]:
    lines = [f"interface {to.device}", f" vrf forwarding {one.domain}", f" ip address {to.own.ip} {to.own.netmask}"]
    if fabric.bfd:
        interval, times = fabric.bfd
        lines.append(f" bfd interval {interval} min_rx {interval} multiplier {times}")
    return [*lines, "!"]


def _route_map(fabric: Fabric, domain: str) -> Iterator[str]:
    for number, mark in enumerate(reversed(fabrics.communities(fabric)), 1):
        name = f"MARK-{mark.high}-{mark.low}"
        yield f"ip community-list standard {name} permit {mark.high}:{mark.low}"
        yield f"route-map CORES-{domain} permit {10 * number}"
        yield f" match ip address prefix-list CORES-{domain}"
        yield f" match community {name}"
        yield f" set local-preference {mark.preference}"
    yield f"route-map CORES-{domain} permit 1000"
    yield f" match ip address prefix-list CORES-{domain}"


def _wild(network: Network) -> str:
    return f"{network.network_address} {network.hostmask}"


def _policy(fabric: Fabric) -> Iterator[str]:
    """The last entry sends what subscribers send and no shard takes to Null0: the floor."""
    for shard in fabric.shards:
        yield f"ip access-list extended SHARD-{shard.number}"
        yield from (f" permit ip {_wild(source)} any" for source in shard.sources if source.version == 4)
        yield f"route-map KRONONAT permit {10 * (shard.number + 1)}"
        yield f" match ip address SHARD-{shard.number}"
        yield f" set ip next-hop recursive {shard.address}"
    yield "ip access-list extended SUBSCRIBERS"
    yield from (f" permit ip {_wild(each)} any" for each in fabric.floor if each.version == 4)
    yield from ("route-map KRONONAT permit 65000", " match ip address SUBSCRIBERS", " set interface Null0")
    yield from ("! on every port that subscribers come by:", "! interface ETHERNET", "!  ip policy route-map KRONONAT", "!")


def _bgp(fabric: Fabric, one: Instance) -> Iterator[str]:
    yield from (f"router bgp {one.switch.asn}", f" bgp router-id {one.switch.router_id}")
    yield from (f" address-family ipv4 vrf {one.domain}", "  maximum-paths 1")
    for to in one.of(fabrics.CORE):
        him = f"  neighbor {to.address}"
        yield from (f"{him} remote-as {to.asn}", f"{him} description {to.name}", f"{him} activate")
        yield f"{him} timers {max(fabric.hold_s // 3, 1)} {fabric.hold_s}"
        yield from (f"{him} transport connection-mode passive", f"{him} route-map CORES-{to.domain} in")
        yield f"{him} maximum-prefix 4096"
        yield from (f"{him} fall-over bfd",) if fabric.bfd else ()
    yield " exit-address-family"
