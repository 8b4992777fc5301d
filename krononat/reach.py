"""How long a packet may be that one core shunts to another: asked again and again by pings of certain sizes.

A shunted packet is not cut into pieces and nobody tells its sender that it was too long, so what fits must be known beforehand.
Echo requests (RFC 792) with "don't fragment" go from our address of shunts to the other core's; both kernels see to the rest,
and what comes back has been as long on the way back. The largest size answered is written into PEER.mtu: 1,544 or more, and
every packet of 1,500 bytes can be shunted.

Several legs are asked by one by one, whichever the kernel would take, and the least that one of them brings counts: a shunted
packet may take any. By which an answer comes is not ours to choose, so each leg has its own identifier. One without any answer
is passed over: it is dead, or soon will be.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

import numpy as np

from shards.state import State

SIZES = (1600, 1544, 1500, 1400, 1280, 576)  # bytes of the IPv4 packet
EACH = 1000  # ticks between two questions to one core
READ_AT_ONCE = 256  # messages, before others have their turn
PATIENCE = 3000  # ticks after which an answer is too old
_IPV4_BYTES = 20
_IP_MTU_DISCOVER, _PROBE = 10, 3  # ip(7): set "don't fragment", believe no size but the link's
_ECHO_REPLY, _ECHO_REQUEST = 0, 8


class _Peer(NamedTuple):
    row: int
    address: str


class Reach:
    """Asks every core of PEER from `source`. Registers itself in a selector whose keys' data are functions to call.

    `legs`: names of the devices by which to ask; without any, by the kernel's way.
    """

    def __init__(self, state: State, source: IPv4Address, selector: selectors.BaseSelector, legs: Sequence[str] = ()) -> None:
        self._state, self._selector = state, selector
        self._find_peers()
        self._answered: dict[tuple[int, int, int], int] = {}  # (row, leg, size): tick of the last answer
        self._asked_at = -EACH
        self._now = 0
        devices = legs or [""]
        self._legs = {(os.getpid() + number) & 0xFFFF: number for number in range(len(devices))}  # by identifier
        self._questions = [[_question(identifier, size) for size in SIZES] for identifier in self._legs]
        self._sockets = [_open(source, device) for device in devices]
        for each in self._sockets:
            selector.register(each, selectors.EVENT_READ, functools.partial(self._listen, each))

    def close(self) -> None:
        """Ask no more."""
        for each in self._sockets:
            self._selector.unregister(each)
            each.close()

    def _find_peers(self) -> None:
        """Who is in PEER: a newer map may have others."""
        addresses = enumerate(self._state.peers["address"])
        self._peers = [_Peer(row, str(IPv4Address(int(address)))) for row, address in addresses if row and address]
        self._rows = {peer.address: peer.row for peer in self._peers}

    def turn(self, now: int) -> None:
        """Ask, once a second; call it now and then."""
        self._now = now
        if now - self._asked_at >= EACH:
            self._asked_at = now
            self._find_peers()
            for peer in self._peers:
                self._ask(peer)
                self._conclude(peer)

    def _ask(self, peer: _Peer) -> None:
        for each, questions in zip(self._sockets, self._questions, strict=True):
            for question in questions:
                with contextlib.suppress(OSError):  # longer than the link, or no way there: no answer will come
                    each.sendto(question, (peer.address, 0))

    def _listen(self, each: socket.socket) -> None:
        """An answer counts for the size that it has itself. Whatever ICMP comes is read here: a flood must not keep us."""
        for _ in range(READ_AT_ONCE):
            try:
                packet, (address, _) = each.recvfrom(65535)
            except OSError:
                return
            at = 4 * (packet[0] & 0xF)
            if len(packet) < at + 8 or packet[at] != _ECHO_REPLY or address not in self._rows:
                continue
            identifier, size = struct.unpack_from("!HH", packet, at + 4)
            if identifier in self._legs and size == len(packet):
                self._answered[self._rows[address], self._legs[identifier], size] = self._now

    def _conclude(self, peer: _Peer) -> None:
        """The largest that was answered lately, of the leg where that is least; 0, unknown, where nothing was."""
        by_leg = [self._largest(peer.row, leg) for leg in self._legs.values()]
        mtu = min(filter(None, by_leg), default=0)
        if self._state.peers[peer.row]["mtu"] != mtu:
            self._state.peers[peer.row]["mtu"] = mtu

    def _largest(self, row: int, leg: int) -> int:
        sizes = [size for size in SIZES if self._now - self._answered.get((row, leg, size), -PATIENCE) < PATIENCE]
        return max(sizes, default=0)


def _open(source: IPv4Address, device: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)
    opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
    if device:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    opened.bind((str(source), 0))
    return opened


def _question(identifier: int, size: int) -> bytes:
    """An echo request that is so long as an IPv4 packet."""
    from shards import wire  # late: the supervisor must have said first that it compiles nothing (supervisor.run)

    message = np.zeros(size - _IPV4_BYTES, np.uint8)
    message[:8] = np.frombuffer(struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, identifier, size), np.uint8)
    message[2:4] = np.frombuffer(struct.pack("!H", wire.checksum(message, 0, len(message))), np.uint8)
    return message.tobytes()
