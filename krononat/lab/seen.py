"""What BIRD and FRR say, understood: BGP sessions with their BFD, and who announced what. Pure; `switches` asks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_PROTOCOL = re.compile(r"^(?P<name>\w+) +BGP +\S+ +(?P<state>\w+) +\S+ *(?P<info>.*)$", re.MULTILINE)
_BFD = re.compile(r"^(?P<address>[0-9a-f.:]+) +(?P<device>\S+) +(?P<state>\w+)", re.MULTILINE)
_ROUTE = re.compile(r"^(?P<prefix>\S+/\d+)? +(?P<kind>unicast|blackhole|unreachable) \[(?P<by>\w+) [^\]]*\] ?(?P<best>\*?)")
_VALUE = re.compile(r"^\t(?P<key>via|BGP\.med|BGP\.as_path|BGP\.local_pref|BGP\.large_community):? (?P<value>.*)$")


class Session(NamedTuple):
    """One BGP session of a switch; `bfd` is empty where there is none."""

    node: str
    neighbour: str
    state: str  # "Established", or what else it is
    bfd: str  # "Up", "Down", "Init"

    @property
    def up(self) -> bool:
        """Whether routes come by it."""
        return self.state == "Established"


class Announced(NamedTuple):
    """One route that a switch was told."""

    prefix: str
    by: str  # name of the neighbour
    best: bool
    via: str
    med: int
    preference: int
    path: str
    large: str


class View(NamedTuple):
    """What a switch knows."""

    node: str
    sessions: tuple[Session, ...]
    routes: tuple[Announced, ...]

    def best(self, prefix: str) -> Announced | None:
        """Who is believed about a prefix."""
        return next((each for each in self.routes if each.prefix == prefix and each.best), None)


# --- BIRD ------------------------------------------------------------------------------------------------------------------


def of_bird(node: str, protocols: str, bfd: str, routes: str) -> View:
    """From `show protocols`, `show bfd sessions` and `show route table master4 all`; empty where it does not run."""
    states = {found["device"]: found["state"] for found in _BFD.finditer(bfd)}
    sessions = (_session(node, found, states) for found in _PROTOCOL.finditer(protocols))
    return View(node, tuple(sessions), tuple(_bird_routes(routes)))


def _session(node: str, found: re.Match[str], bfd: Mapping[str, str]) -> Session:
    """BIRD names BFD sessions by device; protocols are called after their devices."""
    name = found["name"]
    state = (found["info"].split() or [found["state"]])[0]
    device = "other" if name.startswith("other") else name
    return Session(node, name, state, bfd.get(device, ""))


def _bird_routes(text: str) -> list[Announced]:
    found: list[dict[str, str]] = []
    prefix = ""
    for line in text.splitlines():
        if route := _ROUTE.match(line):
            prefix = route["prefix"] or prefix
            found.append({"prefix": prefix, "by": route["by"], "best": route["best"]})
        elif found and (value := _VALUE.match(line)):
            found[-1][value["key"]] = value["value"]
    return [_announced(each) for each in found if "BGP.as_path" in each]


def _announced(told: Mapping[str, str]) -> Announced:
    return Announced(
        told["prefix"],
        told["by"],
        bool(told["best"]),
        told.get("via", "").split(" ")[0],
        int(told.get("BGP.med", 0)),
        int(told.get("BGP.local_pref", 100)),
        told["BGP.as_path"].strip(),
        told.get("BGP.large_community", "").strip("() ").replace(", ", ":"),
    )


# --- FRR -------------------------------------------------------------------------------------------------------------------


def of_frr(node: str, names: Mapping[str, str], summary: Any, bfd: Any, routes: Any) -> View:
    """From `show bgp summary`, `show bfd peers` and `show bgp ipv4 unicast`; `names` of neighbours by address."""
    states = {peer["peer"]: str(peer["status"]).capitalize() for peer in bfd} if isinstance(bfd, list) else {}
    peers = summary.get("ipv4Unicast", {}).get("peers", {})
    sessions = tuple(
        Session(node, names.get(address, address), told["state"], states.get(address, "")) for address, told in peers.items()
    )
    found = [
        _frr_route(prefix, path, names)
        for prefix, paths in routes.get("routes", {}).items()
        for path in paths
        if path.get("path")
    ]
    return View(node, sessions, tuple(found))


def _frr_route(prefix: str, path: Any, names: Mapping[str, str]) -> Announced:
    by, via = path.get("peerId", ""), (path.get("nexthops") or [{}])[0].get("ip", "")
    med, preference = path.get("metric", 0), path.get("locPrf", 100)
    return Announced(prefix, names.get(by, by), bool(path.get("bestpath")), via, med, preference, path.get("path", ""), "")
