"""The index against a set of what should be in it, at loads to 0.95, and against its own invariants (`cuckoo.check`)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shards import cuckoo
from shards.state import EXTENT_LINES, FREE, NAT_MAPPING, NAT_SESSION, Array, Sizes, State, new_state

Key = tuple[int, int]


def empty(buckets: int, seed: int = 1) -> State:
    """A state whose arena holds a random key in every unit but the first, and whose index is empty."""
    state = new_state(Sizes(1, buckets, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2))
    random = np.random.default_rng(seed)
    state.settings[0]["seed"] = random.integers(0, 2**64, 2, np.uint64)
    units = buckets * cuckoo.SLOTS * 2
    state.words[2 : 2 * units] = random.integers(0, 2**64, 2 * units - 2, np.uint64)
    return state


def key(state: State, ref: int) -> tuple[np.uint64, np.uint64]:
    return state.words[2 * ref], state.words[2 * ref + 1]


def insert(state: State, ref: int) -> bool:
    return bool(cuckoo.insert(state, *key(state, ref), ref))


def lookup(state: State, ref: int) -> int:
    return int(cuckoo.lookup(state, *key(state, ref)))


def erase(state: State, ref: int) -> bool:
    return bool(cuckoo.erase(state, *key(state, ref), ref))


def lookup_bulk(state: State, asked: Array, verdicts: Array | None = None) -> list[int]:
    """Refs found for the keys that stand at the units `asked`."""
    refs = np.full(len(asked), -7, np.int64)
    verdicts = np.zeros(len(asked), np.int64) if verdicts is None else verdicts
    cuckoo.lookup_bulk(state, state.words[2 * asked], state.words[2 * asked + 1], refs, verdicts, len(asked))
    return refs.tolist()


def insert_bulk(state: State, refs: list[int]) -> list[int]:
    """1 for each that found room."""
    asked, done = np.array(refs, np.int64), np.full(len(refs), -7, np.int64)
    cuckoo.insert_bulk(state, state.words[2 * asked], state.words[2 * asked + 1], asked, done, len(refs))
    return done.tolist()


def erase_bulk(state: State, refs: list[int]) -> list[int]:
    """1 for each that was in."""
    asked, done = np.array(refs, np.int64), np.full(len(refs), -7, np.int64)
    cuckoo.erase_bulk(state, state.words[2 * asked], state.words[2 * asked + 1], asked, done, len(refs))
    return done.tolist()


def filled(buckets: int, load: float, seed: int = 1) -> tuple[State, list[int]]:
    """An index with refs 1, 2, ... up to the load."""
    state = empty(buckets, seed)
    refs = list(range(1, int(buckets * cuckoo.SLOTS * load) + 1))
    assert all(insert(state, ref) for ref in refs)
    return state, refs


def displaced(state: State) -> list[tuple[int, int]]:
    """Bucket and slot of every key that is not in its primary bucket."""
    return [(int(bucket), int(slot)) for bucket, slot in np.argwhere(state.tags[:, : cuckoo.SLOTS] & cuckoo.DISPLACED)]


# --- against a set --------------------------------------------------------------------------------------------------------


REFS = st.lists(st.integers(1, 100), min_size=1, max_size=30, unique=True)


class Index(RuleBasedStateMachine):
    """Any order of operations; the set says what must be found."""

    BUCKETS = 8

    @initialize(seed=st.integers(0, 2**32), load=st.sampled_from([0.95, 0.8, 0.3]))
    def begin(self, seed: int, load: float) -> None:
        """Start anywhere."""
        self.state = empty(self.BUCKETS, seed)
        self.inside: set[int] = set()
        self.insert(list(range(1, int(self.BUCKETS * cuckoo.SLOTS * load) + 1)))

    @rule(refs=REFS)
    def insert(self, refs: list[int]) -> None:
        """Enter those that are not inside yet."""
        for ref in refs:
            if ref not in self.inside:
                self._insert(ref)

    def _insert(self, ref: int) -> None:
        before = self.state.tags.tobytes()
        if insert(self.state, ref):
            self.inside.add(ref)
        else:
            assert self.state.tags.tobytes() == before
            assert len(self.inside) > 0.9 * self.BUCKETS * cuckoo.SLOTS

    @rule(refs=REFS)
    def insert_bulk(self, refs: list[int]) -> None:
        """Enter at once those that are not inside yet."""
        new = [ref for ref in refs if ref not in self.inside]
        done = insert_bulk(self.state, new)
        self.inside |= {ref for ref, entered in zip(new, done, strict=True) if entered}
        assert all(done) or len(self.inside) > 0.9 * self.BUCKETS * cuckoo.SLOTS

    @rule(refs=REFS)
    def erase_bulk(self, refs: list[int]) -> None:
        """Take out at once, inside or not."""
        assert erase_bulk(self.state, refs) == [int(ref in self.inside) for ref in refs]
        self.inside -= set(refs)

    @rule(refs=REFS)
    def erase(self, refs: list[int]) -> None:
        """Take out, inside or not."""
        for ref in refs:
            assert erase(self.state, ref) == (ref in self.inside)
            self.inside.discard(ref)

    @precondition(lambda self: bool(displaced(self.state)))
    @rule(data=st.data())
    def erase_a_displaced_one(self, data: st.DataObject) -> None:
        """Take out one that only the filter leads to."""
        bucket, slot = data.draw(st.sampled_from(displaced(self.state)))
        self.erase([int(self.state.refs[bucket, cuckoo.REFS + slot])])

    @rule(ref=st.integers(1, 100))
    def lookup(self, ref: int) -> None:
        """Ask for one."""
        assert lookup(self.state, ref) == (ref if ref in self.inside else 0)

    @rule(asked=st.lists(st.integers(1, 120), max_size=70))
    def lookup_bulk(self, asked: list[int]) -> None:
        """Ask for many."""
        assert lookup_bulk(self.state, np.array(asked, np.int64)) == [ref if ref in self.inside else 0 for ref in asked]

    @rule(refs=REFS)
    def rebuild(self, refs: list[int]) -> None:
        """Clear, and begin anew."""
        cuckoo.clear(self.state)
        self.inside.clear()
        self.insert(refs)

    @invariant()
    def sound(self) -> None:
        """Hold the index against itself after every step."""
        assert cuckoo.check(self.state) == []
        assert self.state.core[0]["index_entries"] == len(self.inside)


TestIndex = Index.TestCase
TestIndex.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


# --- load -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_load_reaches_0_95_and_every_key_is_found(seed: int) -> None:
    state, refs = filled(256, 0.95, seed)
    assert cuckoo.check(state) == []
    assert [lookup(state, ref) for ref in refs] == refs
    assert lookup_bulk(state, np.array(refs)) == refs


def test_two_buckets_are_enough_of_a_table() -> None:
    state, refs = filled(2, 1.0)
    assert cuckoo.check(state) == []
    assert [lookup(state, ref) for ref in refs] == refs


def test_a_failed_insert_changes_nothing() -> None:
    state = empty(16)
    ref = 1
    while insert(state, ref):
        ref += 1
    assert ref > 0.95 * 16 * cuckoo.SLOTS
    before = state.tags.tobytes(), state.core.tobytes()
    assert not insert(state, ref)
    assert (state.tags.tobytes(), state.core.tobytes()) == before
    assert erase(state, 1)
    assert insert(state, 1)


# --- bulk -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, cuckoo.BLOCK - 1, cuckoo.BLOCK, cuckoo.BLOCK + 1, 256, 1000])
def test_bulk_equals_single_lookups(count: int) -> None:
    state, refs = filled(64, 0.95)
    asked = np.random.default_rng(count).integers(1, 2 * len(refs), count)
    assert lookup_bulk(state, asked) == [lookup(state, int(ref)) for ref in asked]


def test_bulk_passes_over_rows_that_have_a_verdict() -> None:
    state, refs = filled(16, 0.9)
    verdicts = np.arange(len(refs)) % 3
    assert lookup_bulk(state, np.array(refs), verdicts) == [0 if i % 3 else ref for i, ref in enumerate(refs)]


def test_bulk_leaves_rows_beyond_the_count_alone() -> None:
    state, _ = filled(16, 0.5)
    found = np.full(40, -7, np.int64)
    cuckoo.lookup_bulk(state, state.words[2:82:2].copy(), state.words[3:83:2].copy(), found, np.zeros(40, np.int64), 30)
    assert found.tolist() == [*range(1, 31), *[-7] * 10]


@pytest.mark.parametrize("count", [0, 1, cuckoo.BLOCK, 2 * cuckoo.BLOCK + 1])
def test_bulk_insert_and_erase_equal_single_ones_in_order(count: int) -> None:
    one, many = empty(16), empty(16)
    refs = list(range(1, count + 1))
    assert insert_bulk(many, refs) == [int(insert(one, ref)) for ref in refs]
    assert many.tags.tobytes() == one.tags.tobytes() and many.core.tobytes() == one.core.tobytes()
    gone = refs[::3] + refs[::5]
    assert erase_bulk(many, gone) == [int(erase(one, ref)) for ref in gone]
    assert many.tags.tobytes() == one.tags.tobytes() and many.core.tobytes() == one.core.tobytes()


def test_a_bulk_insert_that_finds_no_room_says_so_and_evicts_nobody() -> None:
    state = empty(16)
    refs = list(range(1, 16 * cuckoo.SLOTS + 40))
    done = insert_bulk(state, refs)
    inside = [ref for ref, entered in zip(refs, done, strict=True) if entered]
    assert 0.95 * 16 * cuckoo.SLOTS < len(inside) <= 16 * cuckoo.SLOTS
    assert lookup_bulk(state, np.array(refs)) == [ref if entered else 0 for ref, entered in zip(refs, done, strict=True)]
    assert cuckoo.check(state) == []


def test_churn_at_load_0_95_keeps_every_key() -> None:
    state, refs = filled(64, 0.95)
    random = np.random.default_rng(5)
    spare = list(range(len(refs) + 1, 2 * len(refs)))
    for _ in range(40):
        random.shuffle(refs)
        leaving, refs = refs[:30], refs[30:]
        assert erase_bulk(state, leaving) == [1] * 30
        arriving, spare = spare[:30], spare[30:] + leaving
        assert insert_bulk(state, arriving) == [1] * 30  # never an eviction, and here never a refusal
        refs += arriving
        assert lookup_bulk(state, np.array(refs)) == refs
    assert cuckoo.check(state) == []


# --- refresh --------------------------------------------------------------------------------------------------------------


NOW = 1_000


def sessions_and_a_mapping() -> State:
    """Sessions at lines 1, 2, 3 of extent 0, which expire in 100 ticks, have expired, and have ended; a mapping in extent 1."""
    state = new_state(Sizes(2, 64, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2))
    state.extents["kind"] = [NAT_SESSION, NAT_MAPPING]
    state.words[2 * 4 : 2 * 16] = np.random.default_rng(6).integers(0, 2**64, 24, np.uint64)
    state.sessions["kind"][1:4] = [NAT_SESSION, NAT_SESSION, FREE]
    state.sessions["expiry"][1:4] = [NOW + 100, NOW, NOW + 100]
    state.words[8 * EXTENT_LINES : 8 * EXTENT_LINES + 8] = np.random.default_rng(7).integers(0, 2**64, 8, np.uint64)
    assert insert_bulk(state, [4, 8, 12, 4 * EXTENT_LINES + 2]) == [1] * 4
    return state


@pytest.mark.parametrize(("expiry", "expected"), [(NOW + 500, NOW + 500), (NOW + 50, NOW + 100)])
def test_a_lookup_that_refreshes_lengthens_the_lives_it_finds(expiry: int, expected: int) -> None:
    state = sessions_and_a_mapping()
    asked = np.array([4, 8, 12, 4 * EXTENT_LINES + 2, 5])
    mapping, found = state.mappings[2 * EXTENT_LINES :].tobytes(), np.zeros(5, np.int64)
    keys = state.words[2 * asked], state.words[2 * asked + 1]
    cuckoo.lookup_and_refresh_bulk(state, *keys, found, np.zeros(5, np.int64), 5, NOW, expiry)
    assert found.tolist() == [*asked[:4].tolist(), 0]
    assert state.sessions["expiry"][1:4].tolist() == [expected, NOW, NOW + 100]
    assert state.mappings[2 * EXTENT_LINES :].tobytes() == mapping


def test_a_refresh_knows_that_ticks_wrap() -> None:
    state = sessions_and_a_mapping()
    state.sessions["expiry"][1] = 2**32 - 10
    cuckoo.refresh_bulk(state, np.array([4]), 1, 2**32 - 20, 2**32 + 30)
    assert state.sessions["expiry"][1] == 30


# --- displacement and the filter ------------------------------------------------------------------------------------------


def test_every_single_move_keeps_every_key_findable() -> None:
    state, refs = filled(16, 0.85)
    moves = 0
    for bucket, slot in np.argwhere(state.tags[:, : cuckoo.SLOTS]).tolist():
        tag = int(state.tags[bucket, slot]) % cuckoo.DISPLACED
        to = int(cuckoo._partner(bucket, tag, state.tags))
        free = np.flatnonzero(state.tags[to, : cuckoo.SLOTS] == 0)
        if state.tags[bucket, slot] and len(free):
            cuckoo._move(state.tags, state.refs, bucket, slot, to, int(free[0]))
            assert lookup_bulk(state, np.array(refs)) == refs
            moves += 1
    assert moves > 20
    assert cuckoo.check(state) == []


def test_the_filter_decides_whether_the_secondary_bucket_is_looked_at() -> None:
    state, _ = filled(64, 0.95)
    bucket, slot = displaced(state)[0]
    ref = int(state.refs[bucket, cuckoo.REFS + slot])
    primary = int(cuckoo._partner(bucket, int(state.tags[bucket, slot]) ^ cuckoo.DISPLACED, state.tags))
    state.blooms[primary, cuckoo.BLOOM_WORD] = 0
    assert lookup(state, ref) == 0
    assert lookup_bulk(state, np.array([ref])) == [0]
    assert any("filter does not know" in complaint for complaint in cuckoo.check(state))


def test_the_filter_is_seldom_wrong() -> None:
    state, refs = filled(1024, 0.8)
    strangers = range(len(refs) + 1, 2 * len(refs))
    wrong = 0
    for ref in strangers:
        seed0, seed1 = state.settings[0]["seed"]
        hashed = np.uint64(cuckoo.hash_key(seed0, seed1, *key(state, ref)))
        wrong += cuckoo._may_have_left(state.tags, int(cuckoo._primary(hashed, state.tags)), int(cuckoo._tag(hashed)))
    assert wrong < 0.01 * len(strangers)


def test_churn_does_not_fill_the_filter() -> None:
    state, refs = filled(16, 0.9)
    random = np.random.default_rng(3)
    for _ in range(2000):
        at = int(random.integers(len(refs)))
        assert erase(state, refs[at])
        refs[at] = next(ref for ref in range(1, 250) if ref not in refs)
        assert insert(state, refs[at])
    assert cuckoo.check(state) == []
    for ref in refs:
        assert erase(state, ref)
    assert not state.tags[:, cuckoo.BLOOM :].any()
    assert state.core[0]["index_entries"] == 0


def test_erase_needs_the_ref_but_not_the_row() -> None:
    state, _ = filled(16, 0.9)
    key0, key1 = key(state, 5)
    state.words[10:12] = 0
    assert not cuckoo.erase(state, key0, key1, 6)
    assert cuckoo.erase(state, key0, key1, 5)
    assert not cuckoo.erase(state, key0, key1, 5)


def test_a_scribbled_index_is_rebuilt_from_the_rows() -> None:
    state, refs = filled(16, 0.9)
    state.blooms[:] = np.random.default_rng(4).integers(0, 2**64, state.blooms.shape, np.uint64)
    cuckoo.clear(state)
    assert all(insert(state, ref) for ref in refs)
    assert cuckoo.check(state) == []


def test_check_tells_what_is_wrong() -> None:
    for column, complaint in [(0, "is not that of the key"), (cuckoo.COUNTS, "counts"), (cuckoo.BLOOM, "should be clear")]:
        state, _ = filled(16, 0.3)
        state.tags[3, column] ^= 0x10
        assert any(complaint in told for told in cuckoo.check(state)), complaint
    state, _ = filled(16, 0.3)
    assert insert(state, 1)
    state.core[0]["index_entries"] += 1
    assert cuckoo.check(state) == ["ref 1 is entered 2 times", "index_entries says 40, there are 39"]


# --- the hash -------------------------------------------------------------------------------------------------------------


def primaries(seed: tuple[int, int], keys: list[Key], buckets: int) -> Counter[int]:
    """How many keys have each bucket as their primary one."""
    seed0, seed1 = np.uint64(seed[0]), np.uint64(seed[1])
    hashes = (int(cuckoo.hash_key(seed0, seed1, np.uint64(key0), np.uint64(key1))) for key0, key1 in keys)
    return Counter(hashed % buckets for hashed in hashes)


def flows(count: int) -> list[Key]:
    """Keys as a subscriber can make them: one address, UDP, one remote, all its ports."""
    return [(100 << 24 | 17 << 56, 198 << 24 | port << 32 | 53 << 48) for port in range(1024, 1024 + count)]


def test_keys_chosen_under_one_seed_do_not_pile_up_under_another() -> None:
    known, real = (0x0123456789ABCDEF, 0xFEDCBA9876543210), (0x5851F42D4C957F2D, 0x14057B7EF767814F)
    keys = [pair for pair in flows(30_000) if primaries(known, [pair], 512)[0]]
    assert len(keys) > 40
    assert max(primaries(real, keys, 512).values()) <= 5
    for bit in (0, 1, 31, 63):  # nor where the seed differs in one bit only
        assert max(primaries((known[0] ^ 1 << bit, known[1]), keys, 512).values()) <= 6
        assert max(primaries((known[0], known[1] ^ 1 << bit), keys, 512).values()) <= 6


@pytest.mark.parametrize("seed", [(0, 0), (1, 2**63), (0x0123456789ABCDEF, 0xFEDCBA9876543210)])
def test_flows_of_one_subscriber_spread(seed: tuple[int, int]) -> None:
    counts = primaries(seed, flows(8192), 1024)
    chi_square = sum((counts[bucket] - 8) ** 2 / 8 for bucket in range(1024))
    assert 850 < chi_square < 1210  # 1023 degrees of freedom: four standard deviations either way


def spread(counts: Counter[int], buckets: int) -> float:
    """Chi-square against evenly: about `buckets`, give or take 5 * sqrt(2 * buckets) once in a million."""
    mean = counts.total() / buckets
    return sum((counts[bucket] - mean) ** 2 / mean for bucket in range(buckets))


KNOWN = (0x0123456789ABCDEF, 0xFEDCBA9876543210)


def falls_on_four_of_64(pair: Key) -> tuple[bool, bool]:
    """Whether a key's primary bucket under the known seed is one of the first four, and whether its secondary one is."""
    hashed = cuckoo.hash_key(np.uint64(KNOWN[0]), np.uint64(KNOWN[1]), np.uint64(pair[0]), np.uint64(pair[1]))
    return int(hashed) % 64 < 4, (int(hashed) ^ int(cuckoo._tag(np.uint64(hashed)))) % 64 < 4


def test_thousands_of_keys_that_pile_up_under_a_known_seed_spread_evenly_under_any_other() -> None:
    chosen = [pair for pair in flows(40_000) if falls_on_four_of_64(pair)[0]]
    assert len(chosen) > 2000 and spread(primaries(KNOWN, chosen, 64), 64) > 20_000
    worst = [pair for pair in chosen if falls_on_four_of_64(pair)[1]]
    assert entered(KNOWN, worst[:100]) == 4 * cuckoo.SLOTS  # who knew the seed would close the table to whom it chose
    for number in range(5):
        real = np.random.default_rng(number).integers(0, 2**64, 2, np.uint64)
        seed = int(real[0]), int(real[1])
        assert spread(primaries(seed, chosen, 64), 64) < 64 + 5 * 128**0.5
        assert entered(seed, worst[:100]) == 100


def entered(seed: Key, keys: list[Key]) -> int:
    """How many of the keys find room in an empty table of 64 buckets."""
    state = empty(64)
    state.settings[0]["seed"] = seed
    state.words[2 : 2 + 2 * len(keys)] = np.array(keys, np.uint64).reshape(-1)
    return sum(insert_bulk(state, list(range(1, len(keys) + 1))))
