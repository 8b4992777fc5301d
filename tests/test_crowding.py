"""A worker that has to share its CPU: how long its chores rest, and that packets do not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from krononat import promptness, standby
from krononat.crowding import LOOK_EACH, REST_AT_MOST, Crowding, resting


def test_who_waits_for_nothing_rests_for_nothing_and_who_waits_half_the_time_rests_most() -> None:
    second = 1_000_000_000
    assert [resting(part * second // 100, 1000) for part in (0, 1, 4, 25, 50, 90, 100)] == [0, 0, 0, 6, 12, 12, 12]
    rests = [resting(part * second // 1000, 1000) for part in range(1001)]
    assert rests == sorted(rests) and rests[-1] == REST_AT_MOST


def test_the_wait_is_what_the_kernel_counts_between_two_looks(tmp_path: Path) -> None:
    crowding, counted = Crowding(), tmp_path / "schedstat"
    crowding._file = os.open(counted, os.O_RDWR | os.O_CREAT)

    def look(waited_ns: int, now: int) -> int:
        counted.write_text(f"5000 {waited_ns} 17\n")
        crowding.look(now)
        return crowding.rest

    wait_ns = LOOK_EACH * 1_000_000
    assert look(7 * wait_ns, 100) == 0  # the first look: it does not know since when
    assert look(8 * wait_ns, 99 + LOOK_EACH) == 0  # too soon
    assert look(8 * wait_ns, 100 + LOOK_EACH) == REST_AT_MOST
    assert look(8 * wait_ns, 100 + 2 * LOOK_EACH) == 0
    os.close(crowding._file)


def test_a_kernel_that_does_not_count_it_is_one_on_which_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krononat.crowding._SCHEDSTAT", "/nowhere/schedstat")
    crowding = Crowding()
    for now in (0, LOOK_EACH, 2 * LOOK_EACH):
        crowding.look(now)
    assert crowding.rest == 0


@pytest.mark.alone
def test_two_that_compute_on_one_cpu_wait_for_each_other() -> None:
    """The real counter of this thread, beside one that takes the same CPU."""
    before, cpu = os.sched_getaffinity(0), max(os.sched_getaffinity(0))
    started = os.posix_spawn("/bin/sh", ["sh", "-c", f"exec taskset -c {cpu} sh -c 'while :; do :; done'"], os.environ)
    try:
        os.sched_setaffinity(0, {cpu})
        crowding, until = Crowding(), time.monotonic() + 0.6
        while time.monotonic() < until:
            crowding.look(time.monotonic_ns() // 1_000_000)
        assert crowding.rest > REST_AT_MOST // 2
    finally:
        os.sched_setaffinity(0, before)
        os.kill(started, 9)
        os.waitpid(started, 0)


def test_a_thread_asks_for_short_requests_by_itself() -> None:
    """And who has asked for nothing gets what the machine gives."""
    told: list[tuple[int, bool, int]] = []

    def ask() -> None:
        told.append((promptness.asked(), promptness.ask_for(300_000), promptness.asked()))

    before = promptness.asked()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert promptness.asked() == before
    if before == 0:  # an older kernel: it says so
        assert told == [(0, False, 0)]
    else:
        assert told == [(before, True, 300_000)]


def test_who_loads_for_somebody_in_a_hurry_has_requests_as_long_as_others() -> None:
    told: list[int] = []

    def ask() -> None:
        promptness.ask_for(promptness.USUAL)
        told.append(promptness.asked())
        promptness.ask_for(300_000)
        told.append(promptness.asked())
        told.append(standby.in_a_thread(promptness.asked, nice=5))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    usual = told[0]
    assert told == [usual, 300_000 if usual else 0, usual]


_GOES_FIRST = """
import os
from krononat import promptness, standby
{before}
nice = lambda: os.getpriority(os.PRIO_PROCESS, 0)
print(promptness.go_first(-3), nice(), standby.in_a_thread(nice, 4))
"""


def _may_raise() -> bool:
    """CAP_SYS_NICE, capabilities(7)."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 23 & 1)


@pytest.mark.skipif(not _may_raise(), reason="may not raise a priority (CAP_SYS_NICE)")
@pytest.mark.parametrize(
    ("before", "told"),
    [("", "True -3 4"), ("os.nice(-7)", "True -7 4"), ("standby.drop_privileges()", "False 0 4")],
    ids=["raised", "kept", "refused"],
)
def test_who_may_goes_before_others_but_for_what_it_loads(before: str, told: str) -> None:
    words = [sys.executable, "-c", _GOES_FIRST.format(before=before)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, 0)
    )
    assert done.stdout.strip() == told
