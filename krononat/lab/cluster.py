"""The laboratory `cluster`: appliance servers behind one router, which steers each shard to the core that shall have it.

    c1 ──┐                                                                   ┌── h1
    c2 ──┤ 1500                                                        1500  ├── hosts
    users┘    tor: router, rules and routes of `steering`              tor ──┘
              │ 10.1.N.0/24 (2000)          192.0.2.16·N/28 (2000) │
              └────────────── sN.inside0 ── sN.outside0 ───────────┘
                                 sN.fabric0 ── fabric: bridge 192.168.77.0/24, replication only

A *core* is named SERVER/CORE; here each server has one, and a router that is told by hand which core has which shard. Where
switches route by themselves (`Wanted.tor`), `fabric` has the drawing, and a server may have several cores; what is the same in
both stands here. Everything about a shard follows from its number k: subscribers 100.64.0.0 + k·4096 (/20), external addresses
203.0.113.0 + k·16 (/28). `users` and `hosts` are for generators: they have whole prefixes, and no program of their own. The
cores' legs have room for what one shunts to another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

from krononat.lab.topology import End, Topology, links, routes

SERVERS_AT_MOST, SHARDS_AT_MOST = 9, 16
INSIDE, OUTSIDE = IPv4Network("100.64.0.0/10"), IPv4Network("203.0.113.0/24")
FABRIC = IPv4Network("192.168.77.0/24")
_STORE = FABRIC.broadcast_address - 1
STORE = f"http://{_STORE}:2379"  # where the map is kept, if not in a file
LEGS = (IPv4Network("10.1.0.0/16"), IPv4Network("192.0.2.0/24"))  # what cores and `tor` have between them
CORE_MTU = 2000  # a packet of 1500 bytes, with room for another header around it
REPLICATION_PORT = 7700

_AROUND = """
# end         address            checksums   end          address             checksums
c1.eth0       100.64.0.11/24     complete    tor.c1       100.64.0.1/24       partial
c2.eth0       100.64.16.11/24    partial     tor.c2       100.64.16.1/24      partial
users.eth0    10.9.0.2/30        complete    tor.users    10.9.0.1/30         partial
tor.h1        198.51.100.1/25    partial     h1.eth0      198.51.100.10/25    partial
tor.hosts     10.9.1.1/30        partial     hosts.eth0   10.9.1.2/30         complete
"""

_OF_A_SERVER = """
# end         address             checksums   end              address              checksums
tor.s{n}in    10.1.{n}.1/24       partial     s{n}.inside0     appliance            partial
tor.s{n}out   192.0.2.{out}/28    partial     s{n}.outside0    appliance            partial
fabric.s{n}   bridged             partial     s{n}.fabric0     192.168.77.{n}/24    partial
"""

_ROUTES = """
# node    to                  via
c1        default             100.64.0.1
c2        default             100.64.16.1
h1        default             198.51.100.1
users     default             10.9.0.1
hosts     default             10.9.1.1
tor       198.51.100.128/25   10.9.1.2
"""

_CONFIG = """\
[server]
name = "s{n}"
core = 0
cpu = {cpu}

[interfaces.internal]
name = "inside0"
address = "{inside}/24"
gateway = "10.1.{n}.1"

[interfaces.external]
name = "outside0"
address = "{outside}/28"
gateway = "192.0.2.{out}"

