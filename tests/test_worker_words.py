"""What a worker says to its supervisor, and what happens to it where that cannot be said."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from krononat.worker import BURSTS, KERNEL_BURSTS, Worker
from shards.loop import LONG_US, SHORT_US, bursts_after


def test_an_answer_that_is_longer_than_a_message_may_be_ends_nobody() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = Worker.__new__(Worker)
    worker._channel = ours
    with ours, theirs:
        worker.say({"answer": "x" * (1 << 20)})
        worker.say({"id": 1})
        assert json.loads(theirs.recv(1 << 18)) == {"id": 1}


def test_breaths_grow_while_they_are_short_and_shrink_at_once_where_they_are_long() -> None:
    for most in (BURSTS, KERNEL_BURSTS):
        seen = [1]
        while seen[-1] < most:
            seen.append(bursts_after(seen[-1], SHORT_US - 1, most))
        assert seen == [2**power for power in range(len(seen))] and bursts_after(most, 0, most) == most
        assert bursts_after(most, LONG_US, most) == bursts_after(most, SHORT_US, most) == most
        assert [bursts_after(bursts, LONG_US + 1, most) for bursts in (most, 2, 1)] == [most // 2, 1, 1]


@pytest.mark.parametrize(
    ("told", "rest"),
    [
        ({}, 9),
        ({"last": 5}, 7),
        ({"last": -20}, 0),  # it has rested
        ({"more": True}, 0),
        ({"spoken_to": True}, 0),
        ({"busy": True}, 0),  # a loop that polls has a CPU to itself, or wants to
        ({"stopping": True}, 0),
        ({"crowded": 0}, 0),
        ({"pressed": True}, 0),
        ({"pcp": 3}, 3),
        ({"cut": "inside"}, 0),  # not announced yet: the network sends packets where they do not get on
        ({"cut": "inside", "known": "inside"}, 9),
    ],
    ids=str,
)
def test_chores_rest_where_nothing_waits_for_them(told: dict[str, Any], rest: int) -> None:
    """12 ms at most, of which 3 are over here."""
    worker: Any = Worker.__new__(Worker)
    worker._more, worker._spoken_to = told.get("more", False), told.get("spoken_to", False)
    worker._busy, worker._stopping = told.get("busy", False), told.get("stopping", False)
    worker._crowding = SimpleNamespace(rest=told.get("crowded", 12))
    worker._replica = SimpleNamespace(is_pressed=told.get("pressed", False))
    worker._pcp = SimpleNamespace(due=lambda: told["pcp"] + 3) if "pcp" in told else None
    worker._announced, worker._announcer = {"core": "s1/0"}, SimpleNamespace(cut=told.get("known", ""))
    worker._examiner = SimpleNamespace(cut=lambda: told.get("cut", ""))
    assert worker._resting(10, told.get("last", 7)) == rest


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_cut_off_withdraws_and_then_hands_over_whatever_becomes_of_that(fails: bool) -> None:
    done: list[str] = []

    def turn(now: int) -> bool:
        done.append("withdrawn")
        if fails:
            raise OSError
        return True

    worker: Any = Worker.__new__(Worker)
    worker._examiner = SimpleNamespace(turned=lambda now: None, cut=lambda: "inside")
    worker._replica = SimpleNamespace(hand_over=lambda now: done.append("handed over"))
    worker._lost = False
    told: Any = SimpleNamespace(cut="", leaving=False, turn=turn, detach=lambda: None)
    told.sever = lambda side: setattr(told, "cut", side)
    worker._faults = 1  # it has told of one before
    for now in range(2):
        if worker._examiner.cut() != told.cut:
            worker._guarded(told, now)
    assert done == ["withdrawn", "handed over"] and told.cut == "inside"
