"""A worker may be killed at any instruction: whoever attaches next finds a sound state, and loses no session that was made.

The kill is real in the pure pipeline, line by line, by a trace function that raises; compiled, it is damaged
memory.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shards
from shards import invariants, recovery
from shards.jit import PURE
from shards.state import NAT_SESSION, State
from tests.bare_core import Core
from tests.bed import Bed
from tests.frames import address, build, build_frame, mac_of, read

START = 50_000_000
SHARDS = str(Path(shards.__file__).parent)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the pipeline catches it."""


def new_core() -> Core:
    bed = Bed()
    for statement in (
        "pool 203.0.113.0/31 block 64 filtering address-dependent",
        "subscribers 100.64.0.0/28",
        "static tcp 203.0.113.0:8080 to 100.64.0.7:80",
    ):
        bed.say(statement)
    core = Core(bed.complete(), START)
    core.resolve(*(address(f"100.64.0.{n}") for n in range(1, 15)))
    return core


def outbound(text: str) -> bytes:
    """A frame from inside, in the scenarios' own words."""
    packet = read(text)
    return build_frame(mac_of(address("100.64.0.1")), mac_of(packet.source), build(packet))


def churn(core: Core, chance: random.Random, now: int) -> None:
    """Some bursts of new flows, of old ones and of ends, and time."""
    for _ in range(3):
        arrivals = []
        for _ in range(6):
            host, port = chance.randrange(2, 14), chance.randrange(1024, 1040)
            remote = f"198.51.100.{chance.randrange(1, 4)}:{chance.choice((53, 443))}"
            kind, flags = chance.choice((("udp", ""), ("tcp", "syn"), ("tcp", "rst"), ("tcp", "fin ack")))
            arrivals.append(("inside", outbound(f"{kind} 100.64.0.{host}:{port} > {remote} {flags}")))
        core.receive(arrivals, now)
        now += chance.choice((1, 1000, 100_000, 301_000))
        core.pass_time(now)


def alive(state: State) -> set[tuple[int, bytes]]:
    """Keys of the living sessions."""
    return {(int(row["generation"]), row.tobytes()[:32]) for row in invariants.living(state)}


def kill_at(line: int, work: Callable[[], Any]) -> bool:
    """Run `work` until its `line`-th line inside shards; whether it got that far."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(SHARDS):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Killed
        return trace

    sys.settrace(trace)
    try:
        work()
    except Killed:
        return True
    finally:
        sys.settrace(None)
    return False


if PURE:

    @pytest.mark.parametrize("seed", range(16))
    def test_a_kill_at_any_line_leaves_a_state_that_the_next_one_makes_sound(seed: int) -> None:
        chance = random.Random(seed)
        core = new_core()
        churn(core, chance, START)
        assert kill_at(chance.randrange(1, 40_000), lambda: churn(core, chance, START + 1_000_000))
        before = alive(core.state)
        found = recovery.attach(core.state, START + 3_000_000)
        assert invariants.complaints(core.state) == []
        assert found == len(alive(core.state)) and alive(core.state) <= before
        core = continued(core)
        churn(core, chance, START + 3_000_000)
        assert invariants.complaints(core.state) == []

    def test_a_kill_during_the_recovery_is_recovered_from() -> None:
        chance = random.Random(7)
        core = new_core()
        churn(core, chance, START)
        before = alive(core.state)
        for line in (10, 200, 3_000, 30_000, 100_000):
            kill_at(line, lambda: recovery.attach(core.state, START + 1000))
        recovery.attach(core.state, START + 1000)
        assert alive(core.state) == before and invariants.complaints(core.state) == []


def continued(core: Core) -> Core:
    """The same core after its worker was replaced: what that one held in hand is gone."""
    core.held, core.slots = [], list(range(len(core.burst.at)))
    return core


def test_attaching_again_changes_no_session_and_no_port() -> None:
    core = new_core()
    churn(core, random.Random(1), START)
    before, owners = alive(core.state), core.state.owners.copy()
    assert recovery.attach(core.state, START + 1_000_000) == len(before) > 0
    assert alive(core.state) == before
    assert np.array_equal(core.state.owners, owners)
    assert invariants.complaints(core.state) == []


def test_what_is_derived_may_be_lost_wholly() -> None:
    core = new_core()
    churn(core, random.Random(2), START)
    before = alive(core.state)
    noise = np.random.default_rng(3)
    for derived in (core.state.tags, core.state.wheel, core.state.accounts["sessions"], core.state.chunks["used"]):
        derived[...] = noise.integers(0, 1 << 16, derived.shape)
    recovery.attach(core.state, START + 1_000_000)
    assert alive(core.state) == before
    assert invariants.complaints(core.state) == []


def test_a_session_whose_mapping_is_gone_ends_and_is_told() -> None:
    core = new_core()
    churn(core, random.Random(4), START)
    line = int(np.flatnonzero(core.state.sessions["kind"] == NAT_SESSION)[0])
    mapping = int(core.state.sessions[line]["mapping"])
    core.state.mappings[mapping]["kind"] = 0
    core.state.shipped[:] = 2**64 - 1  # a backup was told of every life
    orphans = int(np.count_nonzero((core.state.sessions["mapping"] == mapping) & (core.state.sessions["kind"] == NAT_SESSION)))
    before, told = len(alive(core.state)), int(core.state.core[0]["tombstones"])
    assert recovery.attach(core.state, START + 1_000_000) == before - orphans
    assert int(core.state.core[0]["tombstones"]) >= told + orphans
    assert invariants.complaints(core.state) == []


def test_who_has_a_static_mapping_is_paired_with_its_address_also_after_a_restart() -> None:
    core = new_core()
    for now in (START, START + 1000):
        core.receive([("inside", outbound(f"udp 100.64.0.7:{now % 60000} > 198.51.100.9:53"))], now)
        recovery.attach(core.state, now)
    rows = invariants.living(core.state)
    assert len(rows) == 2 and set(rows["external_address"].tolist()) == {address("203.0.113.0")}
