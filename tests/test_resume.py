"""Whoever attaches goes on at once where no change was under way, else rebuilds: killed at any line, nobody errs."""

from __future__ import annotations

import random
from functools import partial

import numpy as np

from shards import doubt, invariants, recovery, resume
from shards.jit import PURE
from shards.state import NAT_MAPPING, NAT_SESSION
from tests.bare_core import Core
from tests.test_recovery import START, alive, churn, continued, kill_at, new_core

LATER = START + 3_000_000


def lived_in(seed: int) -> Core:
    core = new_core()
    churn(core, random.Random(seed), START)
    return core


if PURE:

    def test_killed_at_any_line_and_resumed_all_is_sound() -> None:
        rebuilt: list[int] = []
        while len(rebuilt) < 8 or not 0 < sum(rebuilt) < len(rebuilt):  # about one in ten dies within a change
            seed = len(rebuilt)
            assert seed < 100
            chance, core = random.Random(seed), lived_in(seed)
            assert kill_at(chance.randrange(1, 40_000), partial(churn, core, chance, START + 1_000_000))
            before = alive(core.state)
            found, again = resume.resume(core.state, False, LATER)
            assert invariants.complaints(core.state) == []
            assert found == len(alive(core.state)) and alive(core.state) <= before
            rebuilt.append(again)
            churn(continued(core), chance, LATER)
            assert invariants.complaints(core.state) == []

    def test_who_is_killed_while_it_rebuilds_leaves_that_to_the_next() -> None:
        core = lived_in(7)
        before = alive(core.state)
        for line in (20, 300, 3_000, 30_000):
            assert kill_at(line, lambda: resume.resume(core.state, True, LATER))
            assert core.state.core[0]["in_doubt"]
        assert resume.resume(core.state, False, LATER) == (len(before), 1)
        assert alive(core.state) == before and invariants.complaints(core.state) == []


def test_what_nobody_was_changing_is_left_as_it_is() -> None:
    core = lived_in(1)
    before = {name: array.copy() for name, array in core.state._asdict().items() if name not in ("core", "dirty", "summary")}
    assert resume.resume(core.state, False, LATER) == (recovery.living(core.state), 0)
    for name, array in before.items():
        assert np.array_equal(array, core.state._asdict()[name]), name


def test_every_living_row_is_shipped_again() -> None:
    core = lived_in(2)
    core.state.dirty[:] = 0
    resume.resume(core.state, False, LATER)
    marked = np.flatnonzero(np.unpackbits(core.state.dirty.view(np.uint8), bitorder="little"))
    lines = np.flatnonzero(core.state.sessions["kind"] == NAT_SESSION)
    halves = np.flatnonzero(core.state.mappings["kind"] == NAT_MAPPING)
    sessions = {int(half) for half in marked if core.state.sessions[half >> 1]["kind"] == NAT_SESSION and half % 2 == 0}
    assert sessions == {2 * int(line) for line in lines}
    assert {int(half) for half in marked} - sessions <= {int(half) for half in halves}
    assert len(sessions) == recovery.living(core.state) > 0


def test_counts_that_disagree_are_not_believed() -> None:
    core = lived_in(3)
    for row, count in (
        (core.state.shards[0], "sessions"),
        (core.state.shards[0], "mappings"),
        (core.state.core[0], "index_entries"),
    ):
        row[count] += 1
        assert resume.resume(core.state, False, LATER)[1] == 1
    assert invariants.complaints(core.state) == []


def test_doubt_is_nested_and_asked_for() -> None:
    core = lived_in(4)
    doubt.begin(core.state)
    doubt.begin(core.state)
    doubt.end(core.state)
    assert resume.resume(core.state, False, LATER)[1] == 1
    assert core.state.core[0]["in_doubt"] == 0
    assert resume.resume(core.state, True, LATER)[1] == 1
    assert resume.resume(core.state, False, LATER)[1] == 0
