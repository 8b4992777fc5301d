"""Breath after breath without Python: until when, by which clock, and in which pace."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from krononat.clock import ticks
from krononat.warm import _SMALL, _no_rings
from shards import loop, shard
from shards.burst import Burst, new_burst
from shards.frames import Rings
from shards.state import WHEEL_SHIFT, Array, State, new_state


def given(ports: Rings | None = None, state: State | None = None) -> tuple[State, Rings, Array, Burst, Array]:
    """What a breath is given: a core that has nothing. All is loaded, and the wheel of timers has been turned as far as now."""
    core = state or new_state(_SMALL)
    found = core, ports or _no_rings(), np.zeros(4096, np.uint8), new_burst(), shard.new_waiting()
    core.core[0]["wheel_at"] = ticks() >> WHEEL_SHIFT
    loop.serve(*found, loop.new_pace(4, 0), ticks() + 2)
    return found


def test_the_machine_s_ticks_are_those_of_python() -> None:
    pace = loop.new_pace(4, 0)
    before = ticks()
    found = loop.machine(pace)
    assert before <= found <= ticks()


@pytest.mark.alone
def test_it_serves_until_its_time_is_over_and_sleeps_meanwhile() -> None:
    pace, core = loop.new_pace(4, 0), given()
    began, worked = ticks(), time.thread_time_ns()
    breaths = loop.serve(*core, pace, began + 40)
    assert began + 40 <= ticks() <= began + 140
    assert 1 <= breaths <= 60  # a breath each time that something is due, and not as many as fit
    assert time.thread_time_ns() - worked < 30_000_000
    assert loop.serve(*core, pace, began) == 0  # over already


@pytest.mark.alone
def test_it_is_woken_by_what_comes() -> None:
    """A descriptor among those of frames that is ready ends each nap at once."""
    reading, writing = os.pipe()
    os.write(writing, b"x")
    ports = _no_rings()._replace(polled=np.array([[reading, 1]], np.int32))
    pace, core = loop.new_pace(4, 0), given(ports)
    assert loop.serve(*core, pace, ticks() + 40) > 60
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_it_ends_early_where_packets_begin_to_wait_for_a_chore() -> None:
    """As if another one had written so meanwhile: a neighbour that is asked for, a carrier that is lost."""
    for part, name in (("core", "neighbours_wanted"), ("ports", "carrier_lost")):
        state = new_state(_SMALL)
        core, row = given(state=state), getattr(state, part)[0]
        row[name] = 1  # it was so before: that is no reason
        began = ticks()
        assert loop.serve(*core, loop.new_pace(4, 0), began + 30) and ticks() >= began + 30

        def soon(row: Any = row, name: str = name) -> None:
            time.sleep(0.05)
            row[name] += 1

        teller = threading.Thread(target=soon)
        teller.start()
        began = ticks()
        loop.serve(*core, loop.new_pace(4, 0), began + 5000)
        teller.join()
        assert ticks() < began + 2500


def test_breaths_go_by_the_clock_that_they_are_told() -> None:
    """As far as the wheel of timers has been turned."""
    for ahead, stands in ((0, 0), (500_000, 0), (500_000, 77_000_000)):
        state, pace = new_state(_SMALL), loop.new_pace(4, 0)
        pace[loop.AHEAD], pace[loop.STANDS] = ahead, stands
        core, before = given(state=state), ticks()
        state.core[0]["wheel_at"] = (stands or before + ahead) - 5000 >> WHEEL_SHIFT
        loop.serve(*core, pace, before + 5)
        seen = int(state.core[0]["wheel_at"])
        first, last = (stands, stands) if stands else (before + ahead, ticks() + ahead)
        assert first >> WHEEL_SHIFT <= seen <= last >> WHEEL_SHIFT


def test_a_breath_notes_how_long_it_took_and_the_next_one_s_length() -> None:
    state, pace = new_state(_SMALL), loop.new_pace(4, 0)
    breath = (*given(state=state), pace, ticks(), 1)
    loop.breathe(*breath)  # the first one may take its time
    state.core[0]["longest_breath_us"], pace[loop.BURSTS] = 0, 1
    loop.breathe(*breath)
    took_us = int(state.core[0]["longest_breath_us"])
    assert int(pace[loop.BURSTS]) == loop.bursts_after(1, took_us, 4)
