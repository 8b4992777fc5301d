"""Next hops by the kernel's neighbour table: what the worker wants is resolved there, kept fresh, and written back.

The kernel does ARP (RFC 826) and decides who is reachable (its states: linux/neighbour.h); this service asks it by rtnetlink(7)
and follows its news. Packets pass the kernel by, so nothing there would notice that a neighbour is in use: it is told so from
time to time (NTF_USE). Netlink is spoken by hand, because the supervisor's loop must not block and pyroute2 brings its own.

A row's second word holds MAC, state and port: written at once, so a worker never sees half a MAC.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shards.state import FAILED, REACHABLE, WANTED, Array, State

NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30  # RTM_*, rtnetlink.h
DUMP, REQUEST, CREATE, REPLACE = 0x300, 0x1, 0x400, 0x100  # NLM_F_*, netlink.h
GROUP_NEIGH = 4  # RTMGRP_NEIGH
DST, LLADDR = 1, 2  # NDA_*
USE = 1  # NTF_USE

NUD_NONE, NUD_INCOMPLETE, NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_FAILED = 0, 1, 2, 4, 8, 16, 32
NUD_PERMANENT = 128
NUD_VALID = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | 64 | NUD_PERMANENT

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_BODY = struct.Struct("=BxxxiHBB")  # ndmsg: family, interface, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type

# Ticks between two questions about a neighbour, by the state of its row: none, WANTED, REACHABLE, FAILED.
_PAUSES = np.array([1 << 60, 1000, 15_000, 5000])
GIVE_UP = 8000  # ticks without the kernel's verdict after which a wanted one counts as failed
AT_ONCE = 200  # questions in one go; a large access network is walked in several

_NEVER = -(1 << 40)


class News(NamedTuple):
    """What the kernel says of a neighbour."""

    interface: int
    address: int
    mac: bytes  # empty: none
    state: int


def read(messages: bytes) -> Iterator[News]:
    """IPv4 neighbours in a datagram of netlink messages; a deleted one comes as NUD_NONE without a MAC."""
    at = 0
    while at + _HEADER.size <= len(messages):
        length, kind = _HEADER.unpack_from(messages, at)[:2]
        if length < _HEADER.size or at + length > len(messages):
            return
        if kind in (NEWNEIGH, DELNEIGH) and length >= _HEADER.size + _BODY.size:
            family, interface, state, _, _ = _BODY.unpack_from(messages, at + _HEADER.size)
            told = dict(_attributes(messages[at + _HEADER.size + _BODY.size : at + length]))
            if family == socket.AF_INET and len(told.get(DST, b"")) == 4:
                mac = told.get(LLADDR, b"")
                gone = kind == DELNEIGH
                yield News(interface, int.from_bytes(told[DST], "big"), b"" if gone else mac, NUD_NONE if gone else state)
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _is_valid(news: News) -> bool:
    return bool(news.state & NUD_VALID) and len(news.mac) == 6


def question(interface: int, address: int) -> bytes:
    """Message that has the kernel resolve, or confirm, a neighbour as if it had a packet for it."""
    body = _BODY.pack(socket.AF_INET, interface, NUD_NONE, USE, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, DST) + address.to_bytes(4, "big")
    return _HEADER.pack(_HEADER.size + len(body), NEWNEIGH, REQUEST | CREATE | REPLACE, 0, 0) + body


class Neighbours:
    """The service: the one writer of the MAC and state of `state.neighbours`.

    `interfaces`: interface index of each row of `state.ports`. It belongs to the namespace it is made in.
    """

    def __init__(self, state: State, interfaces: Sequence[int]) -> None:
        self._state = state
        self._interfaces = list(interfaces)
        self._known: dict[tuple[int, int], News] = {}
        self._asked = np.full(len(state.neighbours), _NEVER, np.int64)  # tick of the last question
        self._wanted: dict[int, int] = {}  # row -> tick since when
        # One line of `state.neighbours` is four words; the second is MAC, state and port.
        self._words = state.neighbours.view(np.uint64).reshape(-1, 4)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setblocking(False)
        self._socket.bind((0, GROUP_NEIGH))
        self._dump()

    def fileno(self) -> int:
        """For the selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening; the rows stay as they are."""
        self._socket.close()

    def _dump(self) -> None:
        """Ask for everything the kernel knows; the answer comes as news."""
        body = _BODY.pack(socket.AF_INET, 0, 0, 0, 0)
        self._send(_HEADER.pack(_HEADER.size + len(body), GETNEIGH, REQUEST | DUMP, 0, 0) + body)

    def _send(self, message: bytes) -> None:
        # What the kernel cannot take now is asked again later; what it refuses (a link that is down) comes as a message.
        with contextlib.suppress(BlockingIOError):
            self._socket.send(message)

    def listen(self, now: int) -> bool:
        """Take in all news there is; whether a row changed."""
        changed = False
        while True:
            try:
                messages = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._dump()  # news were lost: ask for all of it
                continue
            for news in read(messages):
                changed |= self._take(news, now)
        if changed:
            self._answered()
        return changed

    def serve(self, now: int) -> bool:
        """Answer what is wanted, confirm what is used, retry what failed; whether a row changed. Cheap: call it often."""
        changed = False
        for row in np.flatnonzero(self._state.neighbours["state"] == WANTED).tolist():
            news = self._known.get(self._key(row))
            if news and _is_valid(news):
                changed |= self._write(row, news.mac, REACHABLE)
            elif now - self._wanted.setdefault(row, now) > GIVE_UP:
                changed |= self._write(row, b"", FAILED)
        for row in self._due(now)[:AT_ONCE].tolist():
            self._asked[row] = now
            self._send(question(*self._key(row)))
        if changed:
            self._answered()
        return changed

    def _due(self, now: int) -> Array:
        """Rows the kernel is to be asked about, the wanted ones first."""
        states, since = self._state.neighbours["state"], now - self._asked
        due = np.flatnonzero(since >= _PAUSES[np.minimum(states, FAILED)])
        return due[np.argsort(states[due], kind="stable")]

    def _key(self, row: int) -> tuple[int, int]:
        told = self._state.neighbours[row]
        return self._interfaces[int(told["port"])], int(told["address"])

    def _take(self, news: News, now: int) -> bool:
        if news.interface not in self._interfaces:
            return False
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
        if self._state.neighbours[row]["state"] != REACHABLE:
            return self._write(row, b"", FAILED)
        self._wanted[row] = now
        self._asked[row] = _NEVER
        return self._write(row, b"", WANTED)

    def _row(self, interface: int, address: int) -> int:
        rows = self._state.neighbours
        for row in np.flatnonzero((rows["address"] == address) & (rows["state"] != 0)).tolist():
            if self._interfaces[int(rows[row]["port"])] == interface:
                return int(row)
        return 0

    def _write(self, row: int, mac: bytes, state: int) -> bool:
        """Whether that changed the row. One store, see above; an empty MAC leaves the old one."""
        told = self._state.neighbours[row]
        word = (mac or bytes(told["mac"])) + bytes((state, int(told["port"])))
        value = np.frombuffer(word, np.uint64)[0]
        if state != WANTED:
            self._wanted.pop(row, None)
        if self._words[row, 1] == value:
            return False
        self._words[row, 1] = value
        return True

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
                "address": socket.inet_ntoa(int(rows[row]["address"]).to_bytes(4, "big")),
                "port": int(rows[row]["port"]),
                "mac": ":".join(f"{byte:02x}" for byte in rows[row]["mac"]),
                "state": names.get(int(rows[row]["state"]), "unknown"),
            }
            for row in np.flatnonzero(rows["state"]).tolist()
        ]
