"""What is connected to what: laboratories as drawn tables, pure data.

Addresses follow RFC 6598 (100.64.0.0/10 inside) and RFC 5737 (documentation prefixes outside).
"""

from __future__ import annotations

from typing import NamedTuple

# c1, c2 are on-link subscribers behind a bridge, c3 is reached through the access router; the core's neighbour outside is the
# router `isp`, behind it stand the Internet hosts. `complete`: this end computes checksums itself; `partial`: it leaves TCP and
# UDP checksums unfinished, as every local sender on a veth does unless told otherwise.
_ROUTER = """
# end           address             checksums   end           address             checksums
c1.eth0         100.64.0.11/22      complete    access.c1     bridged             partial
c2.eth0         100.64.0.12/22      partial     access.c2     bridged             partial
c3.eth0         100.65.0.13/24      partial     access.c3     100.65.0.1/24       partial
access.nat      bridged             partial     nat.inside0   appliance           partial
isp.nat         192.0.2.1/24        partial     nat.outside0  appliance           partial
isp.h1          198.51.100.1/25     partial     h1.eth0       198.51.100.10/25    partial
isp.h2          198.51.100.129/25   partial     h2.eth0       198.51.100.138/25   complete
"""

_ROUTER_ROUTES = """
# node      to               via
c1          default          100.64.0.1
c2          default          100.64.0.1
c3          default          100.65.0.1
access      default          100.64.0.1
isp         203.0.113.0/28   192.0.2.2
h1          default          198.51.100.1
h2          default          198.51.100.129
"""

# One interface, one network: the core is a router on a stick between the access router and the router `isp`.
_STICK = """
# end           address             checksums   end           address             checksums
c1.eth0         100.65.0.11/24      complete    access.c1     100.65.0.1/24       partial
access.lan      192.0.2.3/24        partial     lan.access    bridged             partial
isp.lan         192.0.2.1/24        partial     lan.isp       bridged             partial
lan.nat         bridged             partial     nat.port0     appliance           partial
isp.h1          198.51.100.1/25     partial     h1.eth0       198.51.100.10/25    partial
isp.h2          198.51.100.129/25   partial     h2.eth0       198.51.100.138/25   complete
"""

_STICK_ROUTES = """
# node      to               via
c1          default          100.65.0.1
access      default          192.0.2.2
isp         203.0.113.0/28   192.0.2.2
h1          default          198.51.100.1
h2          default          198.51.100.129
"""

# The first laboratory with IPv6 added: the n-th subscriber has the n-th /64, and the way to h2 is narrow beyond the router.
# Documentation prefixes (RFC 3849).
_SIX = """
# node      interface   address
c1          eth0        2001:db8:64:b::11/54
c2          eth0        2001:db8:64:c::12/54
c3          eth0        2001:db8:65:d::13/64
access      c3          2001:db8:65:d::1/64
access      br0         2001:db8:64::2/54
isp         nat         2001:db8:192::1/64
isp         h1          2001:db8:198:1::1/64
h1          eth0        2001:db8:198:1::10/64
isp         h2          2001:db8:198:2::1/64
h2          eth0        2001:db8:198:2::20/64
"""

_SIX_ROUTES = """
# node      to                  via
c1          ::/0                2001:db8:64::1
c2          ::/0                2001:db8:64::1
c3          ::/0                2001:db8:65:d::1
access      ::/0                2001:db8:64::1
isp         2001:db8:64::/54    2001:db8:192::2
isp         2001:db8:65::/56    2001:db8:192::2
h1          ::/0                2001:db8:198:1::1
h2          ::/0                2001:db8:198:2::1
"""
_NARROW = 1400  # bytes: MTU of isp.h2, though h2 itself believes in 1500

_SERVER = """\
[server]
name = "nat1"
movable-clock = true            # `krononat lab clock`
"""

_ROUTER_CONFIG = """
[interfaces.internal]
name = "inside0"
address = "100.64.0.1/22"
gateway = "100.64.0.2"          # the access router, to subscribers that are not on-link

[interfaces.external]
name = "outside0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"

[[subscribers]]
prefix = "100.64.0.0/22"
each = 32
pool = "main"

[[subscribers]]
prefix = "100.65.0.0/24"
each = 32
pool = "main"

[[mapping]]
protocol = "tcp"
internal = "100.64.0.12:8080"
external = "203.0.113.1:8080"
"""

_STICK_CONFIG = """
[interfaces.both]
name = "port0"
address = "192.0.2.2/24"
internal-gateway = "192.0.2.3"
external-gateway = "192.0.2.1"

[[subscribers]]
prefix = "100.65.0.0/24"
each = 32
pool = "main"
"""

