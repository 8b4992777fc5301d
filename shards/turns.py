"""Two processes that fill one cache never compile the same function twice: whoever comes second waits, and reads it.

Functions do not call themselves, so nobody waits for whom who waits for him. Where it came to that by a number that two names
share, or where the folder may not be written, one goes on without having waited: that costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numba
from numba.core import compiler_lock, sigutils

_config: Any = numba.config
_sigutils: Any = sigutils


class InTurn:
    """Mixed into a dispatcher of numba."""

    def compile(self, sig: Any) -> Any:
        """Compile for these types, or read what another process has compiled meanwhile."""
        this: Any = self
        arguments, _ = _sigutils.normalize_signature(sig)
        if tuple(arguments) in this.overloads:
            return super().compile(sig)  # type: ignore[misc]
        with compiler_lock.global_compiler_lock, _turn(f"{this.py_func.__module__}.{this.py_func.__qualname__}"):
            return super().compile(sig)  # type: ignore[misc]


class _File:
    """`turns` in the cache's folder, each of whose bytes is a lock; open while any is held, as closing it frees them all."""

    descriptor, users = -1, 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        if self.users == 0:
            folder = _config.CACHE_DIR
            os.makedirs(folder, exist_ok=True)
            self.descriptor = os.open(os.path.join(folder, "turns"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.users += 1
        try:
            yield self.descriptor
        finally:
            self.users -= 1
            if self.users == 0:
                os.close(self.descriptor)


_FILE = _File()


@contextlib.contextmanager
def _turn(name: str) -> Iterator[None]:
    """Hold the lock of a name; locks of records (fcntl(2)): the kernel sees to it that two never wait for each other."""
    number = zlib.crc32(name.encode())
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            descriptor = held.enter_context(_FILE.opened())
            fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, number)
            held.callback(fcntl.lockf, descriptor, fcntl.LOCK_UN, 1, number)
        yield
