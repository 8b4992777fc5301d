"""Who is to be given a CPU at once when something comes for it, where others use it, too: by short requests, and by niceness.

Linux gives a CPU to whoever's request ends first (EEVDF), and a thread may say how long its requests are (since 6.12,
`sched_attr.sched_runtime` of SCHED_OTHER): one that asks for little at a time is served sooner, takes the CPU from one that
asks for more, and gets no larger share by it. So packets wait less for programs that start; it needs no privilege. A thread
or process that is started later asks for the same. A core that has a CPU for itself has nothing of it.

Supervisor and speaker ask as well: between a lost carrier and the last switch that hears of it are both. Eight lost legs each
on two CPUs, interleaved: silent for 8.5 to 16.7 ms, 7.9 to 33.7 ms where only workers ask. Loading asks for the usual again.

And they go before programs, where they may (CAP_SYS_NICE): who forwards packets waits for nobody who only wants to have them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading

USUAL = 0  # as the kernel gives it to who has not asked
SLICE_NS = 200_000  # two bursts' time over a veth; the kernel takes 0.1 to 100 ms
NICENESS = -10  # nine times the weight of an ordinary program; withdrawals go before it (`routing.speaker.keeper`)

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # of sched_setattr and sched_getattr; the C library has neither
_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct sched_attr, as of its first version (sched_setattr(2))."""

    _fields_ = [
        ("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64), ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32), ("runtime", ctypes.c_uint64), ("deadline", ctypes.c_uint64), ("period", ctypes.c_uint64),
    ]  # fmt: skip


def ask_for(slice_ns: int = SLICE_NS) -> bool:
    """Have this thread's requests be so long; whether the kernel has taken it: an older one, or another policy, does not."""
    numbers, thread = _NUMBERS.get(platform.machine()), threading.get_native_id()
    if numbers is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    wanted = _Attributes(ctypes.sizeof(_Attributes), os.SCHED_OTHER, 0, nice, 0, slice_ns, 0, 0)
    if _libc.syscall(numbers[0], 0, ctypes.byref(wanted), 0):
        return False
    return slice_ns == USUAL or asked() == slice_ns


def go_first(nice: int = NICENESS) -> bool:
    """Have this thread, and what is started by it from now on, go before others; whether that is so now."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    return os.getpriority(os.PRIO_PROCESS, 0) <= nice


def asked() -> int:
    """How long this thread's requests are, in ns; 0 where the kernel does not tell."""
    numbers, told = _NUMBERS.get(platform.machine()), _Attributes()
    if numbers is None or _libc.syscall(numbers[1], 0, ctypes.byref(told), ctypes.sizeof(told), 0):
        return 0
    return int(told.runtime)
