"""The interfaces' settings: seen (`observe`), decided (`decide`), done (`act`), remembered (`record`) and taken back (`undo`).

A plan is a list of plain steps, so that it can be printed, tested and undone exactly: what was there already is no step and
stays. The kernel keeps the core's own address (ARP, BGP, ping to it) and must forward nothing; frames must arrive as sent.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter
from pyroute2 import IPRoute, NetlinkError
from pyroute2.ethtool import Ethtool
from pyroute2.ethtool.ioctl import NotSupportedError

from krononat import appliance6, memory, pcp_orders
from krononat.appliance import SIDES, Link, gateways
from krononat.client import BAD_CONFIG, Trouble
from krononat.models import MTU_AT_MOST, Config, Leg, Stick
from shards.state import INTERNAL

# Merged or stripped frames are not what was sent: a merged one does not fit a frame of the umem, a stripped tag is lost to XDP.
_OFFLOADS = ("rx-gro", "rx-gro-hw", "rx-gro-list", "rx-lro", "rx-udp-gro-forwarding", "rx-vlan-hw-parse")

# Linux Documentation/networking/ip-sysctl. Sources are checked by the pipeline; a strict kernel would not answer distant pings.
_ARP_IGNORE = "net/ipv4/conf/{}/arp_ignore"
_SYSCTLS = {
    "net/ipv4/conf/{}/forwarding": "0",
    "net/ipv4/conf/{}/rp_filter": "0",
    "net/ipv4/conf/{}/send_redirects": "0",
    "net/ipv4/conf/{}/accept_redirects": "0",
    "net/ipv4/conf/{}/arp_announce": "2",
    _ARP_IGNORE: "1",
    "net/ipv4/conf/{}/ignore_routes_with_linkdown": "1",  # of several legs, the kernel's own way is one that lives, too
    "net/ipv6/conf/{}/forwarding": "0",
}
_PROC = Path("/proc/sys")

_GC_THRESHOLDS = tuple(f"net/ipv4/neigh/default/gc_thresh{number}" for number in (3, 2, 1))
_GC_DEFAULT = 1024

_MAIN, _LOCAL = 254, 255  # routing tables, rtnetlink(7)
_HOST_SCOPE = 254
_IPV4, _IPV6 = 2, 10  # families
_DEFAULT6 = "::/0"
_NO_DETECTION = 2  # IFA_F_NODAD: the address is ours at once, as IPv4's is
_METRIC = 4242  # of our routes, and so on by interface for the same destination: any other one wins
_OURS = range(_METRIC, _METRIC + 8)
_LOOPBACK = "lo"


class Facts(NamedTuple):
    """An interface as it was found."""

    ifindex: int
    mac: bytes
    mtu: int
    up: bool
    kind: str  # "veth", "vlan", ...; "" for a device
    queues: int  # receive queues
    addresses: frozenset[str]
    features: dict[str, bool]  # those that can be switched
    sysctls: dict[str, str]


class Host(NamedTuple):
    """The namespace we are in."""

    interfaces: dict[str, Facts]
    routes: frozenset[str]  # destinations of the main table; what a killed run of ours left there does not count
    sysctls: dict[str, str]
    loopback: frozenset[str] = frozenset()  # addresses of the interface `lo`


class Step(NamedTuple):
    """One change: what it is to people, and to `act` and `undo`. An empty `before` means there is nothing to restore."""

    kind: Literal["vlan", "mtu", "offload", "sysctl", "address", "link", "route", "local route", "huge pages"]
    interface: str
    key: str
    value: str
    before: str = ""

    def __str__(self) -> str:
        was = f" (was {self.before})" if self.before else ""
        return f"{self.interface}: {self.kind} {self.key + ' ' if self.key else ''}{self.value}{was}"


_STEP = TypeAdapter(Step)


# --- seen -----------------------------------------------------------------------------------------------------------------


def observe(config: Config) -> Host:
    """What is there of the configured interfaces; Trouble where one is missing."""
    with IPRoute() as ip, contextlib.closing(Ethtool()) as ethtool:
        links = {link.get("ifname"): link for link in ip.get_links()}
        found = {}
        for side, port in config.interfaces.named():
            if port.name not in links:
                why = f"in this network namespace there are: {', '.join(sorted(links))}"
                told = f"create it, or correct `interfaces.{side}.name`"
                raise Trouble(f"there is no interface {port.name!r}", why, told, BAD_CONFIG)
            for name in {port.name, home(port)} & links.keys():
                found[name] = _facts(ip, ethtool, name, links[name])
        routes = frozenset(
            _destination(route)
            for family in (_IPV4, _IPV6)
            for route in ip.get_routes(table=_MAIN, family=family)
            if route.get("priority") not in _OURS
        )
        loopback = frozenset(_addresses(ip, links[_LOOPBACK]["index"])) if _LOOPBACK in links else frozenset()
    return Host(found, routes, {path: told for path in _GC_THRESHOLDS if (told := _sysctl(path))}, loopback)


def home(port: Leg | Stick) -> str:
    """Name of the kernel's interface that has the core's address: of a tagged port, its VLAN's."""
    return f"{port.name}.{port.vlan}"[-15:] if port.vlan else port.name


