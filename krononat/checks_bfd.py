"""What [bfd] means beside the rest of a configuration: its sessions; and two more lists of complaints for `checks`."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from krononat.locate import Complaint
from krononat.models import Config

Complaints = Iterator[Complaint]

QUICK_MS = 90  # a breath of the loop, the kernel's scheduling and a garbage collection at the peer have to fit in


def sessions(config: Config) -> list[tuple[int, IPv4Address]]:
    """(number of the port, peer) of each session: those of `peers`, else of all BGP peers, at the port they are on-link at."""
    told = config.bfd
    if not told.enabled:
        return []
    peers = told.peers if told.peers is not None else [peer.address for peer in config.bgp.peer] if config.bgp else []
    placed = [(leg_of(config, peer), peer) for peer in peers]
    return list(dict.fromkeys((port, peer) for port, peer in placed if port is not None))


def leg_of(config: Config, peer: IPv4Address) -> int | None:
    """Number of the port that an address is on-link at."""
    ports = enumerate(config.interfaces.named())
    return next((number for number, (_, port) in ports if peer in port.address.network), None)


def refusals(config: Config) -> Complaints:
    """What makes [bfd] unusable."""
    ports = [port for _, port in config.interfaces.named()]
    for number, peer in enumerate(config.bfd.peers or []):
        path, port = ("bfd", "peers", number), leg_of(config, peer)
        if port is None:
            yield Complaint(path, f"{peer} is on-link at no interface of this core", needs=(("interfaces",),))
        elif peer == ports[port].address.ip:
            yield Complaint(path, f"{peer} is the core's own address")
        if peer in (config.bfd.peers or [])[:number]:
            yield Complaint(path, f"{peer} stands here twice")


def doubts(config: Config) -> Complaints:
    """What is accepted, but likely not what was meant."""
    told, detection = config.bfd, config.bfd.interval_ms * config.bfd.multiplier
    if not sessions(config):
        return
    if detection < QUICK_MS:
        yield Complaint(
            ("bfd", "interval-ms"), f"means {detection} ms of silence are a death: expect false ones on shared CPUs"
        )
    memif = sorted({port for port, _ in sessions(config)} & _memif_ports(config))
    if memif and told.enabled:
        yield Complaint(("bfd",), "memif ports have one ring for all: under overload BFD is lost there as data is")


def _memif_ports(config: Config) -> set[int]:
    return {number for number, (_, port) in enumerate(config.interfaces.named()) if port.memif}
