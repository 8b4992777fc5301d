"""A core that grants mappings, and whoever asks it: for the tests of what is asked for."""

from __future__ import annotations

from typing import Any

from krononat import pcp_server, view_mappings
from krononat.pcp import UDP
from krononat.pcp_server import Policy
from krononat.pcp_table import GrantTable
from shards.state import ACTIVE, PASSIVE
from tests.bare_core import Core
from tests.bed import Bed
from tests.frames import address, dissect, spell, split_frame
from tests.model_pcp import Told, map_request, read_answer
from tests.pair import EPOCH
from tests.twins import Twins, ready, say

HOST, OTHER, STRANGER = "100.64.0.7", "100.64.0.8", "192.0.2.70"
PLAIN = """
pool 203.0.113.0/31 block 128 blocks 2
subscribers 100.64.0.0/24
hold-down 120
"""
DAY_S = 86_400


def bed(text: str = PLAIN) -> Bed:
    given = Bed()
    for line in filter(None, text.splitlines()):
        given.say(line)
    return given.complete()


class Server:
    """A core with its table; its clock is `now`, a tick."""

    def __init__(self, core: Core, each: int = 16, now: int = EPOCH) -> None:
        self.core, self.state, self.now, self.each = core, core.state, now, each
        self.table = GrantTable(core.state, each, DAY_S, now)
        self.table.turn(now)

    def restart(self) -> None:
        """Another worker goes on with the memory."""
        self.table = GrantTable(self.state, self.each, DAY_S, self.now)

    def pass_time(self, seconds: float) -> None:
        """Later, with everything done that was due until then."""
        self.now += int(1000 * seconds)
        self.core.pass_time(self.now)
        self.turns()

    def turns(self) -> None:
        """Enough for one walk over all rows."""
        for _ in range(2 * len(self.state.mappings) // 8192 + 6):
            self.table.turn(self.now)

    def ask(self, datagram: bytes, source: str = HOST, policy: Policy = Policy()) -> bytes:  # noqa: B008
        """Answer to what a host sends."""
        self.table.now = self.now
        return pcp_server.answer(policy, self.table, datagram, address(source), self.now // 1000).datagram

    def map(self, port: int, source: str = HOST, protocol: int = UDP, **more: Any) -> Told:
        """What a host is told that asks for a mapping."""
        return read_answer(self.ask(map_request(source, protocol, port, **more), source))

    def listed(self) -> list[tuple[str, int, str, int | None]]:
        """(host, port, origin, seconds left) of each mapping, as `krononat mappings list` has them."""
        return sorted(
            (told.internal, told.internal_port, told.origin, told.expires_s)
            for told in view_mappings.mappings(self.state, now=self.now)
        )


def server(text: str = PLAIN, each: int = 16, room: int = 32) -> Server:
    given = bed(text)
    given.grants = room
    made = Server(Core(given, EPOCH), each)
    ready(made.core)
    return made


def reached(server: Server, told: Told, protocol: str = "udp", port: int = 9999) -> str | None:
    """Internal endpoint that a stranger's packet to an external endpoint comes to, None where it is dropped."""
    flags = " syn" if protocol == "tcp" else ""
    host = ".".join(map(str, told.external.to_bytes(4, "big")))
    result = say(server.core, f"{protocol} {STRANGER}:{port} > {host}:{told.external_port}{flags}", server.now, "outside")
    return ends(result.sent)[1] if result.sent else None


def ends(frame: bytes) -> tuple[str, str]:
    """Source and destination of the packet in a frame."""
    packet = dissect(split_frame(frame)[4])
    return spell(packet.source, packet.source_port), spell(packet.destination, packet.destination_port)


def twin_servers() -> tuple[Twins, Server]:
    """Two cores, the first one has the authority."""
    twins = Twins(bed(), EPOCH)
    ready(twins.one, twins.other)
    return twins, Server(twins.one)


def hand_over(twins: Twins, now: int) -> None:
    """The other core has the authority from now on."""
    twins.role(twins.one, PASSIVE, 0, 2)
    twins.role(twins.other, ACTIVE, 0, 2)
    assert twins.other.state.shards[0]["creates"]