def _facts(ip: Any, ethtool: Any, name: str, link: Any) -> Facts:
    index = link["index"]
    info = link.get("linkinfo")
    return Facts(
        index,
        bytes.fromhex(link.get("address").replace(":", "")),
        link.get("mtu"),
        bool(link["flags"] & 1),
        (info.get("kind") or "") if info else "",
        _queues(ethtool, name),
        frozenset(_addresses(ip, index)),
        _features(ethtool, name),
        {path: told for path in (template.format(name) for template in _SYSCTLS) if (told := _sysctl(path))},
    )


def _addresses(ip: Any, index: int) -> list[str]:
    return [f"{told.get('address')}/{told['prefixlen']}" for told in ip.get_addr(index=index, family=2)]


def _queues(ethtool: Any, name: str) -> int:
    try:
        channels = ethtool.get_channels(name)
    except (OSError, NotSupportedError):
        return 1
    return max((channels.rx_count or 0) + (channels.combined_count or 0), 1)


def _features(ethtool: Any, name: str) -> dict[str, bool]:
    told = ethtool.get_features(name).features
    return {key: bool(told[key].enable) for key in _OFFLOADS if key in told and told[key].available}


def _sysctl(path: str) -> str:
    try:
        return (_PROC / path).read_text().strip()
    except OSError:
        return ""


def _destination(route: Any) -> str:
    nothing = "default" if route["family"] == _IPV4 else _DEFAULT6
    return f"{route.get('dst')}/{route['dst_len']}" if route["dst_len"] else nothing


def links(config: Config, host: Host) -> list[Link]:
    """What `appliance.fill` wants to know, after the plan was carried out."""
    told = []
    for _, port in config.interfaces.named():
        facts = host.interfaces[port.name]
        partial = facts.kind == "veth" if port.checksums == "auto" else port.checksums == "partial"
        told.append(Link(facts.mac, _mtu(port, facts), partial))
    return told


# --- decided --------------------------------------------------------------------------------------------------------------


def decide(config: Config, host: Host) -> list[Step]:
    """What must change before frames may arrive."""
    steps = list(_neighbour_room(config, host))
    for side, port in config.interfaces.named():
        facts = host.interfaces[port.name]
        steps += _device(port, facts)
        steps += _address(config, host, side, port)
        steps += _routes(config, host, side, port)
    return [*steps, *_loopback(config, host)]


def decide_late(config: Config) -> list[Step]:
    """What must change only once the program is attached: pool addresses that are on-link become local, so that the kernel
    answers ARP for them. Packets to them never reach it; without the program it would answer those, too.
    """
    steps = []
    for side, port in config.interfaces.named():
        prefixes = _on_link_pools(config, port) if side != "internal" else []
        steps += [Step("local route", home(port), "", str(prefix)) for prefix in prefixes]
    return steps


def readdressed(before: Config, after: Config) -> tuple[list[Step], list[Step]]:
    """(steps to do, steps to take back) where pools have other prefixes from now on."""
    old, new = decide_late(before), decide_late(after)
    steps = [step for step in new if step not in old]
    for name in {step.interface for step in steps} - {step.interface for step in old}:
        path = _ARP_IGNORE.format(name)
        steps.insert(0, Step("sysctl", name, path, "0", _sysctl(path)))  # see `_address`
    return steps, [step for step in old if step not in new]


def again(config: Config, host: Host, number: int) -> list[Step]:
    """What a port must be given again after it was set down and up: the kernel has forgotten its routes."""
    side, port = list(config.interfaces.named())[number]
    late = [step for step in decide_late(config) if step.interface == home(port)]
    return [*_routes(config, host, side, port), *late]


