"""ExaBGP's process, ``python -m routing.speaker.launch PARENT server FILE``: it dies with its parent, and does not lose heart.

As it comes ExaBGP waits ever longer before it tries again to connect, in the end a minute, and no command shortens that: a
switch that was away for long would be without our routes for up to a minute after its return. Here it tries each 0.25 s.

And what it is told it carries out in an event loop of asyncio that it makes anew for each command, and takes down: 2 to 3 ms of
a CPU while a withdrawal waits. All that runs in it are generators, which wait for nothing: here they are run as they are.

Its loop looks a hundred times a second at everything, 17 ms of a CPU, also while all sessions stand and whatever may come wakes
it: then ten times is enough. While commands are left over, and while a session is still to come, it must not wait so long.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Iterator

_PDEATHSIG = 1  # prctl(2)
LONGEST_WAIT = 0.25  # s
QUIET_MS = 100  # while all sessions stand


def main() -> None:
    """Be ExaBGP."""
    parent = int(sys.argv.pop(1))
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before that took effect
        sys.exit(1)
    keep_trying()
    obey_at_once()
    sleep_well()
    from exabgp.application.main import main as exabgp  # type: ignore[import-untyped]

    sys.exit(exabgp())


def keep_trying() -> None:
    """Have no pause between two attempts grow beyond `LONGEST_WAIT`."""
    from exabgp.reactor import delay  # type: ignore[import-untyped]

    grow = delay.Delay.increase

    def increase(self: delay.Delay) -> None:
        grow(self)
        self._next = min(self._next, LONGEST_WAIT)

    delay.Delay.increase = increase


def obey_at_once() -> None:
    """Have no event loop made for commands that are generators."""
    from exabgp.reactor.asynchronous import ASYNC  # type: ignore[import-untyped]

    in_a_loop = ASYNC.run

    def run(self: ASYNC) -> bool:
        if not self._async or any(self._is_coroutine(callback) for _, callback in self._async):
            return bool(in_a_loop(self))
        turn = self._run_async()
        try:
            turn.send(None)
        except StopIteration as end:
            return bool(end.value)
        turn.close()
        raise RuntimeError("ExaBGP waits for something in a command: this version of it needs its event loop")

    ASYNC.run = run


def sleep_well() -> None:
    """Have the loop wait as long as there is nothing to do, and no longer.

    The number of a session's socket that was closed stays among those that it waits for: it would never wait again, but be kept
    from spinning by sleeps in which it hears nothing.
    """
    from exabgp.reactor.loop import Reactor  # type: ignore[import-untyped]

    wait = Reactor._wait_for_io

    def wait_for_io(self: Reactor, sleep_ms: int) -> Iterator[int]:
        for descriptor, event in self._poller.poll(0):
            if event & select.POLLNVAL and descriptor not in self.processes.fds:
                self._poller.unregister(descriptor)
        if not self.asynchronous.ready():
            sleep_ms = 0
        elif sleep_ms and len(self.established_peers()) == len(self._peers):
            sleep_ms = QUIET_MS
        yield from wait(self, sleep_ms)

    Reactor._wait_for_io = wait_for_io


if __name__ == "__main__":
    main()
