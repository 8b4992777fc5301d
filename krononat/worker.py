"""One core's process: takes over memory and sockets, loads all compiled code, gives up its privileges, and breathes.

Started by the supervisor as ``python -m krononat.worker DESCRIPTOR``: the descriptor is its end of a channel of JSON messages.
What it is to do comes as the first one; then, in either direction:

    {"do": "wake"}                                   neighbours have answered
    {"do": "delete", "lines": [[line, generation]]}  {"deleted": n}
    {"do": "connect", "line": n, "connection": ...}  the n-th memif port; its descriptors come along, null: nobody is there
                                                     {"ready": ...}, {"wanted": n}: neighbours are asked for

Everything a packet may need is imported and called once before the privileges go and before the first packet comes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import time
from typing import Any, cast

import numpy as np

from krononat import memory, warm
from krononat.view import ticks
from shards import memif, memif_rings, recovery, rings, sessions, shard, xsk
from shards.burst import new_burst
from shards.notes import map_notes
from shards.state import open_state, read_header

BURSTS = 16  # of a breath: some milliseconds over a veth, a third of one in memory
LOOKS, BUSY_LOOKS = 300, 3000  # at empty rings before a turn in Python, which takes as long as 900: about 3 and 35 us
NAP, SHORT_NAP = 100, 5  # ms without a frame; while frames wait for a neighbour

_MESSAGE_AT_MOST, _DESCRIPTORS_AT_MOST = 1 << 18, 3

# prctl(2), capabilities(7)
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 1, 24, 38, 47, 4
_CAPABILITIES = 64
_VERSION_3 = 0x20080522
_NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


class Worker:
    """The loop and its chores. `told`: what the supervisor wants, see `supervisor`."""

    def __init__(self, channel: socket.socket, told: dict[str, Any]) -> None:
        self._channel = channel
        self._busy = bool(told["busy_poll"])
        self._looks = BUSY_LOOKS if self._busy else LOOKS
        self._map = memory.attach(told["state"])
        self._state = open_state(self._map, read_header(self._map))
        self._description: xsk.Description = told["sockets"]
        self._frames = xsk.map_memory(told["frames"], self._description["frames"])
        self._notes = map_notes(told["notes"], self._description["frames"])
        self._lines: list[memif.Line] = told["lines"]
        self._burst, self._waiting = new_burst(), shard.new_waiting()
        self._stopping = False
        self._wanted = 0
        channel.setblocking(False)

    def prepare(self) -> int:
        """Take over; sessions found alive. After it nothing is left to compile, and receiving can begin."""
        warm.load()
        alive = recovery.attach(self._state, ticks())
        also = [self._channel.fileno()]
        self._rings = rings.open_rings(self._description, self._frames, self._notes, self._lines, also)
        self._events = {
            number: [told["out_event"], told["back_event"]]
            for number, line in enumerate(self._lines)
            if (told := line["connection"])
        }
        self._breathe(ticks(), 0)
        rings.wait(self._rings, 0)
        self._state.core[0]["longest_breath_us"] = 0
        warm.watch(self._state)
        gc.collect()
        gc.freeze()
        gc.disable()
        return int(alive)

    def run(self) -> None:
        """Breathe until SIGTERM, or until the supervisor hangs up."""
        signal.signal(signal.SIGTERM, self._stop)
        last = 0
        while not self._stopping:
            now = ticks()
            handled = self._breathe(now, BURSTS)
            idle = handled == 0 and not self._busy
            if idle or now != last:
                self._chores(now)
                last = now
            if idle and not self._stopping:
                rings.wait(self._rings, SHORT_NAP if self._state.core[0]["held"] else NAP)

    def _breathe(self, now: int, bursts: int) -> int:
        begun = time.monotonic_ns()
        given = self._state, self._rings, self._rings.frames, self._burst, self._waiting
        handled = shard.breathe(*given, now, bursts, self._looks)
        core, took_us = self._state.core[0], (time.monotonic_ns() - begun) // 1000
        core["longest_breath_us"] = max(int(core["longest_breath_us"]), took_us)
        return int(handled)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _chores(self, now: int) -> None:
        """What is done between breaths; each of it is short."""
        wanted = int(self._state.core[0]["neighbours_wanted"])
        if wanted != self._wanted:
            self._wanted = wanted
            self.say({"wanted": wanted})
        if self._lines:
            rings.listen(self._rings)
        try:
            message, descriptors, _, _ = socket.recv_fds(self._channel, _MESSAGE_AT_MOST, _DESCRIPTORS_AT_MOST)
        except BlockingIOError:
            return
        except ConnectionError:
            message = b""
        if not message:
            self._stopping = True
            return
        self._obey(json.loads(message), descriptors, now)

    def _obey(self, told: dict[str, Any], descriptors: list[int], now: int) -> None:
        if told["do"] == "connect":
            self._connect(told["line"], told["connection"], descriptors)
        if told["do"] == "delete":
            lives = np.array(told["lines"], np.int64).reshape(-1, 2)
            self.say({"deleted": int(sessions.delete_lives(self._state, lives, now))})

    def _connect(self, number: int, connection: memif.Connection | None, descriptors: list[int]) -> None:
        """Begin or end a connection. Rings stay mapped without their descriptor, so only those of events are kept."""
        queue, done = len(self._description["queues"]) + number, descriptors
        if connection is None:
            memif_rings.disconnect(self._rings, queue)
            done = self._events.pop(number, [])
        else:
            region, out, back = descriptors
            mine = {**connection, "region": region, "out_event": out, "back_event": back}
            if memif_rings.connect(self._rings, queue, cast(memif.Connection, mine)):
                done = [region, *self._events.pop(number, [])]
                self._events[number] = [out, back]
        for descriptor in done:
            os.close(descriptor)

    def say(self, message: dict[str, Any]) -> None:
        """Tell the supervisor; what it cannot take now it sees for itself a little later."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._channel.send(json.dumps(message).encode())


def die_with(parent: int) -> None:
    """Be killed when the parent dies, however it dies."""
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before that took effect
        sys.exit(1)


def drop_privileges() -> None:
    """Become nobody: no capability, none to be had by any means. OSError where that fails."""
    for capability in range(_CAPABILITIES):
        _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    _libc.prctl(_CAP_AMBIENT, _CLEAR_ALL, 0, 0, 0)
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)()) or _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot give up privileges")


def main() -> None:
    """Serve as the worker of the process that started this one."""
    begun = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor to decide about
    channel = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(channel.recv(_MESSAGE_AT_MOST))
    die_with(told["supervisor"])
    os.sched_setaffinity(0, {told["cpu"]})
    worker = Worker(channel, told)
    alive = worker.prepare()
    drop_privileges()
    die_with(told["supervisor"])  # changing the user has cleared it
    worker.say({"ready": True, "alive": alive, "seconds": round(time.monotonic() - begun, 3)})
    worker.run()


if __name__ == "__main__":
    main()
