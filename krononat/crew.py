"""The worker's process as its supervisor sees it: started, talked to, watched, started again, stopped.

It is spawned, never forked, with exactly the descriptors it needs. A worker that dies is replaced at once; one that keeps dying
is replaced more and more slowly, until that is called a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krononat.client import Trouble
from krononat.view import ticks

QUICK = 10_000  # ticks; a worker that died sooner after it was ready has a problem that will come again
PAUSES = (0, 0, 500, 1000, 2000, 4000, 8000, 8000)  # ticks before the next one, by quick deaths in a row
STALLED = 10_000  # ticks without a breath
_GRACE_S = 3.0
_MESSAGE_AT_MOST = 1 << 18

Message = dict[str, Any]


class Crew:
    """Keeps one worker alive in a selector whose keys' data are functions to call when ready.

    `told()` is a worker's first message, `descriptors()` what it inherits; both change as memif servers come and go.
    Messages from it go to `on_message`, and {"ended": pid} when it died.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        told: Callable[[], Mapping[str, Any]],
        descriptors: Callable[[], Sequence[int]],
        environment: Mapping[str, str],
        on_message: Callable[[Message], None],
        say: Callable[[str], None],
    ) -> None:
        self._selector, self._told, self._descriptors = selector, told, descriptors
        self._environment, self._on_message, self._say = dict(environment), on_message, say
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._pidfd = -1
        self._quick, self._due = 0, 0
        self._breaths = -1
        self.breathed_at = ticks()
        self.ready_at = 0  # tick; 0: not yet
        self.restarts = -1

    @property
    def pid(self) -> int | None:
        """Process number, None between two workers."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Spawn a worker and give it its orders."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        ours.send(json.dumps({**self._told(), "supervisor": os.getpid()}).encode())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "krononat.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the supervisor alone
                pass_fds=[*self._descriptors(), theirs.fileno()],
                env=self._environment,
            )
        self._channel = ours
        self._pidfd = os.pidfd_open(self._process.pid)
        self._selector.register(ours, selectors.EVENT_READ, self._listen)
        self._selector.register(self._pidfd, selectors.EVENT_READ, self._ended)
        self.ready_at = 0
        self.restarts += 1

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Whether the worker was told, and given the descriptors; it is not while it is down or has too much to do."""
        if self._channel is None or not self.ready_at:
            return False
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], list(descriptors))
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._channel and (message := self._channel.recv(_MESSAGE_AT_MOST)):
                told = json.loads(message)
                if "ready" in told:
                    self.ready_at = ticks()
                self._on_message(told)
        # An end of file is the worker's death, of which `_ended` hears, too.

    def _ended(self) -> None:
        assert self._process
        pid, status = self._process.pid, self._process.wait()
        lived = self.ready_at != 0 and self.breathed_at - self.ready_at >= QUICK
        self._let_go()
        self._quick = 0 if lived else self._quick + 1
        if self._quick >= len(PAUSES):
            raise Trouble(f"the worker keeps dying ({_cause(status)})", "its messages stand above", "is it a bug? report it")
        self._say(f"worker {pid} died ({_cause(status)}), starting another")
        self._on_message({"ended": pid})
        self._due = ticks() + PAUSES[self._quick]
        if not PAUSES[self._quick]:
            self.start()

    def _let_go(self) -> None:
        assert self._channel
        self._selector.unregister(self._channel)
        self._selector.unregister(self._pidfd)
        self._channel.close()
        os.close(self._pidfd)
        self._process = self._channel = None
        self.ready_at = 0

    def watch(self, breaths: int, now: int) -> None:
        """Replace a worker that ended, end one that breathes no more. `breaths`: its count of them."""
        if breaths != self._breaths or not self.ready_at:
            self._breaths, self.breathed_at = breaths, now
        elif now - self.breathed_at > STALLED and self._process:
            self._say(f"worker {self._process.pid} has not breathed for {(now - self.breathed_at) / 1000:.1f} s")
            self._process.kill()
            self.breathed_at = now
        if self._process is None and now >= self._due:
            self.start()

    def stop(self) -> None:
        """End the worker: SIGTERM, and SIGKILL for one that does not heed it."""
        if self._process is None:
            return
        process = self._process
        self._let_go()
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cause(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
