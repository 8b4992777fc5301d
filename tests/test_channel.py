"""The supervisor's channel: messages as long as orders get, with descriptors, and none that stays behind."""

from __future__ import annotations

import os
from socket import send_fds

import pytest

from krononat.channel import MESSAGE_AT_MOST, ORDERS_AT_MOST, pair, receive


def test_orders_of_the_longest_kind_come_whole_with_their_descriptors() -> None:
    ours, theirs = pair()
    room = bytearray(MESSAGE_AT_MOST)
    with ours, theirs:
        given = os.pipe()
        send_fds(ours, [b"x" * ORDERS_AT_MOST], given)
        ours.send(b"short")
        message, descriptors = receive(theirs, room, 3)
        assert len(message) == ORDERS_AT_MOST and len(descriptors) == 2
        for descriptor in (*given, *descriptors):
            os.close(descriptor)
        assert receive(theirs, room, 3) == (b"short", [])


def test_nothing_there_is_not_the_end() -> None:
    ours, theirs = pair()
    room = bytearray(64)
    theirs.setblocking(False)
    with theirs:
        with pytest.raises(BlockingIOError):
            receive(theirs, room, 3)
        ours.close()
        assert receive(theirs, room, 3) == (b"", [])
