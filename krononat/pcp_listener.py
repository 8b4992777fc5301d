"""The PCP server of a core: sockets, budgets, and turns between two breaths of the worker.

Requests are addressed to the core itself, so they go the way of a ping to it: the steering program (of a memif port the tap)
leaves them to the kernel, and its answers take the kernel's routes to the subscribers. An internal own address is nobody's on
an external port, and what comes in by an interface that is none of the internal ones is not answered.

A request costs a tenth of a millisecond in which no packet is forwarded, so there is a budget for the core, and one for each
subscriber; what is beyond is dropped, and asked again by whoever means it (RFC 6887 8.1.1).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from krononat import pcp, pcp_server
from krononat.pcp_server import Policy
from krononat.pcp_table import TOLD_AT_ONCE, GrantTable
from shards import grant_rows
from shards.state import State
from shards.verdict import PCP_DROPPED, PCP_REFUSED, PCP_REQUESTS

TURN_EACH = 50  # ticks
LOOK_EACH = 5  # ticks between two looks at the sockets while packets keep the worker awake: a look at nothing takes 2 us
READ_AT_ONCE = 8  # datagrams
BUFFER_BYTES = 1 << 16  # of a socket: what waits longer is asked again anyway
KNOWN_AT_MOST = 4096  # subscribers whose budgets are remembered; beyond, all of them begin anew

_IP_FREEBIND, _IP_PKTINFO = 15, 8  # ip(7)
_PKTINFO = struct.Struct("@i4s4s")  # interface, our address, the header's destination
_ANCILLARY = socket.CMSG_SPACE(_PKTINFO.size)


class Budget:
    """A token bucket: `rate` a second, as many saved up; times in ticks."""

    def __init__(self, rate: int, now: int) -> None:
        self._rate, self._tokens, self._at = rate, 1000 * rate, now

    def spend(self, now: int) -> bool:
        """Whether there was one left."""
        self._tokens = min(self._tokens + max(now - self._at, 0) * self._rate, 1000 * self._rate)
        self._at = now
        if self._tokens < 1000:
            return False
        self._tokens -= 1000
        return True


class Listener:
    """Made when a worker takes over; `told` are its orders (`pcp_orders`)."""

    def __init__(self, state: State, told: Mapping[str, Any], now: int) -> None:
        self._state = state
        self._policy = Policy(told["minimum_s"], told["maximum_s"], told["nat_pmp"], told["third_party"])
        self._table = GrantTable(state, told["each"], told["maximum_s"] if told["addresses"] else 0, now)
        self._interfaces = set(told["interfaces"])
        self._rate, self._each_rate = told["rate"], told["each_rate"]
        self._budget, self._budgets = Budget(self._rate, now), dict[int, Budget]()
        self._sockets = [made for address in told["addresses"] if (made := _open(address))]
        self._turned_at = self._looked_at = now - TURN_EACH
        self._faults = 0

    def descriptors(self) -> list[int]:
        """To wait for while idle."""
        return [each.fileno() for each in self._sockets]

    def turn(self, now: int, at: int, called: bool) -> None:
        """Answer what has come, end what is due. `now`: tick; `at`: that of the packets' clock. Never raises.

        `called`: something has come that may be for us.
        """
        try:
            if called or now - self._looked_at >= LOOK_EACH:
                self._looked_at = now
                for each in self._sockets:
                    self._serve(each, now, at)
            if now - self._turned_at >= TURN_EACH:
                self._turned_at = now
                self._table.turn(at)
                self._announce(at)
        except Exception:  # a fault of ours here must not end the forwarding
            if not self._faults:
                with contextlib.suppress(OSError):
                    traceback.print_exc()
            self._faults += 1

    def _serve(self, listening: socket.socket, now: int, at: int) -> None:
        for _ in range(READ_AT_ONCE):
            try:
                datagram, ancillary, _, source = listening.recvmsg(pcp.BYTES_AT_MOST + 4, _ANCILLARY)
            except OSError:  # nothing more, or what became of an answer of ours
                return
            self._count(PCP_REQUESTS)
            answer = self._answer(datagram, source[0], now, at) if self._came_from_inside(ancillary) else b""
            if not answer:
                self._count(PCP_DROPPED)
            else:
                with contextlib.suppress(OSError):  # no route, or no room: it is asked again
                    listening.sendto(answer, source)

    def _came_from_inside(self, ancillary: list[tuple[int, int, bytes]]) -> bool:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) >= _PKTINFO.size:
                return _PKTINFO.unpack_from(data)[0] in self._interfaces
        return False

    def _answer(self, datagram: bytes, sender: str, now: int, at: int) -> bytes:
        """Bytes to send, none where the sender is not one of ours, has asked too much, or asked nothing."""
        source = int.from_bytes(socket.inet_aton(sender), "big")
        subscriber, ours = self._table.subscriber_of(source)
        if not ours or not self._may_ask(subscriber, now):
            return b""
        self._table.now = at
        answer = pcp_server.answer(self._policy, self._table, datagram, source, at // grant_rows.SECONDS)
        if answer.result:
            self._count(PCP_REFUSED)
        return answer.datagram

    def _may_ask(self, subscriber: int, now: int) -> bool:
        if subscriber not in self._budgets:
            if len(self._budgets) >= KNOWN_AT_MOST:
                self._budgets.clear()
            self._budgets[subscriber] = Budget(self._each_rate, now)
        return self._budgets[subscriber].spend(now) and self._budget.spend(now)

    def _announce(self, at: int) -> None:
        """Tell hosts whose mappings were adopted that a new epoch has begun, some in each turn (RFC 6887 14.1.3).

        From each of our addresses: a client believes the one that it asks.
        """
        for _ in range(min(TOLD_AT_ONCE, len(self._table.told))):
            host = self._table.told.popleft()
            told = pcp.announcement(self._table.epoch_s(host, at // grant_rows.SECONDS))
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.sendto(told, (socket.inet_ntoa(host.to_bytes(4, "big")), pcp.CLIENT_PORT))

    def _count(self, meter: int) -> None:
        self._state.counters[meter, 0] += 1


def _open(address: str) -> socket.socket | None:
    """A socket at one of our addresses; who takes over opens its own before the one before has ended. None, and why is said."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        made.bind((address, pcp.PORT))
        made.setblocking(False)
    except OSError as error:
        made.close()
        why = f"{error.strerror}; is another server of PCP or NAT-PMP running here?"
        print(f"krononat: nobody is answered at {address} port {pcp.PORT}: {why}", file=sys.stderr, flush=True)
        return None
    return made
