"""A cluster whose switches route, as an SVG picture: nodes, links, who has which shard, what is broken. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from krononat.lab import cluster, fabric, legs
from krononat.lab.cluster import Wanted
from krononat.lab.overview import Place
from routing.fabric import INSIDE, OUTSIDE

_COLUMNS = {"client": 70, "access": 200, "inside": 350, "server": 600, "outside": 850, "core": 1000, "host": 1130}
_WIDTH, _TOP, _CORE = 1200, 70, (200, 46)
_BOX = (96, 36)
_STYLE = (
    "text{font:13px sans-serif;text-anchor:middle}.small{font-size:11px;fill:#555}.core{fill:#dff0d8}.dead{fill:#ddd}"
    ".freeze{fill:#d8e8f8}.node{fill:#fff}.cut{stroke:#c22;stroke-width:2;stroke-dasharray:5 4}.link{stroke:#999}"
)


class Box(NamedTuple):
    """Centre, size and words of a box."""

    x: int
    y: int
    width: int
    height: int
    name: str
    told: str
    style: str


def draw(wanted: Wanted, places: Sequence[Place], broken: Iterable[tuple[str, str]], leaked: int | None) -> str:
    """SVG text. `broken`: kinds and names, as `chaos.broken` finds them; `leaked`: untranslated packets, None if unknown."""
    wrong = set(broken)
    boxes = _boxes(wanted, places, wrong)
    lines = [_line(boxes[a], boxes[b], cut) for a, b, cut in _links(wanted, wrong)]
    height = max(box.y + box.height for box in boxes.values()) + 40
    told = f"untranslated packets seen outside: {'nobody counts' if leaked is None else f'{leaked:,}'}"
    told += f" · broken: {', '.join(f'{kind} {name}' for kind, name in sorted(wrong)) or 'nothing'}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"><style>{_STYLE}</style>'
    foot = f'<text x="{_WIDTH // 2}" y="{height - 14}">{escape(told)}</text>'
    back = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, back, *lines, *map(_box, boxes.values()), foot, "</svg>"]) + "\n"


def shards_of(places: Sequence[Place]) -> dict[str, tuple[list[int], list[int]]]:
    """By core: shards whose subscribers' packets any switch sends there, and those whose packets come back by it."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for place in places:
        for way, core in enumerate((place.outbound, place.inbound)):
            shards = found.setdefault(core, ([], []))[way]
            if place.shard not in shards:
                shards.append(place.shard)
    return found


def _boxes(wanted: Wanted, places: Sequence[Place], wrong: set[tuple[str, str]]) -> dict[str, Box]:
    cores = sorted(cluster.cores(wanted))
    middle = max(_TOP + max(_rows(cores).values()) // 2, 150)
    having = shards_of(places)
    boxes = {core: _core_box(core, _TOP + row, having.get(core, ([], [])), wrong) for core, row in _rows(cores).items()}
    spread = {1: (0,), 2: (-80, 80)}[wanted.tors]
    for switch, off in zip(fabric.switches(wanted), spread, strict=True):
        for domain in (INSIDE, OUTSIDE):
            node = legs.node_of(switch, domain, wanted.domains)
            x = _COLUMNS[domain] if wanted.domains == 2 else _COLUMNS["inside"]
            boxes[node] = Box(x, middle + off, *_BOX, node, wanted.tor, _style(("daemon", node) in wrong))
    for number, name in enumerate(("c1", "c2", "users")):
        boxes[name] = Box(_COLUMNS["client"], middle + 60 * (number - 1), *_BOX, name, "subscribers", "node")
    boxes["access"] = Box(_COLUMNS["access"], middle, *_BOX, "access", "router", _style(("daemon", "access") in wrong))
    boxes["core"] = Box(_COLUMNS["core"], middle, *_BOX, "core", "router", _style(("daemon", "core") in wrong))
    for number, name in enumerate(("h1", "hosts")):
        boxes[name] = Box(_COLUMNS["host"], middle + 60 * number - 30, *_BOX, name, "Internet", "node")
    return boxes


def _rows(cores: Sequence[str]) -> dict[str, int]:
    """Height of each core, with a gap between servers."""
    servers = list(dict.fromkeys(map(cluster.node_of, cores)))
    return {core: number * (_CORE[1] + 8) + servers.index(cluster.node_of(core)) * 16 for number, core in enumerate(cores)}


def _core_box(core: str, y: int, shards: tuple[list[int], list[int]], wrong: set[tuple[str, str]]) -> Box:
    dead = {("core", core), ("server", cluster.node_of(core))} & wrong
    style = "dead" if dead else "freeze" if ("freeze", core) in wrong else "core"
    out, back = (",".join(map(str, sorted(each))) or "none" for each in shards)
    told = f"shards {out}" if out == back else f"out {out} · back {back}"
    return Box(_COLUMNS["server"], y, *_CORE, core, told, style)


def _style(dark: bool) -> str:
    return "dead" if dark else "node"


def _links(wanted: Wanted, wrong: set[tuple[str, str]]) -> list[tuple[str, str, bool]]:
    """Both ends, and whether it is cut."""
    names = {name for kind, name in wrong if kind == "link"}
    names |= {"bin.other", "bout.other"} if ("partition", "switches") in wrong else set()
    drawn = [(client, "access", False) for client in ("c1", "c2", "users")] + [
        ("core", host, False) for host in ("h1", "hosts")
    ]
    for switch in fabric.switches(wanted):
        for domain, router in ((INSIDE, "access"), (OUTSIDE, "core")):
            link = legs.uplink(switch, domain, wanted.domains)
            drawn.append((link.node, router, f"{router}.{link.device}" in names))
    for core in cluster.cores(wanted):
        for link in fabric.core_legs(wanted, core):
            drawn.append((link.node, core, f"{cluster.node_of(core)}.{link.device}" in names))
    for domain in (INSIDE, OUTSIDE) if wanted.tors == 2 else ():
        pair = [legs.node_of(switch, domain, 2) for switch in legs.LETTERS]
        drawn.append((pair[0], pair[1], bool({f"{node}.other" for node in pair} & names)))
    return drawn


def _line(a: Box, b: Box, cut: bool) -> str:
    return f'<line x1="{a.x}" y1="{a.y}" x2="{b.x}" y2="{b.y}" class="{"cut" if cut else "link"}"/>'


def _box(box: Box) -> str:
    x, y = box.x - box.width // 2, box.y - box.height // 2
    frame = f'<rect x="{x}" y="{y}" width="{box.width}" height="{box.height}" rx="6" stroke="#333" class="{box.style}"/>'
    name = f'<text x="{box.x}" y="{box.y - 2}">{escape(box.name)}</text>'
    return f'{frame}{name}<text x="{box.x}" y="{box.y + 13}" class="small">{escape(box.told)}</text>'
