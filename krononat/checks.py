"""Rules between the fields of a configuration: what contradicts itself is refused, what is likely not meant is doubted.

Each function looks at one matter and yields complaints; `refusals` and `doubts` are the two lists of them. Some values may be
stand-ins for wrong ones (`mend`): a complaint names what else must have been right for it to be true, unless it is a collision.
Left out on purpose: a static mapping may lie inside the pool's port range, the allocation of ports passes it over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

from krononat import checks6, checks_bfd, checks_bgp, checks_deterministic, checks_limits, checks_nat, checks_pcp, deterministic
from krononat.checks_limits import named_subscribers
from krononat.locate import ANY, Complaint, Path, nearest
from krononat.models import SIDES, Config, Leg, Mapping, Rule, Stick, Subscriber, Subscribers
from krononat.pools import EXTERNALS_AT_MOST, blocks_in, externals_in, subscribers_in
from krononat.values import EVERY_PORT

Complaints = Iterator[Complaint]

ACCOUNTS_AT_MOST = 1 << 24
RULES_AT_MOST = 1 << 16
PORTS_AT_MOST = 8  # as shards.state, which need not be loaded for a check
SOCKET_PATH_AT_MOST = 107  # bytes; sun_path of unix(7)


def refusals(config: Config) -> list[Complaint]:
    """What makes the configuration unusable."""
    looks = (
        _interfaces, _addresses, _loopback, _gateways, _subscribers, _pool_shapes, _pool_names, _pool_overlaps,
        _strangers_in_pools, _devices, _rules, _mappings, _doubled_mappings, _umem, _memif, _shards,
        _control, _icmp_addresses, _clock, *checks6.REFUSALS, *checks_limits.REFUSALS, *checks_nat.REFUSALS,
        *checks_deterministic.REFUSALS, checks_bgp.refusals, checks_bfd.refusals, checks_pcp.refusals,
    )  # fmt: skip
    return [complaint for look in looks for complaint in look(config)]


def doubts(config: Config) -> list[Complaint]:
    """What is accepted, but likely not what was meant."""
    looks = (
        _capacity, _lost_ports, _broadcasts, _inside_out, _no_way_out, _lonely_legs, _mortal_shunts, _idle_pools, _idle_rules,
        *checks_limits.DOUBTS, *checks_nat.DOUBTS, *checks_deterministic.DOUBTS, checks_bgp.doubts, checks_bfd.doubts,
        checks_pcp.doubts,
    )  # fmt: skip
    return [complaint for look in looks for complaint in look(config)]


# --- interfaces -----------------------------------------------------------------------------------------------------------


def _interfaces(config: Config) -> Complaints:
    told = config.interfaces
    if told.both and (told.internal or told.external):
        yield Complaint(("interfaces", "both"), "excludes `internal` and `external`; have either it or those two")
    elif not told.both and not (told.internal and told.external):
        yield Complaint(
            ("interfaces",),
            "needs `internal` and `external`, or `both` for a router on a stick",
            needs=tuple(("interfaces", side) for side in SIDES),
        )
    ports = list(told.placed())
    if len(ports) > PORTS_AT_MOST:
        yield Complaint(("interfaces",), f"{len(ports)} interfaces; one core has at most {PORTS_AT_MOST}")
    for number, (path, port) in enumerate(ports):
        for earlier, other in ports[:number]:
            if (path[1] == "both") == (earlier[1] == "both"):
                yield from _two_ports(path, port, earlier, other)


def _two_ports(path: Path, port: Leg | Stick, earlier: Path, other: Leg | Stick) -> Complaints:
    who, inside = _told(earlier), other.address.network
    if port.name == other.name:
        remedy = "; for one interface use [interfaces.both]" if path[1] != earlier[1] else "; one interface is one port"
        yield Complaint((*path, "name"), f"is the {who} interface, too{remedy}")
    if inside.overlaps(port.address.network):
        yield Complaint((*path, "address"), f"overlaps the {who} network {inside}")


def _told(path: Path) -> str:
    """An interface in a sentence: internal, internal[1]."""
    return f"{path[1]}[{path[2]}]" if path[2] else str(path[1])


def _addresses(config: Config) -> Complaints:
    for path, port in config.interfaces.placed():
        network = port.address.network
        if network.prefixlen < 31 and port.address.ip in (network.network_address, network.broadcast_address):
            told = f"{port.address.ip} is the network's own or broadcast address in {network}"
            yield Complaint((*path, "address"), told)
        for number, group in enumerate(config.subscribers):
            if path[1] == "external" and port.address.ip in group.prefix:
                yield Complaint((*path, "address"), f"lies in subscribers[{number}] {group.prefix}")


def _loopback(config: Config) -> Complaints:
    told, path = config.interfaces.loopback, ("interfaces", "loopback", "address")
    if told is None:
        return
    strangers = [(f"interfaces.{_told(place)}", port.address.network) for place, port in config.interfaces.placed()]
    strangers += [(f"subscribers[{number}]", group.prefix) for number, group in enumerate(config.subscribers)]
    strangers += [(Complaint(place, "").key, prefix) for place, prefix in _pool_prefixes(config)]
    for who, network in strangers:
        if told.address.network.overlaps(network):
            yield Complaint(path, f"{told.address.network} overlaps {who} {network}; it must be a network of its own")


def _gateways_of(port: Leg | Stick) -> Iterator[tuple[str, IPv4Address]]:
    for key in ("gateway", "internal_gateway", "external_gateway"):
        gateway = getattr(port, key, None)
        if gateway is not None:
            yield key.replace("_", "-"), gateway


def _gateways(config: Config) -> Complaints:
    for path, port in config.interfaces.placed():
        for key, gateway in _gateways_of(port):
            if gateway not in port.address.network:
                told = f"{gateway} is not in the interface's network {port.address.network}"
                yield Complaint((*path, key), told, needs=((*path, "address"),))
            elif gateway == port.address.ip:
                yield Complaint((*path, key), f"{gateway} is the core's own address")
    yield from _unreachable_subscribers(config)


def _towards(port: Leg | Stick, side: str) -> IPv4Address | None:
    """Gateway of a port towards a side that it is on."""
    if isinstance(port, Leg):
        return port.gateway
    return port.internal_gateway if side == "internal" else port.external_gateway


def _unreachable_subscribers(config: Config) -> Complaints:
    ports = config.interfaces.of("internal")
    if (
        not ports
        or any(_towards(port, "internal") for port in ports)
        or (config.interfaces.both and config.interfaces.internal)
    ):
        return
    side, key = ("both", "internal-gateway") if config.interfaces.both else ("internal", "gateway")
    needs = tuple(("interfaces", side, ANY, name) for name in ("address", "name", key))
    networks, names = (" or ".join(told) for told in zip(*((str(p.address.network), p.name) for p in ports), strict=True))
    for number, group in enumerate(config.subscribers):
        if not any(group.prefix.subnet_of(port.address.network) for port in ports):
            told = f"is not on-link in {networks}, and {names} has no `{key}`"
            yield Complaint(("subscribers", number, "prefix"), told, needs=needs)


# --- subscribers ----------------------------------------------------------------------------------------------------------


def _overlaps(prefixes: Sequence[tuple[Path, IPv4Network]]) -> Complaints:
    """One complaint for each prefix that overlaps one before it in address order (the wider one first)."""
    order = sorted(prefixes, key=lambda entry: (int(entry[1].network_address), entry[1].prefixlen))
    reach = None
    for path, prefix in order:
        if reach and prefix.overlaps(reach[1]):
            yield Complaint(path, f"{prefix} overlaps {Complaint(reach[0], '').key} {reach[1]}")
        else:
            reach = (path, prefix)


def _subscribers(config: Config) -> Complaints:
    yield from _overlaps([(("subscribers", number, "prefix"), group.prefix) for number, group in enumerate(config.subscribers)])
    accounts = 0
    for number, group in enumerate(config.subscribers):
        path = ("subscribers", number)
        if group.each < group.prefix.prefixlen:
            yield Complaint((*path, "each"), _too_wide(group.each, group.prefix), needs=((*path, "prefix"),))
        else:
            yield from _own_subscribers(path, group)
        accounts += subscribers_in(group)
    if accounts > ACCOUNTS_AT_MOST:
        told = f"{accounts:,} subscribers; one core holds {ACCOUNTS_AT_MOST:,}"
        yield Complaint(("subscribers",), told, needs=(("subscribers", ANY, "each"),))


def _too_wide(each: int, prefix: IPv4Network) -> str:
    return f"/{each} is wider than the prefix {prefix} itself"


def _own_subscribers(path: Path, group: Subscribers) -> Complaints:
    for number, subscriber in enumerate(group.subscriber):
        here = (*path, "subscriber", number, "prefix")
        if not subscriber.prefix.subnet_of(group.prefix):
            yield Complaint(here, f"{subscriber.prefix} is not inside {group.prefix}", needs=((*path, "prefix"),))
        elif subscriber.prefix.prefixlen != group.each:
            told = f"{subscriber.prefix} is not one subscriber; one is a /{group.each} here (`each`)"
            yield Complaint(here, told, needs=((*path, "each"),))
    yield from _overlaps([((*path, "subscriber", number, "prefix"), own.prefix) for number, own in enumerate(group.subscriber)])


def _devices(config: Config) -> Complaints:
    for path, _, subscriber in named_subscribers(config):
        for number, device in enumerate(subscriber.device):
            here = (*path, "device", number)
            if not device.prefix.subnet_of(subscriber.prefix):
                told = f"{device.prefix} is not inside its subscriber {subscriber.prefix}"
                yield Complaint((*here, "prefix"), told, needs=((*path, "prefix"),))
            if device.each is not None and device.each < device.prefix.prefixlen:
                yield Complaint((*here, "each"), _too_wide(device.each, device.prefix), needs=((*here, "prefix"),))
        yield from _overlaps(
            [((*path, "device", number, "prefix"), device.prefix) for number, device in enumerate(subscriber.device)]
        )


# --- pools ----------------------------------------------------------------------------------------------------------------


def _pool_prefixes(config: Config) -> Iterator[tuple[Path, IPv4Network]]:
    for number, pool in enumerate(config.pool):
        for index, prefix in enumerate(pool.prefixes):
            yield ("pool", number, "prefixes", index), prefix


def _pool_shapes(config: Config) -> Complaints:
    for number, pool in enumerate(config.pool):
        path = ("pool", number)
        if pool.ports.low < 1024:
            yield Complaint((*path, "ports"), f"{pool.ports} begins below 1024; those ports serve static mappings only")
        if pool.block_size & (pool.block_size - 1):
            yield Complaint((*path, "block-size"), f"{pool.block_size} is not a power of two (64, 128, 256, 512 ...)")
        elif not blocks_in(pool):
            told = f"{pool.ports} holds no whole block of {pool.block_size} ports"
            yield Complaint((*path, "ports"), told, needs=((*path, "block-size"),))
    externals, spare = sum(map(externals_in, config.pool)), sum(pool.spare_addresses or 0 for pool in config.pool)
    if externals + spare > EXTERNALS_AT_MOST:
        more = f" and room for {spare:,} more" if spare else ""
        yield Complaint(("pool",), f"{externals:,} external addresses{more}; one core holds {EXTERNALS_AT_MOST:,}")


def _icmp_addresses(config: Config) -> Complaints:
    """Each shard has one at most; it lies in a pool's prefixes, so that it is announced, and leaves something to hand out."""
    speakers: dict[int, int] = {}
    for number, pool in enumerate(config.pool):
        path, told = ("pool", number, "icmp-address"), pool.icmp_address
        if told is None:
            continue
        if not any(told in prefix for prefix in pool.prefixes):
            yield Complaint(path, f"{told} is in none of this pool's prefixes", needs=(("pool", number, "prefixes", ANY),))
        elif not externals_in(pool):
            yield Complaint(path, f"{told} is all that this pool has; add a prefix, or leave it out")
        if speakers.setdefault(pool.shard, number) != number:
            first = speakers[pool.shard]
            yield Complaint(
                path, f"shard {pool.shard} has {config.pool[first].icmp_address} of pool[{first}] already; name one"
            )


