"""Whether ports have a carrier, by the kernel's news of its links (rtnetlink(7)), into `carrier_lost` of PORT.

A link that was set down, lost its signal, or is gone has none. The worker sees it at its next breath, and what leaves by that
port takes another one of its side (see shards.legs). The socket is in the supervisor's selector, as `neighbours` has it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTMGRP_LINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from shards.state import State

_UP, _LOWER_UP = 1, 1 << 16  # of ifi_flags, linux/if.h
_CODEC = MarshalRtnl()


class News(NamedTuple):
    """What the kernel says of a link."""

    interface: int
    carrier: bool


def read(messages: bytes) -> Iterator[News]:
    """Links in a datagram of netlink messages."""
    for message in _CODEC.parse(messages):
        kind = message["header"]["type"]
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            flags = message["flags"]
            yield News(message["index"], kind == RTM_NEWLINK and flags & _UP != 0 and flags & _LOWER_UP != 0)


class Carriers:
    """The one writer of `carrier_lost`. `interfaces`: kernel's index of the device of each port, by row."""

    def __init__(self, state: State, interfaces: Sequence[int]) -> None:
        self._state = state
        self._interfaces = list(interfaces)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, RTMGRP_LINK))
        self._ask()

    def fileno(self) -> int:
        """For the selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening; what is known stays."""
        self._socket.close()

    def _ask(self) -> None:
        """The answer comes as news."""
        message = ifinfmsg().load({"header": {"type": RTM_GETLINK, "flags": NLM_F_REQUEST | NLM_F_DUMP}})
        message.encode()
        with contextlib.suppress(BlockingIOError):
            self._socket.send(bytes(message.data))

    def listen(self) -> list[int]:
        """Take in the news; rows of PORT whose carrier has come or gone."""
        changed: list[int] = []
        while True:
            try:
                messages = self._socket.recv(1 << 16)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._ask()  # news were lost: ask for all of it
                continue
            for news in read(messages):
                changed += self._take(news)

    def _take(self, news: News) -> Iterator[int]:
        for row, interface in enumerate(self._interfaces):
            port = self._state.ports[row]
            if interface == news.interface and bool(port["carrier_lost"]) == news.carrier:
                port["carrier_lost"] = not news.carrier
                yield row
