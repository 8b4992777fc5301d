"""The laboratory as an SVG picture, with the packets that went each way."""

from __future__ import annotations

from html import escape

from krononat.lab.conservation import Counts

_WIDTH, _HEIGHT = 1000, 340
_BOX = (118, 52)

# node: centre x, y, what it is
_NODES = {
    "c1": (90, 60, "client, on-link"),
    "c2": (90, 170, "client, on-link"),
    "c3": (90, 280, "client, routed"),
    "access": (300, 170, "bridge, router"),
    "nat": (510, 170, "krononat"),
    "isp": (720, 170, "router"),
    "h1": (910, 100, "nginx dns iperf3"),
    "h2": (910, 240, "http"),
}
_LINKS = (("c1", "access"), ("c2", "access"), ("c3", "access"), ("access", "nat"), ("nat", "isp"), ("isp", "h1"), ("isp", "h2"))
_STYLE = "text{font:13px sans-serif;text-anchor:middle}.small{font-size:11px;fill:#555}.core{fill:#dff0d8}"


def draw(counts: Counts) -> str:
    """SVG text; without counts just the topology."""
    lines = [_line(*_NODES[a][:2], *_NODES[b][:2]) for a, b in _LINKS]
    boxes = [_box(name, x, y, told) for name, (x, y, told) in _NODES.items()]
    labels = [_label(405, "inside0", counts), _label(615, "outside0", counts), _drops(counts)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"><style>{_STYLE}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *lines, *boxes, *labels, "</svg>"]) + "\n"


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#999"/>'


def _small(x: int, y: int, text: str) -> str:
    return f'<text x="{x}" y="{y}" class="small">{escape(text)}</text>'


def _box(name: str, x: int, y: int, told: str) -> str:
    width, height = _BOX
    kind = ' class="core"' if name == "nat" else ' fill="#fff"'
    frame = f'<rect x="{x - width // 2}" y="{y - height // 2}" width="{width}" height="{height}" rx="8" stroke="#333"{kind}/>'
    return f'{frame}<text x="{x}" y="{y - 3}">{name}</text>' + _small(x, y + 14, told)


def _label(x: int, interface: str, counts: Counts) -> str:
    sent, got = counts.get(f"{interface} peer sent", 0), counts.get(f"{interface} peer got", 0)
    towards, away = (sent, got) if interface == "inside0" else (got, sent)
    return _small(x, 120, interface) + _small(x, 138, f"→ {towards:,}") + _small(x, 212, f"← {away:,}")


def _drops(counts: Counts) -> str:
    told = " · ".join(f"{fate} {counts.get(fate, 0):,}" for fate in ("forwarded", "punted", "dropped"))
    return f'<text x="510" y="260">{told}</text>'
