"""Next hops by the kernel's neighbour table: what the worker wants is resolved there, kept fresh, and written back.

The kernel does ARP (RFC 826) and neighbour discovery (RFC 4861) and decides who is reachable (its states: linux/neighbour.h);
this service asks it by rtnetlink(7) and follows its news. Packets pass the kernel by, so nothing there would notice that a
neighbour is in use: it is told so from time to time (NTF_USE). Messages are made and read by pyroute2; the socket is our own,
in the supervisor's selector, because pyroute2's sockets bring an event loop. Reading a message takes some 30 µs, so a call
takes in no more than a portion.

A row's own word holds MAC, state and port: written at once, so a worker never sees half a MAC. What packets go by is written by
the worker (see shards.legs), as soon as it sees another `neighbours_version`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Container, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

import numpy as np
from pyroute2.netlink import NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH, RTMGRP_NEIGH
from pyroute2.netlink.rtnl.marshal import MarshalRtnl
from pyroute2.netlink.rtnl.ndmsg import (
    NTF_USE,
    NUD_DELAY,
    NUD_FAILED,
    NUD_NOARP,
    NUD_NONE,
    NUD_PERMANENT,
    NUD_PROBE,
    NUD_REACHABLE,
    NUD_STALE,
    ndmsg,
)

from shards.state import FAILED, NEIGHBOUR_OWN, REACHABLE, WANTED, Array, State

# The kernel never asks for these, and what is said below with NTF_USE would make an ordinary neighbour of a permanent one.
_FIXED = NUD_NOARP | NUD_PERMANENT
_VALID = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT  # NUD_VALID, include/net/neighbour.h

# Ticks between two questions about a neighbour, by the state of its row: none, WANTED, REACHABLE, FAILED.
_PAUSES = np.array([1 << 60, 1000, 15_000, 5000])
GIVE_UP = 8000  # ticks without the kernel's verdict after which a wanted one counts as failed
AT_ONCE = 200  # questions in one go; a large access network is walked in several
PORTION = 256  # messages after which `listen` leaves the rest to its next call

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NEVER = -(1 << 40)
_OWN = NEIGHBOUR_OWN // 8  # which word of a row is ours
Address = IPv4Address | IPv6Address
_CODEC = MarshalRtnl()


class News(NamedTuple):
    """What the kernel says of a neighbour."""

    interface: int
    address: Address
    mac: bytes  # empty: none
    state: int


def read(messages: bytes, interfaces: Container[int]) -> Iterator[News]:
    """Neighbours on `interfaces` in a datagram of netlink messages; a deleted one comes as NUD_NONE without a MAC.

    Other interfaces need not be Ethernet: what they call an address is not even decoded.
    """
    for message in _CODEC.parse(messages):
        kind = message["header"]["type"]
        told = kind in (RTM_NEWNEIGH, RTM_DELNEIGH) and message["family"] in _FAMILIES.values()
        if told and message["ifindex"] in interfaces:
            address = ip_address(message.get_attr("NDA_DST"))
            mac = bytes.fromhex((message.get_attr("NDA_LLADDR") or "").replace(":", ""))
            news = News(message["ifindex"], address, mac, message["state"])
            yield news if kind == RTM_NEWNEIGH else news._replace(mac=b"", state=NUD_NONE)


def address_of(row: Any) -> Address:
    """Address of a row of `state.neighbours`."""
    if not row["six"]:
        return IPv4Address(int(row["address"]))
    return IPv6Address(int(row["high"]) << 64 | int(row["middle"]) << 32 | int(row["address"]))


def _is_valid(news: News) -> bool:
    return bool(news.state & _VALID) and len(news.mac) == 6


def question(interface: int, address: Address) -> bytes:
    """Message that has the kernel resolve, or confirm, a neighbour as if it had a packet for it."""
    told = {"ifindex": interface, "flags": NTF_USE, "attrs": [("NDA_DST", str(address))]}
    return _message(RTM_NEWNEIGH, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE, _FAMILIES[address.version], told)


def _message(kind: int, flags: int, family: int, told: dict[str, Any]) -> bytes:
    message = ndmsg().load({"header": {"type": kind, "flags": flags}, "family": family, **told})
    message.encode()
    return bytes(message.data)


class Neighbours:
    """The service: the one writer of the own MAC and state of `state.neighbours`.

    `interfaces`: interface index of each row of `state.ports`. It belongs to the namespace it is made in.
    """

    def __init__(self, state: State, interfaces: Sequence[int]) -> None:
        self._state = state
        self._interfaces = list(interfaces)
        self._known: dict[tuple[int, Address], News] = {}
        self._asked = np.full(len(state.neighbours), _NEVER, np.int64)  # tick of the last question
        self._wanted: dict[int, int] = {}  # row -> tick since its first question
        self._words = state.neighbours.view(np.uint64).reshape(len(state.neighbours), -1)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setblocking(False)
        self._socket.bind((0, RTMGRP_NEIGH))
        self._dump()

    def fileno(self) -> int:
        """For the selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening; the rows stay as they are."""
        self._socket.close()

    def _dump(self) -> None:
        """Ask for everything the kernel knows; the answer comes as news."""
        self._send(_message(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, socket.AF_UNSPEC, {}))

    def _send(self, message: bytes) -> None:
        # What the kernel cannot take now is asked again later; what it refuses (a link that is down) comes as a message.
        with contextlib.suppress(BlockingIOError):
            self._socket.send(message)

    def listen(self, now: int) -> bool:
        """Take in the news, or a portion of it: the selector says when there is more. Whether a row changed."""
        changed, taken = False, 0
        while taken < PORTION:
            try:
                messages = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._dump()  # news were lost: ask for all of it
                continue
            taken += 1
            for news in read(messages, self._interfaces):
                changed |= self._take(news, now)
                taken += 1
        if changed:
            self._answered()
        return changed

    def serve(self, now: int) -> bool:
        """Answer what is wanted, confirm what is used, retry what failed; whether a row changed. Cheap: call it often."""
        changed = False
        for row in np.flatnonzero(self._state.neighbours["own_state"] == WANTED).tolist():
            news = self._known.get(self._key(row))
            if news and _is_valid(news):
                changed |= self._write(row, news.mac, REACHABLE)
            elif now - self._wanted.get(row, now) > GIVE_UP:
                changed |= self._write(row, b"", FAILED)
        for row in self._due(now)[:AT_ONCE].tolist():
            self._asked[row] = now
            if self._state.neighbours[row]["own_state"] == WANTED:
                self._wanted.setdefault(row, now)  # patience begins with the first question
            if not self._is_fixed(row):
                self._send(question(*self._key(row)))
        if changed:
            self._answered()
        return changed

    def _is_fixed(self, row: int) -> bool:
        news = self._known.get(self._key(row))
        return news is not None and bool(news.state & _FIXED)

    def _due(self, now: int) -> Array:
        """Rows the kernel is to be asked about: the wanted ones first, of those who was asked longest ago."""
        states, since = self._state.neighbours["own_state"], now - self._asked
        due = np.flatnonzero(since >= _PAUSES[np.minimum(states, FAILED)])
        return due[np.lexsort((self._asked[due], states[due]))]

    def _key(self, row: int) -> tuple[int, Address]:
        told = self._state.neighbours[row]
        return self._interfaces[int(told["own_port"])], address_of(told)

    def _take(self, news: News, now: int) -> bool:
        if news.state == NUD_NONE:
            self._known.pop((news.interface, news.address), None)
            return False
        self._known[news.interface, news.address] = news
        row = self._row(news.interface, news.address)
        if row == 0:
            return False
        if _is_valid(news):
            return self._write(row, news.mac, REACHABLE)
        if news.state & NUD_FAILED:
            return self._fail(row, now)
        return False

    def _fail(self, row: int, now: int) -> bool:
        """One that used to answer may have a new MAC: it is asked for by broadcast before it is given up."""
        if self._state.neighbours[row]["own_state"] != REACHABLE:
            return self._write(row, b"", FAILED)
        self._wanted[row] = now
        self._asked[row] = _NEVER
        return self._write(row, b"", WANTED)

    def _row(self, interface: int, address: Address) -> int:
        rows = self._state.neighbours
        for row in np.flatnonzero((rows["address"] == int(address) & 0xFFFFFFFF) & (rows["own_state"] != 0)).tolist():
            if self._key(row) == (interface, address):
                return int(row)
        return 0

    def _write(self, row: int, mac: bytes, state: int) -> bool:
        """Whether that changed the row. One store, see above; an empty MAC leaves the old one."""
        told = self._state.neighbours[row]
        word = (mac or bytes(told["own_mac"])) + bytes((state, int(told["own_port"])))
        value = np.frombuffer(word, np.uint64)[0]
        if state != WANTED:
            self._wanted.pop(row, None)
        if self._words[row, _OWN] == value:
            return False
        self._words[row, _OWN] = value
        return True

    def doubt(self, port: int) -> None:
        """A port has lost its carrier, or has it again: who is behind it as a gateway must answer before it gets packets."""
        rows = self._state.neighbours
        for row in np.flatnonzero((rows["kept"] == 1) & (rows["own_port"] == port)).tolist():
            if not self._is_fixed(row):
                self._known.pop(self._key(row), None)
            self._wanted.pop(row, None)
            self._asked[row] = _NEVER
            self._write(row, b"", WANTED)
        self._dump()  # the kernel says nothing of one that it believes in still
        self._answered()

    def _answered(self) -> None:
        core = self._state.core[0]
        core["neighbours_version"] = (int(core["neighbours_version"]) + 1) & 0xFFFFFFFF

    def describe(self) -> list[dict[str, str | int]]:
        """Rows in use, for `status`: gateways and stations on-link."""
        names = {WANTED: "wanted", REACHABLE: "reachable", FAILED: "failed"}
        rows = self._state.neighbours
        return [
            {
                "row": row,
                "address": str(address_of(rows[row])),
                "port": int(rows[row]["own_port"]),
                "mac": ":".join(f"{byte:02x}" for byte in rows[row]["own_mac"]),
                "state": names.get(int(rows[row]["own_state"]), "unknown"),
                "leaves_by": int(rows[row]["port"]),
            }
            for row in np.flatnonzero(rows["own_state"]).tolist()
        ]
