"""The memif ports of a core: their servers are called until they answer, watched, and called again when they have gone.

The worker is told of each connection and of its end (see `worker`); it keeps running meanwhile. A server that breaks the rules
of the rings is found out by the worker, which writes so into the notes, and is hung up on here. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import selectors
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from krononat import memif
from krononat.memif import Refused, Wanted
from krononat.tap import set_carrier
from krononat.view import ticks
from shards.memif import BROKEN, CONNECTION, FROM_KERNEL, OUTCOME, REFUSED, Connection
from shards.memif import Line as Told
from shards.notes import LINK_WORDS
from shards.outcomes import OUTCOMES
from shards.state import Array

PAUSE = 500  # ticks between two calls
PATIENCE = 10_000  # ticks that a handshake may take: a server that starts needs seconds, and DPDK dies of our giving up

Tell = Callable[[dict[str, Any], Sequence[int]], None]


class Place(NamedTuple):
    """What a port is: its number among all ports, its name, where its server is, what is asked for there, its tap; and what of
    its traffic is the kernel's: own and broadcast addresses, BFD to the former where we do not speak it.
    """

    port: int
    name: str
    socket: str
    wanted: Wanted
    tap: int
    own: Sequence[IPv4Address]
    broadcast: Sequence[IPv4Address]
    bfd: bool = False
    own6: Sequence[IPv6Address] = ()


class Line:
    """One memif port, the `number`-th of its core. `link`: its words of the notes; `tell`: the worker, `say`: to people."""

    def __init__(
        self, number: int, place: Place, link: Array, selector: selectors.BaseSelector, tell: Tell, say: Callable[[str], None]
    ) -> None:
        self.number, self.place, self.link = number, place, link
        self._selector, self._tell, self._say = selector, tell, say
        self._client: memif.Client | None = None
        self._connections = 0
        self._since = ticks()
        self._due = self._since
        self._announced = self._since
        self.connection: Connection | None = None
        self.reason = "not called yet"  # why nobody is there

    def told(self) -> Told:
        """What a worker is told at its start."""
        own, broadcast = ([*map(int, some), -1, -1][:2] for some in (self.place.own, self.place.broadcast))
        here = self.place
        six = [quarter for address in here.own6 for quarter in struct.unpack("!4I", address.packed)]
        own6 = [*six, *[-1] * 8][:8]
        return Told(
            port=here.port,
            tap=here.tap,
            own=own,
            broadcast=broadcast,
            own6=own6,
            bfd=here.bfd,
            connection=self.connection,
        )

    def descriptors(self) -> list[int]:
        """What a worker inherits: the tap, and the rings and events of a connection that stands."""
        return [self.place.tap, *self._shared()]

    def _shared(self) -> list[int]:
        told = self.connection
        return [told["region"], told["out_event"], told["back_event"]] if told else []

    def watch(self, now: int) -> None:
        """Call where nobody is there, and end what does not work; to be called now and then."""
        if self._client is None and now >= self._due:
            self._call(now)
        elif self.connection and self.link[BROKEN] and self.link[CONNECTION] == self.connection["number"]:
            self._hang_up("its cursors cannot be", "the rings' cursors cannot be")
        elif self._client and not self.connection and now - self._since > PATIENCE:
            self._hang_up(f"no answer in {PATIENCE / 1000:.0f} s", "you take too long")
        if now - self._announced >= PAUSE and self.link[CONNECTION] != (self.connection["number"] if self.connection else 0):
            self.announce()

    def _call(self, now: int) -> None:
        self._since, self._due = now, now + PAUSE
        try:
            self._client = memif.call(self.place.socket, self.place.wanted)
        except (Refused, OSError) as refused:  # the latter where we have no descriptor to spare
            self._complain(str(refused))
            return
        self._selector.register(self._client, selectors.EVENT_READ, self._hear)

    def _hear(self) -> None:
        assert self._client
        try:
            self._client.hear()
        except BlockingIOError:
            return
        except (Refused, OSError) as refused:
            self._hang_up(str(refused))
            return
        if self._client.connected and self.connection is None:
            self._begin(self._client)

    def _begin(self, client: memif.Client) -> None:
        self._connections += 1
        self._since = ticks()
        out, back = client.events
        self.connection = Connection(
            number=self._connections,
            region=client.region,
            out_event=out,
            back_event=back,
            log2_entries=client.log2_entries,
        )
        self._carry(True)
        self.announce()
        self._say(f"{self.place.name}: memif connected to {client.peer}, rings of {1 << client.log2_entries}")

    def announce(self) -> None:
        """Tell the worker how things stand. One that does not listen now is told when it is ready, or again by `watch`."""
        self._announced = ticks()
        self._tell({"do": "connect", "line": self.number, "connection": self.connection}, self._shared())

    def _carry(self, there: bool) -> None:
        try:
            set_carrier(self.place.tap, there)
        except OSError as error:  # somebody has taken the tap away: packets of others still pass
            self._say(f"{self.place.name}: the tap is no longer usable: {error.strerror}")

    def _hang_up(self, reason: str, word: str = "") -> None:
        """End what there is; `word` is the reason as the server is told it."""
        client, self._client = self._client, None
        assert client
        self._selector.unregister(client)
        stood, self.connection = self.connection is not None, None
        if stood:
            self.announce()
            self._carry(False)
        client.close(word)
        self._since = ticks()
        self._due = self._since + PAUSE
        self._complain(reason, always=stood)

    def _complain(self, reason: str, always: bool = False) -> None:
        if always or reason != self.reason:
            self._say(f"{self.place.name}: memif is not connected: {reason}")
        self.reason = reason

    def close(self) -> None:
        """Hang up for good."""
        if self._client:
            self._selector.unregister(self._client)
            with contextlib.suppress(OSError):
                self._client.close("the appliance stops")
            self._client = self.connection = None

    def count(self) -> dict[str, tuple[int, int]]:
        """Packets by outcome, as `Steering.count` has them; bytes are not counted."""
        counts = self.link[OUTCOME : OUTCOME + len(OUTCOMES)].tolist()
        return {outcome.name: (count, 0) for outcome, count in zip(OUTCOMES, counts, strict=True)}

    def status(self) -> dict[str, Any]:
        """For `krononat status`."""
        told: dict[str, Any] = {
            "socket": self.place.socket,
            "id": self.place.wanted.id,
            "link": "up" if self.connection else "down",
            "since_s": round((ticks() - self._since) / 1000, 1),
            "connections": self._connections,
            "from_kernel": int(self.link[FROM_KERNEL]),
            "bad_descriptors": int(self.link[REFUSED]),
        }
        if self._client and self.connection:
            return told | {"peer": self._client.peer, "ring_entries": 1 << self.connection["log2_entries"]}
        return told | {"reason": self.reason}


def link_of(links: Array, number: int) -> Array:
    """Words of the `number`-th memif port."""
    return links[number * LINK_WORDS : (number + 1) * LINK_WORDS]
