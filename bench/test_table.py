"""The index under pytest-benchmark: `pytest bench/test_table.py --benchmark-compare`. A round looks up 1 Mi keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import tables
from shards.state import Array, State


@pytest.fixture(scope="module", params=["512Ki", "2Mi"])
def table(request: pytest.FixtureRequest) -> tuple[State, Array]:
    """An index at load 0.8, and its keys."""
    state, present = tables.build(tables.SIZES[request.param], np.random.default_rng(1))
    tables.fill(state, present)
    return state, present


@pytest.mark.parametrize("misses", tables.MISSES)
def test_lookup_bulk(benchmark: Any, table: tuple[State, Array], misses: int) -> None:
    """Queries of one kind, in bursts; the answers are verified."""
    state, present = table
    queries = tables.ask(present, np.random.default_rng(misses), misses)
    refs, verdicts = np.zeros(tables.QUERIES, np.int64), np.zeros(tables.QUERIES, np.int64)
    benchmark.pedantic(tables.lookup_all, (state, queries, refs, verdicts), warmup_rounds=1, rounds=10)
    assert np.array_equal(refs, queries.refs)
