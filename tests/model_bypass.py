"""The part of the model for what is not translated (RFC 6888 REQ-6), and for sessions that older rules have admitted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.admission import blanked
from tests.bed import contains
from tests.bed_rules import PROTOCOLS
from tests.frames import TCP, UDP, Packet
from tests.outcome import Outcome
from tests.translation import Endpoint, Refused, can_have_passed, concealed, embedded, identifier, remote_port_of

if TYPE_CHECKING:
    from tests.model import Model, Session


class Untranslated:
    """What a model does with packets that pass as they are."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.in_hand = False  # such a packet is

    # --- which packets ----------------------------------------------------------------------------------------------------

    def names(self, host: int, direction: str) -> bool:
        """Whether an address of a subscriber is known outside: by what he begins, or (inbound) by what may begin there."""
        return any(contains(e.internal, host) and (e.inbound or direction == "outbound") for e in self.model.bed.bypasses)

    def fits(self, direction: str, protocol: int, internal: Endpoint, remote: Endpoint) -> bool:
        """Whether what would begin in a direction is not translated."""
        for entry in self.model.bed.bypasses:
            ports = [(entry.internal_ports, internal[1]), (entry.remote_ports, remote[1])]
            every = all(limits == (0, 65535) for limits, _ in ports)
            fit = every or (protocol in (TCP, UDP) and all(low <= port <= high for (low, high), port in ports))
            hosts = contains(entry.internal, internal[0]) and contains(entry.remote, remote[0])
            if hosts and fit and PROTOCOLS[entry.protocol] in (0, protocol) and (entry.inbound or direction == "outbound"):
                return True
        return False

    # --- in ---------------------------------------------------------------------------------------------------------------

    def session_in(self, packet: Packet) -> Session | None:
        """The session that a packet to an inside address is of."""
        internal, remote = _ends(packet)
        session = self.model._met(self.model.sessions.get((packet.protocol, internal, remote)))
        return self.admitted(session) if session and session.mapping.bypass else None

    def inbound(self, packet: Packet, session: Session | None, turned: bool, verdict: str) -> Outcome:
        """To a subscriber by the address that he has."""
        internal, remote = _ends(packet)
        if session is None:
            self.model._need_authority(self.model.pool(packet.destination).shard, packet, "outside", turned)
            if not self.fits("inbound", packet.protocol, internal, remote):
                raise Refused("no_mapping")
            self.model._obey_rules("inbound", packet.protocol, internal, remote)
        outcome = self.model._send(packet, "inside", verdict)
        if session and outcome.verdict != "held":
            self.model.advance(session, "in", packet.flags)
        return outcome

    # --- by which rules ---------------------------------------------------------------------------------------------------

    def admitted(self, session: Session) -> Session | None:
        """What the rules of now say of a session that older ones have admitted: itself, None, or Refused; it ends then."""
        mapping = session.mapping
        if session.version == self.model.bed.version:
            return session
        told = mapping.protocol, mapping.internal, session.remote
        if mapping.bypass and not self.fits("outbound", *told):
            self.end_here(session, mapping.internal[0])
            return None
        try:
            self.model._obey_rules("outbound", *told)
            if mapping.static:
                self.model._obey_rules("inbound", *told)
        except Refused:
            self.end_here(session, mapping.internal[0])
            raise
        session.version = self.model.bed.version
        return session

    def end_here(self, session: Session, host: int) -> None:
        """End a session if its shard is ours."""
        if self.model.bed.shard(self.model.pool(host).shard).role == "active":
            self.model.end(session)

    # --- ICMP errors ------------------------------------------------------------------------------------------------------

    def is_about(self, about: Packet, internal: Endpoint, remote: Endpoint, came: bool) -> bool:
        """Whether a packet that an error is about is one that is not translated; `came`: it came in."""
        if not can_have_passed(about, self.model.bed.protocols) or not self.model._prefix_of(internal[0]):
            return False
        session = self.model.sessions.get((about.protocol, internal, remote))
        if session:
            return session.mapping.bypass and self._is_admitted(session)
        known = self.model.generic.speaker(about.protocol, internal, remote[0]) is not None
        return came and not known and self.fits("inbound", about.protocol, internal, remote)

    def _is_admitted(self, session: Session) -> bool:
        try:
            return self.admitted(session) is not None
        except Refused:
            return False

    def error_out(self, packet: Packet, internal: int) -> Packet:
        """An inside station's word on a packet that came in as it was."""
        self.in_hand = True
        icmp = self.model.bed.shard(self.model.pool(internal).shard).icmp
        shown = concealed(packet)
        about = embedded(shown)
        source = internal if packet.source == internal else icmp or internal
        return replace(shown, source=source, about=replace(about, ip_options=blanked(about.ip_options)))

    def error_in(self, packet: Packet, about: Packet, turned: bool) -> Packet:
        """The Internet's word on a packet that went out as it was."""
        internal = (about.source, about.source_port or identifier(about))
        remote = (about.destination, remote_port_of(about, about.destination_port))
        if about.source != packet.destination:
            raise Refused("icmp_unrelated")
        if self.is_about(about, internal, remote, False):
            return packet
        if can_have_passed(about, self.model.bed.protocols):
            self.model._need_authority(self.model.pool(about.source).shard, packet, "outside", turned)
        raise Refused("icmp_unrelated")


def _ends(packet: Packet) -> tuple[Endpoint, Endpoint]:
    """(internal, remote) of a packet that comes in untranslated."""
    internal = (packet.destination, packet.destination_port or identifier(packet))
    return internal, (packet.source, remote_port_of(packet, packet.source_port))
