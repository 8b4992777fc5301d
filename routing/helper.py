"""Between the cores of a server and ExaBGP, which starts it: ``python -m routing.helper PLAN``, its commands our stdout.

It listens on a unix SEQPACKET socket; every message is JSON. What a core says, and hears:

    {"core": "s1/0", "linger": ms}              first, with a descriptor of its `will`, which tells of its death sooner than the
                                                connection's end; `linger` alone later: how long its routes may outlive it
    {"routes": [[prefix, domain, med, prepend, [communities], [large communities]], ...], "n": n, "more": bool}
                                                the whole set, in as many messages as it needs
    {"beat": n}                                 or anything else: it lives
    {"alarms": [sentence, ...]}                 what `krononat bgp status` shows beside its name
                                                {"done": n}: ExaBGP has taken everything up to that set
                                                {"refused": sentence}, and the end of the connection
What anybody says: {"ask": "sessions" | "cores" | "routes", "from": n}
                                                {"rows": [...], "more": n, null: that was all, ...}

A core that is silent or gone has its routes withdrawn here, whatever else sleeps. What is read from a core counts from when it
is read, and everything there is is read before anybody is called dead: a helper that was held up blames nobody for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from routing import will
from routing.speaker import exabgp, sessions
from routing.speaker.ledger import ALIVE, Change, Ledger, Route, route

MESSAGE_AT_MOST = 1 << 18
ROWS_AT_ONCE = 200  # of one answer
READS_AT_ONCE = 64  # messages of one core in a turn
UNANSWERED_AT_MOST = 256  # commands: what changes meanwhile is then said once, not twice
AGAIN = 1000  # ms until what ExaBGP refused is tried again


class _Client:
    """A connection: a core's, or of somebody who asks."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.core, self.linger = "", 0
        self.parts: list[Route] = []
        self.number, self.waiting_for = 0, 0  # of its wanted set; the command after which that is done
        self.alarms: list[str] = []
        self.watched = False  # a thread waits for its process's death


class _Link:
    """What is known of a session."""

    def __init__(self, now: int) -> None:
        self.up, self.since, self.why, self.flaps = False, now, "it has not come up yet", 0


