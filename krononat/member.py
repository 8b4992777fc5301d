"""One process of the crew: spawned, never forked, with exactly the descriptors it needs; the other end of a `standby`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from krononat.channel import MESSAGE_AT_MOST, is_ready, pair
from krononat.client import Trouble
from krononat.view import ticks

_GRACE_S = 3.0

Message = dict[str, Any]

UNSEEN = -1000  # how a process has ended that is no child of ours
# What the system sends a process for what that has done itself; all other signals come from somebody else.
FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)


class Member:
    """A process that stands by to be the worker, or is it. Times in ticks; 0: not yet."""

    def __init__(self, told: Message, inherited: Sequence[int], environment: Mapping[str, str]) -> None:
        self.channel, theirs = pair()
        self.channel.setblocking(False)
        with theirs:
            self._introduce({**told, "supervisor": os.getpid()})
            self._process = subprocess.Popen(
                [sys.executable, "-m", "krononat.standby", str(theirs.fileno()), str(told.get("core", ""))],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the supervisor alone
                pass_fds=[*inherited, theirs.fileno()],
                env={"OPENBLAS_NUM_THREADS": "1", **environment},
            )
        self.pidfd = os.pidfd_open(self._process.pid)
        self.loaded_at = self.ready_at = 0
        self.code = ""  # digest of what it has loaded
        self.refused = ""  # why it cannot take over what there is

    def _introduce(self, told: Message) -> None:
        """Say what it is to find when it begins. Trouble where that is too much to say."""
        message = json.dumps(told).encode()
        try:
            self.channel.send(message)
        except OSError as error:
            self.channel.close()
            why = f"{len(message):,} bytes: {error.strerror}; there may be {MESSAGE_AT_MOST:,}"
            raise Trouble("a worker cannot be told where it is", why, "have fewer cores and shards in the map") from None

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Whether it was told, and given the descriptors; it is not while it has too much to do."""
        try:
            socket.send_fds(self.channel, [json.dumps(message).encode()], list(descriptors))
        except OSError:
            return False
        return True

    def hear(self) -> Iterator[Message]:
        """What it has said since; its end is told by `pidfd`."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while message := self.channel.recv(MESSAGE_AT_MOST):
                told = json.loads(message)
                if "loaded" in told:
                    self.loaded_at, self.code = ticks(), told["code"]
                elif "ready" in told:
                    self.ready_at = ticks()
                elif "refused" in told:
                    self.refused = told["refused"]
                yield told

    def hurry(self) -> None:
        """It loads at a low priority, and is wanted now. Where we may not raise that it comes a little later."""
        self._raise(0)

    def go_first(self) -> None:
        """As we do: who was started by a supervisor that might not is no worse off with us."""
        self._raise(os.getpriority(os.PRIO_PROCESS, 0))

    def _raise(self, nice: int) -> None:
        """Have no thread of it at a lower priority."""
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                number = int(thread.name)
                os.setpriority(os.PRIO_PROCESS, number, min(nice, os.getpriority(os.PRIO_PROCESS, number)))

    def is_stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP, a debugger): proc(5), state T or t."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def ended(self) -> int:
        """Its exit status, or the negative number of the signal that ended it; to be asked when `pidfd` is ready."""
        return self._process.wait()

    def end(self) -> None:
        """SIGTERM, and SIGKILL for one that does not heed it."""
        self._process.terminate()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.close()

    def close(self) -> None:
        """Let go of both descriptors."""
        self.channel.close()
        os.close(self.pidfd)


class Inherited(Member):
    """A worker that a supervisor before us has left behind: no child of ours, so nobody tells us how it ends."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.channel, self._pid = channel, pid
        self.pidfd = os.pidfd_open(pid)
        self.loaded_at = self.ready_at = ticks()
        self.code = self.refused = ""

    @property
    def pid(self) -> int:
        """Process number."""
        return self._pid

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self) -> int:
        """Nobody but its parent is told."""
        return UNSEEN

    def end(self) -> None:
        """SIGTERM, and SIGKILL for one that does not heed it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            if is_ready(self.pidfd, _GRACE_S):
                break
        self.close()


def is_fault(status: int) -> bool:
    """Whether a process died of what it did: a fault, or an exception. Who is killed by SIGKILL or SIGTERM has done nothing."""
    return status > 0 or -status in FAULTS


def cause(status: int) -> str:
    """How it ended, for people."""
    if status == UNSEEN:
        return "nobody saw of what"
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
