"""The PCP server of a core: sockets, budgets, and turns between two breaths of the worker.

Requests are addressed to the core itself, so they go the way of a ping to it: the steering program (of a memif port the tap)
leaves them to the kernel, and its answers take the kernel's routes to the subscribers. An internal own address is nobody's on
an external port, and what comes in by an interface that is none of the internal ones is not answered.

A request costs a tenth of a millisecond in which no packet is forwarded, so there is a budget for the core, and one for each
subscriber; what is beyond is dropped, and asked again by whoever means it (RFC 6887 8.1.1, 8.2). Each address has some lanes:
sockets that the kernel chooses among by who sends. So a host that sends more than can be read fills his own, and is not in the
way of those on the others; who has many addresses to send from can fill them all. What is dropped has a share of the time, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
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
from shards.account_rows import REASONS
from shards.state import State
from shards.verdict import PCP_DROPPED, PCP_REFUSED, PCP_REQUESTS

TURN_EACH = 50  # ticks
HURRY_EACH = 5  # if there is much to do; a turn is short
REST = 1000  # nothing that is left to do is urgent
LOOK_EACH = 5  # ticks between two looks at the sockets while packets keep the worker awake: a look at nothing takes 2 us
WORK_AT_ONCE, ANSWER_WORK, DROP_WORK = 64, 8, 4  # in one look: 8 answers or 16 drops; a drop takes 12 us, and may come for ever
LANES_BITS = 3
LANES = 1 << LANES_BITS
BUFFER_BYTES = 1 << 16  # of a lane: what waits longer is asked again anyway
KNOWN_AT_MOST = 4096  # subscribers whose budgets are remembered; beyond, all of them begin anew

_IP_FREEBIND, _IP_PKTINFO = 15, 8  # ip(7)
_PKTINFO = struct.Struct("@i4s4s")  # interface, our address, the header's destination
_SO_RXQ_OVFL, _SO_ATTACH_REUSEPORT_CBPF = 40, 51  # socket(7)
_OVERFLOW = struct.Struct("@I")  # datagrams that a socket had no room for, since it was made
_ANCILLARY = socket.CMSG_SPACE(_PKTINFO.size) + socket.CMSG_SPACE(_OVERFLOW.size)
_RATE = REASONS.index("rate")

# Which lane a sender has, as the kernel is told (linux/filter.h): the upper bits of his address times 2**32 / golden ratio.
_SOURCE = 0xFFF00000 + 12  # SKF_NET_OFF: in the header of IPv4
_CHOICE = b"".join(
    struct.pack("@HBBI", code, 0, 0, k) for code, k in ((0x20, _SOURCE), (0x24, 0x9E3779B1), (0x74, 32 - LANES_BITS), (0x16, 0))
)


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


class Lane:
    """A socket, and how many datagrams the kernel has had no room for in it."""

    def __init__(self, made: socket.socket) -> None:
        self.socket, self._overflown = made, 0

    def overflow(self, ancillary: list[tuple[int, int, bytes]]) -> int:
        """How many more since we asked last (32 bits, which wrap)."""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL) and len(data) >= _OVERFLOW.size:
                before, self._overflown = self._overflown, _OVERFLOW.unpack_from(data)[0]
                return (self._overflown - before) & 0xFFFFFFFF
        return 0


class Listener:
    """Made when a worker takes over; `told` are its orders (`pcp_orders`)."""

    def __init__(self, state: State, told: Mapping[str, Any], now: int) -> None:
        self._state = state
        self._policy = Policy(told["minimum_s"], told["maximum_s"], told["nat_pmp"], told["third_party"])
        self._table = GrantTable(state, told["each"], told["maximum_s"] if told["addresses"] else 0, now)
        self._interfaces = set(told["interfaces"])
        self._rate, self._each_rate = told["rate"], told["each_rate"]
        self._budget, self._budgets = Budget(self._rate, now), dict[int, Budget]()
        lanes = [_open(address) for address in told["addresses"]]
        self._voices = [made[0] for made in lanes if made]  # one at each address
        self._lanes = {made.fileno(): Lane(made) for each in lanes for made in each}
        self._ready = select.epoll()
        for descriptor in self._lanes:
            self._ready.register(descriptor, select.EPOLLIN)
        self._turned_at = self._looked_at = now - TURN_EACH
        self._answered, self._in_vain = 0, False
        self._faults = 0

    def descriptors(self) -> list[int]:
        """To wait for while idle."""
        return [self._ready.fileno()] if self._lanes else []

    def due(self) -> int:
        """In how many ms a turn is wanted though nothing has come."""
        return HURRY_EACH if self._table.busy else REST

    def close(self) -> None:
        """Nobody is answered from now on."""
        self._ready.close()
        for each in self._lanes.values():
            each.socket.close()

    def turn(self, now: int, at: int, called: bool) -> None:
        """Answer what has come, end what is due. `now`: tick; `at`: that of the packets' clock. Never raises.

        `called`: something has come that may be for us.
        """
        try:
            if self._table.ready and ((called and not self._in_vain) or now - self._looked_at >= LOOK_EACH):
                self._looked_at = now
                self._in_vain = self._serve(now, at)
            if not self._table.ready or now - self._turned_at >= (HURRY_EACH if self._table.busy else TURN_EACH):
                self._turned_at = now
                self._table.turn(at)
                self._announce(at)
        except Exception:  # a fault of ours here must not end the forwarding
            if not self._faults:
                with contextlib.suppress(OSError):
                    traceback.print_exc()
            self._faults += 1

    def _serve(self, now: int, at: int) -> bool:
        """One datagram of each lane that has some, round and round: the kernel puts a lane that it has shown at the end.

        Whether all this look was for was to drop: then the next one is not hurried.
        """
        left, before = WORK_AT_ONCE, self._answered
        while left > 0 and (shown := self._ready.poll(0, max(left // ANSWER_WORK, 1))):
            self._table.begin(at)  # what is answered tells of an epoch
            for descriptor, _ in shown:
                left -= self._take(self._lanes[descriptor], now, at)
        return left <= 0 and self._answered == before

    def _take(self, lane: Lane, now: int, at: int) -> int:
        """Work that it was to see to one datagram."""
        try:
            datagram, ancillary, _, source = lane.socket.recvmsg(pcp.BYTES_AT_MOST + 4, _ANCILLARY)
        except OSError:  # nothing more, or what became of an answer of ours
            return 1
        lost = lane.overflow(ancillary)
        self._count(PCP_REQUESTS, 1 + lost)
        self._count(PCP_DROPPED, lost)
        answer = self._answer(datagram, source[0], now, at) if self._came_from_inside(ancillary) else b""
        if not answer:
            self._count(PCP_DROPPED)
            return DROP_WORK
        self._answered += 1
        with contextlib.suppress(OSError):  # no route, or no room: it is asked again
            lane.socket.sendto(answer, source)
        return ANSWER_WORK

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
        answer = pcp_server.answer(self._policy, self._table, datagram, source, at // grant_rows.SECONDS)
        if answer.result:
            self._count(PCP_REFUSED)
        return answer.datagram

    def _may_ask(self, subscriber: int, now: int) -> bool:
        if subscriber not in self._budgets:
            if len(self._budgets) >= KNOWN_AT_MOST:
                self._budgets.clear()
            self._budgets[subscriber] = Budget(self._each_rate, now)
        if not self._budgets[subscriber].spend(now):
            self._state.accounts[subscriber]["refused"][_RATE] += 1
            return False
        return self._budget.spend(now)

    def _announce(self, at: int) -> None:
        """Tell hosts whose mappings were adopted that a new epoch has begun, some in each turn (RFC 6887 14.1.3).

        From each of our addresses: a client believes the one that it asks.
        """
        for _ in range(min(TOLD_AT_ONCE, len(self._table.told))):
            host = self._table.told.popleft()
            told = pcp.announcement(self._table.epoch_s(host, at // grant_rows.SECONDS))
            for each in self._voices:
                with contextlib.suppress(OSError):
                    each.sendto(told, (socket.inet_ntoa(host.to_bytes(4, "big")), pcp.CLIENT_PORT))

    def _count(self, meter: int, by: int = 1) -> None:
        self._state.counters[meter, 0] += by


def _open(address: str) -> list[socket.socket]:
    """The lanes at one of our addresses; who takes over opens its own before those before are closed. None, and why is said."""
    made: list[socket.socket] = []
    try:
        for _ in range(LANES):
            made.append(_new_lane())
            made[-1].bind((address, pcp.PORT))
        program = ctypes.create_string_buffer(_CHOICE, len(_CHOICE))
        told = struct.pack("@HP", len(_CHOICE) // 8, ctypes.addressof(program))
        made[0].setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, told)
    except OSError as error:
        for each in made:
            each.close()
        why = f"{error.strerror}; is another server of PCP or NAT-PMP running here?"
        print(f"krononat: nobody is answered at {address} port {pcp.PORT}: {why}", file=sys.stderr, flush=True)
        return []
    return made


def _new_lane() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1), (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES), (socket.SOL_SOCKET, _SO_RXQ_OVFL, 1),
        (socket.IPPROTO_IP, _IP_FREEBIND, 1), (socket.IPPROTO_IP, _IP_PKTINFO, 1),
    ):  # fmt: skip
        made.setsockopt(level, option, value)
    return made
