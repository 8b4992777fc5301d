"""A CPU that stands still is told, with how long; one that works is not."""

from __future__ import annotations

import os
import signal
import time

import pytest

from bench.cluster.stillness import Stillness
from krononat.client import Trouble

pytestmark = pytest.mark.lab


def test_what_stands_still_is_told_by_cpu_and_time() -> None:
    """The watch itself is stopped: it cannot tell that from its CPU's standing still."""
    with Stillness() as stillness:
        first, *others = stillness._watching
        time.sleep(1)  # they begin
        began = time.monotonic_ns()
        os.kill(first.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.kill(first.pid, signal.SIGCONT)
        time.sleep(0.3)
        ended = time.monotonic_ns()
        still = stillness.longest_ms(began, ended)
        cpu = min(os.sched_getaffinity(0))
        assert set(still) == os.sched_getaffinity(0) and 290 < still[cpu] < 600
        assert stillness.longest_ms(ended, time.monotonic_ns())[cpu] < 290
    assert all(process.returncode == -signal.SIGKILL for process in (first, *others))


def test_a_watch_that_has_ended_does_not_look_like_a_cpu_that_works() -> None:
    with Stillness() as stillness:
        assert stillness.longest_ms(0, time.monotonic_ns()).keys() == os.sched_getaffinity(0)
        stillness._watching[0].kill()
        stillness._watching[0].wait()
        with pytest.raises(Trouble, match="nobody watches"):
            stillness.longest_ms(0, time.monotonic_ns())
