"""What a configuration may say: one model for each table of the TOML file; those of routing stand in `models_bgp`,
of limits in `models_limits`, of who may answer in `models_filtering`.

Each field's description is the one source of `krononat config explain`, of the JSON schema and of the reference. A rule about a
single value stands here or in `values`, a rule between several in `checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializerFunctionWrapHandler, WrapSerializer

from krononat.model import Model
from krononat.models_bgp import Bfd, Bgp
from krononat.models_filtering import Filtering6, Firewall6, OneFiltering, PoolFiltering, UnsolicitedSyn
from krononat.models_limits import NO_LIMITS, Limits, Timeouts
from krononat.models_pcp import Pcp
from krononat.values import (
    EVERY_PORT,
    Address,
    GenericProtocol,
    HostPrefix,
    InterfaceAddress,
    MappingEnd,
    MappingProtocol,
    PortRange,
    Ports,
    Prefix,
    Protocol,
    RuleProtocol,
    one_of,
)
from krononat.values6 import Address6, AnyPrefix, HostPrefix6, InterfaceAddress6, Prefix6
from shards.protocols import DEFAULT

SIDES = ("internal", "external", "both")
MTU_AT_MOST = 3498  # what fits a 4 KiB frame with its headroom

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$"
_NAME_TOLD = "up to 32 letters, digits, dots, dashes and underscores, the first one a letter or a digit"


class Server(Model):
    """Who this core is."""

    name: str = Field(default="nat1", pattern=_NAME, description=f"Name of this server, in logs and sockets: {_NAME_TOLD}.")
    core: int = Field(default=0, ge=0, le=9999, description="Number of this core among those of the server.")
    cpu: int | None = Field(default=None, ge=0, description="CPU the worker is pinned to; default: the last one it may run on.")
    orphan_s: int = Field(
        default=30,
        ge=0,
        le=3600,
        description="How long a worker forwards on by itself when its supervisor was killed, until `krononat run` is started "
        "anew and takes it over; then it withdraws its routes and ends. 0: it ends with its supervisor, at once.",
    )
    movable_clock: bool = Field(
        default=False,
        description="Whether `krononat lab clock` may stop the clock that sessions go by, or move it ahead so that they end. "
        "For a laboratory; never where there are subscribers.",
    )


Checksums = Annotated[Literal["auto", "partial", "complete"], one_of(("auto", "partial", "complete"))]


class Memif(Model):
    """A port that leads to another process of this host instead of a device (VPP, DPDK, OVS-DPDK); we are its client."""

    socket: str = Field(description='Control socket of the server: a path, or "@name" for an abstract one (DPDK\'s default).')
    id: int = Field(default=0, ge=0, lt=1 << 32, description="Which interface of the server; both sides have the same number.")
    secret: str = Field(
        default="",
        pattern=r"^[!-~]{0,24}$",
        description="What the server wants to be told, if anything: up to 24 printable ASCII characters, no space.",
    )
    ring_size: int = Field(default=1024, ge=64, le=16384, description="Entries of each ring; a power of two.")


class Port(Model):
    """What every interface has."""

    name: str = Field(
        pattern=r"^[^\s/]{1,15}$",
        description="Name of the Linux interface, up to 15 characters without space and slash; with `memif` a tap of that name "
        "is made for the core's own traffic.",
    )
    address: InterfaceAddress = Field(description="The core's own address, and with its length what is on-link.")
    address6: InterfaceAddress6 | None = Field(
        default=None, description="The core's own IPv6 address, and with its length what is on-link."
    )
    mtu: int | None = Field(default=None, ge=576, le=MTU_AT_MOST, description="MTU to set; default: what the interface has.")
    vlan: int = Field(default=0, ge=0, le=4094, description="802.1Q tag of the frames; 0: untagged.")
    checksums: Checksums = Field(
        default="auto",
        description="Whether senders may leave TCP/UDP checksums partial (veth) or not; auto: by the kind of interface.",
    )
    memif: Memif | None = Field(default=None, description="Shared memory with another process instead of a device.")


class Leg(Port):
    """An interface of one side."""

    gateway: Address | None = Field(
        default=None, description="Next hop to what is not on-link; of several interfaces, each has its own."
    )
    gateway6: Address6 | None = Field(default=None, description="The same for IPv6; it may be link-local.")


class Stick(Port):
    """An interface of a router on a stick."""

    internal_gateway: Address | None = Field(default=None, description="Next hop to subscribers that are not on-link.")
    external_gateway: Address | None = Field(default=None, description="Next hop to the Internet.")
    internal_gateway6: Address6 | None = Field(default=None, description="Next hop to IPv6 subscribers that are not on-link.")
    external_gateway6: Address6 | None = Field(default=None, description="Next hop to the IPv6 Internet.")


class Loopback(Model):
    """An address of the core that is no interface's: it is reached by whichever of them lives."""

    address: InterfaceAddress = Field(
        description="The address, and with its length where the other cores have theirs: the kernel finds them on that side."
    )
    side: Literal["internal", "external"] = Field(default="internal", description="Side on which the other cores reach it.")


