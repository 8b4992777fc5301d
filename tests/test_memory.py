"""Shared memory: for its owner to write, for readers to read, of one size for ever, and there before it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from krononat import memory
from shards.state import EXTENT_LINES, Sizes, State, new_state, open_state, read_header, state_bytes, write_header

SIZES = Sizes(
    extents=5, buckets=64, externals=2, accounts=4, prefixes=1, devices=1, limits=1, pools=1, rules=1, statics=1, ports=1,
    shards=1, peers=1, neighbours=256,
)  # fmt: skip


@pytest.fixture
def made() -> Iterator[memory.Memory]:
    made = memory.create("krononat-test", state_bytes(SIZES))
    yield made
    os.close(made.descriptor)


@pytest.fixture
def state(made: memory.Memory) -> State:
    write_header(made.map, SIZES)
    return open_state(made.map, SIZES)


def resident(made: memory.Memory) -> int:
    """Bytes that the memory really takes."""
    return os.fstat(made.descriptor).st_blocks * 512


def test_what_one_writes_another_reads(made: memory.Memory, state: State) -> None:
    state.core[0]["ip_id"] = 77
    other = memory.attach(made.descriptor)
    assert read_header(other) == SIZES
    assert open_state(other, SIZES).core[0]["ip_id"] == 77


def test_it_can_neither_shrink_nor_grow(made: memory.Memory) -> None:
    for size in (0, state_bytes(SIZES) * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(made.descriptor, size)


def test_a_reader_cannot_write(made: memory.Memory, state: State) -> None:
    descriptor = memory.read_only(made.descriptor)
    assert os.pread(descriptor, 1, 0) == b"{"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(descriptor, b"x", 0)
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    os.close(descriptor)


def test_it_is_sparse_and_populated_ahead_of_the_rows_in_use(made: memory.Memory, state: State) -> None:
    before = resident(made)
    assert before < state_bytes(SIZES) // 4
    assert memory.keep_ahead(state, 0) == 3  # the first extent is never used
    ahead = resident(made)
    assert ahead - before >= 2 * EXTENT_LINES * 64 - (2 << 20)
    assert memory.keep_ahead(state, 3) == 3
    assert resident(made) == ahead
    state.core[0]["next_extent"] = 2
    assert memory.keep_ahead(state, 3) == 4
    state.core[0]["next_extent"] = 5
    assert memory.keep_ahead(state, 4) == 5
    memory.populate(state)
    assert resident(made) > ahead
    assert not state.words.any() and read_header(made.map) == SIZES


def test_each_class_that_is_nearly_full_has_an_extent_ready() -> None:
    sizes = SIZES._replace(extents=40, shards=4)
    state = new_state(sizes)
    state.core[0]["next_extent"] = 9
    state.slabs["extents"][:, :4] = 1
    state.slabs["fresh"], state.slabs["fresh_end"] = EXTENT_LINES, 2 * EXTENT_LINES
    assert memory.keep_ahead(state, 0) == 11
    state.slabs["fresh"][:3, :4] = 2 * EXTENT_LINES - EXTENT_LINES // 8
    assert memory.keep_ahead(state, 11) == 23
    state.slabs["fresh"][:, :4] = 2 * EXTENT_LINES
    state.slabs["extents"][:] = 1
    assert memory.keep_ahead(state, 23) == 9 + 2 + 16  # no more than that, however many there are
    assert memory.keep_ahead(state, 27, 31) == 40
    assert memory.keep_ahead(state, 40, 31) == 40


def test_the_setting_for_huge_pages_is_given_back() -> None:
    path = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if not os.access(path, os.W_OK):
        assert memory.allow_huge_pages() is None
        return
    told = path.read_text()
    before = memory.allow_huge_pages()
    if before is not None:
        assert "[advise]" in path.read_text()
        memory.restore_huge_pages(before)
    assert path.read_text() == told