def _pool_names(config: Config) -> Complaints:
    names = [pool.name for pool in config.pool]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield Complaint(("pool", number, "name"), f"{name!r} is the name of pool[{names.index(name)}] already")
    for number, group in enumerate(config.subscribers):
        if group.pool not in names:
            told = f"no pool is named {group.pool!r}" + (nearest(group.pool, names) or f"; there is {', '.join(names)}")
            yield Complaint(("subscribers", number, "pool"), told, needs=(("pool", ANY, "name"),))


def _pool_overlaps(config: Config) -> Complaints:
    prefixes = list(_pool_prefixes(config))
    yield from _overlaps(prefixes)
    for path, prefix in prefixes:
        for number, group in enumerate(config.subscribers):
            if prefix.overlaps(group.prefix):
                yield Complaint(path, f"{prefix} overlaps subscribers[{number}] {group.prefix}")


def _strangers_in_pools(config: Config) -> Complaints:
    for path, prefix in _pool_prefixes(config):
        for place, port in config.interfaces.placed():
            if port.address.ip in prefix:
                yield Complaint(path, f"{prefix} contains the core's own address {port.address.ip} (interfaces.{_told(place)})")
            for key, gateway in _gateways_of(port):
                if gateway in prefix:
                    yield Complaint(path, f"{prefix} contains interfaces.{_told(place)}.{key} {gateway}")


