"""DPDK's rte_hash in this very process: `rte_hash.c`, built when first wanted, and called through ctypes.

It gets what makes it fast: CRC32, one writer and no locks, bulk lookups of 64, which is its most, hashes made by itself or by
inlined code (`lookup(..., hashed=True)`), whichever is faster. Its memory is ours, asked to be on huge pages as a state's is,
so that both sides of a ratio have the same; no hugetlb page has to be reserved and no root is needed.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from krononat.client import Trouble
from shards.jit import cache_folder
from shards.state import Array

BULK = 64  # RTE_HASH_LOOKUP_BULK_MAX
SLOT_BYTES, SPARE_BYTES = 64, 256 << 20  # of memory to have for a table: buckets, keys and free list take 45 a slot
_HUGE_BYTES = 2 << 20
_SOURCE = Path(__file__).with_suffix(".c")
_INSTALL = "apt-get install libdpdk-dev pkg-config gcc"
# No pages of its own and no devices: it is only to be a hash table. 64 MiB are for what it keeps itself.
_OPTIONS = "bench --no-huge -m 64 --no-pci --no-telemetry --no-shconf --log-level *:error"

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bench_start": (ctypes.c_int, [ctypes.c_int, _POINTER, _POINTER, ctypes.c_size_t]),
    "bench_create": (_POINTER, [ctypes.c_uint32]),
    "bench_free": (None, [_POINTER]),
    "bench_clear": (None, [_POINTER]),
    "bench_insert": (_COUNT, [_POINTER, _POINTER, _COUNT]),
    "bench_lookup": (None, [_POINTER, _POINTER, _POINTER, _COUNT, _COUNT]),
    "bench_lookup_hashed": (None, [_POINTER, _POINTER, _POINTER, _COUNT, _COUNT]),
}


def library() -> Path:
    """The driver, built unless it was before from the same source and options; Trouble where something is missing for that."""
    for program in ("pkg-config", "gcc"):
        if not shutil.which(program):
            raise Trouble("rte_hash cannot be built", f"there is no {program} here", _INSTALL)
    told = subprocess.run(["pkg-config", "--cflags", "--libs", "libdpdk"], capture_output=True, text=True, check=False)
    if told.returncode:
        raise Trouble("rte_hash cannot be built", told.stderr.strip().splitlines()[0], _INSTALL)
    options = ["-O3", "-shared", "-fPIC", *shlex.split(told.stdout), "-march=native"]
    name = hashlib.sha256(_SOURCE.read_bytes() + repr(options).encode()).hexdigest()[:16]
    built = cache_folder().parent / f"rte_hash-{name}.so"
    if not built.exists():
        _build(built, options)
    return built


def _build(built: Path, options: list[str]) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    begun = built.with_suffix(f".{os.getpid()}")  # renamed when whole: somebody else may be looking for it
    told = subprocess.run(["gcc", str(_SOURCE), "-o", begun, *options], capture_output=True, text=True, check=False)
    if told.returncode:
        raise Trouble("rte_hash cannot be built", told.stderr.strip()[-600:], _INSTALL)
    begun.rename(built)


@cache
def start(slots: int) -> tuple[Any, Array]:
    """The driver and its memory, uint8, enough for a table of `slots`. DPDK starts once a process, its memory is for good."""
    driver = ctypes.CDLL(str(library()))
    for name, (result, arguments) in _SIGNATURES.items():
        getattr(driver, name).restype, getattr(driver, name).argtypes = result, arguments
    size = -(-(slots * SLOT_BYTES + SPARE_BYTES) // _HUGE_BYTES) * _HUGE_BYTES
    memory = mmap.mmap(-1, size + _HUGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    aligned = whole[-int(whole.ctypes.data) % _HUGE_BYTES :][:size]
    options = [option.encode() for option in _OPTIONS.split()]
    cores = os.sched_getaffinity(0)
    error = driver.bench_start(
        len(options), ctypes.cast((ctypes.c_char_p * len(options))(*options), _POINTER), aligned.ctypes.data, size
    )
    os.sched_setaffinity(0, cores)  # it binds the thread that starts it to a core
    if error:
        raise Trouble("DPDK does not start", os.strerror(-error), "see what it said above")
    return driver, aligned


class Table:
    """An rte_hash of `slots` entries in the memory of `start`. Keys: uint64 (n, 2); data of key i is i + 1."""

    def __init__(self, driver: Any, slots: int) -> None:
        self._driver, self._table = driver, driver.bench_create(slots)
        if not self._table:
            raise Trouble("rte_hash could not be made", f"no memory for {slots} entries", "fewer entries, or more memory")

    def insert(self, keys: Array) -> int:
        """Insert all, in order; how many went in."""
        return int(self._driver.bench_insert(self._table, keys.ctypes.data, len(keys)))

    def lookup(self, keys: Array, found: Array, hashed: bool, batch: int = BULK) -> None:
        """Look all up, `batch` at a time: `found` (uint64) gets their data, 0 for a miss."""
        call = self._driver.bench_lookup_hashed if hashed else self._driver.bench_lookup
        call(self._table, keys.ctypes.data, found.ctypes.data, len(keys), batch)

    def clear(self) -> None:
        """Empty it."""
        self._driver.bench_clear(self._table)

    def close(self) -> None:
        """Give its memory back for the next one."""
        self._driver.bench_free(self._table)
