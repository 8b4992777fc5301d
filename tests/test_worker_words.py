"""What a worker says to its supervisor, and what happens to it where that cannot be said."""

from __future__ import annotations

import json
import socket

from krononat.worker import Worker


def test_an_answer_that_is_longer_than_a_message_may_be_ends_nobody() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = Worker.__new__(Worker)
    worker._channel = ours
    with ours, theirs:
        worker.say({"answer": "x" * (1 << 20)})
        worker.say({"id": 1})
        assert json.loads(theirs.recv(1 << 18)) == {"id": 1}