def _mtu(port: Leg | Stick, facts: Facts) -> int:
    return port.mtu or min(facts.mtu, MTU_AT_MOST)


def _device(port: Leg | Stick, facts: Facts) -> Iterator[Step]:
    if _mtu(port, facts) != facts.mtu:
        yield Step("mtu", port.name, "", str(_mtu(port, facts)), str(facts.mtu))
    for feature, on in facts.features.items():
        if on:
            yield Step("offload", port.name, feature, "off", "on")
    if port.vlan and not facts.up:
        yield Step("link", port.name, "", "up", "down")


def _address(config: Config, host: Host, side: str, port: Leg | Stick) -> Iterator[Step]:
    name = home(port)
    facts = host.interfaces.get(name)
    if facts is None:
        yield Step("vlan", name, port.name, str(port.vlan))
    for template, value in _SYSCTLS.items():
        path = template.format(name)
        if template == _ARP_IGNORE and side != "internal" and _on_link_pools(config, port):
            value = "0"  # 1 would not answer for pool addresses, which are no interface's
        before = facts.sysctls.get(path, "") if facts else ""
        if before != value and (facts is None or path in facts.sysctls):
            yield Step("sysctl", name, path, value, before)
    for address in (port.address, port.address6):
        if address is not None and (facts is None or str(address) not in facts.addresses):
            yield Step("address", name, "", str(address))
    if facts is None or not facts.up:
        yield Step("link", name, "", "up", "down")


def _routes(config: Config, host: Host, side: str, port: Leg | Stick) -> Iterator[Step]:
    """The kernel's own way back, for what is addressed to the core: it forwards nothing by them. Each leg's has its metric."""
    rank = [other.name for there, other in config.interfaces.named() if there == side].index(port.name)
    for towards, gateway in gateways(port, SIDES[side]):
        wanted = ["default"]
        if towards == INTERNAL:
            wanted = [str(group.prefix) for group in config.subscribers if not group.prefix.subnet_of(port.address.network)]
            wanted += _other_loopbacks(config)
        for destination in wanted:
            if destination not in host.routes:
                yield Step("route", home(port), destination, f"{gateway} metric {_METRIC + rank}" if rank else str(gateway))
    for towards, gateway6 in appliance6.gateways6(port, SIDES[side]):
        inside = [str(group.prefix6) for group in config.subscribers if group.prefix6]
        for destination in inside if towards == INTERNAL else [_DEFAULT6]:
            if destination not in host.routes:
                yield Step("route", home(port), destination, f"{gateway6} metric {_METRIC + rank}" if rank else str(gateway6))


def _other_loopbacks(config: Config) -> list[str]:
    """Where the other cores have theirs, if that is inside: else the default route leads there."""
    told = config.interfaces.loopback
    inside = told and told.side == "internal" and told.address.network.prefixlen < 32
    return [str(told.address.network)] if told and inside else []


def _loopback(config: Config, host: Host) -> Iterator[Step]:
    """Addresses that outlive every leg; the kernel answers for them at all of them."""
    told = config.interfaces.loopback
    for address in [*([told.address.ip] if told else []), *pcp_orders.anycast(config)]:
        if f"{address}/32" not in host.loopback:
            yield Step("address", _LOOPBACK, "", f"{address}/32")


def _on_link_pools(config: Config, port: Leg | Stick) -> list[IPv4Network]:
    prefixes = [prefix for pool in config.pool for prefix in pool.prefixes]
    return [prefix for prefix in prefixes if prefix.subnet_of(port.address.network)]


def _neighbour_room(config: Config, host: Host) -> Iterator[Step]:
    """The kernel keeps about a thousand neighbours; a larger access network needs more. Only the host's namespace has a say."""
    stations = sum(port.address.network.num_addresses for _, port in config.interfaces.named())
    for path in _GC_THRESHOLDS:
        before = host.sysctls.get(path, "")
        if before and stations > _GC_DEFAULT and int(before) < stations:
            yield Step("sysctl", "neighbours", path, str(stations), before)


# --- done and taken back --------------------------------------------------------------------------------------------------


