"""Cores share nothing: not a page, not a byte that either writes; and the bench of two of them does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import shards
from bench import scale, traffic
from shards.jit import PURE
from shards.state import SECTION_ALIGN, Array, Sizes, State, new_state, state_bytes

PAGE, HUGE_PAGE, LINE = 4096, 2 << 20, 64
SIZES = Sizes(**{**dict.fromkeys(Sizes._fields, 3), "buckets": 4, "neighbours": 4})
VIEWS = {"sessions", "flows6", "mappings", "refs", "blooms", "port_bytes", "neighbour_bytes"}  # of memory another section has


def scene(seed: int) -> traffic.Scene:
    return traffic.build(64, 256, seed) if PURE else traffic.build(1000, 4096, seed)


def span(array: Array, unit: int) -> range:
    """Units of memory that an array touches."""
    first = int(array.ctypes.data)
    return range(first // unit, -(-(first + array.nbytes) // unit))


def sections(state: State) -> dict[str, Array]:
    return {name: array for name, array in state._asdict().items() if name not in VIEWS}


def test_no_two_sections_share_a_huge_page() -> None:
    state = new_state(SIZES)
    base = int(state.settings.ctypes.data) - SECTION_ALIGN
    pages = [
        range((a.ctypes.data - base) // HUGE_PAGE, -(-(a.ctypes.data - base + a.nbytes) // HUGE_PAGE))
        for a in sections(state).values()
    ]
    assert sum(map(len, pages)) == len(set().union(*pages))
    assert state_bytes(SIZES) % HUGE_PAGE == 0, "the next mapping begins on a page of its own"


def test_no_two_cores_share_a_page_or_a_line() -> None:
    states = [new_state(SIZES), new_state(SIZES)]
    for unit in (PAGE, LINE):
        first, second = ({part for array in state for part in span(array, unit)} for state in states)
        assert not first & second


def test_a_core_writes_only_to_its_own_memory() -> None:
    busy, idle = scene(1), scene(2)
    before = [array.copy() for array in (*idle.state, idle.frames, *idle.burst)]
    traffic.run(busy.state, busy.frames, busy.burst, len(busy.order), 2, traffic.NOW + 1000)
    for name, was, now in zip(
        (*State._fields, "frames", *idle.burst._fields), before, (*idle.state, idle.frames, *idle.burst), strict=True
    ):
        assert np.array_equal(was, now), name


def test_counters_of_a_core_stand_a_line_each() -> None:
    assert new_state(SIZES).counters[0].nbytes == LINE


def test_nothing_compiled_knows_a_lock() -> None:
    """Ring cursors are loaded and stored with acquire and release, which are plain moves; nothing is changed atomically."""
    sources = {path.name: path.read_text() for path in Path(shards.__file__).parent.glob("*.py")}
    for forbidden in ("cmpxchg", "atomic_rmw", "import threading", "import multiprocessing"):
        assert [name for name, source in sources.items() if forbidden in source] == []


def test_two_cores_run_every_frame_and_verify_them() -> None:
    load = scale.Load(64, 256) if PURE else scale.Load(1000, 4096)
    with scale.cores([0, 0], load) as pair:
        rounds = scale.measure(pair, 2, lambda text: None)
        assert scale.losses(pair) == 0
    assert len(rounds) == 2 and all(rate > 0 for told in rounds for half in told for rate in half)


def test_the_ratio_is_of_both_together_to_the_mean_of_one_alone() -> None:
    results = {told.name: told for told in scale.figures([scale.Round((9, 10), (8, 12)), scale.Round((10, 10), (10, 10))], 0.0)}
    assert results["scale/2cores"].value == pytest.approx(1.95)
    assert (results["scale/2cores"].low, results["scale/2cores"].high) == (1.9, 2.0)
    assert results["scale/2cores"].ok and results["scale/2cores"].goal == 1.9 and results["scale/2cores"].loss == 0
    assert results["scale/core1/alone"].high == 12


def test_a_core_whose_process_died_is_told() -> None:
    with scale.cores([0, 4096], scale.Load(64, 256)) as pair, pytest.raises(Exception, match="core 4096 has ended"):
        scale.measure(pair, 1, lambda text: None)
