"""A worker's process from its start to its first packet: it loads all code, gives up its privileges, and stands by.

Started by the supervisor as ``python -m krononat.standby DESCRIPTOR``: its end of a channel of JSON messages. The first one
says where memory and sockets are, under the descriptors that it has inherited. Then:

    it          {"loaded": layout, "code": digest, "seconds": s}    or {"refused": sentence}, and it ends
    supervisor  {"do": "take", "lines": [...], "reindex": bool}     and their descriptors; now, in an hour, or never
    it          {"ready": true, "alive": n, "rebuilt": 0, "ms": n}                from here on `worker` says what is said

So what takes seconds has been done when the worker before dies, and taking over takes milliseconds. What loads is a thread of
low priority, and on another CPU than the worker's where there is one; it is this thread that waits, so nothing is to be
raised again.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from krononat import promptness
from krononat.channel import MESSAGE_AT_MOST

if TYPE_CHECKING:
    from krononat.worker import Worker

Result = TypeVar("Result")

DESCRIPTORS_AT_MOST = 64  # of all memif lines: four each

# prctl(2), capabilities(7)
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL = 1, 24, 38, 47, 4
_CAPABILITIES = 64
_VERSION_3 = 0x20080522
_NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve as the worker, or the spare one, of the process that started this one."""
    begun = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor to decide about
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # writing all that memory to a file would keep the successor waiting
    channel = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(channel.recv(MESSAGE_AT_MOST))
    die_with(told["supervisor"])
    about = in_a_thread(lambda: _load(channel, told["state"]), told["nice"])
    drop_privileges()
    die_with(told["supervisor"])  # changing the user has cleared it
    worker = _stand_by(channel, told)
    worker.say({**about, "seconds": round(time.monotonic() - begun, 3)})
    orders, descriptors = _wait(channel)
    if orders:
        _take(worker, renumbered(orders, descriptors), told["cpu"])
        worker.run()
        os._exit(0)  # the next one waits for our end; taking an interpreter to pieces takes a while


def in_a_thread(work: Callable[[], Result], nice: int) -> Result:
    """Do it at this niceness, no sooner than others: a thread's own in Linux; who may lower it may not raise it again."""
    done: list[Result] = []

    def low() -> None:
        promptness.ask_for(promptness.USUAL)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        done.append(work())

    thread = threading.Thread(target=low)
    thread.start()
    thread.join()
    if not done:  # it has told its exception
        sys.exit(1)
    return done[0]


def _load(channel: socket.socket, state: int) -> dict[str, Any]:
    """Import the compiler and everything else, and load, or compile, what packets need; or say why that would be in vain.

    All of it: later nobody may read the files. What has been loaded.
    """
    from shards.state import HEADER_BYTES, LAYOUT, layout_digest, read_header

    try:
        read_header(os.pread(state, HEADER_BYTES, 0))
    except ValueError as other:  # memory of another layout
        channel.send(json.dumps({"refused": str(other)}).encode())
        os._exit(0)
    from krononat import warm, worker
    from shards import jit

    warm.load()
    assert worker
    return {"loaded": f"{LAYOUT}/{layout_digest()}", "code": jit.digest()}


def _stand_by(channel: socket.socket, told: dict[str, Any]) -> Worker:
    """Map everything: nothing is missing but the orders."""
    from krononat.worker import Worker

    worker = Worker(channel, told)
    in_a_thread(lambda: worker.stand_by(told["spare"]), told["nice"])
    return worker


def _wait(channel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Orders, and the descriptors that came with them; none where the supervisor hangs up."""
    with contextlib.suppress(ConnectionError):
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_AT_MOST, DESCRIPTORS_AT_MOST)
        if message:
            return json.loads(message), descriptors
    return {}, []


def _take(worker: Worker, orders: dict[str, Any], cpu: int) -> None:
    begun = time.monotonic()
    os.sched_setaffinity(0, {cpu})
    promptness.ask_for()
    alive = worker.prepare(orders)
    worker.say({"ready": True, "alive": alive, "rebuilt": worker.rebuilt, "ms": round(1000 * (time.monotonic() - begun), 1)})


def renumbered(orders: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    """The orders with our numbers of the descriptors that came along in place of the supervisor's, which they name."""
    ours = dict(zip(orders["descriptors"], descriptors, strict=True))
    for line in orders["lines"]:
        line["tap"] = ours[line["tap"]]
        if connection := line["connection"]:
            connection |= {name: ours[connection[name]] for name in ("region", "out_event", "back_event")}
    return orders


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


if __name__ == "__main__":
    main()