# --- rules and mappings ---------------------------------------------------------------------------------------------------


def _every_rule(config: Config) -> Iterator[tuple[Path, Rule, IPv4Network | None]]:
    """Rules in the order they are looked at in each scope, with the prefix of the scope (None: everybody)."""
    for path, _, subscriber in named_subscribers(config):
        for number, device in enumerate(subscriber.device):
            for index, rule in enumerate(device.rules):
                yield (*path, "device", number, "rules", index), rule, device.prefix
        for index, rule in enumerate(subscriber.rules):
            yield (*path, "rules", index), rule, subscriber.prefix
    for index, rule in enumerate(config.rule):
        yield ("rule", index), rule, None


def _rules(config: Config) -> Complaints:
    count = 0
    for path, rule, scope in _every_rule(config):
        count += 1
        for key, ports in (("internal-ports", rule.internal_ports), ("remote-ports", rule.remote_ports)):
            if rule.protocol not in ("tcp", "udp") and ports != EVERY_PORT:
                told = f'needs `protocol = "tcp"` or "udp"; this rule is for {rule.protocol}'
                yield Complaint((*path, key), told, needs=((*path, "protocol"),))
        if scope and isinstance(rule.internal, IPv4Network) and not rule.internal.subnet_of(scope):
            told = f"{rule.internal} is not inside {scope}, whose rule this is"
            yield Complaint((*path, "internal"), told, needs=((*path[:-2], "prefix"),))
    if count >= RULES_AT_MOST:
        yield Complaint(("rule",), f"{count:,} rules; at most {RULES_AT_MOST - 1:,}")


