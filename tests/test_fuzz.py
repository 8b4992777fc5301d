"""Seeded fuzz of frames through the whole path: see `tests.fuzz`, which also runs alone and longer."""

from __future__ import annotations

from collections import Counter

import pytest

from shards.jit import PURE
from tests import fuzz

COMPILED, INTERPRETED = 30_000, 3_000  # frames in the test-suite


@pytest.mark.timeout(1800)
def test_no_frame_breaks_anything_and_every_drop_is_reached(request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("--fuzz") or (INTERPRETED if PURE else COMPILED)
    total: Counter[str] = Counter()
    for _, told in fuzz.everything(count, seed=1):
        total += told
    assert total.total() >= count * 9 // 10
    wishes = fuzz.complain(total)
    # So few frames as pure Python has time for do not reach every drop.
    assert count < COMPILED or not wishes, wishes
    assert not any("survive" in wish for wish in wishes), wishes


def test_the_same_seed_makes_the_same_frames() -> None:
    one, two = (fuzz.Traffic(7, fuzz.bed(fuzz.RICH), lambda: []).burst(200) for _ in range(2))
    assert one == two
    assert one != fuzz.Traffic(8, fuzz.bed(fuzz.RICH), lambda: []).burst(200)
