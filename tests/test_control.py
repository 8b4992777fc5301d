"""The control socket's server, without an appliance: it answers, and nobody can stall it; and the crew that keeps a worker."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from krononat import channel, client, control, crew
from krononat.client import Trouble
from krononat.control import Answer, Control
from krononat.member import Member
from krononat.view import ticks


class Server:
    """A Control in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.later: list[Answer] = []
        self.control = Control(path, self.selector, {"status": self.status, "memory": self.memory, "later": self.keep})
        self.tired = 0
        self.stopping = False
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        """Loop of the thread."""
        while not self.stopping:
            for key, _ in self.selector.select(0.02):
                key.data()
            if self.tired:
                self.control.tire(self.tired)

    def close(self) -> None:
        """End the thread."""
        self.stopping = True
        self.thread.join()
        self.control.close()

    def status(self, request: dict[str, Any], reply: Answer) -> None:
        """An answer as long as asked for."""
        reply({"ok": True, "status": {"size": "x" * int(request.get("size", 1))}})

    def memory(self, _: dict[str, Any], reply: Answer) -> None:
        """A descriptor."""
        reply({"ok": True}, [os.memfd_create("for-the-client")])

    def keep(self, _: dict[str, Any], reply: Answer) -> None:
        """No answer yet."""
        self.later.append(reply)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(str(tmp_path / "control.sock"))
    yield made
    made.close()
    assert not (tmp_path / "control.sock").exists()