def _several(value: Any) -> Any:
    """A single table is a list of one."""
    return value if value is None or isinstance(value, list) else [value]


def _as_written(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    """A list of one is a single table."""
    told = handler(value)
    return told[0] if told and len(told) == 1 else told


Legs = Annotated[
    list[Leg] | None, BeforeValidator(_several, json_schema_input_type=Leg | list[Leg]), WrapSerializer(_as_written)
]
Sticks = Annotated[
    list[Stick] | None, BeforeValidator(_several, json_schema_input_type=Stick | list[Stick]), WrapSerializer(_as_written)
]


class Interfaces(Model):
    """Either `internal` and `external`, or `both`; several of a side are written [[interfaces.internal]]."""

    internal: Legs = Field(default=None, description="Towards the subscribers; of several, each leads to another switch.")
    external: Legs = Field(default=None, description="Towards the Internet; of several, each leads to another switch.")
    both: Sticks = Field(default=None, description="Router on a stick: one interface for both sides, or one to each switch.")
    loopback: Loopback | None = Field(
        default=None, description="An address of the core beside those of its interfaces, for its cluster."
    )

    def placed(self) -> Iterator[tuple[tuple[str, str, int], Leg | Stick]]:
        """Configured interfaces with their paths, in the order in which a core numbers its ports: those of a side together."""
        for side in SIDES:
            for number, port in enumerate(getattr(self, side) or ()):
                yield ("interfaces", side, number), port

    def named(self) -> Iterator[tuple[str, Leg | Stick]]:
        """The same with their side: internal, external or both."""
        for (_, side, _), port in self.placed():
            yield side, port

    def of(self, side: Literal["internal", "external"]) -> list[Leg | Stick]:
        """Interfaces of a side; one for both is of either."""
        return [port for there, port in self.named() if there in (side, "both")]


XdpMode = Annotated[
    Literal["auto", "native", "generic"],
    one_of(
        ("auto", "native", "generic"),
        {
            "zero-copy": "zero-copy is not implemented in this release",
            "offload": "XDP offloaded to the NIC is not implemented in this release",
        },
    ),
]


class Io(Model):
    """How frames come and go."""

    xdp_mode: XdpMode = Field(
        default="auto", description="Where the XDP program runs: native in the driver, generic in the stack."
    )
    busy_poll: bool = Field(default=False, description="Never sleep: lower latency, one CPU always busy.")
    spare: bool = Field(
        default=True, description="A second process stands by to take over at once if the worker dies; takes about 100 MiB."
    )
    frames: int = Field(
        default=8192,
        ge=1024,
        le=1 << 18,
        description="Frames of 4 KiB in the umem; a power of two. A queue's ring has its share of half of them, 8192 at most.",
    )


class Memory(Model):
    """How much the core can hold."""

    sessions: int = Field(
        default=1_000_000,
        ge=1000,
        le=200_000_000,
        description="Sessions to hold room for (about 147 bytes each, its mapping among them).",
    )


Action = Annotated[
    Literal["accept", "drop", "reject"],
    one_of(("accept", "drop", "reject"), {"log": "logging of rules is not implemented in this release"}),
]


class Rule(Model):
    """One firewall rule, looked at when a session would begin; of an ordered list the first match decides.

    One that names no address is for IPv4 and IPv6.
    """

    direction: Literal["outbound", "inbound", "both"] = Field(default="outbound", description="Which packets it looks at.")
    protocol: RuleProtocol = Field(
        default=Protocol("any"),
        description="Protocol it matches: any, icmp (in IPv6 too), tcp, udp, gre, esp, sctp ..., or a number.",
    )
    internal: AnyPrefix | None = Field(default=None, description="Internal addresses it matches; default: all in its scope.")
    internal_ports: Ports = Field(default=EVERY_PORT, description="Internal ports it matches (TCP and UDP).")
    remote: AnyPrefix | None = Field(default=None, description="Remote addresses it matches; default: all.")
    remote_ports: Ports = Field(default=EVERY_PORT, description="Remote ports it matches (TCP and UDP).")
    action: Action = Field(description="What happens: accept, drop silently, or reject with an ICMP error.")


class Bypass(Model):
    """What is not translated (RFC 6888 REQ-6): packets of given subscribers, to given destinations, or both.

    They pass as they are, by sessions: answers come in, and nothing else unless `inbound` says so.
    """

    protocol: RuleProtocol = Field(default=Protocol("any"), description="Protocol it is for, as of a rule.")
    internal: Prefix | None = Field(default=None, description="Subscribers' addresses it is for; default: all.")
    internal_ports: Ports = Field(default=EVERY_PORT, description="Their ports (TCP and UDP).")
    remote: Prefix | None = Field(default=None, description="Destinations it is for; default: all.")
    remote_ports: Ports = Field(default=EVERY_PORT, description="Their ports (TCP and UDP).")
    inbound: bool = Field(default=False, description="Those remotes may begin, too; else only answers come in.")
    announce: bool = Field(default=False, description="Tell the network (`[bgp]`) that `internal` is reached by this core.")


class Pinhole(Model):
    """IPv6 that may come in unasked (RFC 6092 REC-48): a service of a subscriber."""

    protocol: RuleProtocol = Field(default=Protocol("any"), description="Protocol it is for, as of a rule.")
    internal: Prefix6 = Field(description="The addresses that may be reached, in a subscriber's `prefix6`.")
    internal_ports: Ports = Field(default=EVERY_PORT, description="Their ports (TCP and UDP).")
    remote: Prefix6 | None = Field(default=None, description="From where; default: everywhere.")
    remote_ports: Ports = Field(default=EVERY_PORT, description="From which ports (TCP and UDP).")


class Mapping(Model):
    """A static mapping: this external endpoint always leads to that internal one."""

    protocol: MappingProtocol = Field(
        description="Protocol: tcp, udp, or one of `other-protocols` of [nat]: all remotes then speak it with this host alone."
    )
    internal: MappingEnd = Field(description="The subscriber's endpoint; of other protocols than TCP and UDP its address.")
    external: MappingEnd = Field(description="The endpoint the Internet sees; its address is in the subscriber's pool.")


class Device(Model):
    """Devices behind a subscriber, with limits and rules of their own."""

    prefix: HostPrefix = Field(description="The devices' addresses, inside the subscriber's prefix.")
    each: int | None = Field(
        default=None, ge=1, le=32, description="Prefix length of one device; default: the prefix is one device."
    )
    limits: Limits = Field(default=Limits(), description="Limits of each device.")
    rules: list[Rule] = Field(default=[], description="Rules of these devices, before the subscriber's.")


class Subscriber(Model):
    """One subscriber that has something of its own."""

    prefix: HostPrefix = Field(description="The subscriber's addresses; as long as `each` says.")
    limits: Limits = Field(default=Limits(), description="Limits of this subscriber.")
    rules: list[Rule] = Field(default=[], description="Rules of this subscriber, before the global ones.")
    mappings: list[Mapping] = Field(default=[], description="Static mappings of this subscriber.")
    device: list[Device] = Field(default=[], description="Devices behind this subscriber.")
    transparent: bool = Field(default=False, description="Nothing is filtered towards its IPv6 addresses (RFC 6092 REC-49).")


Allocation = Annotated[Literal["dynamic", "deterministic"], one_of(("dynamic", "deterministic"))]


def _one_pool(value: Any) -> Any:
    if isinstance(value, list):
        raise ValueError("several pools for one subscriber prefix are not implemented in this release; name one")
    return value


class Subscribers(Model):
    """An internal prefix full of subscribers."""

    prefix: HostPrefix = Field(description="Internal prefix; sources outside of all of these are dropped as spoofed.")
    each: int = Field(default=32, ge=1, le=32, description="Prefix length of one subscriber.")
    pool: Annotated[str, BeforeValidator(_one_pool)] = Field(description="Name of the pool they are translated to.")
    limits: Limits = Field(default=Limits(), description="Limits of each of these subscribers.")
    subscriber: list[Subscriber] = Field(default=[], description="Those with something of their own.")
    prefix6: HostPrefix6 | None = Field(
        default=None,
        description="Their IPv6 prefix: its n-th subscriber is the n-th of `prefix`. Not translated, but filtered.",
    )
    each6: int = Field(default=56, ge=1, le=64, description="Prefix length of one subscriber's IPv6.")
    filtering6: Filtering6 = Field(default=Filtering6(), description="Who may answer by IPv6.")
    transparent: bool = Field(default=False, description="Nothing is filtered towards their IPv6 addresses (RFC 6092 REC-49).")


class Pool(Model):
    """External addresses, cut into port blocks."""

    name: str = Field(pattern=_NAME, description=f"What subscribers call it: {_NAME_TOLD}.")
    shard: int = Field(
        default=0, ge=0, lt=1 << 16, description="The shard that it and its subscribers belong to: what moves between cores."
    )
    prefixes: list[HostPrefix] = Field(min_length=1, description="External prefixes; every address of them is used.")
    drain: list[Address] = Field(
        default=[],
        description="Addresses of theirs that are to become empty: nobody is paired with them anew, whoever is stays until his "
        "last mapping ends.",
    )
    exclude: list[HostPrefix] = Field(
        default=[],
        description="Addresses of theirs that are not to be handed out, such as .0 and .255, or one that was abused.",
    )
    spare_addresses: int | None = Field(
        default=None,
        ge=0,
        le=1 << 16,
        description="Addresses that may be added while the appliance runs (`krononat pool add`): room is kept for so many. "
        "Default: for as many as it has, 16 at least; none for a deterministic pool, where others would move everybody.",
    )
    icmp_address: Address | None = Field(
        default=None,
        description="One of their addresses, kept out of the pool: ICMP errors of routers inside, and our own towards the "
        "Internet, come from it (RFC 5508 REQ-5). Default: they come from the subscriber's, our own from the core's.",
    )
    ports: Ports = Field(default=PortRange(1024, 65535), description="Ports handed out, in whole blocks; not below 1024.")
    block_size: int = Field(default=512, ge=64, le=32768, description="Ports of a block; a power of two from 64 on.")
    max_blocks_per_subscriber: int = Field(default=8, ge=1, le=8, description="Blocks one subscriber may have at once.")
    allocation: Allocation = Field(
        default="dynamic",
        description="How subscribers get ports: blocks of any address when they need them, which is logged, or each the ports "
        "that are his by this file alone, and no log (RFC 7422; `krononat pool reverse`).",
    )
    subscribers_per_address: int | None = Field(
        default=None,
        ge=1,
        le=1 << 16,
        description="Compression ratio of a deterministic pool; default: the least with which its addresses suffice.",
    )
    ports_per_subscriber: int | None = Field(
        default=None,
        ge=64,
        le=1 << 16,
        description="Ports that each has in a deterministic pool, in whole blocks; default: as many as there are for all.",
    )
    overflow: bool = Field(
        default=False,
        description="Whether who has used up his deterministic ports gets blocks of what is left of his address, up to "
        "`max-blocks-per-subscriber` in all; these are dynamic, and logged.",
    )
    filtering: OneFiltering = Field(
        default=PoolFiltering(),
        description="Which remotes may answer (RFC 4787 5): a word, or a table of one for each of tcp, udp, icmp.",
    )


class Nat(Model):
    """Behaviour of the translation."""

    hairpin: bool = Field(default=True, description="Subscribers reach each other by external endpoints (RFC 4787 REQ-9).")
    hold_down_s: int = Field(
        default=120, ge=0, le=3600, description="Seconds a freed port rests before it is used again (RFC 6888 REQ-8)."
    )
    mss_clamp: int = Field(
        default=0, ge=0, le=65495, description="Upper bound for the MSS of TCP SYNs, in bytes; 0: leave alone."
    )
    inbound_refresh: bool = Field(
        default=False, description="Inbound packets, too, keep UDP and ICMP sessions alive (RFC 4787 REQ-6)."
    )
    unsolicited_syn: UnsolicitedSyn = Field(
        default="silent",
        description="What the sender of a TCP SYN that no mapping lets in gets after six seconds without one from inside: "
        "nothing, or ICMP port unreachable (RFC 5382 REQ-4).",
    )
    other_protocols: list[GenericProtocol] = Field(
        default=[Protocol(name) for name in DEFAULT],
        description="IPv4 protocols beside TCP, UDP and ICMP that are translated, by address alone: one host at a time has a "
        "protocol to a remote by an external address (docs/protocols.md). Names or numbers; others are dropped.",
    )


def _no_ftp(wanted: bool) -> bool:
    if wanted:
        raise ValueError(
            "is not available: a gateway for FTP would have to rewrite commands in TCP's stream; passive mode (PASV, EPSV), "
            "the default of today's clients, passes without; leave `ftp` out or false"
        )
    return wanted


class Alg(Model):
    """Application-level gateways: all are off (RFC 4787 REQ-10, RFC 5382 REQ-6)."""

    ftp: Annotated[bool, AfterValidator(_no_ftp)] = Field(
        default=False, description="Always false: payloads of FTP pass unchanged. Clients use passive mode."
    )


class Icmp(Model):
    """ICMP errors of our own."""

    errors_per_second: int = Field(default=100, ge=0, le=1_000_000, description="At most so many a second; 0: none at all.")
    towards: list[Literal["internal", "external"]] = Field(
        default=["internal", "external"], description="Sides whose senders are told (RFC 5508 REQ-9)."
    )
    reject_code: int = Field(
        default=13, ge=0, le=15, description="Code of the `unreachable` that rejecting rules send (RFC 1812 5.2.7.1)."
    )
    refusal_code: int = Field(
        default=1,
        ge=-1,
        le=15,
        description="Code of the `unreachable` that a subscriber gets whose session is refused by a limit or for want of ports "
        "or memory, at most ten a second each (RFC 6888 REQ-11: 1; RFC 5508 REQ-8: 13); -1: none is sent.",
    )
    refusal_code6: int = Field(
        default=1,
        ge=-1,
        le=6,
        description="The same of ICMPv6 (RFC 4443 3.1: 1, prohibited); -1: none is sent.",
    )


class Alarms(Model):
    """When it is told that something is nearly full: pools, the index, rows for sessions, a subscriber's blocks."""

    warning: int = Field(default=80, ge=0, le=100, description="Percent in use from which on it warns; 0: never.")
    critical: int = Field(default=90, ge=0, le=100, description="Percent from which on it is critical; 0: never.")
    clear: int = Field(default=5, ge=0, le=50, description="By how many points use must have sunk for the alarm to end.")


LOG_LEVELS = ("off", "blocks", "mappings", "sessions")


class Log(Model):
    """The log of NAT events, kept in memory for `krononat events`."""

    events: Annotated[Literal["off", "blocks", "mappings", "sessions"], one_of(LOG_LEVELS)] = Field(
        default="blocks",
        description="What is written: nothing, blocks of ports and refusals, mappings too, sessions too (RFC 6888 4).",
    )
    deterministic: bool = Field(
        default=False,
        description="Whether blocks and mappings of deterministic ports are written, too, though the configuration tells.",
    )


class Cluster(Model):
    """The other cores: who they are, and when they are believed to be dead."""

    map: str = Field(
        description="File with the map of the cluster, the same on every server; with `store` the copy of what was seen last."
    )
    store: list[Annotated[str, Field(pattern=r"^https?://\S+$")]] = Field(
        default=[],
        description="URLs of an etcd (3.4 or later) that holds the map, http://ADDRESS:PORT each; default: the file.",
    )
    store_prefix: str = Field(default="/krononat", pattern=r"^/\S*$", description="What the keys in the store begin with.")
    room_for_cores: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Cores that a newer map may have while this one runs; 0: twice as many as at the start, 16 at least.",
    )
    key_file: str = Field(description="File with the secret key of this core, made by `krononat cluster key`.")
    port_key_file: str | None = Field(
        default=None,
        description="File with the secret that ports are derived with, the same on every server; default: "
        "/etc/krononat/cluster.key.",
    )
    dead_after_ms: int = Field(
        default=150, ge=30, le=60_000, description="Silence after which another core is held for dead, in ms."
    )
    join_after_ms: int = Field(
        default=3000,
        ge=100,
        le=600_000,
        description="How long a core that starts waits to hear who has its shards, in ms.",
    )
    grace_s: int = Field(
        default=10, ge=0, le=600, description="After a takeover, for how long connections may be picked up in their middle."
    )
    silent_room: Annotated[Literal["wait", "apart", "dead"], one_of(("wait", "apart", "dead"))] = Field(
        default="apart",
        description="What a reserve makes of a home of its shard of which nothing is heard, when packets of that come here. "
        "`wait`: nothing, unless the end of its processes was told. `apart`: it may be cut off only, so ports are handed out "
        "that are not its owner's, and connections from before break. `dead`: it is, so most of them go on; if it is not, two "
        "subscribers may get one port.",
    )
    quiet_ms: int = Field(
        default=1000, ge=50, le=600_000, description="A shard has moved when its old core saw no packet for so long."
    )
    replication_threshold_s: int = Field(
        default=0, ge=0, le=3600, description="Age from which on a session is replicated: keeps short flows (DNS) at home."
    )
    replicate_hold_down: bool = Field(
        default=True,
        description="Whether a copy knows which ports rest after use. Without it, who takes a shard over may give a port to "
        "somebody else at once; `krononat bench failover` shows what that costs.",
    )


