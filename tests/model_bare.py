"""The part of the model for what goes by a mapping alone. In, as filtering has it (RFC 4787 5); out, a RST that answers
such a packet and opens nothing (RFC 7857 7.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.admission import RST, is_fragment
from tests.bed import NEIGHBOUR_WAIT
from tests.frames import TCP, Packet
from tests.outcome import Outcome
from tests.translation import Endpoint, Refused, with_source

if TYPE_CHECKING:
    from tests.model import Mapping, Model


class Bare:
    """What a model does with packets that have no session, and get none."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def lets_in(self, mapping: Mapping, remote: Endpoint) -> bool:
        """RFC 4787 section 5. A static mapping is there to let everyone in."""
        filtering = self.model.pool_of[mapping.external[0]].filtering_of(mapping.protocol)
        if filtering == "endpoint-independent" or mapping.static:
            return True
        return filtering == "address-dependent" and any(host == remote[0] for host, _ in mapping.sessions)

    def mapping_of(self, packet: Packet) -> Mapping | None:
        """Mapping by which may have come what a RST without a session answers."""
        internal, remote = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
        known = self.model._met(self.model.sessions.get((packet.protocol, internal, remote)))
        known = self.model.untranslated.admitted(known) if known else None
        bare = packet.protocol == TCP and packet.flags & RST and not is_fragment(packet) and known is None
        bare = bare and not self.model.untranslated.fits("outbound", TCP, internal, remote)
        mapping = self.model.mappings.get((TCP, internal)) if bare else None
        return mapping if mapping and self.lets_in(mapping, remote) else None

    def answer(self, packet: Packet, mapping: Mapping, turns: bool) -> Outcome:
        """Out by the mapping alone; to another subscriber of ours only into the session that he has asked by."""
        self.model._need_authority(self.model.pool(packet.source).shard, packet, "inside")
        remote = (packet.destination, packet.destination_port)
        self.model._obey_rules("outbound", packet.protocol, mapping.internal, remote)
        self.model._find_way(packet, turns)
        translated = with_source(packet, mapping.external)
        if not turns:
            return self.model._send(translated, "outside", "forwarded_out")
        asker = self.model.owners.get((TCP, remote))
        if asker and (TCP, asker.internal, mapping.external) in self.model.sessions:
            return self.model._turn(translated)
        return self._refuse_to_nobody(translated)

    def _refuse_to_nobody(self, translated: Packet) -> Outcome:
        """Unless it is for another core to say, or not even let in."""
        try:
            outcome = self.model._turn(translated)
        except Refused as refused:
            outcome = Outcome(refused.verdict)
            if refused.verdict not in ("neighbour_unresolved", "too_big"):
                raise
        if outcome.verdict == "shunted" or (outcome.verdict == "held" and outcome.patience < NEIGHBOUR_WAIT):
            return outcome
        raise Refused("tcp_not_opening")
