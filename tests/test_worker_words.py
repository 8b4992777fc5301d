"""What a worker says to its supervisor, and what happens to it where that cannot be said."""

from __future__ import annotations

import json
import socket

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
