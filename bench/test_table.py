"""The index under pytest-benchmark: `pytest bench/test_table.py --benchmark-compare`. A round is of 1 Mi keys, or of all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import tables
from shards import cuckoo
from shards.state import NAT_SESSION, Array, State


@pytest.fixture(scope="module", params=["512Ki", "2Mi"])
def table(request: pytest.FixtureRequest) -> tuple[State, Array]:
    """An index at load 0.8, and its keys."""
    state, present = tables.build(tables.SIZES[request.param], np.random.default_rng(1))
    tables.fill(state, present)
    return state, present


@pytest.mark.parametrize("batch", tables.BATCHES)
@pytest.mark.parametrize("misses", tables.MISSES)
def test_lookup_bulk(benchmark: Any, table: tuple[State, Array], misses: int, batch: int) -> None:
    """Queries of one kind, in bursts; the answers are verified."""
    state, present = table
    queries = tables.ask(present, np.random.default_rng(misses), misses)
    refs, verdicts = np.zeros(tables.QUERIES, np.int64), np.zeros(batch, np.int64)
    arguments = (state, queries.key0, queries.key1, refs, verdicts, batch)
    benchmark.pedantic(tables.lookup_all, arguments, warmup_rounds=1, rounds=10)
    assert np.array_equal(refs, queries.refs)


def test_lookup_and_refresh_bulk(benchmark: Any) -> None:
    """Keys that are there, a session's line each, and the session's expiry set."""
    random = np.random.default_rng(1)
    state, present = tables.build(tables.SIZES["512Ki"], random, units=4)
    lines = np.arange(1, len(present) + 1)
    key0s, key1s = present[:, 0].copy(), present[:, 1].copy()
    assert tables.insert_all(state, key0s, key1s, 4 * lines, np.zeros(len(present), np.int64)) == len(present)
    state.extents["kind"], state.sessions["kind"][lines], state.sessions["expiry"][lines] = NAT_SESSION, NAT_SESSION, 1000
    chosen = random.integers(0, len(present), tables.QUERIES)
    refs, verdicts = np.zeros(tables.QUERIES, np.int64), np.zeros(tables.QUERIES, np.int64)
    arguments = (state, key0s[chosen], key1s[chosen], refs, verdicts, tables.QUERIES, 1, 2000)
    benchmark.pedantic(cuckoo.lookup_and_refresh_bulk, arguments, warmup_rounds=1, rounds=10)
    assert np.array_equal(refs, 4 * lines[chosen]) and (state.sessions["expiry"][refs >> 2] == 2000).all()


def test_insert_bulk(benchmark: Any, table: tuple[State, Array]) -> None:
    """All keys into an empty index."""
    state, present = table
    columns = tables.columns(present)
    benchmark.pedantic(tables.insert_all, (state, *columns), setup=lambda: cuckoo.clear(state), warmup_rounds=1, rounds=5)
    assert columns.done.all()


def test_erase_bulk(benchmark: Any, table: tuple[State, Array]) -> None:
    """All keys out of it again."""
    state, present = table
    columns = tables.columns(present)

    def filled_anew() -> None:
        cuckoo.clear(state)
        tables.fill(state, present)

    benchmark.pedantic(tables.erase_all, (state, *columns), setup=filled_anew, warmup_rounds=1, rounds=5)
    assert columns.done.all() and not state.tags[:, : cuckoo.SLOTS].any()
    tables.fill(state, present)


def test_insert_and_erase_one_by_one(benchmark: Any, table: tuple[State, Array]) -> None:
    """As the path does it, called from Python: what a crossing costs is in it."""
    state, _ = table
    key0, key1 = (np.uint64(word) for word in (1, 2))
    state.words[-2:] = key0, key1
    ref = len(state.words) // 2 - 1

    def both() -> bool:
        return bool(cuckoo.insert(state, key0, key1, ref)) and bool(cuckoo.erase(state, key0, key1, ref))

    assert benchmark(both)
