"""The index: from a key of two words to where in the arena that key stands. Cuckoo++ (Le Scouarnec, ANCS 2018).

A bucket is one 64-byte line, seen as 16-, 32- and 64-bit words through `State.tags`, `refs` and `blooms`:

    bytes  0-15  eight 16-bit tags: 15 bits of the key's hash, never 0, and DISPLACED; 0 is an empty slot
    bytes 16-47  eight 32-bit refs: the unit of the arena where the key's two words stand, which prove it
    bytes 48-55  Bloom filter of the tags that left this bucket, in four groups of 16 bits
    bytes 56-63  how many left, a 16-bit count per group: at 0 the group is cleared, so that churn does not fill the filter

A key stands in its primary bucket or, displaced, in the secondary one, which is the primary ^ tag: no key is ever hashed again
to be moved, and both buckets lie on one 2 MiB page. The filter tells nearly every miss after one line. What the paper has and
we have not: an expiry in the slot. Exact timers erase, and a hint to be refreshed would dirty a second line per packet.

One thread writes. Every step leaves every key findable to it; after a kill at any instruction, `clear` and insert again.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from shards.jit import hot, inlined
from shards.native import Word, choose, first_bit, fold_multiply, match_tags, prefetch
from shards.state import Array, State

SLOTS = 8
DISPLACED = 0x8000  # of a tag: this slot's bucket is the secondary one of its key
REFS = 4  # first column of the refs in the line's 32-bit words
BLOOM, COUNTS = 24, 28  # first columns of the filter and its counts in the line's 16-bit words
BLOOM_WORD = 6  # the filter in the line's 64-bit words

MOVES = 3  # displacements for an insert, at most
DOUBT = -1 << 32  # beside a ref, in a bulk lookup: if not there, the key may stand elsewhere
AHEAD = 24  # rows between asking for a line and reading it

# Digits of pi: they only keep a seed of zero from being a trap.
_PI_0, _PI_1, _PI_2 = np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344), np.uint64(0xA4093822299F31D1)


# --- where a key belongs --------------------------------------------------------------------------------------------------


@inlined
def hash_key(seed0: Word, seed1: Word, key0: Word, key1: Word) -> Word:
    """Keyed multiply-mix of a key (wyhash's step, twice): to pile up keys, one has to know the seeds."""
    return fold_multiply(fold_multiply(key0 ^ seed0 ^ _PI_0, key1 ^ seed1 ^ _PI_1), _PI_2)


@inlined
def _seed(state: State, which: int) -> Word:
    return state.settings[0]["seed"][which]


@inlined
def _primary(hashed: Word, tags: Array) -> int:
    return int(np.int64(hashed & np.uint64(len(tags) - 1)))


@inlined
def _tag(hashed: Word) -> int:
    tag = int(np.int64(hashed >> np.uint64(49)))
    return tag + (tag == 0)


@inlined
def _partner(bucket: int, tag: int, tags: Array) -> int:
    """The other bucket of a tag without DISPLACED: an involution, and never the same bucket."""
    return bucket ^ ((tag | 1) & (len(tags) - 1))


# --- the filter -----------------------------------------------------------------------------------------------------------


@inlined
def _group(tag: int) -> int:
    return tag >> 13


@inlined
def _group_bits(tag: int) -> int:
    return (1 << ((tag >> 1) & 15)) | (1 << ((tag >> 5) & 15))


@inlined
def _may_have_left(blooms: Array, bucket: int, tag: int) -> bool:
    bits = np.uint64(_group_bits(tag)) << np.uint64(16 * _group(tag))
    return bool(blooms[np.uint64(bucket), BLOOM_WORD] & bits == bits)


@hot
def _leave(tags: Array, primary: int, tag: int) -> None:
    tags[primary, BLOOM + _group(tag)] |= np.uint16(_group_bits(tag))
    tags[primary, COUNTS + _group(tag)] += np.uint16(1)


@hot
def _return(tags: Array, primary: int, tag: int) -> None:
    tags[primary, COUNTS + _group(tag)] -= np.uint16(1)
    if tags[primary, COUNTS + _group(tag)] == 0:
        tags[primary, BLOOM + _group(tag)] = 0


# --- lookup ---------------------------------------------------------------------------------------------------------------


@inlined
def _stands_at(words: Array, ref: int, key0: Word, key1: Word) -> bool:
    return bool((words[2 * ref] == key0) & (words[2 * ref + 1] == key1))


@hot
def _search(state: State, bucket: int, tag: int, key0: Word, key1: Word) -> int:
    """Ref of the key in one bucket, under exactly this tag, or 0."""
    matches = match_tags(state.tags, bucket, tag)
    while matches:
        ref = int(state.refs[bucket, REFS + first_bit(matches)])
        if _stands_at(state.words, ref, key0, key1):
            return ref
        matches &= matches - 1
    return 0


@hot
def lookup(state: State, key0: Word, key1: Word) -> int:
    """Ref (unit of the arena) of the key, 0 if it is not in the index."""
    hashed = hash_key(_seed(state, 0), _seed(state, 1), key0, key1)
    bucket, tag = _primary(hashed, state.tags), _tag(hashed)
    ref = _search(state, bucket, tag, key0, key1)
    if ref == 0 and _may_have_left(state.blooms, bucket, tag):
        ref = _search(state, _partner(bucket, tag, state.tags), tag | DISPLACED, key0, key1)
    return ref


@hot
def lookup_bulk(state: State, key0s: Array, key1s: Array, refs: Array, verdicts: Array, count: int) -> None:
    """Look up the first `count` keys: `refs` (int64) gets their refs, 0 for a miss or where there is a verdict already.

    The same as `lookup` for each, but every line is asked for `AHEAD` rows before it is read, and no branch hangs on where a
    key is until few are left. Meanwhile `refs` holds: the hash; a ref to be proven, or'd with DOUBT; -1 for a row that must
    look further; ~ref, suggested by the secondary bucket.
    """
    seed0, seed1 = _seed(state, 0), _seed(state, 1)
    for i in range(count + 2 * AHEAD):
        if i < count:
            _ask(state.tags, refs, i, hash_key(seed0, seed1, key0s[i], key1s[i]))
        if AHEAD <= i < count + AHEAD:
            suggest(state, refs, i - AHEAD)
        if i >= 2 * AHEAD:
            at = i - 2 * AHEAD
            prove(state, refs, at, key0s[at], key1s[at], verdicts[at])
    look_further(state, key0s, key1s, refs, count)


@inlined
def ask(state: State, refs: Array, i: int, key0: Word, key1: Word) -> None:
    """First step of a lookup, for the row `i`: ask for the key's primary bucket."""
    _ask(state.tags, refs, i, hash_key(_seed(state, 0), _seed(state, 1), key0, key1))


@hot
def look_further(state: State, key0s: Array, key1s: Array, refs: Array, count: int) -> bool:
    """Last step, for the rows that the primary bucket left in doubt; whether there were any."""
    doubts = False
    for i in range(count):
        if refs[i] < 0:
            doubts = True
            _suggest_secondary(state, refs, i, hash_key(_seed(state, 0), _seed(state, 1), key0s[i], key1s[i]))
    for i in range(count):
        if refs[i] < 0:
            ref = ~refs[i]
            refs[i] = ref if _stands_at(state.words, ref, key0s[i], key1s[i]) else lookup(state, key0s[i], key1s[i])
    return doubts


@inlined
def _ask(tags: Array, refs: Array, i: int, hashed: Word) -> None:
    refs[i] = np.int64(hashed)
    prefetch(tags, _primary(hashed, tags))


@inlined
def suggest(state: State, refs: Array, i: int) -> None:
    """Second step: ask for the row that the primary bucket suggests and, where the filter says so, for the secondary bucket."""
    hashed = np.uint64(refs[i])
    bucket, tag = _primary(hashed, state.tags), _tag(hashed)
    matches = match_tags(state.tags, bucket, tag)
    ref = _first_match(state.refs, bucket, matches)
    left = _may_have_left(state.blooms, bucket, tag)
    secondary = _partner(bucket, tag, state.tags)
    prefetch(state.words, 2 * ref)
    prefetch(state.tags, choose(left, secondary, bucket))
    refs[i] = ref | choose(left | (matches & (matches - 1) != 0), DOUBT, 0)


@inlined
def _first_match(refs: Array, bucket: int, matches: int) -> int:
    """Ref of the first match, 0 for none; without a branch, hence SLOTS as a guard that leads to a column beyond the refs."""
    ref = int(refs[np.uint64(bucket), REFS + first_bit(matches | 1 << SLOTS)])
    return choose(matches != 0, ref, 0)


@inlined
def prove(state: State, refs: Array, i: int, key0: Word, key1: Word, verdict: int) -> None:
    """Third step: the ref, 0 for a miss, negative for one that must look further."""
    ref = refs[i] & ~DOUBT
    found = choose(_stands_at(state.words, ref, key0, key1), ref, refs[i] >> 32)
    refs[i] = choose(verdict == 0, found, 0)


@hot
def _suggest_secondary(state: State, refs: Array, i: int, hashed: Word) -> None:
    tag = _tag(hashed)
    bucket = _partner(_primary(hashed, state.tags), tag, state.tags)
    ref = _first_match(state.refs, bucket, match_tags(state.tags, bucket, tag | DISPLACED))
    prefetch(state.words, 2 * ref)
    refs[i] = ~ref


# --- insert and erase -----------------------------------------------------------------------------------------------------


@hot
def insert(state: State, key0: Word, key1: Word, ref: int) -> bool:
    """Enter a key that is not in the index yet and whose words stand at `ref` > 0. False: no room, and nothing has changed."""
    hashed = hash_key(_seed(state, 0), _seed(state, 1), key0, key1)
    primary, tag = _primary(hashed, state.tags), _tag(hashed)
    room = _make_room(state.tags, state.refs, primary, _partner(primary, tag, state.tags))
    if room < 0:
        return False
    bucket, slot = room // SLOTS, room % SLOTS
    if bucket != primary:
        _leave(state.tags, primary, tag)
        tag |= DISPLACED
    state.refs[bucket, REFS + slot] = ref
    state.tags[bucket, slot] = tag
    state.core[0]["index_entries"] += np.uint32(1)
    return True


@hot
def _make_room(tags: Array, refs: Array, primary: int, secondary: int) -> int:
    """Free slot (bucket * SLOTS + slot) in one of the two buckets, or -1; what is in the way is displaced."""
    free = match_tags(tags, primary, 0)
    if free:
        return primary * SLOTS + first_bit(free)
    free = match_tags(tags, secondary, 0)
    if free:
        return secondary * SLOTS + first_bit(free)
    return _displace(tags, refs, primary, secondary)


@hot
def _displace(tags: Array, refs: Array, primary: int, secondary: int) -> int:
    """Breadth-first: the fewest moves that free a slot of the two buckets. The shortest way meets no bucket twice.

    A way is a number of base-8 digits: which slot to leave each bucket by. It is walked anew for each bucket; a queue of those
    already seen would have to be allocated.
    """
    for moves in range(1, MOVES + 1):
        for way in range(SLOTS**moves):
            for start in (primary, secondary):
                bucket = _walk(tags, start, way, moves, moves)
                free = match_tags(tags, bucket, 0)
                if free:
                    return _shift(tags, refs, start, way, moves, first_bit(free))
    return -1


@hot
def _walk(tags: Array, bucket: int, way: int, moves: int, steps: int) -> int:
    """Bucket that the first `steps` of a way lead to."""
    for step in range(steps):
        slot = (way >> (3 * (moves - 1 - step))) & (SLOTS - 1)
        bucket = _partner(bucket, tags[bucket, slot] & (DISPLACED - 1), tags)
    return bucket


@hot
def _shift(tags: Array, refs: Array, start: int, way: int, moves: int, free: int) -> int:
    """Move keys along the way, last first, so that the free slot wanders to its start."""
    for step in range(moves - 1, -1, -1):
        slot = (way >> (3 * (moves - 1 - step))) & (SLOTS - 1)
        _move(tags, refs, _walk(tags, start, way, moves, step), slot, _walk(tags, start, way, moves, step + 1), free)
        free = slot
    return start * SLOTS + free


@hot
def _move(tags: Array, refs: Array, bucket: int, slot: int, to_bucket: int, to_slot: int) -> None:
    """Take a key to its other bucket, whose slot is free; it is findable all the while."""
    tag = int(tags[bucket, slot])
    if tag < DISPLACED:
        _leave(tags, bucket, tag)
    refs[to_bucket, REFS + to_slot] = refs[bucket, REFS + slot]
    tags[to_bucket, to_slot] = tag ^ DISPLACED
    tags[bucket, slot] = 0
    if tag >= DISPLACED:
        _return(tags, to_bucket, tag ^ DISPLACED)


@hot
def erase(state: State, key0: Word, key1: Word, ref: int) -> bool:
    """Take out the key that was inserted with `ref`; the words there need not stand any more. False: it was not in."""
    hashed = hash_key(_seed(state, 0), _seed(state, 1), key0, key1)
    primary, tag = _primary(hashed, state.tags), _tag(hashed)
    if not _erase_in(state, primary, tag, ref):
        if not _erase_in(state, _partner(primary, tag, state.tags), tag | DISPLACED, ref):
            return False
        _return(state.tags, primary, tag)
    state.core[0]["index_entries"] -= np.uint32(1)
    return True


@hot
def _erase_in(state: State, bucket: int, tag: int, ref: int) -> bool:
    matches = match_tags(state.tags, bucket, tag)
    while matches:
        slot = first_bit(matches)
        if state.refs[bucket, REFS + slot] == ref:
            state.tags[bucket, slot] = 0
            return True
        matches &= matches - 1
    return False


@hot
def clear(state: State) -> None:
    """Empty the index."""
    state.blooms[:] = 0
    state.core[0]["index_entries"] = 0


# --- for tests and doctors ------------------------------------------------------------------------------------------------


def check(state: State) -> list[str]:
    """What is wrong with the index, a sentence each (plain Python: seconds per million entries); empty: nothing."""
    seed0, seed1 = state.settings[0]["seed"]
    wrong, left, refs = [], Counter[tuple[int, int]](), Counter[int]()
    for bucket, slot in zip(*(axis.tolist() for axis in np.nonzero(state.tags[:, :SLOTS])), strict=True):
        stored, ref = int(state.tags[bucket, slot]), int(state.refs[bucket, REFS + slot])
        hashed = np.uint64(hash_key(seed0, seed1, state.words[2 * ref], state.words[2 * ref + 1]))
        primary, tag = int(_primary(hashed, state.tags)), int(_tag(hashed))
        refs[ref] += 1
        if stored & DISPLACED:
            left[primary, _group(tag)] += 1
            if not _may_have_left(state.blooms, primary, tag):
                wrong.append(f"bucket {primary}: its filter does not know tag {tag:#x}, displaced to bucket {bucket}")
        if (bucket, stored) not in ((primary, tag), (_partner(primary, tag, state.tags), tag | DISPLACED)):
            wrong.append(f"bucket {bucket} slot {slot}: tag {stored:#x} is not that of the key at ref {ref}")
    wrong += [f"ref {ref} is entered {times} times" for ref, times in refs.items() if times > 1 or ref == 0]
    wrong += _check_counts(state, left)
    if refs.total() != state.core[0]["index_entries"]:
        wrong.append(f"index_entries says {state.core[0]['index_entries']}, there are {refs.total()}")
    return wrong


def _check_counts(state: State, left: Counter[tuple[int, int]]) -> list[str]:
    wrong = []
    counts, filters = state.tags[:, COUNTS:], state.tags[:, BLOOM:COUNTS]
    for key in {(int(bucket), int(group)) for bucket, group in np.argwhere(counts | filters)} | set(left):
        if counts[key] != left[key]:
            wrong.append(f"bucket {key[0]}: group {key[1]} counts {counts[key]} displaced keys, there are {left[key]}")
        if left[key] == 0 and filters[key]:
            wrong.append(f"bucket {key[0]}: group {key[1]} of the filter should be clear")
    return wrong