def _every_mapping(config: Config) -> Iterator[tuple[Path, Mapping, Subscriber | None]]:
    for number, mapping in enumerate(config.mapping):
        yield ("mapping", number), mapping, None
    for path, _, subscriber in named_subscribers(config):
        for number, mapping in enumerate(subscriber.mappings):
            yield (*path, "mappings", number), mapping, subscriber


def _mappings(config: Config) -> Complaints:
    for path, mapping, subscriber in _every_mapping(config):
        yield from _mapping_ends(config, path, mapping)
        inside = mapping.internal.address
        number = next((number for number, group in enumerate(config.subscribers) if inside in group.prefix), None)
        if subscriber and inside not in subscriber.prefix:
            told = f"{inside} is not inside {subscriber.prefix}, whose mapping this is"
            yield Complaint((*path, "internal"), told, needs=((*path[:-2], "prefix"),))
        elif number is None:
            told = f"{inside} is in no subscriber prefix"
            yield Complaint((*path, "internal"), told, needs=(("subscribers", ANY, "prefix"),))
        yield from _outside_of(config, (*path, "external"), mapping.external.address, number)


def _mapping_ends(config: Config, path: Path, mapping: Mapping) -> Complaints:
    """TCP and UDP have ports, other protocols have none, and must be translated at all."""
    protocol, has_ports = mapping.protocol, mapping.protocol in ("tcp", "udp")
    for side, end in (("internal", mapping.internal), ("external", mapping.external)):
        if bool(end.port) != has_ports:
            told = f"{end} needs a port, such as {end}:80" if has_ports else f"{end} has a port, but {protocol} has none"
            yield Complaint((*path, side), told, needs=((*path, "protocol"),))
    if not has_ports and protocol not in config.nat.other_protocols:
        told = f"{protocol} is not among `other-protocols` of [nat], so no packet would reach the mapping"
        yield Complaint((*path, "protocol"), told, needs=(("nat", "other-protocols"),))


