"""Each machine instruction against its plain twin. In pure mode both sides are the twin, so run it compiled as well."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import native
from shards.jit import hot
from shards.native import choose, claim, first_bit, fold_multiply, match_tags, prefetch, prefetch_line, word_32, word_64
from shards.state import SESSION, Array

WORDS = st.integers(0, 2**64 - 1)
EDGES = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


@hot
def _match_tags(lines: Array, line: int, tag: int) -> int:
    return match_tags(lines, line, tag)


@hot
def _words(lines: Array, line: int, column: int) -> tuple[int, native.Word]:
    return word_32(lines, line, column), word_64(lines, line, column)


@hot
def _prefetch_line(lines: Array, line: int) -> int:
    prefetch_line(lines, line)
    return line


@hot
def _first_bit(bits: int) -> int:
    return first_bit(bits)


@hot
def _fold_multiply(a: native.Word, b: native.Word) -> native.Word:
    return fold_multiply(a, b)


@hot
def _choose(condition: bool, yes: int, no: int) -> int:
    return choose(condition, yes, no)


@hot
def _fields(memory: Array, at: int) -> tuple[int, int, int]:
    return native.read16(memory, at), native.read32(memory, at), native.read64(memory, at)


@hot
def _write_fields(memory: Array, at: int, value: int) -> None:
    native.write64(memory, at, value)
    native.write32(memory, at + 8, value)
    native.write16(memory, at + 12, value)


@given(st.binary(min_size=8, max_size=8), st.integers(0, 5))
def test_wide_fields_are_big_endian_wherever_they_stand(data: bytes, at: int) -> None:
    memory = np.zeros(16, np.uint8)
    memory[at : at + 8] = np.frombuffer(data, np.uint8)
    expected = tuple(int.from_bytes(data[:size], "big", signed=size == 8) for size in (2, 4, 8))
    assert _fields(memory, at) == expected


@given(st.integers(-(2**63), 2**63 - 1))
def test_wide_writes_store_the_low_bits_and_nothing_beside(value: int) -> None:
    memory = np.full(17, 0xAA, np.uint8)
    _write_fields(memory, 1, value)
    stored = b"".join((value & (1 << 8 * size) - 1).to_bytes(size, "big") for size in (8, 4, 2))
    assert memory.tobytes() == b"\xaa" + stored + b"\xaa\xaa"


@hot
def _prefetch(array: Array, index: int) -> int:
    prefetch(array, index)
    claim(array, index)
    return index


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFF]), min_size=32, max_size=32), st.integers(0, 2))
def test_match_tags_marks_the_equal_ones_of_the_first_eight(words: list[int], line: int) -> None:
    lines = np.zeros((3, 32), np.uint16)
    lines[line] = words
    for tag in (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF):
        assert _match_tags(lines, line, tag) == native.match_tags(lines, line, tag)
    assert _match_tags(lines, line, words[5]) & 1 << 5


def test_words_of_a_line_are_the_same_through_every_dtype() -> None:
    memory = np.random.default_rng(1).integers(0, 2**64, (4, 8), np.uint64)
    for lines in (memory, memory.view(np.uint32), memory.view(np.uint16)):
        for line in range(4):
            for column in range(8):
                small, large = _words(lines, line, column)
                assert int(small) == int(memory.view(np.uint32)[line, column]) == native.word_32(lines, line, column)
                assert int(large) == int(memory[line, column]) == int(native.word_64(lines, line, column))


@settings(deadline=None)  # the first call compiles
@given(st.integers(1, 2**62))
def test_first_bit_is_the_lowest(bits: int) -> None:
    assert _first_bit(bits) == native.first_bit(bits)
    assert bits >> _first_bit(bits) & 1 == 1 and bits % 2 ** _first_bit(bits) == 0


@settings(deadline=None)  # the first call compiles
@given(WORDS | st.sampled_from(EDGES), WORDS | st.sampled_from(EDGES))
def test_fold_multiply_keeps_the_whole_product(a: int, b: int) -> None:
    assert int(_fold_multiply(np.uint64(a), np.uint64(b))) == (a * b >> 64) ^ (a * b & 2**64 - 1)
    assert int(native.fold_multiply(np.uint64(a), np.uint64(b))) == (a * b >> 64) ^ (a * b & 2**64 - 1)


@settings(deadline=None)  # the first call compiles
@given(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_choose_chooses(condition: bool, yes: int, no: int) -> None:
    assert _choose(condition, yes, no) == native.choose(condition, yes, no) == (yes if condition else no)


def test_prefetch_changes_nothing_and_may_point_anywhere() -> None:
    for array in (np.arange(64, dtype=np.uint8), np.zeros((4, 8), np.uint64), np.zeros(4, SESSION)):
        before = array.tobytes()
        for index in (0, 3, 1 << 40, -(1 << 40)):
            assert _prefetch(array, index) == _prefetch_line(array, index) == index
        assert array.tobytes() == before
