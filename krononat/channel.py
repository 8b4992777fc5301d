"""The channel of JSON messages between the supervisor and its workers: a pair of sockets with room for the longest message.

A message is one packet, whole or not at all. Orders name every core and shard of the cluster; unix(7) takes no packet beyond
SO_SNDBUF, by default 212,992 bytes, some 800 cores. Who makes the pair may go beyond net.core.wmem_max (CAP_NET_ADMIN), else
gets as much as that allows.
"""

from __future__ import annotations

import array
import contextlib
import select
import socket

MESSAGE_AT_MOST = 1 << 21  # bytes; 4096 cores with a shard each, and what is announced of those, take about half
ORDERS_AT_MOST = MESSAGE_AT_MOST - (1 << 18)  # of them, what is said of the cluster; the rest is about sockets
_ROOM = 2 * MESSAGE_AT_MOST
_SO_SNDBUFFORCE = 32  # socket(7), asm-generic/socket.h


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        with contextlib.suppress(PermissionError):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM)
    return ours, theirs


def is_ready(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read, or the process of a pidfd has ended, within so long.

    Of any number: select(2) knows none beyond 1,023.
    """
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(1000 * seconds))


def receive(channel: socket.socket, room: bytearray, descriptors: int) -> tuple[bytes, list[int]]:
    """The next message and its descriptors, at most so many; empty where the other end has hung up.

    `room` is the caller's, and as long as the longest message: to allocate that for each look would cost more than the look.
    """
    came: array.array[int] = array.array("i")
    size, ancillary, _, _ = channel.recvmsg_into([room], socket.CMSG_LEN(descriptors * came.itemsize))
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            came.frombytes(data[: len(data) - len(data) % came.itemsize])
    return bytes(memoryview(room)[:size]), list(came)
