"""What a speaker is told: sessions, and which core's routes go where with which next hop. Travels as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Session(NamedTuple):
    """One BGP session, named by its two ends."""

    peer: str
    local: str
    peer_as: int
    local_as: int
    hold_s: int = 9

    @property
    def name(self) -> str:
        """What people and commands call it."""
        return f"{self.local} > {self.peer}"


class Way(NamedTuple):
    """A core's routes of a domain (inside, outside or both) go to this session, with these next hops."""

    session: str
    domain: str
    next_hop: str = "self"
    next_hop6: str = ""  # empty: no IPv6 route can be told there


class Voice(NamedTuple):
    """One core: how soon its silence is its death, and its ways."""

    dead_after_ms: int
    ways: tuple[Way, ...]


class Plan(NamedTuple):
    """All of a server. `memory`: a file of the helper's own."""

    socket: str
    memory: str
    sessions: tuple[Session, ...]
    cores: Mapping[str, Voice]

    def session(self, name: str) -> Session:
        """Session of that name."""
        return next(session for session in self.sessions if session.name == name)


def write(plan: Plan) -> str:
    """JSON text."""
    cores = {name: [voice.dead_after_ms, [list(way) for way in voice.ways]] for name, voice in plan.cores.items()}
    sessions = [list(session) for session in plan.sessions]
    return json.dumps({"socket": plan.socket, "memory": plan.memory, "sessions": sessions, "cores": cores}, indent=1)


def read(text: str) -> Plan:
    """Plan of a text that `write` wrote."""
    told: dict[str, Any] = json.loads(text)
    cores = {
        name: Voice(dead_after_ms, tuple(Way(*way) for way in ways)) for name, (dead_after_ms, ways) in told["cores"].items()
    }
    return Plan(told["socket"], told["memory"], tuple(Session(*session) for session in told["sessions"]), cores)
