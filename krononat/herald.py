"""The supervisor's part in announcing: it connects to the server's speaker, hands the connection to the worker, keeps no copy.

The speaker may be killed, and started anew, at any time: the worker says that its connection has ended, and gets another one as
soon as there is somebody to connect to. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from krononat.crew import Crew

TRY_EACH, REFUSED_EACH = 200, 5000  # ticks


class Herald:
    """`path`: the speaker's socket. `linger`: how long routes outlive a worker while a spare stands ready, in ms.

    So they do while the worker is being replaced: it retires once the next one stands ready. The supervisor's turn in which
    that begins ends with ours, so the worker is told in time.
    """

    def __init__(self, path: str, linger: int, crew: Crew, say: Callable[[str], None]) -> None:
        self._path, self._linger, self._crew, self._say = path, linger, crew, say
        self._worker: int | None = None  # who has a connection
        self._tried = -TRY_EACH
        self._told_linger = 0
        self.draining = self._told_draining = False
        self._complained = False
        self._patience, self._refusal = TRY_EACH, ""

    def turn(self, now: int) -> None:
        """See to it that the worker has a connection, and knows how long its routes may outlive it."""
        if not self._crew.ready_at:
            return
        if self._worker != self._crew.pid and now - self._tried >= self._patience:
            self._tried = now
            self._connect()
        elif self._worker == self._crew.pid and self._wanted_linger() != self._told_linger:
            self._tell({"do": "linger", "ms": self._wanted_linger()})
        self._tell_of_draining()

    def _tell_of_draining(self) -> None:
        """What a worker was told of it, the next one does not know."""
        if self._told_draining != self.draining and self._crew.send({"do": "drain", "on": self.draining}):
            self._told_draining = self.draining

    def hurry(self) -> None:
        """A worker has taken over: connect at once."""
        self._tried, self._patience = -TRY_EACH, TRY_EACH
        self._worker, self._told_draining = None, False

    def resume(self, draining: bool, attached: bool) -> None:
        """The worker has been there before us: it has a connection (`attached`), and says when it loses it; or needs one."""
        self._worker, self._told_linger = self._crew.pid if attached else None, -1
        self.draining = self._told_draining = draining

    def due(self, usual: int) -> int:
        """Ticks until the next turn."""
        return min(usual, TRY_EACH) if self._worker != self._crew.pid else usual

    def lost(self, why: str) -> None:
        """The worker says that its connection has ended, and why, where the speaker has refused it."""
        self._worker, self._patience = None, REFUSED_EACH if why else TRY_EACH
        if not why or why != self._refusal:
            told = f"refuses us: {why}" if why else "has hung up"
            self._say(f"the speaker at {self._path} {told}; tried again each {self._patience} ms")
        self._refusal = why

    def _wanted_linger(self) -> int:
        return self._linger if self._crew.spare() == "ready" or self._crew.replacing else 0

    def _connect(self) -> None:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)) as stream:
            try:
                stream.connect(self._path)
            except OSError as error:
                self._complain(error)
                return
            if self._tell({"do": "speaker", "linger": self._wanted_linger()}, stream.fileno()):
                self._worker, self._complained = self._crew.pid, False
                if not self._refusal:
                    self._say(f"the speaker at {self._path} is told our routes")

    def _tell(self, message: dict[str, Any], *descriptors: int) -> bool:
        told = self._crew.send(message, descriptors)
        if told:
            self._told_linger = int(message.get("linger", message.get("ms", 0)))
        return told

    def _complain(self, error: OSError) -> None:
        """Once until it works again: the speaker may be started later."""
        if not self._complained:
            self._complained = True
            self._say(f"no speaker at {self._path} ({error.strerror}): nothing is announced; `krononat speaker run` starts it")
