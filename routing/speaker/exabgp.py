"""ExaBGP 5.0.15 as text: its configuration, the commands it is given, the lines it answers. Nothing here starts anything.

It answers each command by one line, `done` or `error`, in their order; `done` means "in its own table", whether or not a
session is up. What happens to sessions comes between as JSON. After a session's end it says everything again by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from routing.speaker.ledger import Said
from routing.speaker.sessions import Plan, Session

PROCESS = "krononat"
FAMILIES = "ipv4 unicast; ipv6 unicast;"


class News(NamedTuple):
    """A session is up, or not: `why` in ExaBGP's words."""

    peer: str
    local: str
    up: bool
    why: str


def environment(user: str) -> dict[str, str]:
    """Variables that ExaBGP heeds: no named pipes, no file and no daemon, the user it runs as already."""
    return {
        "exabgp_api_cli": "false", "exabgp_api_ack": "true", "exabgp_daemon_user": user, "exabgp_daemon_daemonize": "false",
        "exabgp_daemon_drop": "false", "exabgp_log_destination": "stderr", "exabgp_log_level": "WARNING",
        "exabgp_tcp_attempts": "0", "exabgp_bgp_openwait": "10",
    }  # fmt: skip


def configuration(plan: Plan, helper: Sequence[str]) -> str:
    """Its configuration file; `helper`: command that it starts to be told by. No graceful restart: a dead core is dead."""
    lines = [
        f"process {PROCESS} {{",
        f"    run {' '.join(helper)};",
        "    encoder json;",
        "}",
        *(line for session in plan.sessions for line in _neighbor(session)),
    ]
    return "\n".join(lines) + "\n"


def _neighbor(session: Session) -> list[str]:
    return [
        f"neighbor {session.peer} {{",
        f"    router-id {session.local};",
        f"    local-address {session.local};",
        f"    local-as {session.local_as};",
        f"    peer-as {session.peer_as};",
        f"    hold-time {session.hold_s};",
        "    outgoing-ttl 1;",  # a peer is on-link; where its leg is lost, nothing finds another way to it
        f"    family {{ {FAMILIES} }}",
        f"    api {{ processes [ {PROCESS} ]; neighbor-changes; }}",
        "}",
    ]


def announce(session: Session, said: Said, prefixes: Sequence[str]) -> str:
    """The command that tells a session these prefixes."""
    words = [_to(session), "announce attributes next-hop", said.next_hop]
    if said.med is not None:
        words += ["med", str(said.med)]
    if said.prepend:  # a path that is given is sent as it is, so our own AS must be in it
        words += ["as-path [", *[str(session.local_as)] * (1 + said.prepend), "]"]
    if said.communities:
        words += ["community [", *said.communities, "]"]
    if said.large_communities:
        words += ["large-community [", *said.large_communities, "]"]
    return " ".join([*words, "nlri", *prefixes])


def withdraw(session: Session, prefixes: Sequence[str]) -> str:
    """The command that takes them back; the next hop is not looked at, but must be of the prefixes' family."""
    next_hop = "::" if ":" in prefixes[0] else "self"
    return " ".join([_to(session), "withdraw attributes next-hop", next_hop, "nlri", *prefixes])


def _to(session: Session) -> str:
    return f"neighbor {session.peer} local-ip {session.local}"


def read(line: str) -> bool | News | None:
    """Whether the oldest command without an answer was done, news of a session, or None for what we have no use for."""
    if line in ("done", "error"):
        return line == "done"
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return _news(told) if isinstance(told, dict) else None


def _news(told: Mapping[str, Any]) -> News | None:
    match told:
        case {"type": "state", "neighbor": {"address": {"local": str(local), "peer": str(peer)}, "state": str(state), **more}}:
            return News(peer, local, state == "up", str(more.get("reason", "")))
    return None
