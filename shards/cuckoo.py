"""The index: from a key of two words to where in the arena that key stands. Cuckoo++ (Le Scouarnec, ANCS 2018).

A bucket is one 64-byte line, seen as 16-, 32- and 64-bit words through `State.tags`, `refs` and `blooms`:

    bytes  0-15  eight 16-bit tags: 15 bits of the key's hash, made odd, and DISPLACED; 0 is an empty slot
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

from shards import timers
from shards.jit import hot, whole
from shards.native import Word, choose, first_bit, fold_multiply, match_tags, prefetch, prefetch_line, word_32, word_64
from shards.state import EXTENT_LINES, FIREWALL_SESSION6, NAT_SESSION, Array, State

SLOTS = 8
DISPLACED = 0x8000  # of a tag: this slot's bucket is the secondary one of its key
REFS = 4  # first column of the refs in the line's 32-bit words
BLOOM, COUNTS = 24, 28  # first columns of the filter and its counts in the line's 16-bit words
BLOOM_WORD = 6  # the filter in the line's 64-bit words

MOVES = 3  # displacements for an insert, at most
BLOCK = 64  # rows whose lines are asked for at once, a block ahead of being read; 32 to 96 make no difference

# Digits of pi: they only keep a seed of zero from being a trap. Not the first ones, which tests have as their seed: a word of
# a key that is 0, as that of a protocol without ports is, would be multiplied as 0, and all such keys had one bucket.
_PI_0, _PI_1, _PI_2 = np.uint64(0xBE5466CF34E90C6C), np.uint64(0xC0AC29B7C97C50DD), np.uint64(0xA4093822299F31D1)


# --- where a key belongs --------------------------------------------------------------------------------------------------


@hot
def hash_key(seed0: Word, seed1: Word, key0: Word, key1: Word) -> Word:
    """Keyed multiply-mix of a key (wyhash's step, twice): to pile up keys, one has to know the seeds."""
    return fold_multiply(fold_multiply(key0 ^ seed0 ^ _PI_0, key1 ^ seed1 ^ _PI_1), _PI_2)


@hot
def _seed(state: State, which: int) -> Word:
    return state.settings[0]["seed"][which]


@hot
def _primary(hashed: Word, tags: Array) -> int:
    return int(np.int64(hashed & np.uint64(len(tags) - 1)))


@hot
def _tag(hashed: Word) -> int:
    return int(np.int64(hashed >> np.uint64(49))) | 1


@hot
def _partner(bucket: int, tag: int, tags: Array) -> int:
    """The other bucket of a tag without DISPLACED: an involution, and, the tag being odd, never the same bucket."""
    return bucket ^ (tag & (len(tags) - 1))


# --- the filter -----------------------------------------------------------------------------------------------------------


@hot
def _bits(tag: int) -> tuple[int, int]:
    """The two bits of the filter's 64 that a tag sets; both are of its group, the first's upper two bits."""
    first = tag >> 9
    return first, (first & 48) | ((tag >> 5) & 15)


@hot
def _may_have_left(tags: Array, bucket: int, tag: int) -> int:
    """1 or 0; a number, because the compiler makes a jump of what hangs on a truth."""
    word, (one, other) = word_64(tags, bucket, BLOOM_WORD), _bits(tag)
    return int(np.int64((word >> np.uint64(one)) & (word >> np.uint64(other)) & np.uint64(1)))


@hot
def _leave(tags: Array, primary: int, tag: int) -> None:
    one, other = _bits(tag)
    tags[primary, BLOOM + (one >> 4)] |= np.uint16(1 << (one & 15) | 1 << (other & 15))
    tags[primary, COUNTS + (one >> 4)] += np.uint16(1)


@hot
def _return(tags: Array, primary: int, tag: int) -> None:
    group = _bits(tag)[0] >> 4
    tags[primary, COUNTS + group] -= np.uint16(1)
    if tags[primary, COUNTS + group] == 0:
        tags[primary, BLOOM + group] = 0


# --- lookup ---------------------------------------------------------------------------------------------------------------


@hot
def _stands_at(words: Array, ref: int, key0: Word, key1: Word) -> bool:
    at = np.uint64(2 * ref)
    return bool(((words[at] ^ key0) | (words[at | np.uint64(1)] ^ key1)) == np.uint64(0))


@hot
def _search(tags: Array, words: Array, bucket: int, tag: int, key0: Word, key1: Word) -> int:
    """Ref of the key in one bucket, under exactly this tag, or 0."""
    matches = match_tags(tags, bucket, tag)
    while matches:
        ref = word_32(tags, bucket, REFS + first_bit(matches))
        if _stands_at(words, ref, key0, key1):
            return ref
        matches &= matches - 1
    return 0


@hot
def lookup(state: State, key0: Word, key1: Word) -> int:
    """Ref (unit of the arena) of the key, 0 if it is not in the index."""
    return _lookup(state.tags, state.words, hash_key(_seed(state, 0), _seed(state, 1), key0, key1), key0, key1)


@hot
def _lookup(tags: Array, words: Array, hashed: Word, key0: Word, key1: Word) -> int:
    bucket, tag = _primary(hashed, tags), _tag(hashed)
    ref = _search(tags, words, bucket, tag, key0, key1)
    if ref == 0 and _may_have_left(tags, bucket, tag):
        ref = _search(tags, words, _partner(bucket, tag, tags), tag | DISPLACED, key0, key1)
    return ref


@hot
def lookup_bulk(state: State, key0s: Array, key1s: Array, refs: Array, verdicts: Array, count: int) -> None:
    """Look up the first `count` keys: `refs` (int64) gets their refs, 0 for a miss or where there is a verdict already.

    The same as `lookup` for each, but every line is asked for a block of rows before it is read, and no jump hangs on where a
    key is until few are left. Blocks, because where prefetches follow each other closely some 50 are under way at once, and
    only 24 loads: one loop for all three steps was 20 % slower. Unsigned indices spare each its check for a sign.
    """
    last = -1
    for at in range(0, count + 2 * BLOCK, BLOCK):
        ask(state, key0s, key1s, refs, at, min(at + BLOCK, count))
        for i in range(max(at - BLOCK, 0), min(at, count)):
            suggest(state, refs, np.uint64(i))
        for i in range(max(at - 2 * BLOCK, 0), min(at - BLOCK, count)):
            last = prove(state, key0s, key1s, refs, verdicts, np.uint64(i), last)
    if last >= 0:
        look_further(state, key0s, key1s, refs, last)


@hot
def ask(state: State, key0s: Array, key1s: Array, hashes: Array, begin: int, end: int) -> None:
    """Hash keys into int64 `hashes`, and ask for their primary buckets."""
    seed0, seed1, tags = _seed(state, 0), _seed(state, 1), state.tags
    for i in range(begin, end):
        hashed = hash_key(seed0, seed1, key0s[np.uint64(i)], key1s[np.uint64(i)])
        prefetch_line(tags, _primary(hashed, tags))
        hashes[np.uint64(i)] = np.int64(hashed)


@hot
def suggest(state: State, refs: Array, i: Word) -> None:
    """A hash becomes the ref of the first match in the primary bucket, or 0, and bit 32 where the filter says that the key may
    have left. Ask for what stands at the ref, and for the secondary bucket where it may be needed.
    """
    tags, words = state.tags, state.words
    hashed = np.uint64(refs[i])
    bucket, tag = _primary(hashed, tags), _tag(hashed)
    left = _may_have_left(tags, bucket, tag)
    ref = _first_match(tags, bucket, tag)
    prefetch(words, 2 * ref)
    prefetch_line(tags, _partner(bucket, tag & -left, tags))
    refs[i] = ref | left << 32


@hot
def _first_match(tags: Array, bucket: int, tag: int) -> int:
    """Ref of the first match, 0 for none; without a branch, hence SLOTS as a guard that leads to a column beyond the refs."""
    matches = match_tags(tags, bucket, tag)
    return choose(matches != 0, word_32(tags, bucket, REFS + first_bit(matches | 1 << SLOTS)), 0)


@hot
def prove(state: State, key0s: Array, key1s: Array, refs: Array, verdicts: Array, i: Word, last: int) -> int:
    """What was suggested becomes the answer where certain, else ~ of the last row that must look further; the new last."""
    words = state.words
    suggested = choose(verdicts[i] == 0, int(refs[i]), 0)
    ref = suggested & 0xFFFFFFFF
    further = (not _stands_at(words, ref, key0s[i], key1s[i])) & (suggested != 0)
    refs[i] = choose(further, ~last, ref)
    return choose(further, int(np.int64(i)), last)


@hot
def look_further(state: State, key0s: Array, key1s: Array, refs: Array, last: int) -> None:
    """Answer the rows that `prove` has chained: from their secondary buckets, and if need be from the beginning."""
    seed0, seed1, tags, words = _seed(state, 0), _seed(state, 1), state.tags, state.words
    i = last
    while i >= 0:
        before = ~refs[i]
        hashed = hash_key(seed0, seed1, key0s[i], key1s[i])
        tag = _tag(hashed)
        ref = _first_match(tags, _partner(_primary(hashed, tags), tag, tags), tag | DISPLACED)
        prefetch(words, 2 * ref)
        refs[i] = (before + 1) << 32 | ref
        i = before
    i = last
    while i >= 0:
        before, ref = (refs[i] >> 32) - 1, refs[i] & 0xFFFFFFFF
        if not _stands_at(words, ref, key0s[i], key1s[i]):
            ref = _lookup(tags, words, hash_key(seed0, seed1, key0s[i], key1s[i]), key0s[i], key1s[i])
        refs[i] = ref
        i = before


@hot
def lookup_and_refresh_bulk(
    state: State, key0s: Array, key1s: Array, refs: Array, verdicts: Array, count: int, now: int, expiry: int
) -> None:
    """`lookup_bulk`, and `refresh_bulk` of what was found."""
    lookup_bulk(state, key0s, key1s, refs, verdicts, count)
    refresh_bulk(state, refs, count, now, expiry)


@hot
def refresh_bulk(state: State, refs: Array, count: int, now: int, expiry: int) -> None:
    """Let the sessions at the first `count` refs (0: none; of mappings: passed over) live until `expiry` at least, a tick.

    The row's expiry is the truth and the wheel finds out by itself, so this is one store to a line that a lookup has brought.
    An expired session that the wheel has not met yet stays dead. It is for those who know only that something lives (a backup
    by its primary's bitmap, a peer by a list of keys), and `expiry` is even or odd by who says it (`tcp.ends`); the path, where
    each state has a time of its own, does it in `serve`.
    """
    for i in range(count):
        ref = refs[i]
        kind = state.extents[(ref >> 2) // EXTENT_LINES]["kind"]
        if ref and kind in (NAT_SESSION, FIREWALL_SESSION6):
            row = state.sessions[ref >> 2]
            left = timers.remaining(now, whole(row["expiry"]))
            if row["kind"] == kind and 0 < left < timers.remaining(now, expiry):
                row["expiry"] = expiry & 0xFFFFFFFF


@hot
def ask_for(state: State, key0: Word, key1: Word) -> None:
    """Ask for both buckets of a key, some time before it is looked up, inserted or erased."""
    hashed = hash_key(_seed(state, 0), _seed(state, 1), key0, key1)
    bucket = _primary(hashed, state.tags)
    prefetch_line(state.tags, bucket)
    prefetch_line(state.tags, _partner(bucket, _tag(hashed), state.tags))


@hot
def likely(state: State, key0: Word, key1: Word) -> int:
    """Ref that has the key's tag, not proven to be the key's; 0 if there is none. Reads nothing but the buckets."""
    hashed = hash_key(_seed(state, 0), _seed(state, 1), key0, key1)
    bucket, tag = _primary(hashed, state.tags), _tag(hashed)
    ref = _first_match(state.tags, bucket, tag)
    if ref == 0 and _may_have_left(state.tags, bucket, tag):
        ref = _first_match(state.tags, _partner(bucket, tag, state.tags), tag | DISPLACED)
    return ref


# --- insert and erase -----------------------------------------------------------------------------------------------------


@hot
def insert(state: State, key0: Word, key1: Word, ref: int) -> bool:
    """Enter a key that is not in the index yet and whose words stand at `ref` > 0. False: no room, and nothing has changed."""
    done = _enter(state.tags, state.refs, hash_key(_seed(state, 0), _seed(state, 1), key0, key1), ref)
    state.core[0]["index_entries"] += np.uint32(done)
    return done


@hot
def insert_bulk(state: State, key0s: Array, key1s: Array, refs: Array, done: Array, count: int) -> None:
    """`insert` the first `count` keys, in order, with the refs (int64) beside them: `done` (int64) gets 1, or 0 for no room.

    No two of the keys may be equal. Their buckets are asked for a block of rows ahead.
    """
    tags, entered = state.tags, 0
    for at in range(0, count + BLOCK, BLOCK):
        ask(state, key0s, key1s, done, at, min(at + BLOCK, count))
        for i in range(max(at - BLOCK, 0), min(at, count)):
            done[i] = _enter(tags, state.refs, np.uint64(done[i]), refs[i])
            entered += done[i]
    state.core[0]["index_entries"] += np.uint32(entered)


@hot
def _enter(tags: Array, refs: Array, hashed: Word, ref: int) -> bool:
    primary, tag = _primary(hashed, tags), _tag(hashed)
    room = _make_room(tags, refs, primary, _partner(primary, tag, tags))
    if room < 0:
        return False
    bucket, slot = room // SLOTS, room % SLOTS
    if bucket != primary:
        _leave(tags, primary, tag)
        tag |= DISPLACED
    refs[bucket, REFS + slot] = ref
    tags[bucket, slot] = tag
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
    done = _remove(state.tags, hash_key(_seed(state, 0), _seed(state, 1), key0, key1), ref)
    state.core[0]["index_entries"] -= np.uint32(done)
    return done


@hot
def erase_bulk(state: State, key0s: Array, key1s: Array, refs: Array, done: Array, count: int) -> None:
    """`erase` the first `count` keys, in order: `done` (int64) gets 1, or 0 for one that was not in."""
    tags, removed = state.tags, 0
    for at in range(0, count + BLOCK, BLOCK):
        ask(state, key0s, key1s, done, at, min(at + BLOCK, count))
        for i in range(max(at - BLOCK, 0), min(at, count)):
            done[i] = _remove(tags, np.uint64(done[i]), refs[i])
            removed += done[i]
    state.core[0]["index_entries"] -= np.uint32(removed)


@hot
def _remove(tags: Array, hashed: Word, ref: int) -> bool:
    primary, tag = _primary(hashed, tags), _tag(hashed)
    if not _remove_in(tags, primary, tag, ref):
        if not _remove_in(tags, _partner(primary, tag, tags), tag | DISPLACED, ref):
            return False
        _return(tags, primary, tag)
    return True


@hot
def _remove_in(tags: Array, bucket: int, tag: int, ref: int) -> bool:
    matches = match_tags(tags, bucket, tag)
    while matches:
        slot = first_bit(matches)
        if word_32(tags, bucket, REFS + slot) == ref:
            tags[bucket, slot] = 0
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
            left[primary, int(_bits(tag)[0]) >> 4] += 1
            if not _may_have_left(state.tags, primary, tag):
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
