"""Health: slow to think ill of a core, slower to think well of it again."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from routing.health import LIMITS, Facts, Health, judge


def after(health: Health, facts: Facts, begin: int, end: int) -> Health:
    """What is thought at the end if these are the facts all the time, looked at each 200 ms."""
    for now in range(begin, end + 1, 200):
        health = judge(health, facts, now)
    return health


def test_a_full_table_is_believed_after_a_second_and_forgotten_after_ten() -> None:
    full, better, good = Facts(table_fill=0.97), Facts(table_fill=0.93), Facts(table_fill=0.5)
    health = after(Health(), full, 0, 800)
    assert health.fit
    health = after(health, full, 1000, 1200)
    assert not health.fit and health.alarms == ["the table of sessions is 97% full"]
    health = after(health, better, 1400, 60_000)
    assert not health.fit, "between the limits it stays what it was"
    health = after(health, good, 60_200, 70_000)
    assert not health.fit
    assert after(health, good, 70_200, 70_400).fit


def test_one_bad_moment_begins_anew() -> None:
    health = after(Health(), Facts(table_fill=0.99), 0, 800)
    health = after(health, Facts(), 1000, 1000)
    assert after(health, Facts(table_fill=0.99), 1200, 2000).fit


def test_a_stall_is_told_at_once_and_is_no_unfitness() -> None:
    health = judge(Health(), Facts(stall_ms=700, stalls=1), 0)
    assert health.fit and "stood still for 700 ms" in health.alarms[0]
    health = after(health, Facts(stalls=1), 200, 10_400)
    assert health.fit and not health.alarms


def test_the_third_stall_of_half_a_minute_is_unfitness_until_they_have_ended_for_a_while() -> None:
    health = after(Health(), Facts(stalls=2), 0, 30_000)
    assert health.fit
    health = judge(health, Facts(stall_ms=600, stalls=3), 30_200)
    assert not health.fit and "3 times within half a minute" in health.alarms[1]
    health = after(health, Facts(stalls=2), 30_400, 50_000)
    assert not health.fit, "between the limits it stays what it was"
    assert not after(health, Facts(stalls=1), 50_200, 60_000).fit
    assert after(health, Facts(stalls=1), 50_200, 60_200).fit


def test_a_dry_pool_is_told_but_moves_nothing() -> None:
    health = after(Health(), Facts(ports_refused=5000), 0, 4000)
    assert health.fit and "no free port" in health.alarms[0]


def test_every_limit_leaves_room_between_good_and_bad() -> None:
    assert all(limit.good < limit.bad and limit.good_for > limit.bad_for for limit in LIMITS.values())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300))
def test_it_never_changes_its_mind_twice_within_ten_seconds(fills: list[float]) -> None:
    health, changes = Health(), []
    for number, fill in enumerate(fills):
        before, health = health.fit, judge(health, Facts(table_fill=fill), 200 * number)
        changes += [200 * number] * (before != health.fit)
    assert all(later - earlier >= 1000 for earlier, later in pairwise(changes))
    assert all(later - earlier >= 10_000 for earlier, later in zip(changes[0::2], changes[1::2], strict=False))
