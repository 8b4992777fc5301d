"""The two routers around the switches, `access` and `core`: BIRD, too. Both use all switches that there are, flow by flow.

What they say of their own is short: `access`, that subscribers are behind it; `core`, that everything else is. They believe the
switches whatever is announced to them; `core` counts what comes from there untranslated (`leaks`).
"""

from __future__ import annotations

from collections.abc import Iterator

from krononat.lab import cluster, fabric, legs, sixth
from krononat.lab.cluster import Wanted
from krononat.lab.legs import Link
from routing.fabric import INSIDE, OUTSIDE

_CONFIG = """\
log stderr all;
router id {router_id};
protocol device {{ scan time 10; }}
protocol kernel {{ scan time 10; merge paths on; ipv4 {{ import none; export where source = RTS_BGP || proto = "fixed"; }}; }}
protocol static own {{ ipv4; route {own} unreachable; }}
"""

# To the only switch, whatever BGP says: see `routing.bird`.
_FIXED = """\
protocol static fixed {{
  ipv4 {{ preference 50; }};
  check link on;
{routes}
}}
"""

_SIX = """\
protocol kernel {{ scan time 10; merge paths on; ipv6 {{ import none; export where source = RTS_BGP; }}; }}
protocol static own6 {{ ipv6; route {own} unreachable; }}
"""

_BFD = """\
protocol bfd quick {{
  interface "*" {{ min rx interval {ms} ms; min tx interval {ms} ms; idle tx interval 1 s; multiplier {times}; }};
}}
"""

_SESSION = """\
protocol bgp {name} {{
  local {address} as {asn};
  neighbor {switch} as {remote};
  interface "{device}";
  direct;
  check link on;
  hold time {hold};
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 3;
  graceful restart off;
{bfd}
  ipv4 {{ import all; export where proto = "own"; }};
{six}}}
"""

_CHANNEL = "  ipv6 {{ import all; export where source = RTS_STATIC; next hop address {own}; }};\n"

_ROUTERS = {"access": (INSIDE, str(cluster.INSIDE), legs.ACCESS_ASN), "core": (OUTSIDE, "0.0.0.0/0", legs.INTERNET_ASN)}
_OWN6 = {"access": str(sixth.SUBSCRIBERS), "core": "::/0"}
NODES = tuple(_ROUTERS)


def render(wanted: Wanted, node: str) -> str:
    """Configuration of one of them."""
    domain, own, asn = _ROUTERS[node]
    uplinks = [legs.uplink(switch, domain, wanted.domains) for switch in fabric.switches(wanted)]
    head = _CONFIG.format(router_id=uplinks[0].address, own=own)
    quick = _BFD.format(ms=wanted.bfd_ms, times=wanted.bfd_times) if wanted.bfd_ms else ""
    six = _SIX.format(own=_OWN6[node]) if wanted.six else ""
    return "\n".join([head, six, quick, *_fixed(wanted, node, uplinks), *(_session(wanted, link, asn) for link in uplinks)])


def _fixed(wanted: Wanted, node: str, uplinks: list[Link]) -> Iterator[str]:
    """What the switches announce to this router."""
    told = fabric.value(wanted)
    if len(uplinks) == 1 and wanted.domains == 2:
        prefixes = [each.prefix for each in told.outside if each.prefix.version == 4] if node == "core" else ["0.0.0.0/0"]
        yield _FIXED.format(routes="\n".join(f"  route {prefix} via {uplinks[0].own.ip};" for prefix in prefixes))


def _session(wanted: Wanted, link: Link, asn: int) -> str:
    return _SESSION.format(
        name=link.device,
        address=link.address,
        asn=asn,
        switch=link.own.ip,
        remote=legs.ASNS[link.switch],
        device=link.device,
        hold=wanted.hold_s,
        bfd="  bfd on;" if wanted.bfd_ms else "",
        six=_CHANNEL.format(own=sixth.ends_of(link)[1].ip) if wanted.six else "",
    )
