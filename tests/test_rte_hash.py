"""The rival of `bench tables`: built, it answers as it must; where it cannot be built, people are told what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import rte_hash
from krononat.client import Trouble

# In a process of its own: DPDK starts once a process, for good.
SMALL = """
import numpy as np
from bench import rte_hash
driver, memory = rte_hash.start(4096)
keys = np.random.default_rng(1).integers(0, 2**64, (6000, 2), np.uint64)
for _ in range(2):
    table = rte_hash.Table(driver, 4096)
    for round in range(2):
        assert table.insert(keys[:3000]) == 3000
        for hashed in (False, True):
            for batch in (1, 7, 64):
                found = np.full(6000, 7, np.uint64)
                table.lookup(keys, found, hashed, batch)
                assert found.tolist() == [*range(1, 3001), *[0] * 3000], (hashed, batch)
        table.clear()
    table.close()
print("as it must")
"""


def test_it_finds_what_was_inserted_and_nothing_else() -> None:
    told = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=False)
    assert told.stdout == "as it must\n", told.stderr


def test_it_is_built_once_and_outside_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONONAT_CACHE", str(tmp_path))
    built = rte_hash.library()
    before = built.stat()
    assert built.parent == tmp_path and rte_hash.library() == built
    assert built.stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in tmp_path.iterdir()] == [built.name]


def test_whoever_lacks_a_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Trouble, match="cannot be built") as trouble:
        rte_hash.library()
    assert trouble.value.why == "there is no pkg-config here"
    assert trouble.value.remedy == "apt-get install libdpdk-dev pkg-config gcc"


def test_whoever_lacks_the_library_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", str(tmp_path))
    with pytest.raises(Trouble, match="cannot be built") as trouble:
        rte_hash.library()
    assert "libdpdk" in trouble.value.why and "libdpdk-dev" in trouble.value.remedy
