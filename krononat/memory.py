"""Shared memory that outlives the worker: a memfd, on huge pages where they are to be had, and which were obtained.

Huge pages come either reserved (`nr_hugepages`, memfd_create(2) MFD_HUGETLB) or transparent: the kernel's default for shared
memory is `never`, silently 4 KiB, so `allow_huge_pages` sets it to `advise` for as long as the appliance runs.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.state import EXTENT_LINES, Array, State

HUGE_BYTES = 2 << 20

# fcntl(2); Python 3.11 has no names for them
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 2, 4

_POPULATE_WRITE = 23  # madvise(2), kernel 5.14
_AHEAD = 2  # extents that are ready before they are needed, beside one for each class that will need one soon
_SOON = EXTENT_LINES // 4  # fresh lines or half-lines of a class that are left
_SOON_AT_MOST = 16  # 64 MiB of rows


_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_RESERVED = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
_SHMEM = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


class Memory(NamedTuple):
    """A piece of shared memory; the descriptor is the holder's to close."""

    descriptor: int
    map: mmap.mmap
    pages: str  # what was obtained: "2 MiB reserved", "2 MiB transparent", "4 KiB"


def create(name: str, size: int) -> Memory:
    """`size` bytes of zeroes, sparse: only what is touched is taken. OSError where the system refuses."""
    size = -(-size // HUGE_BYTES) * HUGE_BYTES
    if _free_reserved() * HUGE_BYTES >= size:
        try:
            return _map(name, size, os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        except OSError:
            pass  # somebody took them meanwhile; transparent ones will do
    return _map(name, size, 0)


def _map(name: str, size: int, flags: int) -> Memory:
    """Sealed against resizing, which would be a bus error for everyone else; for its owner only, whoever gets a descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(descriptor, size)
        os.fchmod(descriptor, 0o600)
        fcntl.fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
        memory = attach(descriptor)
        if flags:
            return Memory(descriptor, memory, "2 MiB reserved")
        return Memory(descriptor, memory, "2 MiB transparent" if _is_huge(memory, size) else "4 KiB")
    except BaseException:
        os.close(descriptor)
        raise


def attach(descriptor: int) -> mmap.mmap:
    """Writable map of the whole memory behind a descriptor, with huge pages asked for."""
    memory = mmap.mmap(descriptor, 0)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def read_only(descriptor: int) -> int:
    """A new descriptor of the same memory that cannot be written through (nor reopened so, but by root)."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def _free_reserved() -> int:
    try:
        return int(_RESERVED.read_text())
    except (OSError, ValueError):
        return 0


def _is_huge(memory: mmap.mmap, size: int) -> bool:
    """Touch the last page and see how it was mapped: what the kernel promises is not always what it does."""
    memory[size - 1] = 0
    where = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head:
            where = line
        elif head == "ShmemPmdMapped:" and "memfd:" in where and _span(where) == size and int(rest.split()[0]):
            return True
    return False


def _span(line: str) -> int:
    first, _, end = line.split()[0].partition("-")
    return int(end, 16) - int(first, 16)


def populate(state: State) -> None:
    """Have the pages of every section but the arena, so that no packet waits for one: zeroing one can take milliseconds,
    and new subscribers meet pages of the index and of port owners at random (a breath of 239 ms was seen, of 2 ms with this).

    To be done by another process than the worker: the pages are everyone's, the time is its own. The arena is `keep_ahead`'s;
    of the owners those of TCP and UDP, 512 KiB an external address, for ICMP and generic protocols have few.
    """
    for name, array in state._asdict().items():
        if name not in ("words", "sessions", "mappings", "links", "dirty", "shipped", "owners", "chunks"):
            _populate(array.reshape(-1).view("u1"), 0, array.nbytes)
    populate_addresses(state, np.flatnonzero(state.externals["address"]))


def populate_addresses(state: State, rows: Array) -> None:
    """The same of what external addresses take, by their rows: spare ones take nothing until they are used."""
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    for array in (state.owners[1], state.owners[2], state.chunks):
        each = array.nbytes // len(array)
        for run in (run for run in runs if len(run)):
            _populate(array.reshape(-1).view("u1"), int(run[0]) * each, len(run) * each)


def keep_ahead(state: State, done: int, ahead: int = 0) -> int:
    """Have the pages of the extents that come next; `done` are populated already. How many are now.

    `ahead`: how many, if more than are needed soon. Shards that grow alike all need one for their sessions, and one for their
    mappings, at the same moment: where the host has to find the memory, each huge page that is not there takes 5 ms.
    """
    done = max(done, 1)  # the first one is never used
    wanted = min(max(int(state.core[0]["next_extent"]), 1) + max(_AHEAD + _soon(state), ahead), len(state.extents))
    for rows in (state.sessions, state.links, state.dirty, state.shipped):
        each = rows.nbytes // len(state.extents)
        _populate(rows.view("u1"), done * each, max(wanted - done, 0) * each)
    return max(wanted, done)


def _soon(state: State) -> int:
    """Classes that have extents and not much left of the last one."""
    slabs = state.slabs
    return min(int(((slabs["extents"] > 0) & (slabs["fresh_end"] - slabs["fresh"] < _SOON)).sum()), _SOON_AT_MOST)


def _populate(memory: Array, at: int, size: int) -> None:
    """Older kernels refuse; then pages come when they are touched, as they always did."""
    size = min(size, memory.nbytes - at)
    if size > 0:
        address = int(memory.ctypes.data) + at
        begin = address & -mmap.PAGESIZE
        _libc.madvise(begin, address + size - begin, _POPULATE_WRITE)


def allow_huge_pages() -> str | None:
    """Let shared memory have transparent huge pages where asked for; the setting before, if that changed it."""
    try:
        told = _SHMEM.read_text()
        before = told[told.index("[") + 1 : told.index("]")]
        if before != "never":
            return None
        _SHMEM.write_text("advise")
    except (OSError, ValueError):
        return None
    return before


def restore_huge_pages(before: str) -> None:
    """Undo `allow_huge_pages`."""
    _SHMEM.write_text(before)
