"""What a worker keeps for the supervisor after one that was killed, and how that gets it: real sockets, no privileges."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from krononat import heir, memory
from krononat.channel import pair
from krononat.client import Trouble
from krononat.member import UNSEEN, Inherited, cause, is_fault
from krononat.orphan import Orphan
from shards.state import Sizes, state_bytes, write_header

SAID = {"draining": True, "attached": False}
SIZES = Sizes(*[2] * len(Sizes._fields))._replace(buckets=16)


@pytest.fixture
def left(tmp_path: Path) -> Iterator[tuple[Orphan, socket.socket, str]]:
    """A worker's part with everything that it was left, its end of the channel, and where it waits."""
    path = str(tmp_path / "x.heir")
    made = memory.create("test", state_bytes(SIZES))
    write_header(made.map, SIZES)
    orphan, (ours, theirs) = Orphan({"state": made.descriptor}), pair()
    listener = heir.listen(path)
    orphan.keep({"names": ["link0"]}, [os.open("/dev/null", os.O_RDONLY)])
    orphan.keep(
        {"names": ["listener"], "about": {"patience": 5000, "digest": "d", "pages": "4 KiB"}}, [os.dup(listener.fileno())]
    )
    listener.close()
    ours.close()  # the supervisor has died
    theirs.setblocking(False)
    yield orphan, theirs, path
    theirs.close()


def claimed(orphan: Orphan, channel: socket.socket, path: str) -> heir.Heritage:
    """What somebody gets who comes."""
    found: list[heir.Heritage | None] = []
    thread = threading.Thread(target=lambda: found.append(heir.claim(path, "d", SIZES, lambda _: None)))
    thread.start()
    until = time.monotonic() + 5
    while not orphan.turn(channel, SAID):
        assert time.monotonic() < until
        time.sleep(0.001)
    thread.join()
    assert found[0]
    return found[0]


def waits_since(orphan: Orphan) -> int | None:
    return orphan.since


def test_an_heir_gets_everything_by_name_and_the_channel_again_and_again(left: tuple[Orphan, socket.socket, str]) -> None:
    orphan, channel, path = left
    assert Path(path).stat().st_mode & 0o777 == 0o600 and orphan.patience == 5000
    for now in (7, 9):
        assert channel.recv(1) == b""
        orphan.begin(channel, now)
        with pytest.raises(BlockingIOError):  # nobody has come: the loop sleeps, though the channel has ended
            socket.socket(fileno=os.dup(channel.fileno())).accept()
        assert orphan.since == now and not orphan.turn(channel, SAID)
        found = claimed(orphan, channel, path)
        assert waits_since(orphan) is None and found.said == SAID and found.member.pid == os.getpid()
        assert found.descriptors.keys() == {"state", "link0", "listener"}
        assert os.fstat(found.descriptors["link0"]).st_rdev == os.stat("/dev/null").st_rdev
        assert found.memory.pages == "4 KiB"
        channel.setblocking(False)
        assert found.member.send({"do": "wake"}) and channel.recv(100) == b'{"do": "wake"}'
        found.member.close()


def test_who_connects_and_says_nothing_or_goes_away_keeps_nobody_waiting(left: tuple[Orphan, socket.socket, str]) -> None:
    orphan, channel, path = left
    orphan.begin(channel, 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(path)
        assert not orphan.turn(channel, SAID) and not orphan.turn(channel, SAID)
    assert not orphan.turn(channel, SAID)  # it has hung up
    ours = heir._call(path)
    assert ours
    ours.close()  # and this one died before it was told anything
    assert not orphan.turn(channel, SAID) and orphan.since == 1
    assert claimed(orphan, channel, path).about["digest"] == "d"


def test_nobody_is_no_heritage_and_one_that_says_nothing_is_in_the_way(
    tmp_path: Path, left: tuple[Orphan, socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heir.claim(str(tmp_path / "nothing"), "d", SIZES, lambda _: None) is None
    monkeypatch.setattr(heir, "_ANSWER_S", 0.1)
    with pytest.raises(Trouble, match="a worker that a killed run left is in the way"):
        heir.claim(left[2], "d", SIZES, lambda _: None)


def test_a_worker_that_was_left_nothing_goes_with_its_supervisor_and_who_is_no_child_is_not_blamed() -> None:
    assert Orphan({}).patience == 0
    assert Inherited.ended(Inherited.__new__(Inherited)) == UNSEEN and not is_fault(UNSEEN) and "nobody saw" in cause(UNSEEN)
