"""The part of the model for ICMP errors about packets of ours (RFC 5508 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.admission import blanked
from tests.bed import NEIGHBOUR_WAIT
from tests.frames import Packet
from tests.outcome import Outcome
from tests.translation import (
    Refused,
    can_have_passed,
    concealed,
    embedded,
    identifier,
    remote_port_of,
    with_destination,
    with_source,
)

if TYPE_CHECKING:
    from tests.model import Model


class Errors:
    """What a model does with errors that others report."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def outbound(self, packet: Packet, turns: bool) -> Outcome:
        """What becomes of one from inside."""
        translated = self._translated_out(packet)
        if turns and not self.model.bed.hairpin:
            raise Refused("hairpin_refused")
        if turns and packet.ttl <= 1:
            raise Refused("ttl_exceeded")
        if turns and (outcome := self.model._turn(translated)).verdict == "held":
            raise Refused("no_authority" if outcome.patience < NEIGHBOUR_WAIT else "neighbour_unresolved")
        return outcome if turns else self.model._send(translated, "outside", "forwarded_out")

    def _translated_out(self, packet: Packet) -> Packet:
        """An inside station's word on a packet that we delivered: outer source and embedded destination become external."""
        about = embedded(packet)
        if about.source != packet.destination:
            raise Refused("icmp_unrelated")
        internal = (about.destination, about.destination_port or identifier(about))
        if self.model.untranslated.is_about(about, internal, (about.source, remote_port_of(about, about.source_port)), True):
            return self.model.untranslated.error_out(packet, internal[0])
        mapping = self.model.generic.speaker(about.protocol, internal, about.source)
        if mapping is None and can_have_passed(about, self.model.bed.protocols) and self.model._prefix_of(about.destination):
            self.model._need_authority(self.model.pool(about.destination).shard, packet, "inside")
        if mapping is None:
            raise Refused("icmp_unrelated")
        shown = concealed(packet)
        source = self._speaker(mapping.external[0]) if packet.source != mapping.internal[0] else mapping.external[0]
        about = with_destination(embedded(shown), mapping.external)
        return replace(shown, source=source, about=replace(about, ip_options=blanked(about.ip_options)))

    def _speaker(self, external: int) -> int:
        """The address by which routers of the inside are known outside; that of what they speak about if none is reserved."""
        return self.model.bed.shard(self.model.pool_of[external].shard).icmp or external

    def translated_in(self, packet: Packet, turned: bool) -> Packet:
        """The Internet's word on a packet that we sent: outer destination and embedded source become internal."""
        about = embedded(packet)
        if self.model._prefix_of(packet.destination):
            return self.model.untranslated.error_in(packet, about, turned)
        external = (about.source, about.source_port or identifier(about))
        mapping = self.model.generic.owner(about.protocol, external, about.destination)
        ours = not turned and about.destination in self.model.pool_of  # such a packet never went out
        known = about.source == packet.destination and not ours
        if mapping is None and known and can_have_passed(about, self.model.bed.protocols):
            self.model._need_authority(self.model.pool_of[about.source].shard, packet, "outside", turned)
        if mapping is None or not known:
            raise Refused("icmp_unrelated")
        return replace(packet, destination=mapping.internal[0], about=with_source(about, mapping.internal))
