"""BIRD 2 as the switch: one configuration a domain. https://bird.network.cz/?get_doc&v=20&f=bird-6.html

A route `recursive SHARD-ADDRESS` of a shard's own table is resolved anew by BIRD whenever the main table changes. The
blackholes of whole ranges have the lowest preference: without them an address that no core announces would resolve by a default
route, and its subscribers' packets would leave untranslated. The default route that routers inside are told is that of any
shard whose address leads to a core: a pipe each takes it over from the shard's table, and takes it back when it leads nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from routing import fabric as fabrics
from routing.fabric import ACCESS, CORE, INTERNET, MARKED, SWITCH, Fabric, Instance, Neighbour, Range

_HEAD = """\
log stderr all;
router id {router_id};
protocol device {{ scan time 10; }}
protocol direct links {{ {channels} }}
"""

_MAIN = """\
filter to_main{v} {{
  if source = RTS_BGP || proto = "fixed{v}" then accept;
  if source = RTS_STATIC && net != {default} then accept;
  reject;
}}
protocol kernel main{v} {{ scan time 10; ipv{v} {{ import none; export filter to_main{v}; }}; }}
protocol static floor{v} {{
  ipv{v} {{ preference 1; }};
{routes}
}}
"""

# Below BGP, which says the same.
_FIXED = """\
protocol static fixed{v} {{
  ipv{v} {{ preference 50; }};
  check link on;
{routes}
}}
"""

_POLICY = """\
ipv{v} table shard{k}v{v};
protocol static policy{k}v{v} {{ ipv{v} {{ table shard{k}v{v}; }}; igp table master{v}; route {default} recursive {target}; }}
protocol kernel kernel{k}v{v} {{
  kernel table {table};
  scan time 10;
  ipv{v} {{ table shard{k}v{v}; import none; export all; }};
}}
"""

_OFFER = """\
filter leads{v} {{
  if dest = RTD_UNICAST then accept;
  reject;
}}
protocol static nowhere{v} {{ ipv{v} {{ preference 150; }}; route {default} unreachable; }}
"""

# Never in the kernel (see `to_main`). A pipe's filter is asked anew whenever the route of a shard's address changes. 150 is
# between what is static and BGP: where inside and outside are one domain, the Internet's default route takes nobody's place.
_PIPE = """\
protocol pipe default{k}v{v} {{ table master{v}; peer table shard{k}v{v}; import filter leads{v}; export none; }}
"""

_SESSION = """\
protocol bgp {name} {{
  description "{kind}, {domain}";
  local {own} as {asn};
  neighbor {address} as {remote};
  interface "{device}";
  direct;
  check link on;
  hold time {hold};
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 3;
  graceful restart off;
  deterministic med on;
{more}
{channels}
}}
"""

_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


def render(fabric: Fabric, one: Instance) -> str:
    """The whole configuration of one domain of a switch."""
    channels = " ".join(f"ipv{version};" for version in _versions(fabric))
    parts = [_HEAD.format(router_id=one.switch.router_id, channels=channels), _bfd(fabric, one), _loopbacks(fabric, one)]
    for version in _versions(fabric):
        parts += [_main(fabric, one, version), *_fixed(fabric, one, version), *_policies(fabric, one, version)]
        parts += _filters(fabric, one, version)
    return "\n".join([*parts, *(_session(fabric, one, each) for each in one.neighbours)])


def _versions(fabric: Fabric) -> tuple[int, ...]:
    return (4, 6) if fabric.v6 else (4,)


def _main(fabric: Fabric, one: Instance, version: int) -> str:
    ranges = (*(fabric.inside if one.inside else ()), *(fabric.outside if one.outside else ()))
    routes = [f"  route {each.prefix} blackhole;" for each in ranges if each.prefix.version == version]
    return _MAIN.format(v=version, default=_DEFAULT[version], routes="\n".join(routes))


def _fixed(fabric: Fabric, one: Instance, version: int) -> Iterator[str]:
    """What the router beside a switch is there for, while it says nothing. Only where there is nobody else to choose.

    Two daemons that were parted, by the death of one, let a second pass before either of them tries to connect.
    """
    beside = [each for each in one.neighbours if each.kind in (ACCESS, INTERNET)]
    if len(beside) > 1 or one.of(SWITCH) or (one.inside and one.outside):
        return
    ways = ((each, each.address if version == 4 else each.address6) for each in beside)
    believed = ((told.prefix, way) for each, way in ways if way for told in fabrics.believed(fabric, each, version))
    routes = [f"  route {prefix} via {way};" for prefix, way in believed]
    if routes:
        yield _FIXED.format(v=version, routes="\n".join(routes))


def _policies(fabric: Fabric, one: Instance, version: int) -> Iterator[str]:
    """A table for each shard, and one for what routers inside have to say of any of them."""
    if not one.inside:
        return
    targets = {shard.number: target for shard, _, target in fabrics.policies(fabric, version)}
    tables = [(str(number), target, fabrics.TABLE + number) for number, target in targets.items()]
    if not one.outside and tables:
        tables.append(("_stray", tables[0][1], fabrics.STRAY_TABLE))
    for name, target, table in tables:
        yield _POLICY.format(k=name, v=version, default=_DEFAULT[version], target=target, table=table)
    yield from _offers(one, version, targets) if one.of(ACCESS) else ()


def _offers(one: Instance, version: int, shards: Iterable[int]) -> Iterator[str]:
    """The default route for routers inside: who has just started and knows no core must attract no packets.

    One shard that nobody announces takes it from none of the others.
    """
    yield _OFFER.format(v=version, default=_DEFAULT[version])
    yield from (_PIPE.format(k=shard, v=version) for shard in shards)


def _bfd(fabric: Fabric, one: Instance) -> str:
    if fabric.bfd is None:
        return ""
    interval, multiplier = fabric.bfd
    devices = ", ".join(dict.fromkeys(f'"{each.device}"' for each in one.neighbours))
    times = f"min rx interval {interval} ms; min tx interval {interval} ms; idle tx interval 1 s; multiplier {multiplier};"
    return f"protocol bfd quick {{\n  interface {devices} {{ {times} }};\n}}\n"


def _loopbacks(fabric: Fabric, one: Instance) -> str:
    """Other addresses of cores, by the legs that are watched; the other switch hears of them, too."""
    watched = " bfd" if fabric.bfd else ""
    lines = [f"  route {each.loopback}/32 via {each.address}{watched};\n" for each in one.of(CORE) if each.loopback]
    return "protocol static loopbacks {\n  ipv4;\n  check link on;\n" + "".join(lines) + "}\n" if lines else ""


# --- what is believed of whom ----------------------------------------------------------------------------------------------


def _filters(fabric: Fabric, one: Instance, version: int) -> Iterator[str]:
    first = {(each.kind, each.domain): each for each in reversed(one.neighbours)}
    for (kind, domain), neighbour in sorted(first.items()):
        believed = fabrics.believed(fabric, neighbour, version)
        marks = _marks(fabric) if kind in MARKED else ""
        yield _filter(f"from_{kind}_{domain}{version}", believed, marks)
        if kind != CORE:
            own = {ACCESS: "RTS_BGP, RTS_STATIC", SWITCH: "RTS_BGP, RTS_DEVICE, RTS_STATIC"}.get(kind, "RTS_BGP")
            unfit = {ACCESS: f'proto = "fixed{version}" || dest != RTD_UNICAST', SWITCH: "dest = RTD_BLACKHOLE"}.get(kind)
            nothing = f" || {unfit}" if unfit else ""
            sources = f"  if !(source ~ [ {own} ]){nothing} then reject;\n"
            yield _filter(f"to_{kind}_{domain}{version}", fabrics.told_to(fabric, neighbour, version), sources)


def _filter(name: str, ranges: Iterable[Range], more: str) -> str:
    told = ", ".join(f"{each.prefix}{{{each.shortest},{each.longest}}}" for each in ranges)
    body = f"  if !(net ~ [ {told} ]) then reject;\n{more}  accept;" if told else "  reject;"
    return f"filter {name} {{\n{body}\n}}\n"


def _marks(fabric: Fabric) -> str:
    lines = (
        f"  if ({each.high}, {each.low}) ~ bgp_community then bgp_local_pref = {each.preference};\n"
        for each in fabrics.communities(fabric)
    )
    return "".join(lines)


def _session(fabric: Fabric, one: Instance, to: Neighbour) -> str:
    more = ["  passive on;"] if to.kind == CORE else []
    more += ["  bfd on;"] if fabric.bfd else []
    return _SESSION.format(
        name=to.name,
        kind=to.kind,
        domain=to.domain,
        own=to.own.ip,
        asn=one.switch.asn,
        address=to.address,
        remote=to.asn,
        device=to.device,
        hold=fabric.hold_s,
        more="\n".join(more),
        channels="\n".join(_channel(fabric, to, version) for version in _versions(fabric)),
    )


def _channel(fabric: Fabric, to: Neighbour, version: int) -> str:
    """`import keep filtered`: `birdc show route filtered` tells what was refused."""
    name = f"{to.kind}_{to.domain}{version}"
    export = f"filter to_{name}" if to.kind != CORE else "none"
    gateway = "recursive" if fabric.third_party and to.kind == CORE else "direct"
    own6 = f" next hop address {to.own6};" if version == 6 and to.own6 else ""
    ways = f"import keep filtered on; import filter from_{name}; export {export};"
    return f"  ipv{version} {{ {ways} gateway {gateway};{own6} import limit 4096 action block; }};"