_SIX_CONFIG = """
[interfaces.internal]
name = "inside0"
address = "100.64.0.1/22"
gateway = "100.64.0.2"
address6 = "2001:db8:64::1/54"
gateway6 = "2001:db8:64::2"

[interfaces.external]
name = "outside0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
address6 = "2001:db8:192::2/64"
gateway6 = "2001:db8:192::1"

[[subscribers]]
prefix = "100.64.0.0/22"
pool = "main"
prefix6 = "2001:db8:64::/54"
each6 = 64

[[subscribers]]
prefix = "100.65.0.0/24"
pool = "main"
prefix6 = "2001:db8:65::/56"
each6 = 64

[[pinhole]]
protocol = "tcp"
internal = "2001:db8:64:c::12/128"
internal-ports = 8080

[firewall6]
echo = false
"""

_COMMON_CONFIG = """
[[pool]]
name = "main"
prefixes = ["203.0.113.0/28"]
ports = "1024-65535"
block-size = 512
max-blocks-per-subscriber = 8
filtering = "endpoint-independent"

[memory]
sessions = 100000

[[rule]]
direction = "outbound"
protocol = "tcp"
remote-ports = "25"
action = "reject"
"""


class End(NamedTuple):
    """One end of a veth: `address` is None for a port of the node's bridge and for an appliance's own interfaces."""

    node: str
    interface: str
    address: str | None
    bridged: bool
    partial: bool
    mtu: int = 1500

    @property
    def name(self) -> str:
        """As drawn, and as counters are labelled: node.interface."""
        return f"{self.node}.{self.interface}"

    @property
    def unaddressed(self) -> bool:
        """Whether it is for the appliance to give it an address."""
        return self.address is None and not self.bridged


def home(label: str) -> str:
    """The node of an appliance."""
    return label.partition(".")[0]


class Topology(NamedTuple):
    """A laboratory before it is built."""

    name: str
    links: tuple[tuple[End, End], ...]
    routes: tuple[tuple[str, str, str], ...]
    bridges: dict[str, str | None]  # node with a bridge `br0`: the address on it
    routers: tuple[str, ...]  # nodes whose kernel forwards
    appliances: dict[str, str]  # by label, NODE or NODE.CORE: configuration of an appliance, without its [control]
    six: tuple[tuple[str, str, str], ...] = ()  # node, interface, address: IPv6 beside
    routes6: tuple[tuple[str, str, str], ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node once, in the order in which the picture names them."""
        return tuple(dict.fromkeys(end.node for link in self.links for end in link))

    def ports(self) -> tuple[tuple[End, End], ...]:
        """The appliances' interfaces, each with the end at the other side of its veth."""
        both = (pair for a, b in self.links for pair in ((a, b), (b, a)))
        homes = {home(label) for label in self.appliances}
        return tuple((own, peer) for own, peer in both if own.node in homes and own.unaddressed)

    def address6(self, node: str) -> str:
        """The node's first IPv6 address, without its length."""
        return next(address.split("/")[0] for name, _, address in self.six if name == node)

    def address(self, node: str) -> str:
        """The node's first address, without its length."""
        return next(end.address.split("/")[0] for link in self.links for end in link if end.node == node and end.address)


def _end(name: str, address: str, checksums: str) -> End:
    node, interface = name.split(".")
    own = None if address in ("bridged", "appliance") else address
    return End(node, interface, own, address == "bridged", checksums == "partial")


def _rows(picture: str) -> list[list[str]]:
    return [line.split() for line in picture.splitlines() if line and not line.startswith("#")]


def links(picture: str) -> tuple[tuple[End, End], ...]:
    """Both ends of every link of a picture like those above."""
    return tuple((_end(*row[:3]), _end(*row[3:])) for row in _rows(picture))


def routes(picture: str) -> tuple[tuple[str, str, str], ...]:
    """Node, destination and gateway of every route of a picture."""
    return tuple((node, to, via) for node, to, via in _rows(picture))


ROUTER = Topology(
    "router",
    links(_ROUTER),
    routes(_ROUTER_ROUTES),
    {"access": "100.64.0.2/22"},
    ("access", "isp"),
    {"nat": _SERVER + _ROUTER_CONFIG + _COMMON_CONFIG},
)
STICK = Topology(
    "stick",
    links(_STICK),
    routes(_STICK_ROUTES),
    {"lan": None},
    ("access", "isp"),
    {"nat": _SERVER + _STICK_CONFIG + _COMMON_CONFIG},
)
SIX = ROUTER._replace(
    name="six",
    links=tuple(
        tuple(end._replace(mtu=_NARROW) if end.name == "isp.h2" else end for end in link)  # type: ignore[misc]
        for link in ROUTER.links
    ),
    appliances={"nat": _SERVER + _SIX_CONFIG + _COMMON_CONFIG},
    six=routes(_SIX),
    routes6=routes(_SIX_ROUTES),
)
TOPOLOGIES = {topology.name: topology for topology in (ROUTER, STICK, SIX)}
