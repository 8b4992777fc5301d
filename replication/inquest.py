"""After a connection has ended: has the peer's process ended, too? Its kernel knows.

A connection ends with its process, and also where either end's ZeroMQ has heard nothing for too long: a busy machine is enough.
The first must be told from the second, for whoever is known to be dead loses its side of the ports at once. A kernel refuses
(RFC 9293 section 3.5.2, a reset) whoever knocks where nobody listens; where somebody listens, it lets him in, even if that
process is frozen. What is cut off says nothing, and is silent.

Left out on purpose: who is let in hangs up without a word, which the peer counts as a handshake that nobody finished.
"""

from __future__ import annotations

import errno
import select
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from replication.protocol import age

GIVE_UP_AFTER = 1000  # ticks without any answer

_ASKING = (errno.EINPROGRESS, errno.EALREADY)


class _Question(NamedTuple):
    socket: socket.socket
    address: tuple[str, int]
    since: int


class Inquest:
    """Questions under way. `poll` tells of answers: a descriptor to wait for is in it while one is open."""

    def __init__(self, poll: select.epoll) -> None:
        self._poll = poll
        self._questions: dict[str, _Question] = {}

    def ask(self, peer: str, endpoint: str, now: int) -> None:
        """Knock at `endpoint` (tcp://ADDRESS:PORT); the answer is found by `dead`, at once or later."""
        self.drop(peer)
        place = urlsplit(endpoint)
        address = place.hostname or "", place.port or 0
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        asking = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._questions[peer] = _Question(asking, address, now)
        self._poll.register(asking, select.EPOLLOUT)

    def dead(self, now: int) -> list[str]:
        """Whose kernels have answered that nobody listens there. Each is told once."""
        found = []
        for peer, question in list(self._questions.items()):
            answer = question.socket.connect_ex(question.address)  # again and again: tells how the first one goes (connect(2))
            if answer not in _ASKING or age(now, question.since) > GIVE_UP_AFTER:
                self.drop(peer)
            if answer == errno.ECONNREFUSED:
                found.append(peer)
        return found

    def drop(self, peer: str) -> None:
        """Ask no more."""
        if question := self._questions.pop(peer, None):
            self._poll.unregister(question.socket)
            question.socket.close()

    def close(self) -> None:
        """Let go of all questions."""
        for peer in list(self._questions):
            self.drop(peer)
