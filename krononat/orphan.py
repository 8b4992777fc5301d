"""A worker whose supervisor was killed goes on by itself for a while, and is there for the one that is started next.

Whoever stands by a port's XDP program and the memory must hold their descriptors; so the supervisor gives them to the worker.
It is nobody, and is to do nothing with them but keep them; it could do more: whoever holds a link may detach it, whoever holds
a map may write it, without any capability. So who takes over a worker whose loop did what a packet said has what that left.


    {"do": "keep", "names": [...]}            they come along; what was kept under a name before is let go
    {"do": "keep", "about": {...}, ...}       what another supervisor must know, for how long to go on ("patience", ticks); and
                                              the listener that another one connects to

When the channel ends, the listener takes its place, so the loop wakes when somebody comes. That can be nobody but who the
supervisor was (the mode of the socket's file says so, and the system whom we ask), and it brings an end of a new channel, by
which it is told and given everything:

    heir        {"do": "adopt"}, and its end of the channel, over the listener
    worker      {"version": n, "heritage": about, "said": {...}, "names": [...], "more": bool}, and the descriptors, over
                the channel; with `more` the next message has more of them. `said` of its routes: {"draining": bool,
                "attached": bool}, whether it has a connection to the speaker

From there on it is the supervisor. One that is killed before it has left everything anew has not begun the patience anew
either. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

VERSION = 2  # of what is left and told here: one that goes by another cannot be taken over
DESCRIPTORS_AT_MOST = 8  # of a message of "keep"
GIVEN_AT_ONCE = 200  # descriptors; unix(7) has 253 at most (SCM_MAX_FD)
_PDEATHSIG = 1  # prctl(2)
_MESSAGE_AT_MOST = 4096  # of who comes
_CREDENTIALS = struct.Struct("iII")  # unix(7), struct ucred: pid, uid, gid

_libc = ctypes.CDLL(None, use_errno=True)


class Orphan:
    """What a worker keeps for the supervisor after this one, and how it waits for that."""

    def __init__(self, own: dict[str, int]) -> None:
        """`own`: descriptors that it has anyhow, by name."""
        self.since: int | None = None  # tick at which the supervisor was found gone; None: it is there
        self._own = own
        self._kept: dict[str, int] = {}
        self._bereft: int | None = None  # tick at which it was, unless somebody has left everything anew since
        self._whole = True  # all that came along since the last "about" is here
        self._about: dict[str, Any] | None = None
        self._listener: socket.socket | None = None
        self._suitor: socket.socket | None = None  # has connected, and said nothing yet

    def keep(self, told: dict[str, Any], descriptors: Sequence[int]) -> None:
        """The supervisor's message, with what came along. From now on its death is not ours."""
        self._whole &= len(told["names"]) == len(descriptors)  # else the system has no more for us: recvmsg(2), MSG_CTRUNC
        for name, descriptor in zip(told["names"], descriptors, strict=False):
            if name in self._kept:
                os.close(self._kept[name])
            self._kept[name] = descriptor
        if "about" in told:
            self._settle(told["about"])

    def _settle(self, about: dict[str, Any]) -> None:
        """All is here, and we may outlive who gave it; or something is missing, and we go with it."""
        whole, self._whole, self._about, self._bereft = self._whole, True, None, None
        try:
            self._listener = socket.socket(fileno=os.dup(self._kept["listener"])) if whole else None
        except OSError:
            self._listener = None
        if self._listener is None:
            with contextlib.suppress(OSError):
                told = "too few descriptors are to be had (LimitNOFILE, ulimit -n)"
                print(f"krononat: worker {os.getpid()} ends with its supervisor: {told}", file=sys.stderr, flush=True)
            return
        self._about = about
        self._listener.setblocking(False)
        _libc.prctl(_PDEATHSIG, 0, 0, 0, 0)

    @property
    def patience(self) -> int:
        """Ticks that we may go on by ourselves; 0: not at all."""
        return int(self._about["patience"]) if self._about else 0

    def begin(self, channel: socket.socket, now: int) -> None:
        """The supervisor is gone: the listener is what the loop waits for instead of the channel."""
        assert self._listener
        self._bereft = now if self._bereft is None else self._bereft
        self.since = self._bereft
        os.dup2(self._listener.fileno(), channel.fileno(), inheritable=False)

    def turn(self, channel: socket.socket, said: dict[str, bool]) -> bool:
        """Whether another supervisor has come, and the channel is to it. `said`: what that is told of our routes."""
        assert self._listener
        if self._suitor is None:
            with contextlib.suppress(OSError):
                self._suitor, _ = self._listener.accept()
                self._suitor.setblocking(False)
        if self._suitor and not self._is_welcome(self._suitor):
            self._suitor.close()
            self._suitor = None
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

    def _is_welcome(self, suitor: socket.socket) -> bool:
        """Whether it is who the supervisor was."""
        credentials = suitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(credentials)[1] == (self._about or {}).get("uid"))

    def _hand_over(self, channel: socket.socket, descriptor: int, said: dict[str, bool]) -> bool:
        """Tell the heir everything; False where it has gone already. Its end of the channel is ours under the old number."""
        given = list({**self._own, **self._kept}.items())
        parts = [dict(given[at : at + GIVEN_AT_ONCE]) for at in range(0, len(given), GIVEN_AT_ONCE)]
        about = {"version": VERSION, "heritage": self._about, "said": said}
        with socket.socket(fileno=descriptor) as stream:
            try:
                stream.setblocking(False)
                for number, part in enumerate(parts):
                    told = about | {"names": list(part), "more": number + 1 < len(parts)}
                    socket.send_fds(stream, [json.dumps(told).encode()], list(part.values()))
                    about = {}
            except OSError:
                return False
            os.dup2(stream.fileno(), channel.fileno(), inheritable=False)
        self.since = None
        return True