class Helper:
    """Selector, pipes and ledger put together."""

    def __init__(self, plan: sessions.Plan, commands: int, answers: int, now: int) -> None:
        self._plan, self._out, self._in = plan, commands, answers
        self._ledger = Ledger(plan, now)
        self._links = {session.name: _Link(now) for session in plan.sessions}
        self._clients: dict[str, _Client] = {}  # the one connection of a core that counts
        self._asked: deque[tuple[int, Change]] = deque()  # commands without an answer, with their numbers
        self._number = self._answered = 0
        self._pending = bytearray()
        self._line = b""
        self._refused, self._last_refusal = 0, ""
        self._again: dict[str, int] = {}  # by session: when to try again what was refused
        self._remembered: dict[str, list[str]] = {}
        self._over = False
        self._selector = selectors.DefaultSelector()
        self._dead: deque[_Client] = deque()
        self._alarm = os.pipe()
        for descriptor in (commands, answers, *self._alarm):
            os.set_blocking(descriptor, False)
        self._selector.register(self._alarm[0], selectors.EVENT_READ, self._hear_of_deaths)
        self._selector.register(answers, selectors.EVENT_READ, self._hear_exabgp)
        self._recall(now)
        self._listener = _listen(plan.socket)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Until ExaBGP hangs up."""
        while not self._over:
            wait = self._ledger.due(_now()) if len(self._asked) < UNANSWERED_AT_MOST else 1000
            self._read(wait / 1000)
            now = _now()
            self._read(0)  # who was stopped while waiting wakes to a timeout, whatever has come since (PEP 475)
            self._ledger.tick(now)
            for session in [session for session, due in self._again.items() if now >= due]:
                del self._again[session]
                self._ledger.touch(session)
            self._speak(now)

    def _read(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            # An earlier one of this turn may have closed it, and what was accepted since may have its number.
            if self._selector.get_map().get(key.fd) == key:
                key.data()

    # --- ExaBGP -----------------------------------------------------------------------------------------------------------

    def _speak(self, now: int) -> None:
        """Say what has changed; where too much is unanswered, later, when it may have changed again."""
        if len(self._asked) < UNANSWERED_AT_MOST:
            changes = self._ledger.changes(now)
            if any(change.said for change in changes):
                self._remember()
            for change in changes:
                self._number += 1
                self._asked.append((self._number, change))
                session = self._plan.session(change.session)
                text = (
                    exabgp.announce(session, change.said, change.prefixes)
                    if change.said
                    else exabgp.withdraw(session, change.prefixes)
                )
                self._pending += text.encode() + b"\n"
            for client in self._clients.values():
                if client.waiting_for == -1:
                    client.waiting_for = self._number
            self._acknowledge()
        self._flush()

    def _flush(self) -> None:
        """As much as the pipe takes; the rest when it can take more."""
        with contextlib.suppress(BlockingIOError):
            while self._pending:
                del self._pending[: os.write(self._out, self._pending)]
        waiting = self._out in self._selector.get_map()
        if self._pending and not waiting:
            self._selector.register(self._out, selectors.EVENT_WRITE, self._flush)
        elif waiting and not self._pending:
            self._selector.unregister(self._out)

    def _hear_exabgp(self) -> None:
        try:
            came = os.read(self._in, 1 << 16)
        except BlockingIOError:
            return
        if not came:
            self._over = True
            return
        *lines, self._line = (self._line + came).split(b"\n")
        for line in lines:
            self._heard(exabgp.read(line.decode(errors="replace").strip()))
        self._acknowledge()

    def _heard(self, told: bool | exabgp.News | None) -> None:
        if isinstance(told, exabgp.News):
            self._link(told)
        elif told is not None and self._asked:
            self._answered, change = self._asked.popleft()
            if not told:
                self._refused += 1
                self._last_refusal = f"{change.session}: {' '.join(change.prefixes[:3])}"
                self._again[change.session] = _now() + AGAIN
                self._ledger.forget(change)

    def _link(self, news: exabgp.News) -> None:
        link = self._links.get(f"{news.local} > {news.peer}")
        if link is None:
            return
        if link.up != news.up:
            link.up, link.since = news.up, _now()
            link.flaps += news.up
        link.why = "" if news.up else news.why or link.why

    def _acknowledge(self) -> None:
        for client in self._clients.values():
            if 0 < client.waiting_for <= self._answered or (client.waiting_for and not self._asked):
                client.waiting_for = 0
                _send(client, {"done": client.number})

    # --- cores ------------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            stream, _ = self._listener.accept()
            stream.setblocking(False)
            client = _Client(stream)
            self._selector.register(stream, selectors.EVENT_READ, lambda: self._listen_to(client))

    def _listen_to(self, client: _Client) -> None:
        if client.stream.fileno() == -1:
            return
        try:
            for _ in range(READS_AT_ONCE):
                message, descriptors, _, _ = socket.recv_fds(client.stream, MESSAGE_AT_MOST, 1)
                try:
                    if not message:
                        return self._hung_up(client)
                    self._obey(client, message)
                    self._watch(client, descriptors)
                finally:
                    for descriptor in descriptors:
                        os.close(descriptor)
        except BlockingIOError:
            pass
        except Exception as error:  # whatever it was, it ends the connection it came by, and nobody else's
            _send(client, {"refused": f"{type(error).__name__}: {error}"})
            self._hung_up(client)

    def _obey(self, client: _Client, message: bytes) -> None:
        now, told = _now(), json.loads(message)
        if not isinstance(told, dict):
            raise ValueError("a message is an object")
        if "ask" in told:
            return _send(client, self._answer(told, now))
        if "core" in told:
            self._hello(client, told["core"], now)
        client.linger = int(told.get("linger", client.linger))
        client.alarms = [str(alarm) for alarm in told.get("alarms", client.alarms)]
        if self._clients.get(client.core) is not client:
            raise ValueError("a core says its name first, and may not have been followed by another one of that name")
        self._ledger.beat(client.core, now)
        if "routes" in told:
            client.parts += map(route, told["routes"])
            if not told.get("more"):
                client.number, client.waiting_for = int(told["n"]), -1
                self._ledger.want(client.core, client.parts, client.number)
                client.parts = []

    def _hello(self, client: _Client, name: str, now: int) -> None:
        if not self._ledger.knows(name):
            raise ValueError(f"core {name!r} is not in this speaker's plan; it has: {', '.join(self._plan.cores)}")
        client.core = name
        self._clients[name] = client
        self._ledger.hello(name, now)

    def _watch(self, client: _Client, descriptors: list[int]) -> None:
        """Hear of the death of a core that was let in: once a connection, since it costs a thread. Takes the descriptor."""
        if client.core and descriptors and not client.watched:
            client.watched = True
            will.watch(descriptors.pop(), lambda: self._note_death(client))

    def _note_death(self, client: _Client) -> None:
        """In a thread of its own: the process at the other end has died, its connection's end will come later."""
        self._dead.append(client)
        with contextlib.suppress(BlockingIOError):  # then it is awake already
            os.write(self._alarm[1], b"!")

    def _hear_of_deaths(self) -> None:
        os.read(self._alarm[0], 64)
        while self._dead:
            client = self._dead.popleft()
            if client.stream.fileno() != -1:
                self._hung_up(client)

    def _hung_up(self, client: _Client) -> None:
        if client.stream.fileno() == -1:  # by another event of the same round
            return
        self._selector.unregister(client.stream)
        client.stream.close()
        if client.core and self._clients.get(client.core) is client:
            del self._clients[client.core]
            self._ledger.hung_up(client.core, client.linger, _now())

    # --- memory, status ---------------------------------------------------------------------------------------------------

    def _remember(self) -> None:
        """Write down what may be said from now on, before it is said."""
        memory = self._ledger.memory()
        if memory != self._remembered:
            path = Path(self._plan.memory)
            new = path.with_name(path.name + ".new")
            new.write_text(json.dumps(memory))
            new.replace(path)
            self._remembered = memory

    def _recall(self, now: int) -> None:
        """What a helper before us may have said; nothing where there was none, or ExaBGP is new, too."""
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            self._ledger.remember(json.loads(Path(self._plan.memory).read_text()), now)

    def _answer(self, told: dict[str, Any], now: int) -> dict[str, Any]:
        rows = {"sessions": self._sessions, "cores": self._cores, "routes": self._routes}[told["ask"]](now)
        first = int(told.get("from") or 0)
        end = first + ROWS_AT_ONCE
        about = {"refused": self._refused, "last_refusal": self._last_refusal, "unanswered": len(self._asked)}
        return {"rows": rows[first:end], "more": end if end < len(rows) else None, **about}

    def _sessions(self, now: int) -> list[dict[str, Any]]:
        links = [(session, self._links[session.name]) for session in self._plan.sessions]
        return [
            {
                "peer": session.peer, "local": session.local, "as": session.peer_as, "up": link.up,
                "since_ms": now - link.since, "ups": link.flaps, "why": link.why,
            }
            for session, link in links
        ]  # fmt: skip

    def _cores(self, now: int) -> list[dict[str, Any]]:
        rows = self._ledger.describe(now)
        for row in rows:
            client = self._clients.get(str(row["core"]))
            row["acknowledged"] = client is not None and row["state"] == ALIVE and not client.waiting_for
            row["alarms"] = client.alarms if client else []
        return rows

    def _routes(self, now: int) -> list[dict[str, Any]]:
        unanswered = {(change.session, prefix) for _, change in self._asked for prefix in change.prefixes}
        return [
            {"session": session, "prefix": prefix, "acknowledged": (session, prefix) not in unanswered, **said._asdict()}
            for session, prefix, said in self._ledger.said()
        ]


def _send(client: _Client, message: dict[str, Any]) -> None:
    """What cannot be taken now is not said: who misses it asks, or sees it otherwise."""
    with contextlib.suppress(OSError):
        client.stream.send(json.dumps(message).encode())


def _listen(path: str) -> socket.socket:
    """The socket where cores come; one that a helper before us left is taken away."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _now() -> int:
    """Milliseconds of the monotonic clock."""
    return time.monotonic_ns() // 1_000_000


def main() -> None:
    """Serve until ExaBGP is gone."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    plan = sessions.read(Path(sys.argv[1]).read_text())
    commands = os.dup(sys.stdout.fileno())
    Helper(plan, commands, sys.stdin.fileno(), _now()).run()


if __name__ == "__main__":
    main()
