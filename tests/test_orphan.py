"""What a worker keeps for the supervisor after one that was killed, and how that gets it: real sockets, no privileges."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from krononat import appliance, cluster, heir, memory, orphan
from krononat.channel import pair
from krononat.client import Trouble
from krononat.config import read
from krononat.crew import Crew, Hooks
from krononat.member import UNSEEN, Inherited, cause, is_fault
from krononat.models import Config
from krononat.orphan import Orphan
from shards.state import Sizes, state_bytes, write_header
from tests.test_cluster import _files
from tests.test_config import RIGHT

SAID = {"draining": True, "attached": False}
OURS = read(RIGHT)
ABOUT = {"patience": 5000, "pages": "4 KiB"}
Left = tuple[Orphan, socket.socket, str]


def leave(to: Orphan, listener: socket.socket, config: Config = OURS, **more: Any) -> None:
    """What a supervisor leaves a worker."""

    def send(told: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
        to.keep(told, [os.dup(each) for each in descriptors])
        return True

    assert heir.leave(send, ABOUT | more, config, listener.fileno(), ())


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    """A worker's part with everything that it was left, its end of the channel, and where it waits."""
    yield from made(tmp_path, appliance.compose(OURS))


def made(folder: Path, sizes: Sizes, **more: Any) -> Iterator[Left]:
    """The same with a memory of some sizes, and more to tell."""
    path = str(folder / "x.heir")
    state, frames = memory.create("test", state_bytes(sizes)), memory.create("test", 4096)
    write_header(state.map, sizes)
    told, (ours, theirs) = Orphan({"state": state.descriptor, "frames": frames.descriptor}), pair()
    told.keep({"names": ["link0"]}, [os.open("/dev/null", os.O_RDONLY)])
    with heir.listen(path) as listener:
        leave(told, listener, **more)
    ours.close()  # the supervisor has died
    theirs.setblocking(False)
    yield told, theirs, path
    theirs.close()


def claimed(left: Left, ours: Config = OURS, say: Any = lambda _: None) -> heir.Heritage | None:
    """What somebody gets who comes; None: the worker is ended."""
    worker, channel, path = left
    found: list[heir.Heritage | None] = []
    thread = threading.Thread(target=lambda: found.append(heir.claim(path, ours, None, say)))
    thread.start()
    until = time.monotonic() + 5
    while not worker.turn(channel, SAID):
        assert time.monotonic() < until
        time.sleep(0.001)
    thread.join()
    return found[0]


def waits_since(orphan: Orphan) -> int | None:
    return orphan.since


def test_an_heir_gets_everything_by_name_and_the_channel_again_and_again(left: Left) -> None:
    worker, channel, path = left
    assert Path(path).stat().st_mode & 0o777 == 0o600 and worker.patience == 5000
    for now in (7, 9):
        assert channel.recv(1) == b""
        worker.begin(channel, now)
        with pytest.raises(BlockingIOError):  # nobody has come: the loop sleeps, though the channel has ended
            socket.socket(fileno=os.dup(channel.fileno())).accept()
        assert worker.since == now and not worker.turn(channel, SAID)
        found = claimed(left)
        assert found and waits_since(worker) is None
        assert found.said == SAID and found.member.pid == os.getpid() and found.config == OURS
        assert found.descriptors.keys() == {"state", "frames", "link0", "listener", "config"}
        assert os.fstat(found.descriptors["link0"]).st_rdev == os.stat("/dev/null").st_rdev
        assert found.memory.pages == "4 KiB"
        channel.setblocking(False)
        assert found.member.send({"do": "wake"}) and channel.recv(100) == b'{"do": "wake"}'
        leave(worker, socket.socket(fileno=found.descriptors["listener"]))
        found.member.close()


def test_heirs_that_are_killed_before_they_left_everything_anew_make_the_patience_no_longer(left: Left) -> None:
    worker, channel, _ = left
    for now in (7, 9, 11):
        worker.begin(channel, now)
        assert worker.since == 7
        found = claimed(left)
        assert found
        found.member.close()


def test_more_descriptors_than_a_message_holds_come_in_several(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphan, "GIVEN_AT_ONCE", 2)
    left[0].begin(left[1], 1)
    found = claimed(left)
    assert found and found.descriptors.keys() == {"state", "frames", "link0", "listener", "config"}
    assert orphan.GIVEN_AT_ONCE <= heir._DESCRIPTORS_AT_MOST


