"""A process's death is told at once, whatever it has in memory; and what is no will leads nobody astray."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from routing import will

_HOLDER = """
import socket, sys, time
from routing.will import Will
held = Will()
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"!"], [held.descriptor])
ballast = bytearray(64 << 20)
time.sleep(60)
"""


class Holder:
    """A process that holds a will."""

    def __init__(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, far:
            command = [sys.executable, "-c", _HOLDER, str(far.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[far.fileno()])
            _, (self.descriptor,), _, _ = socket.recv_fds(near, 1, 1)

    def end(self) -> None:
        """At once."""
        self.process.send_signal(signal.SIGKILL)


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = Holder()
    yield made
    made.end()
    made.process.wait()


def test_everybody_who_watches_is_told_of_the_death_and_not_before(holder: Holder) -> None:
    told = [threading.Event() for _ in range(3)]
    for each in told:
        will.watch(os.dup(holder.descriptor), each.set)
    assert not told[0].wait(0.2)
    holder.end()
    assert all(each.wait(5) for each in told)
    late = threading.Event()
    will.watch(holder.descriptor, late.set)
    assert late.wait(5)


def page(value: int, flags: int = os.MFD_ALLOW_SEALING) -> int:
    """Memory that looks like a will, with some first word."""
    descriptor = os.memfd_create("page", flags)
    os.ftruncate(descriptor, mmap.PAGESIZE)
    os.pwrite(descriptor, value.to_bytes(4, "little"), 0)
    return descriptor


def test_memory_that_could_vanish_is_refused() -> None:
    descriptor = page(0)
    with pytest.raises(ValueError, match="shrink"):
        will.watch(descriptor, lambda: None)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
    with pytest.raises(OSError, match="Invalid argument"):
        will.watch(os.open("/dev/null", os.O_RDONLY), lambda: None)


def test_a_word_that_is_nobodys_tells_nothing() -> None:
    told = threading.Event()
    descriptor = page(0)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    will.watch(descriptor, told.set)
    assert not told.wait(0.1)