def act(step: Step) -> None:
    """Carry out a step; Trouble where the kernel refuses."""
    try:
        _apply(step, step.value, undo=False)
    except (OSError, NetlinkError) as error:
        remedy = "the kernel needs 802.1Q (modprobe 8021q)" if step.kind == "vlan" else "is another program managing it?"
        raise Trouble(f"cannot set up {step.interface}", f"{step}: {error}", remedy) from error


def undo(step: Step) -> str | None:
    """Take a step back; None, or why that was impossible (the interface may be gone)."""
    try:
        _apply(step, step.before, undo=True)
    except (OSError, NetlinkError, Trouble, KeyError, ValueError) as error:
        return f"{step} could not be taken back: {error}"
    return None


def _apply(step: Step, value: str, *, undo: bool) -> None:
    if step.kind == "sysctl":
        if value:
            (_PROC / step.key).write_text(value)
    elif step.kind == "huge pages":
        memory.restore_huge_pages(value)
    elif step.kind == "offload":
        with contextlib.closing(Ethtool()) as ethtool:
            told = ethtool.get_features(step.interface)
            told.features[step.key].enable = value == "on"
            ethtool.set_features(step.interface, told)
    else:
        with IPRoute() as ip:
            _apply_by_netlink(ip, step, value, undo=undo)


def _apply_by_netlink(ip: Any, step: Step, value: str, *, undo: bool) -> None:
    if step.kind == "vlan" and not undo:
        ip.link("add", ifname=step.interface, kind="vlan", link=_index(ip, step.key), vlan_id=int(step.value))
        return
    index = _index(ip, step.interface)
    if step.kind == "vlan":
        ip.link("del", index=index)
    elif step.kind == "mtu":
        ip.link("set", index=index, mtu=int(value))
    elif step.kind == "link":
        ip.link("set", index=index, state=value)
    elif step.kind == "address":
        address, _, length = step.value.partition("/")
        more = {"flags": _NO_DETECTION} if ":" in address and not undo else {}
        ip.addr("del" if undo else "add", index=index, address=address, prefixlen=int(length), **more)
    elif step.kind == "route":
        gateway, _, metric = step.value.partition(" metric ")
        ip.route("del" if undo else "replace", dst=step.key, gateway=gateway, oif=index, priority=int(metric or _METRIC))
    elif step.kind == "local route":
        told = {"type": "local", "table": _LOCAL, "scope": _HOST_SCOPE, "priority": _METRIC}
        ip.route("del" if undo else "replace", dst=step.value, oif=index, **told)


def _index(ip: Any, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise Trouble(f"interface {name} is gone", "somebody removed it while it was in use")
    return int(found[0])


def indices(config: Config) -> list[int]:
    """Kernel's index of the interface each port has its neighbours on, after the plan was carried out."""
    with IPRoute() as ip:
        return [_index(ip, home(port)) for _, port in config.interfaces.named()]


# --- remembered -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def record(path: str) -> Iterator[Callable[[Step], None]]:
    """A function that notes a step at `path`, to be called before it is done; only a run that is killed leaves the file behind.

    A line tells where we are, then each step has one. It is not synced: it need not outlive the kernel whose settings it tells.
    """
    try:
        Path(path).unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Trouble(f"cannot write {path}", str(error.strerror), "the next run needs it, if this one is killed") from error
    with open(descriptor, "w") as file:
        print(_here(), file=file, flush=True)
        try:
            yield lambda step: print(json.dumps(step), file=file, flush=True)
        finally:
            Path(path).unlink(missing_ok=True)


def left_behind(path: str) -> list[Step]:
    """Steps that a killed run noted at `path`, in order; Trouble where that is not a record of ours, or not of this place."""
    try:
        with open(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            told = os.fstat(file.fileno())
            where, *lines = file.read().splitlines() or [""]
        steps = [_STEP.validate_json(line) for line in lines]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Trouble(f"{path} is passed over", f"it cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Trouble(f"{path} is passed over", "it is damaged, or no record of steps") from error
    if told.st_uid != os.geteuid() or told.st_mode & 0o077:
        raise Trouble(f"{path} is passed over", "somebody else may have written it")
    if where != _here():
        raise Trouble(f"{path} is passed over", "it tells of an earlier boot, or of another network namespace")
    return steps


def _here() -> str:
    """Boot and network namespace: the latter's number alone comes again."""
    return f"{_sysctl('kernel/random/boot_id')} {os.stat('/proc/thread-self/ns/net').st_ino}"