class Control(Model):
    """Where the CLI reaches the appliance."""

    socket: str | None = Field(default=None, description="Unix socket of the supervisor; default: /run/krononat/NAME.sock.")


class Config(Model):
    """All of it."""

    server: Server = Field(default=Server(), description="Who this core is.")
    interfaces: Interfaces = Field(
        description="Its interfaces: `internal` and `external`, or `both`; one, or several of a side."
    )
    io: Io = Field(default=Io(), description="How frames come and go.")
    memory: Memory = Field(default=Memory(), description="How much it can hold.")
    subscribers: list[Subscribers] = Field(min_length=1, description="Internal prefixes.")
    pool: list[Pool] = Field(min_length=1, description="External addresses.")
    nat: Nat = Field(default=Nat(), description="Behaviour of the translation.")
    alg: Alg = Field(default=Alg(), description="Application-level gateways.")
    firewall6: Firewall6 = Field(default=Firewall6(), description="Behaviour of the IPv6 firewall.")
    bypass: list[Bypass] = Field(default=[], description="What is not translated.")
    pinhole: list[Pinhole] = Field(default=[], description="IPv6 that may come in unasked.")
    timeouts: Timeouts = Field(default=Timeouts(), description="Lifetimes of sessions.")
    icmp: Icmp = Field(default=Icmp(), description="ICMP errors of our own.")
    alarms: Alarms = Field(default=Alarms(), description="When it is told that something is nearly full.")
    log: Log = Field(default=Log(), description="The log of NAT events.")
    limits: Limits = Field(
        default=NO_LIMITS,
        description="Limits of every subscriber where nothing nearer says otherwise.",
    )
    rule: list[Rule] = Field(default=[], description="Global rules, after those of devices and subscribers.")
    mapping: list[Mapping] = Field(default=[], description="Static mappings.")
    pcp: Pcp = Field(default=Pcp(), description="Mappings that subscribers ask for.")
    cluster: Cluster | None = Field(default=None, description="The other cores; without it this one is alone.")
    bgp: Bgp | None = Field(default=None, description="What the network is told of it; without it nothing is.")
    bfd: Bfd = Field(default=Bfd(), description="Liveness, as the neighbours see it.")
    control: Control = Field(default=Control(), description="Where the CLI reaches it.")

    @property
    def socket(self) -> str:
        """Path of the control socket."""
        core = f"-{self.server.core}" if self.cluster else ""
        return self.control.socket or f"/run/krononat/{self.server.name}{core}.sock"

    @property
    def speaker_socket(self) -> str:
        """Path of the socket where the speaker of this server listens."""
        return (self.bgp and self.bgp.socket) or f"/run/krononat/{self.server.name}.bgp"

    @property
    def core_name(self) -> str:
        """SERVER/CORE, its name in the map of the cluster."""
        return f"{self.server.name}/{self.server.core}"

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return 1 + max(pool.shard for pool in self.pool)

    def mappings(self) -> Iterator[Mapping]:
        """Every static mapping: the global ones, then the subscribers' own."""
        yield from self.mapping
        for group in self.subscribers:
            for subscriber in group.subscriber:
                yield from subscriber.mappings
