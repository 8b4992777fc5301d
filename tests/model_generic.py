"""Protocols without ports in the NAT of plain dictionaries: the part of `model` that says whose one is to a remote.

An external address speaks such a protocol to a remote for one host: the first who has spoken, for as long as his session lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.admission import is_generic
from tests.frames import Packet
from tests.outcome import Unchosen
from tests.translation import Endpoint, Refused

if TYPE_CHECKING:
    from tests.model import Mapping, Model
    from tests.model_ports import Choose


class Generic:
    """Owners of (external address, remote, protocol)."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def owner(self, protocol: int, external: Endpoint, remote: int) -> Mapping | None:
        """Whose an external endpoint is; of a generic protocol his who has a session with the remote, or the static one."""
        if not is_generic(protocol):
            return self.model.owners.get((protocol, external))
        told = [
            session.mapping
            for (number, _, (other, _)), session in self.model.sessions.items()
            if (number, other, session.mapping.external[0]) == (protocol, remote, external[0])
        ]
        assert len(told) <= 1, "two owners"
        return told[0] if told else self._static(protocol, external[0])

    def speaker(self, protocol: int, internal: Endpoint, remote: int) -> Mapping | None:
        """The mapping of an internal endpoint; one of a generic protocol is of use only with a session, or if it is static."""
        mapping = self.model.mappings.get((protocol, internal))
        useless = mapping and is_generic(protocol) and not mapping.static and (remote, 0) not in mapping.sessions
        return None if useless else mapping

    def foresee(self, packet: Packet, mapping: Mapping | None) -> None:
        """Refuse what is another's before anything is chosen, where it is known by which address it would leave."""
        if not is_generic(packet.protocol):
            return
        subscriber = self.model.subscriber(packet.source)
        if mapping:
            self._refuse(packet, mapping, mapping.external[0])
        elif subscriber.last and (subscriber.blocks or self.model.ports.stays(subscriber.last)):
            self._refuse(packet, mapping, subscriber.last)

    def choose(self, packet: Packet, internal: Endpoint, choose: Choose) -> Endpoint:
        """The external endpoint of a new mapping. He who was refused at the address that was chosen has got none."""

        def chosen(protocol: int, internal: Endpoint) -> Endpoint:
            try:
                external = choose(protocol, internal)
            except Unchosen as tried:
                self.model.subscriber(packet.source).last = tried.host
                if is_generic(protocol):
                    self._refuse(packet, None, tried.host)
                raise
            if is_generic(protocol):
                self._refuse(packet, None, external[0])
            return external

        return self.model.ports.choose(packet.protocol, internal, chosen)

    def _refuse(self, packet: Packet, mapping: Mapping | None, host: int) -> None:
        """Raise `Refused` where another has the packet's protocol by this external address, or nobody can be meant."""
        if packet.destination == host:
            raise Refused("hairpin_refused")
        static = self._static(packet.protocol, host)
        owner = self.owner(packet.protocol, (host, 0), packet.destination)
        if any(other is not None and other is not mapping for other in (static, owner)):
            raise Refused("protocol_in_use")

    def _static(self, protocol: int, host: int) -> Mapping | None:
        """Its place is the number of its protocol."""
        return self.model.owners.get((protocol, (host, protocol)))
