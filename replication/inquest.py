"""After a connection has ended: has the peer's process ended, too? Its kernel knows.

A connection ends with its process, and also where either end's ZeroMQ has heard nothing for too long: a busy machine is enough.
The first must be told from the second, for whoever is known to be dead loses its side of the ports at once. A kernel refuses
(RFC 9293 section 3.5.2, a reset) whoever knocks where nobody listens; where somebody listens, it lets him in, even if that
process is frozen. What is cut off says nothing, and is silent.

Left out on purpose: who is let in hangs up without a word, which the peer counts as a handshake that nobody finished.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from replication.protocol import age

GIVE_UP_AFTER = 1000  # ticks without any answer
AGAIN_AFTER = 50  # ticks: who was let in asks once more, since a process that ends may close last what it listens at

_ASKING = (errno.EINPROGRESS, errno.EALREADY)


class _Question(NamedTuple):
    socket: socket.socket
    endpoint: str
    address: tuple[str, int]
    since: int
    again: bool  # for the second time


class Inquest:
    """Questions under way. `poll` tells of answers: a descriptor to wait for is in it while one is open."""

    def __init__(self, poll: select.epoll) -> None:
        self._poll = poll
        self._questions: dict[str, _Question] = {}
        self._let_in: dict[str, tuple[str, int]] = {}  # endpoint, and the tick at which it let us in

    @property
    def is_open(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._questions)

    def ask(self, peer: str, endpoint: str, now: int) -> None:
        """Knock at `endpoint` (tcp://ADDRESS:PORT); the answer is found by `dead`, at once or later."""
        self.drop(peer)
        self._knock(peer, endpoint, now, again=False)

    def _knock(self, peer: str, endpoint: str, now: int, again: bool) -> None:
        place = urlsplit(endpoint)
        address = place.hostname or "", place.port or 0
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with contextlib.suppress(OSError):  # no descriptor is left: then silence has to tell
            asking = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._questions[peer] = _Question(asking, endpoint, address, now, again)
            self._poll.register(asking, select.EPOLLOUT)

    def dead(self, now: int) -> list[str]:
        """Whose kernels have answered that nobody listens there. Each is told once."""
        for peer, (endpoint, since) in list(self._let_in.items()):
            if age(now, since) >= AGAIN_AFTER:
                del self._let_in[peer]
                self._knock(peer, endpoint, now, again=True)
        return [peer for peer, question in list(self._questions.items()) if self._is_refused(peer, question, now)]

    def _is_refused(self, peer: str, question: _Question, now: int) -> bool:
        answer = question.socket.connect_ex(question.address)  # again and again: tells how the first one goes (connect(2))
        if answer not in _ASKING or age(now, question.since) > GIVE_UP_AFTER:
            self.drop(peer)
        if answer == 0 and not question.again:
            self._let_in[peer] = question.endpoint, now
        return answer == errno.ECONNREFUSED

    def drop(self, peer: str) -> None:
        """Ask no more."""
        self._let_in.pop(peer, None)
        if question := self._questions.pop(peer, None):
            self._poll.unregister(question.socket)
            question.socket.close()

    def close(self) -> None:
        """Let go of all questions."""
        for peer in list(self._questions):
            self.drop(peer)
