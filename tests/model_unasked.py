"""The part of the model for who asks for a connection that nothing permits (RFC 6092 REC-34, REC-39, RFC 5382 REQ-4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests import shunts
from tests.admission import ACK, RST, SYN
from tests.frames import TCP, Packet
from tests.frames6 import Packet6, begins_association
from tests.outcome import Shunted
from tests.translation import Refused, with_source

if TYPE_CHECKING:
    from tests.model import Model

WAIT, ROOM = 6100, 1024  # ticks; how many may wait
PORT_UNREACHABLE, PROHIBITED6 = (0x0303, 0), (0x0101, 0)
VERDICTS = ("unsolicited", "no_mapping", "filtered")


@dataclass
class Asked:
    """What somebody asked for, as it would come in, and how it came."""

    packet: Packet | Packet6
    verdict: str
    side: str
    came: shunts.Wrapping | None
    due: int
    frame: bytes = b""
    place: str = ""


class Unasked:
    """Who waits to be told."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.waiting: list[Asked] = []

    def note(self, verdict: str, packet: Packet | Packet6, side: str, data: bytes = b"") -> None:
        """A packet was refused; `data`: of IPv6 its bytes."""
        bed = self.model.bed
        told = bed.unsolicited6 if isinstance(packet, Packet6) else bed.unsolicited
        if verdict not in VERDICTS or not told or not bed.errors or side in bed.quiet or self.model._came_turned:
            return
        opens = packet.protocol == TCP and packet.flags & (SYN | ACK | RST) == SYN
        if (opens or begins_association(data)) and len(self.waiting) < ROOM:
            shown = packet if isinstance(packet, Packet6) or side == "outside" else self._outside(packet)
            self.waiting.append(Asked(shown, verdict, side, self.model.came, self.model.now + WAIT))

    def _outside(self, packet: Packet) -> Packet:
        """A packet to another subscriber, as it would reach him: its session is there."""
        key = packet.protocol, (packet.source, packet.source_port), (packet.destination, packet.destination_port)
        return with_source(packet, self.model.sessions[key].mapping.external)

    def came_as(self, frame: bytes, place: str) -> None:
        """Say what the packet in hand was on the wire."""
        if self.waiting and not self.waiting[-1].frame:
            self.waiting[-1].frame, self.waiting[-1].place = frame, place

    def due(self) -> list[tuple[Asked, tuple[int, int]]]:
        """Who is to be told now, and what."""
        told, rate = [], self.model.bed.errors
        while self.waiting and self.waiting[0].due <= self.model.now:
            asked = self.waiting.pop(0)
            six = isinstance(asked.packet, Packet6)
            if self._verdict(asked) != asked.verdict or (six and self.model.bed.outside.on_link6 is None):
                continue
            if self.model._spend("errors about what nobody asked for", rate, rate):
                told.append((asked, PROHIBITED6 if six else PORT_UNREACHABLE))
        return told

    def _verdict(self, asked: Asked) -> str:
        """What it would be refused for now; empty where it has a session, is let in, or is not ours to say."""
        self.model.came, turned = asked.came, asked.side == "inside"
        try:
            if isinstance(asked.packet, Packet6):
                return self._verdict6(asked.packet, turned)
            if asked.packet.destination in self.model.pool_of:
                return self._verdict4(asked.packet, turned)
            return self._verdict_untranslated(asked.packet, turned)
        except Refused as refused:
            return refused.verdict
        except Shunted:
            return ""

    def _verdict6(self, packet: Packet6, turned: bool) -> str:
        six = self.model.six
        key = six._key(packet, "outside")
        if key not in six.sessions:
            six._invite(packet, key, turned)
        return ""

    def _verdict4(self, packet: Packet, turned: bool) -> str:
        model, remote = self.model, (packet.source, packet.source_port)
        mapping = model.owners.get((TCP, (packet.destination, packet.destination_port)))
        if mapping and (TCP, mapping.internal, remote) in model.sessions:
            return ""
        model._need_authority(model.pool_of[packet.destination].shard, packet, "outside", turned)
        if mapping is None:
            return "no_mapping"
        model._obey_rules("inbound", TCP, mapping.internal, remote)
        return "" if model.bare.lets_in(mapping, remote) else "filtered"

    def _verdict_untranslated(self, packet: Packet, turned: bool) -> str:
        model, internal, remote = (
            self.model, (packet.destination, packet.destination_port), (packet.source, packet.source_port)
        )  # fmt: skip
        session = model.sessions.get((TCP, internal, remote))
        if session and session.mapping.bypass:
            return ""
        model._need_authority(model.pool(packet.destination).shard, packet, "outside", turned)
        return "" if model.untranslated.fits("inbound", TCP, internal, remote) else "no_mapping"
