"""The bench of crashes: what it tells, and that its kills are real; never how long an outage was."""

from __future__ import annotations

import pytest

from bench import crash
from bench.crash import Kill
from krononat.lab import namespaces
from tests.netns import namespace

FINE = Kill(12.0, 0, [], False)


def test_the_middle_and_the_longest_outage_are_told_with_and_without_a_spare() -> None:
    kills = [FINE, FINE._replace(outage_ms=1500.0), FINE._replace(outage_ms=20.0, rebuilt=True)]
    told = {each.name: each for each in crash.figures(kills, [FINE._replace(outage_ms=900.0)])}
    assert (told["crash/spare/outage_ms"].value, told["crash/spare/outage_ms"].ok) == (20.0, True)
    assert (told["crash/spare/longest_ms"].value, told["crash/spare/longest_ms"].ok) == (1500.0, False)
    assert (told["crash/no_spare/outage_ms"].value, told["crash/no_spare/outage_ms"].goal) == (900.0, 3000)
    assert (told["crash/lost"].ok, told["crash/invariants"].ok) == (True, True)
    assert told["crash/rebuilt"].value == pytest.approx(1 / 3)


def test_one_lost_connection_or_one_complaint_is_one_too_many() -> None:
    told = {each.name: each.ok for each in crash.figures([FINE._replace(lost=1)], [FINE._replace(complaints=["no"])])}
    assert (told["crash/lost"], told["crash/invariants"]) == (False, False)


@pytest.mark.lab
def test_a_kill_is_survived() -> None:
    with namespace("krac-root"):  # skips, or fails, without root
        (kill,) = crash.kills(1, True, lambda _: None)
        assert kill.outage_ms > 0 and kill.lost == 0 and kill.complaints == []
        assert not [name for name in namespaces.existing() if name.startswith(crash.PREFIX + "-")]