def _outside_of(config: Config, path: Path, outside: IPv4Address, number: int | None) -> Complaints:
    pool = next((pool for pool in config.pool if any(outside in prefix for prefix in pool.prefixes)), None)
    wanted = None if number is None else config.subscribers[number].pool
    if pool is None:
        yield Complaint(path, f"{outside} is in no pool", needs=(("pool", ANY, "prefixes", ANY),))
    elif outside == pool.icmp_address:
        yield Complaint(path, f"{outside} is kept for ICMP errors: the icmp-address of pool {pool.name!r}")
    elif wanted != pool.name and wanted in [pool.name for pool in config.pool]:
        told = f"{outside} is in pool {pool.name!r}, but this subscriber's is {wanted!r}"
        yield Complaint(path, told, needs=(("pool", ANY, "name"), ("subscribers", ANY, "pool")))


def _doubled_mappings(config: Config) -> Complaints:
    """One external endpoint leads to one internal one, and back (RFC 4787 REQ-1)."""
    for side in ("external", "internal"):
        seen: dict[tuple[str, object], Path] = {}
        for path, mapping, _ in _every_mapping(config):
            claim = (mapping.protocol, getattr(mapping, side))
            if claim in seen:
                told = f"{claim[1]} has a {claim[0]} mapping already: {Complaint(seen[claim], '').key}"
                yield Complaint((*path, side), told, needs=((*path, "protocol"), (*seen[claim], "protocol")))
            seen.setdefault(claim, path)


# --- the rest -------------------------------------------------------------------------------------------------------------


def _umem(config: Config) -> Complaints:
    if config.io.frames & (config.io.frames - 1):
        yield Complaint(("io", "frames"), f"{config.io.frames} is not a power of two")


def _memif(config: Config) -> Complaints:
    seen: dict[tuple[str, int], Path] = {}
    for path, port in config.interfaces.placed():
        if port.memif is None:
            continue
        here, told = (*path, "memif"), port.memif
        if not told.socket.startswith(("/", "@")):
            yield Complaint((*here, "socket"), f'{told.socket!r} is neither an absolute path nor an abstract "@name"')
        elif len(told.socket.encode()) > SOCKET_PATH_AT_MOST:
            yield Complaint((*here, "socket"), f"is longer than the {SOCKET_PATH_AT_MOST} bytes of a unix socket's path")
        if told.ring_size & (told.ring_size - 1):
            yield Complaint((*here, "ring-size"), f"{told.ring_size} is not a power of two")
        other = seen.setdefault((told.socket, told.id), path)
        if other != path:
            yield Complaint((*here, "id"), f"{told.id} at {told.socket} is interfaces.{_told(other)} already")


def _shards(config: Config) -> Complaints:
    used = {pool.shard for pool in config.pool}
    for number, pool in enumerate(config.pool):
        missing = next((shard for shard in range(pool.shard) if shard not in used), None)
        if missing is not None:
            yield Complaint(("pool", number, "shard"), f"no pool is of shard {missing}: numbers begin at 0, without gaps")


def _control(config: Config) -> Complaints:
    path = config.socket
    if not path.startswith("/"):
        yield Complaint(("control", "socket"), f"{path!r} is not an absolute path")
    elif len(path.encode()) > SOCKET_PATH_AT_MOST:
        yield Complaint(("control", "socket"), f"is longer than the {SOCKET_PATH_AT_MOST} bytes of a unix socket's path")


