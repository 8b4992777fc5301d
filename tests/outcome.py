"""What the model says of a frame, and what it raises on the way there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests import shunts
from tests.bed import NEIGHBOUR_WAIT
from tests.frames import Packet
from tests.frames6 import Packet6

if TYPE_CHECKING:
    from tests.datagrams import Datagram


class Waits(Exception):
    """A next hop has not answered yet."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.verdict)
        self.outcome = outcome


class Shunted(Exception):
    """The packet is for the core with the authority over its shard; it is on the way there, or waits for it."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.verdict)
        self.outcome = outcome


class Illegal(AssertionError):
    """The external endpoint that was chosen for a mapping must not be used for it."""


class Unchosen(AssertionError):
    """The pipeline has made no mapping; `host` is the external address by which it would have."""

    def __init__(self, host: int) -> None:
        super().__init__(f"the pipeline has no mapping; it would be by {host:#x}")
        self.host = host


class Outcome(NamedTuple):
    """What becomes of one frame."""

    verdict: str
    packet: Packet | Packet6 | None = None  # as it leaves, or waits to leave
    side: str = ""  # by which port
    ways: tuple[Way, ...] = ()  # by any of which it may go
    reply: tuple[int, int] | None = None  # ICMP error to the sender: type << 8 | code, last four header bytes
    shunt: shunts.Wrapping | None = None  # what is told to the core that it is passed to
    patience: int = NEIGHBOUR_WAIT  # ticks that it may wait
    datagram: Datagram | None = None  # what it is a fragment of
    follows: bool = False  # it is a fragment behind the first


class Way(NamedTuple):
    """A port, as scenarios call it, and the address of the next hop there."""

    place: str
    hop: int
