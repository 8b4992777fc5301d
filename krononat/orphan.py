"""A worker whose supervisor was killed goes on by itself for a while, and is there for the one that is started next.

Whoever stands by a port's XDP program and the memory must hold their descriptors; so the supervisor gives them to the worker,
which is nobody and can do nothing with them but keep them:

    {"do": "keep", "names": [...]}            they come along; what was kept under a name before is let go
    {"do": "keep", "about": {...}, ...}       what another supervisor must know, for how long to go on ("patience", ticks); and
                                              the listener that another one connects to

When the channel ends, the listener takes its place, so the loop wakes when somebody comes. That can be nobody but root (the
mode of the socket's file says so), and it brings an end of a new channel, by which it is told and given everything:

    heir        {"do": "adopt"}, and its end of the channel, over the listener
    worker      {"heritage": about, "names": [...], "pid": n, "said": {...}}, and the descriptors, over the channel; `said`
                of its routes: {"draining": bool, "attached": bool}, whether it has a connection to the speaker

From there on it is the supervisor. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

DESCRIPTORS_AT_MOST = 8  # of a message of "keep"
_PDEATHSIG = 1  # prctl(2)
_MESSAGE_AT_MOST = 4096  # of who comes

_libc = ctypes.CDLL(None, use_errno=True)


class Orphan:
    """What a worker keeps for the supervisor after this one, and how it waits for that."""

    def __init__(self, own: dict[str, int]) -> None:
        """`own`: descriptors that it has anyhow, by name."""
        self.since: int | None = None  # tick at which the supervisor was found gone; None: it is there
        self._own = own
        self._kept: dict[str, int] = {}
        self._about: dict[str, Any] | None = None
        self._listener: socket.socket | None = None
        self._suitor: socket.socket | None = None  # has connected, and said nothing yet

    def keep(self, told: dict[str, Any], descriptors: Sequence[int]) -> None:
        """The supervisor's message, with what came along. From now on its death is not ours."""
        for name, descriptor in zip(told["names"], descriptors, strict=True):
            if name in self._kept:
                os.close(self._kept[name])
            self._kept[name] = descriptor
        if "about" in told:
            self._about = told["about"]
            self._listener = socket.socket(fileno=os.dup(self._kept["listener"]))
            self._listener.setblocking(False)
            _libc.prctl(_PDEATHSIG, 0, 0, 0, 0)

    @property
    def patience(self) -> int:
        """Ticks that we may go on by ourselves; 0: not at all."""
        return int(self._about["patience"]) if self._about else 0

    def begin(self, channel: socket.socket, now: int) -> None:
        """The supervisor is gone: the listener is what the loop waits for instead of the channel."""
        assert self._listener
        self.since = now
        os.dup2(self._listener.fileno(), channel.fileno(), inheritable=False)

    def turn(self, channel: socket.socket, said: dict[str, bool]) -> bool:
        """Whether another supervisor has come, and the channel is to it. `said`: what that is told of our routes."""
        assert self._listener
        if self._suitor is None:
            with contextlib.suppress(OSError):
                self._suitor, _ = self._listener.accept()
                self._suitor.setblocking(False)
        if self._suitor is None:
            return False
        try:
            message, descriptors, _, _ = socket.recv_fds(self._suitor, _MESSAGE_AT_MOST, 1)
        except BlockingIOError:
            return False
        except OSError:
            message, descriptors = b"", []
        self._suitor.close()
        self._suitor = None
        return bool(message and descriptors) and self._hand_over(channel, descriptors[0], said)

    def _hand_over(self, channel: socket.socket, descriptor: int, said: dict[str, bool]) -> bool:
        """Tell the heir everything; False where it has gone already. Its end of the channel is ours under the old number."""
        given = {**self._own, **self._kept}
        told = {"heritage": self._about, "names": list(given), "pid": os.getpid(), "said": said}
        with socket.socket(fileno=descriptor) as stream:
            try:
                stream.setblocking(False)
                socket.send_fds(stream, [json.dumps(told).encode()], list(given.values()))
            except OSError:
                return False
            os.dup2(stream.fileno(), channel.fileno(), inheritable=False)
        self.since = None
        return True
