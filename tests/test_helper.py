"""The helper as the process that it is, between cores on its socket and an ExaBGP that is this test, on its pipes."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from routing.helper import Helper
from routing.speaker import sessions
from routing.speaker.ask import ask
from routing.will import Will
from tests.test_speaker import A, plan

pytestmark = pytest.mark.alone

DEAD_AFTER = 500  # longer than a busy machine keeps this test waiting
PREFIX, OTHER = "203.0.113.0/28", "203.0.113.16/28"


class Core:
    """A core's connection."""

    def __init__(self, path: str, name: str, linger: int = 0) -> None:
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stream.settimeout(5)
        self.stream.connect(path)
        self.say({"core": name, "linger": linger})

    def say(self, message: Any) -> None:
        """One message."""
        self.stream.send(json.dumps(message).encode())

    def want(self, *prefixes: str, n: int = 1, med: int = 100) -> None:
        """The whole set that it wants said."""
        self.say({"routes": [[prefix, "outside", med, 0, [], []] for prefix in prefixes], "n": n})

    def hear(self) -> dict[str, Any]:
        """One message of the helper."""
        told: dict[str, Any] = json.loads(self.stream.recv(1 << 16))
        return told

    def close(self) -> None:
        """Hang up."""
        self.stream.close()


class Exabgp:
    """What started the helper; `table`: what it was told, by session."""

    def __init__(self, folder: Path) -> None:
        cores = {name: voice._replace(dead_after_ms=DEAD_AFTER) for name, voice in plan().cores.items()}
        self.plan = plan()._replace(cores=cores, socket=str(folder / "socket"), memory=str(folder / "said.json"))
        (folder / "plan.json").write_text(sessions.write(self.plan))
        self._file = folder / "plan.json"
        self.table: dict[tuple[str, str], str] = {}
        self.commands: list[str] = []
        self.start()

    def start(self) -> None:
        """A helper, in a process of its own."""
        self.helper = subprocess.Popen(
            [sys.executable, "-m", "routing.helper", str(self._file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.helper.stdout
        os.set_blocking(self.helper.stdout.fileno(), False)
        _within(5, lambda: _connects(self.plan.socket))

    def say(self, line: str) -> None:
        """A line for the helper."""
        assert self.helper.stdin
        self.helper.stdin.write(line + "\n")
        self.helper.stdin.flush()

    def hear(self, seconds: float = 2.0, answer: str = "done") -> list[str]:
        """Commands that come until none has come for a moment; each is answered."""
        assert self.helper.stdout
        found: list[str] = []
        until = time.monotonic() + seconds
        quiet = until
        while time.monotonic() < min(until, quiet):
            line = self.helper.stdout.readline().strip()
            if not line:
                time.sleep(0.005)
                continue
            found.append(line)
            self._take(line)
            if answer:
                self.say(answer)
            quiet = time.monotonic() + 0.05
        self.commands += found
        return found

    def _take(self, line: str) -> None:
        words = line.split()
        peer, local, verb = words[1], words[3], words[4]
        for prefix in words[words.index("nlri") + 1 :]:
            if verb == "announce":
                self.table[f"{local} > {peer}", prefix] = line
            else:
                self.table.pop((f"{local} > {peer}", prefix), None)

    def end(self) -> None:
        """End the helper as ExaBGP's own end does: by hanging up."""
        assert self.helper.stdin and self.helper.stdout
        self.helper.stdin.close()
        self.helper.wait(5)
        self.helper.stdout.close()


def _connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stream:
        return stream.connect_ex(path) == 0


def _within(seconds: float, true: Any) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.01)


@pytest.fixture
def bgp(tmp_path: Path) -> Iterator[Exabgp]:
    """A helper that runs."""
    exabgp = Exabgp(tmp_path)
    yield exabgp
    exabgp.end()


def beaten(core: Core, exabgp: Exabgp, seconds: float) -> float:
    """A core that lives for a while, and ExaBGP that listens meanwhile; its longest silence, s, which is this test's own."""
    began = last = time.monotonic()
    longest = 0.0
    while last < began + seconds:
        core.say({"beat": 1})
        exabgp.hear(0.02)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    return longest


def test_routes_are_said_answered_and_withdrawn_with_the_connection(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    core.want(PREFIX, n=7)
    assert bgp.hear() == [f"neighbor 10.1.0.1 local-ip 10.1.0.11 announce attributes next-hop 10.1.0.11 med 100 nlri {PREFIX}"]
    assert core.hear() == {"done": 7}
    core.close()
    assert bgp.hear() == [f"neighbor 10.1.0.1 local-ip 10.1.0.11 withdraw attributes next-hop self nlri {PREFIX}"]
    assert not bgp.table


def test_silence_is_death_and_a_beat_is_life(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    core.want(PREFIX)
    beaten(core, bgp, 0.8)
    assert bgp.table
    silent = time.monotonic()
    while bgp.table:
        bgp.hear(0.02)
    assert DEAD_AFTER / 1000 - 0.03 < time.monotonic() - silent < 2
    core.say({"beat": 2})
    bgp.hear()
    assert (A, PREFIX) in bgp.table
    core.close()


def test_a_stranger_costs_no_thread(bgp: Exabgp) -> None:
    threads = Path(f"/proc/{bgp.helper.pid}/task")
    before = len(list(threads.iterdir()))
    for _ in range(20):
        stranger, will = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), Will()
        stranger.connect(bgp.plan.socket)
        socket.send_fds(stranger, [json.dumps({"core": "s9/9"}).encode()], [will.descriptor])
        assert "s9/9" in json.loads(stranger.recv(1 << 16))["refused"]
        stranger.close()
    assert len(list(threads.iterdir())) == before


def test_a_helper_that_was_held_up_blames_nobody(bgp: Exabgp) -> None:
    """What has come meanwhile is read before anybody is called dead, though it came after the wait was over."""
    core = Core(bgp.plan.socket, "s1/0")
    held_up = 1.0
    for _ in range(20):
        core.want(PREFIX)
        while (A, PREFIX) not in bgp.table:
            beaten(core, bgp, 0.02)
        bgp.commands.clear()
        bgp.helper.send_signal(signal.SIGSTOP)
        time.sleep(0.3 + DEAD_AFTER / 1000)
        held_up = _held_up(core, bgp)
        if held_up < 0.5 * DEAD_AFTER / 1000:
            break  # else this test itself was held up, and the core silent indeed: that shows nothing
    assert held_up < 0.5 * DEAD_AFTER / 1000, "this machine is too busy to show anything"
    assert [line for line in bgp.commands if "withdraw" in line] == []
    core.close()


def _held_up(core: Core, bgp: Exabgp) -> float:
    """Beats that a stopped helper finds when it goes on, and more after that; longest silence between two of them, s."""
    said = time.monotonic()
    core.say({"beat": 1})
    bgp.helper.send_signal(signal.SIGCONT)
    return max(beaten(core, bgp, 0.2), time.monotonic() - said - 0.2)


def test_a_successor_within_the_linger_is_not_noticed(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0", linger=1000)
    core.want(PREFIX)
    bgp.hear()
    core.close()
    successor = Core(bgp.plan.socket, "s1/0", linger=0)
    beaten(successor, bgp, 0.1)
    successor.want(PREFIX)
    beaten(successor, bgp, 0.2)
    assert len(bgp.commands) == 1 and bgp.table
    successor.close()
    bgp.hear()
    assert not bgp.table


def test_a_helper_that_is_killed_leaves_what_its_successor_puts_right(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    core.want(PREFIX, OTHER)
    bgp.hear()
    bgp.helper.kill()
    bgp.helper.wait()
    bgp.start()  # as ExaBGP does; it still has both routes, and the new one knows nothing of its own
    assert bgp.hear(0.3) == []
    core = Core(bgp.plan.socket, "s1/0")
    core.want(PREFIX)
    beaten(core, bgp, 2.5)
    assert set(bgp.table) == {(A, PREFIX)}
    core.close()


def test_what_exabgp_refuses_is_counted_told_and_tried_again(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    core.want(PREFIX)
    bgp.hear(answer="error")
    beaten(core, bgp, 0.1)
    _, about = ask(bgp.plan.socket, "cores")
    assert about["refused"] == 1 and PREFIX in about["last_refusal"]
    beaten(core, bgp, 1.3)
    assert len(bgp.commands) == 2
    core.close()


def test_while_exabgp_says_nothing_changes_do_not_pile_up(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    for n in range(400):
        core.want(PREFIX, n=n + 1, med=n)
        bgp.hear(0.002, answer="")
    unanswered = len(bgp.commands)
    assert 100 < unanswered <= 257
    for _ in range(unanswered):
        bgp.say("done")
    core.say({"beat": 1})
    beaten(core, bgp, 0.3)
    assert "med 399" in bgp.table[A, PREFIX]
    core.close()


NONSENSE = [
    b"x",
    b"[]",
    b"{}",
    b"17",
    b'{"core": 5}',
    b'{"core": "s9/9"}',
    b'{"beat": 1}',
    b'{"ask": "all"}',
    b"\xff",
    b'{"routes": [], "n": 1}',
    b"[" * 100_000,
    b'{"core": "s1/1", "linger": 1e999}',
]


def test_who_was_closed_this_turn_is_not_called_by_its_successors_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, commands), (answers, _) = os.pipe(), os.pipe()
    helper = Helper(plan()._replace(socket=str(tmp_path / "socket"), memory=str(tmp_path / "said.json")), commands, answers, 0)
    called: list[str] = []
    (near, _), (heir, _) = socket.socketpair(), socket.socketpair()
    stale = helper._selector.register(near, selectors.EVENT_READ, lambda: called.append("closed"))
    helper._selector.unregister(near)
    os.dup2(heir.fileno(), near.fileno())
    key = helper._selector.register(near, selectors.EVENT_READ, lambda: called.append("heir"))
    with monkeypatch.context() as patch:
        patch.setattr(helper._selector, "select", lambda _: [(stale, selectors.EVENT_READ), (key, selectors.EVENT_READ)])
        helper._read(0)
    assert called == ["heir"]


def test_nonsense_ends_its_own_connection_only(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    core.want(PREFIX)
    for nonsense in NONSENSE:
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stranger.connect(bgp.plan.socket)
        stranger.settimeout(5)
        stranger.send(nonsense)
        assert "refused" in json.loads(stranger.recv(1 << 16)), nonsense
        assert stranger.recv(1 << 16) == b""
        stranger.close()
        core.say({"beat": 1})
    beaten(core, bgp, 0.1)
    assert bgp.table
    core.close()


def test_a_route_that_is_none_costs_a_core_its_connection(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    core.want("203.0.113.0/28\nshutdown")
    assert "no route" in core.hear()["refused"]
    core.close()


def test_status_says_who_is_down_since_when_and_why(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    core.say({"alarms": ["the table of sessions is 97% full"]})
    core.want(PREFIX)
    bgp.hear()
    address = {"local": "10.1.0.11", "peer": "10.1.0.1"}
    bgp.say(json.dumps({"type": "state", "neighbor": {"address": address, "state": "up"}}))
    _within(2, lambda: ask(bgp.plan.socket, "sessions")[0][0]["up"])
    bgp.say(json.dumps({"type": "state", "neighbor": {"address": address, "state": "down", "reason": "hold timer"}}))
    _within(2, lambda: not ask(bgp.plan.socket, "sessions")[0][0]["up"])
    first, second = ask(bgp.plan.socket, "sessions")[0]
    assert (first["why"], first["ups"]) == ("hold timer", 1) and first["since_ms"] < 2000
    assert "not come up" in second["why"]
    cores = {row["core"]: row for row in ask(bgp.plan.socket, "cores")[0]}
    assert cores["s1/0"]["alarms"] == ["the table of sessions is 97% full"]
    assert cores["s1/1"]["state"] == "never"
    (row,) = ask(bgp.plan.socket, "routes")[0]
    assert (row["prefix"], row["core"], row["acknowledged"]) == (PREFIX, "s1/0", True)
    core.close()


def test_long_sets_come_in_parts_and_answers_too(bgp: Exabgp) -> None:
    core = Core(bgp.plan.socket, "s1/0")
    prefixes = [f"10.255.{number // 256}.{number % 256}/32" for number in range(1000)]
    for at in range(0, 1000, 250):
        part = [[prefix, "inside", 100, 0, [], []] for prefix in prefixes[at : at + 250]]
        core.say({"routes": part, "n": 3, "more": at < 750})
    bgp.hear(0.3)
    core.say({"beat": 1})
    assert core.hear() == {"done": 3}
    assert len(bgp.table) == 1000 and len(bgp.commands) == 5
    core.say({"beat": 1})
    assert {row["prefix"] for row in ask(bgp.plan.socket, "routes")[0]} == set(prefixes)
    core.close()


def test_the_socket_is_roots_alone(bgp: Exabgp) -> None:
    assert Path(bgp.plan.socket).stat().st_mode & 0o777 == 0o600
