"""Whether a core shares its CPU, by what the kernel tells of its thread."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from krononat.crowd import LOOK_EACH, Crowd


class Kernel:
    """A file as proc(5) has it."""

    def __init__(self, path: Path) -> None:
        self.path, self._waited = path, 0
        self.waits(0)

    def waits(self, ms: int) -> None:
        """The thread has waited for so much longer."""
        self._waited += ms * 1_000_000
        self.path.write_text(f"123456789 {self._waited} 17\n")


def test_it_begins_at_two_fifths_of_the_time_and_ends_below_one(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "schedstat")
    seen: list[bool] = []
    crowd, now = Crowd(str(kernel.path)), 5000
    assert not crowd.look(now) and not crowd.is_crowded
    for percent in (0, 30, 39, 40, 90, 30, 20, 19, 39):
        now += LOOK_EACH
        kernel.waits(LOOK_EACH * percent // 100)
        changed, before = crowd.look(now), seen[-1] if seen else False
        seen.append(crowd.is_crowded)
        assert changed == (seen[-1] != before)
    assert seen == [False, False, False, True, True, True, True, False, False]


def test_between_two_looks_nothing_is_read(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path / "schedstat")
    crowd = Crowd(str(kernel.path))
    crowd.look(1000)
    kernel.waits(10_000)
    assert not crowd.look(1000 + LOOK_EACH - 1) and crowd.look(1000 + LOOK_EACH)


@pytest.mark.parametrize("text", [None, "", "nonsense", "1 x 2"])
def test_a_kernel_that_does_not_tell_has_no_crowd(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "schedstat"
    if text is not None:
        path.write_text(text)
    crowd = Crowd(str(path))
    assert not any(crowd.look(now) for now in range(0, 2000, 100)) and not crowd.is_crowded


def test_this_kernel_tells_of_a_thread_whose_cpu_another_one_uses() -> None:
    cpus = os.sched_getaffinity(0)
    others: list[subprocess.Popen[bytes]] = []
    os.sched_setaffinity(0, {min(cpus)})
    try:
        crowd = Crowd()
        crowd.look(0)
        others += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            pass
        crowd.look(2000)
        assert crowd.is_crowded
    finally:
        for other in others:
            other.kill()
            other.wait()
        os.sched_setaffinity(0, cpus)