def test_who_connects_and_says_nothing_or_goes_away_keeps_nobody_waiting(left: Left) -> None:
    worker, channel, path = left
    worker.begin(channel, 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(path)
        assert not worker.turn(channel, SAID) and not worker.turn(channel, SAID)
    assert not worker.turn(channel, SAID)  # it has hung up
    ours = heir._call(path)
    assert ours
    ours.close()  # and this one died before it was told anything
    assert not worker.turn(channel, SAID) and worker.since == 1
    assert claimed(left)


def test_nobody_comes_but_who_the_supervisor_was(tmp_path: Path) -> None:
    for worker, channel, path in made(tmp_path, appliance.compose(OURS), uid=os.geteuid() + 1):
        worker.begin(channel, 1)
        ours = heir._call(path)
        assert ours and not worker.turn(channel, SAID) and ours.recv(1) == b"" and worker.since == 1


def test_nobody_is_no_heritage_and_one_that_says_nothing_is_in_the_way_however_often_one_comes(
    tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heir.claim(str(tmp_path / "nothing"), OURS, None, lambda _: None) is None
    monkeypatch.setattr(heir, "_ANSWER_S", 0.01)
    for _ in range(2 * heir._WAITING_AT_MOST):
        with pytest.raises(Trouble, match="a worker that a killed run left is in the way"):
            heir.claim(left[2], OURS, None, lambda _: None)


def test_one_that_hangs_up_is_in_the_way_while_it_is_there(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heir, "_hear", lambda channel: channel.close())
    with pytest.raises(Trouble) as told:
        heir.claim(left[2], OURS, None, lambda _: None)
    assert "hangs up" in told.value.why
    left[0]._listener.close()  # type: ignore[union-attr]
    os.close(left[0]._kept["listener"])
    assert heir.claim(left[2], OURS, None, lambda _: None) is None, "it has ended"


def test_one_that_ended_while_it_was_heard_is_nobody(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    received = heir._received
    monkeypatch.setattr(heir, "_received", lambda channel: (*received(channel)[:2], gone.pid))
    left[0].begin(left[1], 1)
    channel = heir._call(left[2])
    assert channel and left[0].turn(left[1], SAID)
    before = len(os.listdir("/proc/self/fd"))
    assert heir._hear(channel) is None
    assert len(os.listdir("/proc/self/fd")) == before - 1, "nothing of it is kept"


def test_one_that_says_nothing_is_killed_where_it_was_written_down_who_it_is(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heir, "_ANSWER_S", 0.05)
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as hung:
        heir.note(left[2], hung.pid)
        noted = Path(heir._noted(left[2]))
        assert noted.stat().st_mode & 0o777 == 0o600
        right = noted.read_text()
        noted.write_text(f'[{hung.pid}, "1"]')  # another process had that number
        with pytest.raises(Trouble, match="in the way"):
            heir.claim(left[2], OURS, None, said.append)
        assert hung.poll() is None
        noted.write_text(right)
        monkeypatch.setattr(heir, "_ANSWER_S", 5.0)
        heir._end_silent(left[2], said.append)
        assert hung.wait(1) == -9 and "was killed" in said[0]
    heir.forget(left[2])
    assert not noted.exists() and not Path(left[2]).exists()


# --- what does not fit ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whoever was ended (here it would be ourselves)."""
    found: list[int] = []
    monkeypatch.setattr(Inherited, "end", lambda member: found.append(member.pid))
    return found


def test_what_was_changed_while_it_ran_goes_on_to_be_so(tmp_path: Path, ended: list[int]) -> None:
    drained, said = read(RIGHT + 'drain = ["203.0.113.3"]\n'), list[str]()
    for left in made(tmp_path, appliance.compose(OURS), config=drained):
        left[0].begin(left[1], 1)
        found = claimed(left, OURS, said.append)
        assert found and found.config == drained and not ended
        assert "changed while it ran (pool.drain)" in said[-1]


def test_one_of_another_configuration_is_ended_and_told_by_which_key(left: Left, ended: list[int]) -> None:
    said: list[str] = []
    left[0].begin(left[1], 1)
    other = read(RIGHT + "[memory]\nsessions = 4096\n")
    assert claimed(left, other, said.append) is None and ended == [os.getpid()]
    assert "it goes by another configuration (memory.sessions)" in said[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"peers": 40}, ""), ({"rules": 4096, "externals": 500}, ""), ({"accounts": 3}, "its memory is of another size")],
)
def test_memory_may_have_more_room_than_today_would_be_made(
    tmp_path: Path, ended: list[int], change: dict[str, int], why: str
) -> None:
    said: list[str] = []
    for left in made(tmp_path, appliance.compose(OURS)._replace(**change)):
        left[0].begin(left[1], 1)
        found = claimed(left, OURS, said.append)
        assert bool(found) == (why == "") and why in said[0]
        assert not found or found.sizes == appliance.compose(OURS)._replace(**change)


