"""`bench tables`: the index alone. Bulk lookups a second at load 0.8 with 0, 50 and 100 % misses, inserts from empty to 0.8.

Every key stands in a row of its own, a line of the arena, as a session's does, so that a hit costs two lines. Queries come in
random order, in bursts as the path has them; the kinds of queries take turns, and each answer is verified once. What is not
here: DPDK's rte_hash beside it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import click
import numpy as np

from bench import report
from bench.report import Result
from shards import cuckoo
from shards.burst import BURST
from shards.jit import hot
from shards.state import EXTENT_LINES, Array, Sizes, State, new_state

SIZES = {"512Ki": 1 << 19, "2Mi": 1 << 21, "16Mi": 1 << 24}  # slots
LOAD = 0.8
MISSES = (0, 50, 100)  # per cent
QUERIES = 1 << 20
UNITS_A_LINE = 4


class Queries(NamedTuple):
    """Keys to ask for, in columns, and the refs that they must yield (0: a miss)."""

    key0: Array
    key1: Array
    refs: Array


@hot
def insert_all(state: State, key0s: Array, key1s: Array) -> int:
    """Insert key i with the ref of line i + 1; how many went in."""
    done = 0
    for i in range(len(key0s)):
        done += cuckoo.insert(state, key0s[i], key1s[i], UNITS_A_LINE * (i + 1))
    return done


@hot
def lookup_all(state: State, queries: Queries, refs: Array, verdicts: Array) -> None:
    """Look all up, a burst at a time; `refs` and `verdicts`: columns as long as the queries."""
    for at in range(0, len(queries.key0), BURST):
        end = min(at + BURST, len(queries.key0))
        cuckoo.lookup_bulk(state, queries.key0[at:end], queries.key1[at:end], refs[at:end], verdicts[at:end], end - at)


def keys(random: np.random.Generator, count: int) -> Array:
    """Random keys, uint64 (count, 2)."""
    return random.integers(0, 2**64, (count, 2), np.uint64)


def build(slots: int, random: np.random.Generator) -> tuple[State, Array]:
    """State with an empty index, and the keys for it, whose words stand in its arena."""
    count = int(slots * LOAD)
    state = new_state(Sizes(count // EXTENT_LINES + 1, slots // cuckoo.SLOTS, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2))
    state.settings[0]["seed"] = random.integers(0, 2**64, 2, np.uint64)
    state.tags[:] = 0  # so that no page is met for the first time while the clock runs
    present = keys(random, count)
    state.words.reshape(-1, 2 * UNITS_A_LINE)[1 : count + 1, :2] = present
    return state, present


def ask(present: Array, random: np.random.Generator, misses: int, count: int = QUERIES) -> Queries:
    """Random queries, `misses` per cent of them for keys that are not there."""
    chosen = random.integers(0, len(present), count)
    missing = random.random(count) * 100 < misses
    asked = np.where(missing[:, None], keys(random, count), present[chosen])
    return Queries(asked[:, 0].copy(), asked[:, 1].copy(), np.where(missing, 0, UNITS_A_LINE * (chosen + 1)))


def fill(state: State, present: Array) -> float:
    """Insert all keys; M inserts/s. RuntimeError where not all went in."""
    insert_all(state, present[:0, 0], present[:0, 1])  # compiles
    begun = time.perf_counter()
    done = insert_all(state, present[:, 0], present[:, 1])
    rate = len(present) / (time.perf_counter() - begun) / 1e6
    if done != len(present):
        raise RuntimeError(f"only {done} of {len(present)} keys found room at load {LOAD}")
    return rate


def rate_of(state: State, queries: Queries, refs: Array, verdicts: Array) -> float:
    """M lookups/s."""
    begun = time.perf_counter()
    lookup_all(state, queries, refs, verdicts)
    return len(refs) / (time.perf_counter() - begun) / 1e6


def measure(name: str, slots: int, repetitions: int) -> list[Result]:
    """Lookup rates of one size (median, lowest, highest) and its insert rate."""
    random = np.random.default_rng(slots)
    state, present = build(slots, random)
    inserts = [fill(state, present)]
    kinds = {misses: ask(present, random, misses) for misses in MISSES}
    refs, verdicts = np.zeros(QUERIES, np.int64), np.zeros(QUERIES, np.int64)
    rates: dict[int, list[float]] = {misses: [] for misses in MISSES}
    for queries in kinds.values():  # warms, and verifies
        lookup_all(state, queries, refs, verdicts)
        if not np.array_equal(refs, queries.refs):
            raise RuntimeError(f"{name}: {np.count_nonzero(refs != queries.refs)} lookups gave a wrong answer")
    for _ in range(repetitions):
        for misses, queries in kinds.items():
            rates[misses].append(rate_of(state, queries, refs, verdicts))
        cuckoo.clear(state)
        inserts.append(fill(state, present))
    results = [_result(f"table/{name}/miss{misses}/rate", rates[misses]) for misses in MISSES]
    return [*results, _result(f"table/{name}/insert/rate", inserts)]


def _result(name: str, rates: list[float]) -> Result:
    return Result(name, float(np.median(rates)), "M/s", min(rates), max(rates))


@click.command()
@click.option("-o", "output", type=click.Choice(["json", "table"]), default="table", help="How to print.")
@click.option("--quick", is_flag=True, help="Fewer repetitions; under 50 s.")
def tables(output: str, quick: bool) -> None:
    """Measure the index: lookups and inserts per second, with environment.

    Example: python -m bench.tables --quick -o json
    """
    env = report.environment()
    results = [result for name, slots in SIZES.items() for result in measure(name, slots, 5 if quick else 15)]
    if output == "json":
        click.echo(report.as_json(results, env))
    else:
        report.show(results, env)


if __name__ == "__main__":
    tables()
