"""Calls whose arguments stay the same go straight to the code, and nothing of another type gets there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shards import apply, gather
from shards.bound import bound
from shards.jit import PURE, hot
from shards.records import SESSION_RECORD, TOMBSTONE
from shards.state import SESSION_0, Array, Sizes, State, new_state

NONE: Array = np.zeros(0, np.uint64)


@hot
def _sum(state: State, numbers: Array, factor: int, twice: bool) -> int:
    """Something of each kind of arguments."""
    told = len(state.shards)
    for number in numbers:
        told += number * factor
    return 2 * told if twice else told


def _state(shards: int = 1) -> State:
    return new_state(Sizes(extents=2, buckets=64, externals=1, accounts=2, prefixes=1, devices=1, limits=1, pools=1, rules=1,
                           statics=1, ports=1, shards=shards, peers=1, neighbours=64))  # fmt: skip


def test_it_answers_as_the_function_does() -> None:
    numbers: Array = np.arange(4)
    for shards in (1, 3):
        state = _state(shards)
        called = bound(_sum, state, numbers)
        assert [called(2, True), called(3, False)] == [_sum(state, numbers, 2, True), _sum(state, numbers, 3, False)]
        assert called(2, True) == 2 * (shards + 12)


def test_what_is_given_is_seen_as_it_is_at_each_call() -> None:
    numbers: Array = np.arange(4)
    called = bound(_sum, _state(), numbers)
    numbers[3] = 100
    assert called(1, False) == 1 + 103


def test_an_array_that_changes_is_taken_in_any_length_and_of_no_other_kind() -> None:
    called = bound(_sum, _state(), numbers=np.arange(1))
    assert [called(np.arange(length), 1, False) for length in (0, 1, 5)] == [1, 1, 11]
    wrong: list[Any] = [np.arange(4, dtype=np.int32), np.arange(4.0), np.arange(8)[::2], np.arange(4).reshape(2, 2)]
    wrong.append(np.frombuffer(bytes(8), np.int64))  # not to be written to
    for each in wrong:
        with pytest.raises(TypeError, match="argument 0 is"):
            called(each, 1, False)


def test_whoever_forgets_what_an_array_is_like_is_told() -> None:
    with pytest.raises(TypeError, match="what is records and seen of sessions like"):
        bound(apply.sessions, _state())


def test_records_of_another_kind_are_not_applied() -> None:
    called = bound(apply.sessions, _state(), records=np.zeros(0, SESSION_RECORD), seen=NONE)
    assert called(0, np.zeros(0, SESSION_RECORD), 0, NONE, 0) == 0
    with pytest.raises(TypeError):
        called(0, np.zeros(8, TOMBSTONE), 8, NONE, 0)


def test_numbers_of_numpy_are_numbers() -> None:
    state = _state()
    assert bound(gather.rows, state)(np.int64(0), np.uint8(SESSION_0)) == gather.rows(state, 0, SESSION_0)


if not PURE:
    from krononat import warm
    from krononat.worker import Worker
    from replication import harvest, lanes, rows, steady
    from shards import bfd, doubt, loop, rings, shard

    def test_what_is_no_number_does_not_get_there() -> None:
        called = bound(_sum, _state(), np.arange(4))
        nonsense: list[Any] = [None, [1], np.arange(4), 1 << 64]
        for each in nonsense:
            with pytest.raises((TypeError, OverflowError)):
                called(each, False)

    def test_after_the_warm_up_nothing_that_a_worker_binds_is_compiled() -> None:
        warm.load()
        state, _, burst = warm._stage()
        worker = Worker.__new__(Worker)
        worker._state, worker._burst, worker._waiting = state, burst, shard.new_waiting()
        worker._rings = worker._packets = warm._no_rings()
        worker._pace = loop.new_pace(0, 0)
        streams, by_shard = np.zeros((0, steady.STREAM_COLUMNS), np.int64), (np.zeros(1, np.int64),) * 3
        known = _known()
        worker._bind()
        rows.StateSource(state, 0)
        rows.StateSink(state)
        bound(steady.pump, state, lanes.Desk().lane(steady.new_book(), streams, by_shard))
        assert _known() == known and known["replication.steady.pump"] == known["shards.loop.serve"] == 1

    def _known() -> dict[str, int]:
        """For how many kinds of arguments there is code."""
        modules = (apply, bfd, doubt, gather, harvest, loop, rings, steady)
        found = ((f"{module.__name__}.{name}", each) for module in modules for name, each in vars(module).items())
        return {name: len(each.twin.overloads) for name, each in found if hasattr(each, "twin")}

    def test_it_is_the_code_that_the_function_calls_itself() -> None:
        state = _state()
        _sum(state, np.arange(4), 1, False)
        assert len(_sum.twin.overloads) == 1  # type: ignore[attr-defined]
        bound(_sum, state, np.arange(4))(1, False)
        assert len(_sum.twin.overloads) == 1  # type: ignore[attr-defined]