def test_memory_has_room_for_every_core_of_the_map_or_is_not_gone_on_with(tmp_path: Path, ended: list[int]) -> None:
    config = _files(tmp_path)
    told = cluster.of(config)
    assert told and len(told.map.core) == 3
    for peers, why in ((3, ""), (2, "it has room for 2 cores, and the map has 3")):
        for left in made(tmp_path, appliance.compose(config, told)._replace(peers=peers), config=config):
            left[0].begin(left[1], 1)
            channel = heir._call(left[2])
            assert channel and left[0].turn(left[1], SAID)
            found = heir._hear(channel)
            assert found and heir._misfit(found, config, told) == why


def test_one_that_another_version_has_left_something_else_is_ended(tmp_path: Path, ended: list[int]) -> None:
    said: list[str] = []
    for left in made(tmp_path, appliance.compose(OURS), version=orphan.VERSION - 1):
        left[0].begin(left[1], 1)
        assert claimed(left, OURS, said.append) is None and ended and "another version" in said[0]


def test_memory_that_could_be_cut_off_is_not_gone_on_with(left: Left, ended: list[int]) -> None:
    said: list[str] = []
    frames = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.dup2(frames, left[0]._own["frames"])
    left[0].begin(left[1], 1)
    assert claimed(left, OURS, said.append) is None and ended and "cut off" in said[0]


def test_who_finds_a_device_in_use_is_told_of_workers_of_other_runs() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "krononat.standby"]) as other:
        time.sleep(0.05)
        assert f"{other.pid}" in heir.told_of_others() and "orphan-s" in heir.told_of_others()
        other.kill()
    assert f"{other.pid}" not in heir.told_of_others()


def test_an_inherited_worker_that_is_replaced_has_retired() -> None:
    said: list[str] = []
    hooks = Hooks(lambda: ({}, ()), lambda: ({}, ()), lambda _: None, said.append, said.append)
    with selectors.DefaultSelector() as selector:
        crew, (ours, theirs) = Crew(selector, hooks, {}, spare=False), pair()
        member = Inherited(ours, os.getpid())
        for state, told in (("starting", "has retired"), ("none", "died (nobody saw of what)")):
            crew.adopt(member, "code")
            crew.replacement = {"state": state}
            crew._worker_ended(member, member.ended())
            assert said[-1] == f"worker {os.getpid()} {told}"
            selector.unregister(member.channel)
            selector.unregister(member.pidfd)
        member.close()
        theirs.close()


# --- kept -----------------------------------------------------------------------------------------------------------------


def test_a_worker_that_was_left_nothing_goes_with_its_supervisor_and_who_is_no_child_is_not_blamed() -> None:
    assert Orphan({}).patience == 0
    assert Inherited.ended(Inherited.__new__(Inherited)) == UNSEEN and not is_fault(UNSEEN) and "nobody saw" in cause(UNSEEN)


def test_one_that_has_no_more_descriptors_goes_with_its_supervisor_until_it_is_left_all(
    left: Left, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = left[0]
    worker.keep({"names": ["link0", "sockets0"]}, [os.open("/dev/null", os.O_RDONLY)])
    with socket.socket(socket.AF_UNIX) as listener:
        leave(worker, listener)
        assert worker.patience == 0 and "too few descriptors" in capfd.readouterr().err
        leave(worker, listener)
        assert worker.patience == 5000
