"""The guided fuzz: it finds what a blind one does not, and in the parsers nothing (see `tests.fuzz_guided`)."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shards.jit import PURE
from tests.fuzz_guided import Bench, Guided, repaired

COUNT = 400  # frames in the test-suite


class Found(Exception):
    """A frame has reached the branch that was planted."""


def planted(data: bytes) -> None:
    """Three comparisons behind each other, as headers behind headers are."""
    if len(data) < 30 or data[21] != 0xB3:
        return
    if data[24] != 0x9D:
        return
    if data[29] == 0xE7:
        raise Found


def search(guided: bool) -> int:
    """Runs until the branch is reached; 20,000 where it is not."""
    one = Guided(planted, [bytes(40)], seed=1, watched=frozenset([__file__]), guided=guided)
    try:
        one.go_on(20_000)
    except Found:
        return one.runs
    return 20_000


def test_a_guided_fuzz_reaches_a_branch_that_a_blind_one_does_not() -> None:
    assert search(guided=True) < 15_000
    assert search(guided=False) == 20_000


def test_what_was_changed_is_repaired_so_that_it_is_looked_at() -> None:
    if PURE:
        for data in Bench().seeds():
            longer = repaired(data + bytes(8))
            assert len(longer) == len(data) + 8 and repaired(longer) == longer


if PURE:

    def test_parsers_stand_a_guided_fuzz_and_it_leads_further() -> None:
        bench = Bench()
        guided = Guided(bench.take, bench.seeds(), seed=1)
        seen = [len(guided.steps)]
        for _ in range(4):
            guided.go_on(COUNT // 4)
            seen.append(len(guided.steps))
        bench.pair.check()
        assert all(before < after for before, after in pairwise(seen[:3])), seen

    def test_a_finding_names_its_frame() -> None:
        bench = Bench()
        bench.pair.model.pool_of.clear()  # now the model knows of no external address
        outside = next(data for data in bench.seeds() if data[0] == 1)
        with pytest.raises(AssertionError, match=outside[1:].hex()):
            bench.take(outside)
