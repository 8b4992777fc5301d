"""`krononat bench tables`: the index in memory beside DPDK's rte_hash, at load 0.8; and the walk over slabs.

Keys stand 32 bytes apart, for a session and its mapping have three in 96 bytes, and rte_hash keeps them in 32 bytes each, too;
a hit costs two lines, a bucket's and the key's. The queries are the same. Both are asked in random order, by turns in one
process, each in the batch that suits it best; a turn begins with queries that are not timed, because the other side has had the
caches meanwhile (with pages of 4 KiB under a virtual machine's, the page tables alone are megabytes). Each answer of both is
verified once. What is a ratio here is of neighbouring turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bench import environment, report, rte_hash
from bench.report import Result, Told
from shards import cuckoo, digest
from shards.jit import hot
from shards.state import EXTENT_LINES, NAT_SESSION, SESSION_0, Array, Sizes, State, new_state

KIND = "memory"
SIZES = {"512Ki": 1 << 19, "2Mi": 1 << 21, "16Mi": 1 << 24}  # slots
LOAD = 0.8
MISSES = (0, 50, 100)  # per cent
GOALS = {"2Mi": (1.15, 1.5, 1.05), "16Mi": (1.5, 1.9, 1.9)}  # ours to theirs, by share of misses
INSERT_GOAL = 2.0
BATCHES = (64, 128, 256, 1024)  # of ours; rte_hash takes at most 64, and is best there
QUERIES = 1 << 20
UNTIMED, TIMED, STRETCHES = 1 << 17, 1 << 18, 3  # queries that begin a turn, that it is of, and how many different such
TRIALS = 5  # of each way to ask, to choose the best
INSERT_BATCH = 256
UNITS_A_KEY = 2  # of the arena: 32 bytes


class Queries(NamedTuple):
    """Keys to ask for, in columns and (`keys`) in rows, and the refs that they must yield (0: a miss)."""

    key0: Array
    key1: Array
    keys: Array
    refs: Array


class Answers(NamedTuple):
    """Columns for what both sides find."""

    refs: Array
    verdicts: Array
    data: Array


@hot
def insert_all(state: State, key0s: Array, key1s: Array, refs: Array, done: Array) -> int:
    """Insert key i with `refs[i]`, INSERT_BATCH at a time; how many went in."""
    for at in range(0, len(refs), INSERT_BATCH):
        end = min(at + INSERT_BATCH, len(refs))
        cuckoo.insert_bulk(state, key0s[at:end], key1s[at:end], refs[at:end], done[at:end], end - at)
    return int(done.sum())


@hot
def erase_all(state: State, key0s: Array, key1s: Array, refs: Array, done: Array) -> int:
    """Take all out again; how many were in."""
    for at in range(0, len(refs), INSERT_BATCH):
        end = min(at + INSERT_BATCH, len(refs))
        cuckoo.erase_bulk(state, key0s[at:end], key1s[at:end], refs[at:end], done[at:end], end - at)
    return int(done.sum())


@hot
def lookup_all(state: State, key0s: Array, key1s: Array, refs: Array, verdicts: Array, batch: int) -> None:
    """Look all up, `batch` at a time; `verdicts`, as long as a batch, is the same each time, as in a burst."""
    for at in range(0, len(refs), batch):
        end = min(at + batch, len(refs))
        cuckoo.lookup_bulk(state, key0s[at:end], key1s[at:end], refs[at:end], verdicts, end - at)


def keys(random: np.random.Generator, count: int) -> Array:
    """Random keys, uint64 (count, 2)."""
    return random.integers(0, 2**64, (count, 2), np.uint64)


def build(slots: int, random: np.random.Generator, units: int = UNITS_A_KEY) -> tuple[State, Array]:
    """State with an empty index, and the keys for it, whose words stand in its arena, `units` apart."""
    count = int(slots * LOAD)
    state = new_state(Sizes(count // EXTENT_LINES + 1, slots // cuckoo.SLOTS, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2))
    state.settings[0]["seed"] = random.integers(0, 2**64, 2, np.uint64)
    state.tags[:] = 0  # so that no page is met for the first time while the clock runs
    present = keys(random, count)
    state.words.reshape(-1, 2 * units)[1 : count + 1, :2] = present
    return state, present


def ask(present: Array, random: np.random.Generator, misses: int, count: int = QUERIES) -> Queries:
    """Random queries, `misses` per cent of them for keys that are not there."""
    chosen = random.integers(0, len(present), count)
    missing = random.random(count) * 100 < misses
    asked = np.where(missing[:, None], keys(random, count), present[chosen])
    return Queries(asked[:, 0].copy(), asked[:, 1].copy(), asked, np.where(missing, 0, UNITS_A_KEY * (chosen + 1)))


class Columns(NamedTuple):
    """Arguments of `insert_all` and `erase_all`, but for the state."""

    key0: Array
    key1: Array
    refs: Array
    done: Array


def columns(present: Array) -> Columns:
    """All keys, each with the ref of its line."""
    refs = UNITS_A_KEY * np.arange(1, len(present) + 1)
    return Columns(present[:, 0].copy(), present[:, 1].copy(), refs, np.zeros(len(present), np.int64))


def fill(state: State, present: Array) -> None:
    """Insert all keys; RuntimeError where not all went in."""
    _expect(insert_all(state, *columns(present)), len(present))


def _expect(done: int, wanted: int) -> None:
    if done != wanted:
        raise RuntimeError(f"{done} of {wanted} keys were entered or taken out")


def _rate(count: int, act: Callable[[], object]) -> float:
    """M/s."""
    begun = time.perf_counter()
    act()
    return count / (time.perf_counter() - begun) / 1e6


class Pair:
    """Both tables of one size, and the same keys for them."""

    def __init__(self, slots: int, driver: object) -> None:
        self.random = np.random.default_rng(slots)
        self.ours, self.present = build(slots, self.random)
        self.columns = columns(self.present)
        self.theirs = rte_hash.Table(driver, slots)
        self.answers = Answers(np.zeros(QUERIES, np.int64), np.zeros(BATCHES[-1], np.int64), np.zeros(QUERIES, np.uint64))

    def fill(self) -> tuple[float, float, float]:
        """Fill both from empty: rates of our inserts, of theirs, and of our erasing what was in."""
        count, inside = len(self.present), int(self.ours.core[0]["index_entries"])
        erased = _rate(count, lambda: _expect(erase_all(self.ours, *self.columns), inside))
        entered = _rate(count, lambda: _expect(insert_all(self.ours, *self.columns), count))
        self.theirs.clear()
        return entered, _rate(count, lambda: _expect(self.theirs.insert(self.present), count)), erased

    def ask_ours(self, queries: Queries, rows: slice, batch: int) -> None:
        """Look up the rows in our table."""
        lookup_all(self.ours, queries.key0[rows], queries.key1[rows], self.answers.refs[rows], self.answers.verdicts, batch)

    def ask_theirs(self, queries: Queries, rows: slice, hashed: int) -> None:
        """Look up the rows in theirs."""
        self.theirs.lookup(queries.keys[rows], self.answers.data[rows], bool(hashed))

    def verify(self, queries: Queries) -> None:
        """RuntimeError where either gives a wrong answer."""
        everything = slice(0, QUERIES)
        self.ask_ours(queries, everything, BATCHES[-1])
        self.ask_theirs(queries, everything, 0)
        for name, found in (("ours", self.answers.refs), ("rte_hash", UNITS_A_KEY * self.answers.data.astype(np.int64))):
            if not np.array_equal(found, queries.refs):
                raise RuntimeError(f"{name}: {np.count_nonzero(found != queries.refs)} lookups gave a wrong answer")

    def turn(self, ask: Callable[[Queries, slice, int], None], queries: Queries, way: int, number: int) -> float:
        """M lookups/s of one side, of a stretch of the queries that the untimed ones have not brought into the caches."""
        begin = UNTIMED + number % STRETCHES * TIMED
        ask(queries, slice(0, UNTIMED), way)
        return _rate(TIMED, lambda: ask(queries, slice(begin, begin + TIMED), way))

    def best(self, ask: Callable[[Queries, slice, int], None], queries: Queries, ways: tuple[int, ...]) -> int:
        """The fastest way to ask: a batch of ours, whether hashed here of theirs."""
        rates = {way: [self.turn(ask, queries, way, trial) for trial in range(TRIALS)] for way in ways}
        return max(ways, key=lambda way: float(np.median(rates[way])))


def measure(name: str, pair: Pair, repetitions: int, fills: int) -> list[Result]:
    """All figures of one size."""
    filled = [pair.fill() for _ in range(fills + 1)]
    ours, theirs, erased = zip(*filled[1:], strict=True)  # the first time the pages were new, and there was nothing to erase
    results = _beside(f"table/{name}/insert", ours, theirs, INSERT_GOAL)
    results.append(report.measured(f"table/{name}/erase/rate", "M/s", erased))
    for misses, goal in zip(MISSES, GOALS.get(name, (None, None, None)), strict=True):
        queries = ask(pair.present, pair.random, misses)
        pair.verify(queries)
        batch, hashed = pair.best(pair.ask_ours, queries, BATCHES), pair.best(pair.ask_theirs, queries, (0, 1))
        turns = [
            (pair.turn(pair.ask_ours, queries, batch, number), pair.turn(pair.ask_theirs, queries, hashed, number))
            for number in range(repetitions)
        ]
        results += _beside(f"table/{name}/miss{misses}", [our for our, _ in turns], [their for _, their in turns], goal)
    return results


def _beside(name: str, ours: Sequence[float], theirs: Sequence[float], goal: float | None) -> list[Result]:
    return [
        report.measured(f"{name}/rate", "M/s", ours),
        report.measured(f"{name}/rte_hash/rate", "M/s", theirs),
        report.ratio(f"{name}/ratio", ours, theirs, goal),
    ]


def measure_digest(pair: Pair, repetitions: int) -> Result:
    """M rows/s of a walk over all rows of the arena, as sessions, in pieces of an extent."""
    state, count = pair.ours, len(pair.present)
    state.sessions["kind"][1 : count + 1], state.shipped[:] = NAT_SESSION, 2**64 - 1
    state.slabs[0, SESSION_0]["extents"], state.extent_of[0, SESSION_0] = len(state.extents), np.arange(len(state.extents))
    nothing = np.zeros(EXTENT_LINES // digest.ROWS_OF_A_WORD, np.uint64)
    key0, key1 = keys(pair.random, 1)[0]

    def walk() -> None:
        for first in range(0, count, EXTENT_LINES):
            digest.digest(state, 0, SESSION_0, key0, key1, first, min(first + EXTENT_LINES, count), nothing, nothing[:0])

    walk()
    return report.measured("table/digest/rate", "M/s", [_rate(count, walk) for _ in range(repetitions)])


def _same_pages(pair: Pair, memory: Array) -> None:
    """RuntimeError where one side has huge pages and the other not: a ratio would say little."""
    shares = [huge / max(held, 1) for held, huge in (environment.resident(array) for array in (pair.ours.tags, memory))]
    if abs(shares[0] - shares[1]) > 0.1:
        raise RuntimeError("{:.0%} of our memory are on huge pages, {:.0%} of rte_hash's".format(*shares))


def run(quick: bool, told: Told) -> list[Result]:
    """The figures; Trouble where DPDK is missing."""
    told("building rte_hash")
    driver, memory = rte_hash.start(max(SIZES.values()))
    results: list[Result] = []
    for name, slots in SIZES.items():
        told(f"{name} slots")
        pair = Pair(slots, driver)
        results += measure(name, pair, 15 if quick else 51, 1 if quick else 5)
        _same_pages(pair, memory)
        if name == "2Mi":
            results.append(measure_digest(pair, 5 if quick else 15))
        pair.theirs.close()
    return results


tables = report.command("tables", KIND, run, "The index in memory, beside DPDK's rte_hash: lookups, inserts, erasing, digests.")

if __name__ == "__main__":
    tables()