@pytest.fixture
def path(server: Server, tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


def test_it_answers_and_only_owner_and_group_may_ask(path: str) -> None:
    assert client.ask(path, {"do": "status"})["status"]["size"] == "x"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


def test_a_long_answer_arrives_whole(path: str) -> None:
    assert len(client.ask(path, {"do": "status", "size": 5_000_000})["status"]["size"]) == 5_000_000


def test_a_descriptor_comes_along_and_none_stays_behind(path: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        os.close(client.memory(path))
    for _ in range(200):  # the server closes its ends a little later
        if len(os.listdir("/proc/self/fd")) <= before:
            return
        threading.Event().wait(0.01)
    pytest.fail("descriptors stay behind")


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[1]\n", b'{"do": 3}\n', b'{"do": "fly"}\n', b"[" * 100_000 + b"\n", b"\xff\n"]
)
def test_nonsense_is_refused_with_a_reason(path: str, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)
        stream.sendall(line)
        answer = json.loads(stream.makefile().readline())
    assert answer["ok"] is False and answer["error"]["what"] and answer["error"]["next"]


def test_who_asks_for_much_and_reads_nothing_stalls_nobody(path: str) -> None:
    greedy = socket.socket(socket.AF_UNIX)
    greedy.connect(path)
    greedy.sendall(b'{"do": "status", "size": 3000000}\n' * 3 + b'{"do": "sta')
    for _ in range(3):
        assert client.ask(path, {"do": "status"})["ok"]
    greedy.close()
    assert client.ask(path, {"do": "status"})["ok"]


def test_a_crowd_does_not_keep_an_operator_out(path: str) -> None:
    crowd = []
    for _ in range(2 * control.CLIENTS_AT_MOST):
        crowd.append(socket.socket(socket.AF_UNIX))
        crowd[-1].connect(path)
    assert client.ask(path, {"do": "status"}, timeout_s=60)["ok"]
    for stream in crowd:
        stream.close()


def test_who_comes_behind_a_crowd_that_nobody_has_let_in_yet_waits_with_it(tmp_path: Path) -> None:
    path = str(tmp_path / "crowded.sock")
    control_, crowd = Control(path, selectors.DefaultSelector(), {}), []
    while True:  # nobody accepts: until no more can wait
        crowd.append(socket.socket(socket.AF_UNIX))
        crowd[-1].setblocking(False)
        if crowd[-1].connect_ex(path) == errno.EAGAIN:
            break
    with pytest.raises(Trouble, match="does not answer"):
        client.ask(path, {"do": "status"}, timeout_s=0.2)
    for stream in crowd:
        stream.close()
    control_.close()


def test_the_silent_are_hung_up_on(server: Server, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(5)
        stream.connect(path)
        assert client.ask(path, {"do": "status"})["ok"]  # so it is accepted by now
        server.tired = 1
        threading.Event().wait(0.1)
        server.tired = 2 + control.PATIENCE
        assert stream.recv(1) == b""


def test_an_answer_that_comes_after_its_asker_left_is_dropped(server: Server, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)
        stream.sendall(b'{"do": "later"}\n')
        while not server.later:
            threading.Event().wait(0.01)
    assert client.ask(path, {"do": "status"})["ok"]
    descriptor = os.memfd_create("unwanted")
    server.later[0]({"ok": True}, [descriptor])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_one_appliance_for_each_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "a.sock")
    with control.lock(path):
        with pytest.raises(Trouble, match="running already"), control.lock(path):
            pass
        with pytest.raises(Trouble, match="a speaker is running already") as told, control.lock(path, "a speaker", "end it"):
            pass
        assert told.value.remedy == "end it"
        with control.lock(str(tmp_path / "deep" / "b.sock")):
            pass
    with control.lock(path):
        pass
    assert os.listdir(tmp_path / "deep") == []


def test_a_worker_that_keeps_dying_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(crew, "PAUSES", (0, 0, 1, 1))
    told: list[str] = []
    with selectors.DefaultSelector() as selector:
        hooks = crew.Hooks(lambda: ({}, []), lambda: ({}, []), lambda _: None, lambda _: None, told.append)
        kept = crew.Crew(selector, hooks, {}, spare=True)
        kept.start()
        with pytest.raises(Trouble, match="keeps dying"):
            while True:
                for key, _ in selector.select(0.01):
                    if key.fd in selector.get_map():
                        key.data()
                kept.watch(0, ticks())
    assert len(told) == 3 and kept.restarts == -1
    assert kept.pid is None


STANDBY = """#!{python}
import socket, sys
channel = socket.socket(fileno=int(sys.argv[3]))
assert channel.recv(1 << 20)
channel.send(b'{{"loaded": "1/1", "code": "1"}}')
channel.recv(1 << 20)
"""


def test_who_cannot_be_given_orders_is_not_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else it would wait for them, and everybody for it."""
    (tmp_path / "standby").write_text(STANDBY.format(python=sys.executable))
    (tmp_path / "standby").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "standby"))
    monkeypatch.setattr(crew, "PAUSES", (0, 1))
    told: list[str] = []
    with selectors.DefaultSelector() as selector:
        hooks = crew.Hooks(
            lambda: ({}, []), lambda: ({"peers": "x" * (32 << 20)}, []), lambda _: None, lambda _: None, told.append
        )
        kept = crew.Crew(selector, hooks, {}, spare=True)
        kept.start()
        with pytest.raises(Trouble, match="keeps dying") as given_up:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                for key, _ in selector.select(0.01):
                    if key.fd in selector.get_map():
                        key.data()
                kept.watch(0, ticks())
    assert given_up.value.why == "it cannot be given its orders" and "came to nothing: it cannot be given its orders" in told[0]


def test_the_channel_takes_the_orders_of_a_large_cluster() -> None:
    """As many as go without privileges where net.core.wmem_max is the kernel's own: twice 212,992, less what a packet needs."""
    ours, theirs = channel.pair()
    with ours, theirs:
        ours.setblocking(False)
        for end, other in ((ours, theirs), (theirs, ours)):
            assert end.send(bytes(400_000)) == len(other.recv(channel.MESSAGE_AT_MOST))
        with pytest.raises(OSError, match="Message too long"):
            ours.send(bytes(32 << 20))
    with pytest.raises(Trouble, match="cannot be told where it is"):
        Member({"peers": "x" * (32 << 20)}, [], {})
