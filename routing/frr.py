"""FRR as the switch: what each of its daemons reads. https://docs.frrouting.org/en/stable-8.4/

The pessimistic profile: bgpd hands routes to zebra, which tells staticd when a next hop has another way. While it looks for
one, a shard's table is empty (some 70 ms), and no blackhole written here helps: the floor is the kernel's rules
(`fabric.rules`). Never add a kernel route by hand beside it: zebra takes it as best and removes its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from routing import fabric as fabrics
from routing.fabric import ACCESS, CORE, MARKED, Fabric, Instance, Neighbour, Range

DAEMONS = ("zebra", "staticd", "bfdd", "bgpd")  # in the order in which they are started
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
_WORD = {4: "ip", 6: "ipv6"}
_FAMILY = {4: "ipv4", 6: "ipv6"}


def render(fabric: Fabric, one: Instance) -> str:
    """All of it as one frr.conf."""
    return "".join(files(fabric, one).values())


def files(fabric: Fabric, one: Instance) -> dict[str, str]:
    """The configuration of each daemon."""
    told = {"zebra": _zebra(fabric), "staticd": _staticd(fabric, one), "bfdd": _bfdd(fabric), "bgpd": _bgpd(fabric, one)}
    return {daemon: "\n".join([*told[daemon], "!", ""]) for daemon in DAEMONS}


def _versions(fabric: Fabric) -> tuple[int, ...]:
    return (4, 6) if fabric.v6 else (4,)


def _zebra(fabric: Fabric) -> list[str]:
    return [f"no {_WORD[version]} nht resolve-via-default" for version in _versions(fabric)]


def _staticd(fabric: Fabric, one: Instance) -> list[str]:
    """The policy, and outside a blackhole for external addresses that no core announces."""
    lines = []
    for version in _versions(fabric):
        word, default = _WORD[version], _DEFAULT[version]
        targets = {shard.number: target for shard, _, target in fabrics.policies(fabric, version)} if one.inside else {}
        lines += [f"{word} route {default} {target} table {fabrics.TABLE + number}" for number, target in targets.items()]
        if targets and not one.outside:
            lines.append(f"{word} route {default} {next(iter(targets.values()))} table {fabrics.STRAY_TABLE}")
        if version == 4:
            lines += [f"ip route {each.loopback}/32 {each.address}" for each in one.of(CORE) if each.loopback]
        ranges = (each for each in fabric.outside if one.outside and each.prefix.version == version)
        lines += [f"{word} route {each.prefix} blackhole 250" for each in ranges]
    return lines


def _bfdd(fabric: Fabric) -> list[str]:
    if fabric.bfd is None:
        return []
    interval, multiplier = fabric.bfd
    times = [f"  detect-multiplier {multiplier}", f"  receive-interval {interval}", f"  transmit-interval {interval}"]
    return ["bfd", " profile quick", *times, " exit", "exit"]


# --- BGP -------------------------------------------------------------------------------------------------------------------


def _bgpd(fabric: Fabric, one: Instance) -> list[str]:
    kinds = list({(each.kind, each.domain): each for each in one.neighbours}.values())
    lines = [line for each in kinds for version in _versions(fabric) for line in _lists(fabric, each, version)]
    lines += [line for mark in fabrics.communities(fabric) for line in _mark_list(mark)]
    lines += [line for each in kinds for line in _maps(fabric, each)]
    return [*lines, *_loopback_map(one), *_router(fabric, one)]


def _router(fabric: Fabric, one: Instance) -> list[str]:
    lines = [f"router bgp {one.switch.asn}", f" bgp router-id {one.switch.router_id}"]
    lines += [" bgp bestpath as-path multipath-relax", " bgp deterministic-med", " no bgp default ipv4-unicast"]
    lines += [f" {line}" for each in one.neighbours for line in _neighbour(fabric, each)]
    for version in _versions(fabric):
        lines += [f" address-family {_FAMILY[version]} unicast", "  redistribute connected", "  maximum-paths 1"]
        lines += ["  redistribute static route-map loopbacks"] if _loopback_map(one) and version == 4 else []
        lines += [f"  {line}" for each in one.neighbours for line in _activated(each)]
        lines += [" exit-address-family"]
    return [*lines, "exit"]


def _loopback_map(one: Instance) -> list[str]:
    """Of all static routes only those to cores are for others."""
    found = [each.loopback for each in one.of(CORE) if each.loopback]
    lists = [f"ip prefix-list loopbacks permit {address}/32" for address in found]
    return [*lists, "route-map loopbacks permit 10", " match ip address prefix-list loopbacks", "exit"] if found else []


def _lists(fabric: Fabric, to: Neighbour, version: int) -> list[str]:
    ways = (("from", fabrics.believed(fabric, to, version)), ("to", fabrics.told_to(fabric, to, version)))
    return [line for way, ranges in ways for line in _prefix_list(f"{way}-{to.kind}-{to.domain}", ranges, version)]


def _prefix_list(name: str, ranges: Iterable[Range], version: int) -> list[str]:
    permitted = []
    for number, each in enumerate(ranges, 1):
        least = f" ge {each.shortest}" if each.shortest > each.prefix.prefixlen else ""
        most = f" le {each.longest}" if each.longest > each.prefix.prefixlen else ""
        permitted.append(f"{_WORD[version]} prefix-list {name} seq {number} permit {each.prefix}{least}{most}")
    return permitted or [f"{_WORD[version]} prefix-list {name} seq 1 deny any"]


def _mark_name(mark: fabrics.Community) -> str:
    return f"mark-{mark.high}-{mark.low}"


def _mark_list(mark: fabrics.Community) -> list[str]:
    told = "graceful-shutdown" if (mark.high, mark.low) == fabrics.GRACEFUL_SHUTDOWN else f"{mark.high}:{mark.low}"
    return [f"bgp community-list standard {_mark_name(mark)} permit {told}"]


def _maps(fabric: Fabric, to: Neighbour) -> list[str]:
    name = f"{to.kind}-{to.domain}"
    lines, number = [], 10
    for version in _versions(fabric):
        match = f" match {_WORD[version]} address prefix-list"
        for mark in reversed(fabrics.communities(fabric)) if to.kind in MARKED else ():
            body = [f"{match} from-{name}", f" match community {_mark_name(mark)}", f" set local-preference {mark.preference}"]
            lines += [f"route-map from-{name} permit {number}", *body, "exit"]
            number += 1
        lines += [f"route-map from-{name} permit {number}", f"{match} from-{name}", "exit"]
        lines += [f"route-map to-{name} permit {number}", f"{match} to-{name}", "exit"]
        number += 1
    return lines


def _neighbour(fabric: Fabric, to: Neighbour) -> list[str]:
    him = f"neighbor {to.address}"
    lines = [f"{him} remote-as {to.asn}", f"{him} description {to.name}", f"{him} update-source {to.own.ip}"]
    lines += [f"{him} timers {max(fabric.hold_s // 3, 1)} {fabric.hold_s}", f"{him} timers connect 1"]
    lines += [f"{him} advertisement-interval 0"]
    lines += [f"{him} passive"] if to.kind == CORE else []
    lines += [f"{him} disable-connected-check"] if to.kind == CORE and fabric.third_party else []
    return lines + ([f"{him} bfd", f"{him} bfd profile quick"] if fabric.bfd else [])


def _activated(to: Neighbour) -> list[str]:
    him, name = f"neighbor {to.address}", f"{to.kind}-{to.domain}"
    lines = [f"{him} activate", f"{him} soft-reconfiguration inbound"]
    lines += [f"{him} route-map from-{name} in", f"{him} route-map to-{name} out"]
    lines += [f"{him} maximum-prefix 4096"] if to.kind == CORE else []
    return lines + ([f"{him} default-originate"] if to.kind == ACCESS else [])