def _clock(config: Config) -> Complaints:
    """What watches other cores breathes with the packets and by their clock: a jump would look as if all others had died."""
    told = {"[cluster]": config.cluster, "[bgp]": config.bgp, "[bfd] peers": checks_bfd.sessions(config)}
    for name in (name for name, there in told.items() if there and config.server.movable_clock):
        yield Complaint(("server", "movable-clock"), f"excludes {name}: only the clock of a core that is alone may be moved")


# --- doubts ---------------------------------------------------------------------------------------------------------------


def _capacity(config: Config) -> Complaints:
    for number, pool in enumerate(config.pool):
        if deterministic.is_deterministic(pool):
            continue  # they all have their places, or are refused
        room = externals_in(pool) * blocks_in(pool)
        wanted = sum(subscribers_in(group) for group in config.subscribers if group.pool == pool.name)
        if wanted > room:
            yield Complaint(
                ("pool", number),
                f"{externals_in(pool):,} addresses with {blocks_in(pool)} blocks of {pool.block_size} ports serve {room:,} "
                f"subscribers at once; {wanted:,} use this pool",
            )


def _lost_ports(config: Config) -> Complaints:
    for number, pool in enumerate(config.pool):
        lost = pool.ports.size - blocks_in(pool) * pool.block_size
        if lost:
            yield Complaint(("pool", number, "ports"), f"{lost} of these ports are in no whole block of {pool.block_size}")


def _broadcasts(config: Config) -> Complaints:
    """Pool addresses that are on-link outside are answered for by ARP (`interfaces.decide_late`); these two are nobody's."""
    links = [(port.name, port.address.network) for port in config.interfaces.of("external")]
    for path, prefix in _pool_prefixes(config):
        for name, network in links:
            for address in (network.network_address, network.broadcast_address):
                if network.prefixlen <= 30 and address in prefix:
                    told = f"{address} is the own or broadcast address of {network} at {name}; answers to it get lost"
                    yield Complaint(path, told)


def _inside_out(config: Config) -> Complaints:
    for path, prefix in _pool_prefixes(config):
        for port in config.interfaces.internal or ():
            if prefix.overlaps(port.address.network):
                told = (
                    f"{prefix} is on-link at {port.name}: subscribers would ask for it by ARP, which is answered outside only"
                )
                yield Complaint(path, told)


def _no_way_out(config: Config) -> Complaints:
    for path, port in config.interfaces.placed():
        if path[1] != "internal" and not _towards(port, "external"):
            yield Complaint(path, "has no gateway to the Internet; only what is on-link will be reached")


def _lonely_legs(config: Config) -> Complaints:
    """Of several legs each should be able to stand in for the others."""
    for side in ("internal", "external"):
        legs = [(path, port) for path, port in config.interfaces.placed() if path[1] in (side, "both")]
        for path, port in legs:
            if len(legs) > 1 and side == "internal" and not _towards(port, side):
                yield Complaint(path, "has no gateway to the subscribers: when the others die, nothing of theirs leaves by it")
        widest = max((port.mtu or 0 for _, port in legs), default=0)
        for path, port in legs:
            if port.mtu and port.mtu < widest:
                told = f"{port.mtu} is less than the {widest} of another leg: packets of a session that moves may not fit"
                yield Complaint((*path, "mtu"), told)


def _mortal_shunts(config: Config) -> Complaints:
    """Of several legs none should be the only way by which the other cores reach this one."""
    told = config.interfaces
    if config.cluster and not told.loopback and max(len(told.of("internal")), len(told.of("external"))) > 1:
        yield Complaint(
            ("interfaces",),
            "several legs, but no [interfaces.loopback]: who shunts to the address of a leg finds nobody when that leg dies",
        )


def _idle_pools(config: Config) -> Complaints:
    for number, pool in enumerate(config.pool):
        if pool.name not in [group.pool for group in config.subscribers]:
            yield Complaint(("pool", number, "name"), f"no subscribers use the pool {pool.name!r}")


def _idle_rules(config: Config) -> Complaints:
    for path, rule, scope in _every_rule(config):
        internal = rule.internal
        if (
            scope is None
            and isinstance(internal, IPv4Network)
            and not any(internal.overlaps(group.prefix) for group in config.subscribers)
        ):
            yield Complaint((*path, "internal"), f"{internal} holds no subscriber; this rule never matches")
