"""When a CPU stood still: a thread of real-time priority that sleeps a moment on each of them notes when it woke too late.

Nothing of ours runs meanwhile: the machine below had the CPU (which it need not say, `steal` of proc_stat(5) may stay 0), or
the kernel kept it. What lasts longer than a BFD session waits ends it. ``python -m bench.cluster.stillness CPU`` is such a
thread, in a process of its own: an interpreter that others use, too, would let it wait.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import TracebackType

from krononat.client import Trouble

EVERY_S = 0.005
NOTED_MS = 20


def watch(cpu: int) -> None:
    """Say when this CPU stood still, from tick to tick of CLOCK_MONOTONIC in ns, as long as the parent lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who has started it ends it
    parent = os.getppid()
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO)))
    last = time.monotonic_ns()
    while os.getppid() == parent:
        time.sleep(EVERY_S)
        now = time.monotonic_ns()
        if now - last >= (EVERY_S * 1000 + NOTED_MS) * 1e6:
            print(last, now, flush=True)
        last = now


class Stillness:
    """Such a process for each CPU, from `with` to its end."""

    def __enter__(self) -> Stillness:
        self._notes = {cpu: os.memfd_create(f"still-{cpu}") for cpu in sorted(os.sched_getaffinity(0))}
        words = [sys.executable, "-m", "bench.cluster.stillness"]
        self._watching = [subprocess.Popen([*words, str(cpu)], stdout=notes) for cpu, notes in self._notes.items()]
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._watching:
            process.kill()
            process.wait()
        for notes in self._notes.values():
            os.close(notes)

    def longest_ms(self, began: int, ended: int) -> dict[int, float]:
        """By CPU, the longest that it stood still between two instants of CLOCK_MONOTONIC, in ns; 0: less than is noted.

        What it is in the midst of is not known yet. Trouble where nobody watches any more: that would look like 0.
        """
        if any(process.poll() is not None for process in self._watching):
            raise Trouble("nobody watches the CPUs any more", "a watch has ended; it needs real-time priority (CAP_SYS_NICE)")
        return {cpu: max(self._between(cpu, began, ended), default=0.0) for cpu in self._notes}

    def _between(self, cpu: int, began: int, ended: int) -> list[float]:
        told = os.pread(self._notes[cpu], 1 << 24, 0).decode()
        spans = [tuple(map(int, line.split())) for line in told.splitlines() if line.count(" ") == 1]
        return [(until - since) / 1e6 for since, until in spans if since < ended and until > began]


if __name__ == "__main__":
    watch(int(sys.argv[1]))
