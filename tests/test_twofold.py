"""Two servers that claim one name: the same configuration and key on both. Others notice, and go on."""

from __future__ import annotations

import pytest

from replication import exchange
from shards.jit import PURE
from tests.exchanges import Node, Room, ticks

if PURE:

    def test_two_that_have_one_name_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exchange, "TWOFOLD_AFTER", 300)
        with Room("a", "b") as room:
            room.run(0.6)
            assert not room["a"].exchange.is_twofold("b", ticks())
            twin = Node("b", key=room["b"].key)
            twin.exchange.meet(room["a"].peer, ticks())
            room.nodes["twin"] = twin
            room.until(lambda: room["a"].exchange.is_twofold("b", ticks()))
            assert not room["b"].exchange.is_twofold("a", ticks())
            del room.nodes["twin"]
            twin.exchange.close()
            room.until(lambda: not room["a"].exchange.is_twofold("b", ticks()))

    def test_who_begins_anew_is_not_two(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exchange, "TWOFOLD_AFTER", 300)
        with Room("a", "b") as room:
            room.run(0.6)
            before = room.nodes.pop("b")
            before.exchange.close()
            again = Node("b", key=before.key)
            again.exchange.meet(room["a"].peer, ticks())
            room.nodes["b"] = again
            for _ in range(20):
                room.run(0.05)
                assert not room["a"].exchange.is_twofold("b", ticks())
