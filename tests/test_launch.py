"""ExaBGP as we start it: what it is told it carries out at once, and it waits no longer than it may."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Generator, Iterator
from socket import socketpair
from types import SimpleNamespace

import pytest
from exabgp.logger import log  # type: ignore[import-untyped]
from exabgp.reactor.asynchronous import ASYNC  # type: ignore[import-untyped]
from exabgp.reactor.loop import Reactor  # type: ignore[import-untyped]

from routing.speaker import launch


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch) -> ASYNC:
    """Commands of an ExaBGP that can make no event loop."""
    log.silence()
    monkeypatch.setattr(ASYNC, "run", ASYNC.run)
    launch.obey_at_once()
    monkeypatch.setattr(asyncio, "run", None)
    return ASYNC()


def test_commands_are_carried_out_in_order(pending: ASYNC) -> None:
    done: list[str] = []

    def command(name: str) -> Iterator[bool]:
        done.append(f"{name} begins")
        yield False
        done.append(f"{name} ends")

    assert not pending.run()
    for name in ("one", "two"):
        pending.schedule("peer", name, command(name))
    while pending.run():
        pass
    assert done == ["one begins", "one ends", "two begins", "two ends"] and pending.ready()


def test_a_command_that_fails_is_told_and_the_next_one_is_carried_out(pending: ASYNC) -> None:
    failed: list[str] = []
    done: list[int] = []
    pending.set_error_handler(failed.append)

    def command(divisor: int) -> Iterator[int]:
        done.append(1 // divisor)
        yield 0

    pending.schedule("bad", "", command(0))
    pending.schedule("good", "", command(1))
    while pending.run():
        pass
    assert failed == ["bad"] and done == [1] and pending.ready()


def test_a_command_that_waits_for_something_is_an_error(pending: ASYNC) -> None:
    """No command of this version does."""

    class _Waiting:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def turn() -> None:
        await _Waiting()

    pending._run_async = turn
    pending.schedule("one", "", iter(()))
    with pytest.raises(RuntimeError, match="waits for something"):
        pending.run()


class _Loop:
    """What the loop of ExaBGP asks of itself before it waits."""

    def __init__(self, sessions: int, up: int) -> None:
        self._peers = dict.fromkeys(range(sessions))
        self._up = set(range(up))
        self.asynchronous = ASYNC()
        self.processes = SimpleNamespace(fds=[0])
        self._poller = select.poll()
        self.waits: list[int] = []

    def established_peers(self) -> set[int]:
        return self._up

    def wait(self, sleep_ms: int) -> Iterator[int]:
        self.waits.append(sleep_ms)
        return iter(())


@pytest.mark.parametrize(
    ("up", "left_over", "given", "waited"),
    [(2, False, 10, launch.QUIET_MS), (1, False, 10, 10), (2, True, 10, 0), (1, True, 10, 0), (2, False, 0, 0)],
)
def test_exabgp_waits_for_long_only_where_nothing_is_left_and_nobody_to_come(
    up: int, left_over: bool, given: int, waited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.silence()
    monkeypatch.setattr(Reactor, "_wait_for_io", _Loop.wait)
    launch.sleep_well()
    one = _Loop(2, up)
    if left_over:
        one.asynchronous.schedule("", "", iter(()))
    assert list(Reactor._wait_for_io(one, given)) == [] and one.waits == [waited]


def test_a_socket_that_was_closed_keeps_exabgp_from_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reactor, "_wait_for_io", _Loop.wait)
    launch.sleep_well()
    one = _Loop(1, 1)
    ours, theirs = socketpair()
    one._poller.register(ours.fileno(), select.POLLIN)
    ours.close()
    assert one._poller.poll(0)
    list(Reactor._wait_for_io(one, 10))
    assert one._poller.poll(0) == [] and one.waits == [launch.QUIET_MS]
    theirs.close()