[memory]
sessions = {sessions}
"""

_SHARD = """
[[subscribers]]
prefix = "{subscribers}"
each = 32
pool = "shard{shard}"
{six}
[[pool]]
name = "shard{shard}"
shard = {shard}
prefixes = ["{external}"]
ports = "{ports}"
block-size = {block_size}
"""


_CLUSTER = """
[cluster]
map = "{folder}/map.toml"
key-file = "{folder}/{label}.key"
port-key-file = "{folder}/{ports}.key"
"""
_PATIENT = "dead-after-ms = 400\n"  # six cores and all switches share two CPUs: who waits for one is not dead

_CORE = """
[[core]]
name = "{name}"
replication = "{replication}"
shunt = "{shunt}"
key = '{key}'
"""

_PLACE = """
[[shard]]
id = {shard}
primary = "{primary}"
"""
ROOMS = ("A", "B")


STATIC = "static"
TORS = (STATIC, "bird", "frr")


class Wanted(NamedTuple):
    """What distinguishes one cluster from another; plain enough for JSON."""

    servers: int = 3
    shards: int = 12
    sessions: int = 100_000  # room of each core
    ports: str = "1024-65535"  # of each external address
    block_size: int = 512
    more: str = ""  # TOML at the end of every core's configuration
    clustered: bool = True  # the cores know of each other; else each is alone, and steering is all there is
    backups: bool = True  # every shard has one, on another server
    same_port_key: bool = True  # all derive the same ports; else each server others, to see what that is worth
    # What follows is for switches that route (`fabric`).
    tor: str = STATIC  # or bird, frr
    cores: int = 1  # of each server
    tors: int = 1
    domains: int = 2  # of each switch
    preference: str = "med"  # as [bgp] has it
    bfd_ms: int = 50  # between two packets of BFD; 0: none
    bfd_times: int = 3  # as many are missed by who is dead
    hold_s: int = 9
    spare: bool = False  # whether a process stands by for every worker
    dead_after_ms: int = 150  # what [bgp] says of silence
    apart: bool = False  # cores have the first CPU, too, which else is left to the traffic where servers have one core
    rooms: int = 1  # of two the first has all shards, and the second their reserves
    etcd: bool = False  # whether that holds the map
    six: bool = False  # whether there is IPv6, too

    @property
    def routed(self) -> bool:
        """Whether the switches speak BGP."""
        return self.tor != STATIC


class Leg(NamedTuple):
    """One of a core's two interfaces, as `tor` sees it."""

    device: str  # of tor
    address: IPv4Address  # of the core


def subscribers_of(shard: int) -> IPv4Network:
    """Internal prefix of a shard."""
    return IPv4Network((int(INSIDE.network_address) + (shard << 12), 20))


def external_of(shard: int) -> IPv4Network:
    """External prefix of a shard."""
    return IPv4Network((int(OUTSIDE.network_address) + (shard << 4), 28))


def cores(wanted: Wanted) -> tuple[str, ...]:
    """Names of all cores, SERVER/CORE: the first of every server, then the second…"""
    return tuple(f"s{n}/{core}" for core in range(wanted.cores) for n in range(1, wanted.servers + 1))


def room_of(wanted: Wanted, core: str) -> str:
    """The room of a core, or of a server; "" where all are in one. Of an odd number of servers the first has one more."""
    return ROOMS[_number(core) > (wanted.servers + 1) // 2] if wanted.rooms == 2 else ""


def servers_of(wanted: Wanted, room: str) -> tuple[str, ...]:
    """The servers of a room."""
    return tuple(server for n in range(1, wanted.servers + 1) if room_of(wanted, server := f"s{n}") == room)


def cores_of(wanted: Wanted, room: str) -> tuple[str, ...]:
    """The cores of a room, in the order of `cores`."""
    return tuple(core for core in cores(wanted) if room_of(wanted, core) == room)


def _home(wanted: Wanted) -> tuple[str, ...]:
    """Cores that have shards."""
    return cores_of(wanted, ROOMS[0]) if wanted.rooms == 2 else cores(wanted)


def first_core(wanted: Wanted, shard: int) -> str:
    """Where a shard is at the beginning: shards go round."""
    names = _home(wanted)
    return names[shard % len(names)]


def segments(wanted: Wanted) -> dict[str, tuple[int, int]]:
    """Which shards each reserve serves: the first one, and how many; as many cores as can share the range evenly."""
    if wanted.rooms != 2:
        return {}
    names = cores_of(wanted, ROOMS[1])
    parts = 1 << (len(names).bit_length() - 1)
    each = SHARDS_AT_MOST // parts
    return {name: (part * each, each) for part, name in enumerate(names[:parts])}


def reserve_of(wanted: Wanted, shard: int) -> str | None:
    """The core of another room that serves a shard while its own is away."""
    return next((core for core, (first, count) in segments(wanted).items() if first <= shard < first + count), None)


def node_of(core: str) -> str:
    """The namespace that a core runs in: its server."""
    return core.partition("/")[0]


def label(wanted: Wanted, core: str) -> str:
    """What its files are called after: its server alone where that has one core and no speaker."""
    return core.replace("/", ".") if wanted.routed else node_of(core)


def _number(core: str) -> int:
    return int(node_of(core).removeprefix("s"))


def inside_leg(core: str) -> Leg:
    """Where its shards' subscribers' packets go."""
    n = _number(core)
    return Leg(f"s{n}in", IPv4Address(f"10.1.{n}.2"))


def outside_leg(core: str) -> Leg:
    """Where packets to its shards' external addresses go; other cores shunt to this address, too."""
    n = _number(core)
    return Leg(f"s{n}out", IPv4Address(f"192.0.2.{16 * n + 2}"))


def backup_of(wanted: Wanted, shard: int) -> str | None:
    """The core with the shard's copy: on another server, and not on the same one for all shards of a core."""
    names = _home(wanted)
    servers = len(names) // wanted.cores
    if not wanted.backups or servers < 2:
        return None
    turn, place = divmod(shard, len(names))
    step = 1 + turn % (servers - 1)
    core, server = divmod(place, servers)
    return names[core * servers + (server + step) % servers]


def replication(core: str) -> str:
    """Where it listens for the state of others, address:port."""
    return f"{FABRIC.network_address + _number(core)}:{REPLICATION_PORT + int(core.partition('/')[2])}"


def map_of(wanted: Wanted, keys: Mapping[str, str], shunts: Mapping[str, IPv4Address]) -> str:
    """The cluster's map; public keys and addresses for shunted packets by core."""
    told = ["version = 1\n"]
    for name in cores(wanted):
        told.append(_CORE.format(name=name, replication=replication(name), shunt=shunts[name], key=keys[name]))
        told += [f'room = "{room_of(wanted, name)}"\n'] if wanted.rooms == 2 else []
    for shard in range(wanted.shards):
        backup = backup_of(wanted, shard)
        told.append(_PLACE.format(shard=shard, primary=first_core(wanted, shard)))
        told += [f'backup = "{backup}"\n'] if backup else []
        reserve = reserve_of(wanted, shard)
        told += [f'reserve = "{reserve}"\n'] if reserve else []
    return "".join(told)


def shunts(wanted: Wanted) -> dict[str, IPv4Address]:
    """The address of every core that the others send packets to."""
    return {core: outside_leg(core).address for core in cores(wanted)}


def furnish(wanted: Wanted, folder: Path, shunts: Mapping[str, IPv4Address]) -> None:
    """Write what the configurations name: the map, a key for each core, and the one that ports are derived with."""
    if not wanted.clustered:
        return
    keys = {core: new_key(folder / f"{label(wanted, core)}.key") for core in cores(wanted)}
    (folder / "map.toml").write_text(map_of(wanted, keys, shunts))
    for name in {_port_key(wanted, n) for n in range(1, wanted.servers + 1)}:
        with os.fdopen(os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(os.urandom(32))


def _port_key(wanted: Wanted, n: int) -> str:
    return "ports" if wanted.same_port_key else f"ports{n}"


def new_key(path: Path) -> str:
    """Make a key file; the public key."""
    from replication import keys  # late: it loads ZeroMQ

    path.unlink(missing_ok=True)
    key = keys.generate()
    keys.write(path, key)
    return key.public.decode()


def topology(wanted: Wanted, folder: Path) -> Topology:
    """The whole of it; in the folder are the files that `furnish` writes. ValueError for more than there are numbers for."""
    check(wanted)
    if wanted.cores != 1:
        raise ValueError("where steering is static, each server has one core; say --tor bird")
    servers = range(1, wanted.servers + 1)
    drawn = "".join(_OF_A_SERVER.format(n=n, out=16 * n + 1) for n in servers)
    return Topology(
        "cluster",
        links(_AROUND) + tuple((wide(a), wide(b)) for a, b in links(drawn)),
        routes(_ROUTES) + tuple(("tor", str(subscribers_of(shard)), "10.9.0.2") for shard in range(wanted.shards)),
        bridges(wanted),
        ("tor",),
        {f"s{n}": _config(wanted, n, folder) for n in servers},
    )


def bridges(wanted: Wanted) -> dict[str, str | None]:
    """The network for replication; where the map is in a store that stands there, too."""
    return {"fabric": f"{_STORE}/{FABRIC.prefixlen}" if wanted.etcd else None}


def check(wanted: Wanted) -> None:
    """ValueError for what no cluster can be."""
    if not 1 <= wanted.servers <= SERVERS_AT_MOST or not 1 <= wanted.shards <= SHARDS_AT_MOST:
        raise ValueError(f"1 to {SERVERS_AT_MOST} servers, 1 to {SHARDS_AT_MOST} shards")
    if wanted.etcd and not wanted.clustered:
        raise ValueError("cores that know nothing of each other have no map, and no etcd for it")
    if wanted.six and not wanted.routed:
        raise ValueError("IPv6 needs switches that route: say --tor bird")
    if wanted.rooms == 2 and not (wanted.servers >= 3 and wanted.routed and wanted.clustered):
        raise ValueError("two rooms need three servers, and switches that route: --servers 3 --tor bird")


def wide(end: End) -> End:
    """With room for another header around a packet."""
    return end._replace(mtu=CORE_MTU)


def cpu_of(wanted: Wanted, core: str) -> int:
    """Cores go round the CPUs there are, from the last one on, so that each has one of its own where there are enough.

    The first one is the traffic's, unless cores are to have it, too.
    """
    cpus = sorted(os.sched_getaffinity(0))
    spread = wanted.apart or wanted.cores > 1 or len(cpus) == 1
    place = (_number(core) - 1) * wanted.cores + int(core.partition("/")[2])
    return cpus[-1 - place % (len(cpus) - (not spread))]


def _config(wanted: Wanted, n: int, folder: Path) -> str:
    core = f"s{n}/0"
    inside, outside = inside_leg(core).address, outside_leg(core).address
    head = _CONFIG.format(
        n=n, cpu=cpu_of(wanted, core), inside=inside, outside=outside, out=16 * n + 1, sessions=wanted.sessions
    )
    return head + common(wanted, core, folder)


def common(wanted: Wanted, core: str, folder: Path, six: Callable[[int], str] = lambda shard: "") -> str:
    """What the configuration of a core says of shards and cluster, and what was wanted besides.

    `six`: what there is of IPv6 in a shard's subscribers.
    """
    shards = (
        _SHARD.format(
            shard=shard,
            subscribers=subscribers_of(shard),
            external=external_of(shard),
            ports=wanted.ports,
            block_size=wanted.block_size,
            six=six(shard),
        )
        for shard in range(wanted.shards)
    )
    names = {"folder": folder, "label": label(wanted, core), "ports": _port_key(wanted, _number(core))}
    store = f'store = ["{STORE}"]\n' if wanted.etcd else ""
    tail = _CLUSTER.format(**names) + store + (_PATIENT if wanted.routed else "") if wanted.clustered else ""
    return "".join(shards) + tail + (f"\n{wanted.more}\n" if wanted.more else "")
