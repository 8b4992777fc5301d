"""The supervisor's end of the control socket; what is said there stands in `client`.

Nothing here waits: a client that sends half a line, does not read its answer or comes in crowds costs a buffer until its time
is up, and nobody else notices.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from krononat.client import Trouble

Answer = Callable[..., None]  # reply(answer, descriptors=()): called once, now or later; descriptors are closed when sent
Handler = Callable[[dict[str, Any], Answer], None]

CLIENTS_AT_MOST = 32
REQUEST_AT_MOST = 16 << 20  # bytes of a line
PATIENCE = 30_000  # ticks that a client may be silent
_CHUNK = 1 << 16


@contextlib.contextmanager
def lock(
    path: str, what: str = "this appliance", remedy: str = "stop it, or give this one another `server.name`"
) -> Iterator[None]:
    """The right to serve at `path` meanwhile; Trouble where another process has it. A process's death, too, ends its right."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    name = path + ".lock"
    with open(name, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed it between our opening and locking; then another one stands, or will stand, there.
            ours = os.fstat(held.fileno()).st_ino == os.stat(name).st_ino
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            why = f"another process holds {name}"
            raise Trouble(f"{what} is running already", why, remedy)
        try:
            yield
        finally:
            os.unlink(name)


def error(trouble: Trouble) -> dict[str, Any]:
    """Answer that refuses."""
    told = {"what": trouble.what, "why": trouble.why, "next": trouble.remedy, "status": trouble.status}
    return {"ok": False, "error": told}


class Control:
    """Listens at `path` in the given selector, whose keys' data are functions to call when ready.

    `handlers`: by the word in "do". The caller holds the `lock`, so a socket that lies there is left over.
    """

    def __init__(self, path: str, selector: selectors.BaseSelector, handlers: Mapping[str, Handler]) -> None:
        self._path, self._selector, self._handlers = path, selector, handlers
        self._clients: list[_Client] = []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o117)  # mode 0660 from the first moment on
        try:
            self._listener.bind(path)
        finally:
            os.umask(before)
        self._listener.listen(CLIENTS_AT_MOST)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Hang up on everyone and remove the socket."""
        for client in list(self._clients):
            self._hang_up(client)
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def tire(self, now: int) -> None:
        """Hang up on clients that were silent for too long; call it now and then."""
        for client in list(self._clients):
            client.since = client.since or now
            if now - client.since > PATIENCE:
                self._hang_up(client)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            stream, _ = self._listener.accept()
            stream.setblocking(False)
            if len(self._clients) == CLIENTS_AT_MOST:
                self._hang_up(self._clients[0])  # the oldest: a crowd must not keep an operator out
            client = _Client(stream)
            self._clients.append(client)
            self._selector.register(stream, selectors.EVENT_READ, lambda: self._serve(client))

    def _hang_up(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.stream)
            client.close()

    def _serve(self, client: _Client) -> None:
        try:
            client.send()
            alive = client.receive()
        except OSError:
            alive = False
        while alive and (line := client.next_line()) is not None:
            self._handle(client, line)
        if alive:
            self._watch(client)
        else:
            self._hang_up(client)

    def _handle(self, client: _Client, line: bytes) -> None:
        def reply(answer: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
            client.outbox.append((bytearray(json.dumps(answer).encode() + b"\n"), list(descriptors)))
            if client in self._clients:
                self._watch(client)
            else:
                client.close()

        try:
            request = _read(line)
            handler = self._handlers.get(request["do"])
            if handler is None:
                known = ", ".join(self._handlers)
                raise Trouble(f"cannot do {request['do']!r}", "no such request", f"one of: {known}")
            handler(request, reply)
        except Trouble as trouble:
            reply(error(trouble))

    def _watch(self, client: _Client) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outbox else 0)
        self._selector.modify(client.stream, events, lambda: self._serve(client))


def _read(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or not isinstance(request.get("do"), str):
        raise Trouble("not a request", "a request is one line of JSON", 'for example {"do": "status"}')
    return request


class _Client:
    """A connection: what came of a line, and what is still to be sent."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.inbox = bytearray()
        self.outbox: list[tuple[bytearray, list[int]]] = []
        self.since = 0  # tick of the last sign of life; 0: just now

    def close(self) -> None:
        for _, descriptors in self.outbox:
            _close(descriptors)
        self.outbox.clear()
        self.stream.close()

    def receive(self) -> bool:
        """Take in what came; False when the other end is gone or has said too much."""
        try:
            data = self.stream.recv(_CHUNK)
        except BlockingIOError:
            return True
        self.inbox += data
        self.since = 0
        return bool(data) and len(self.inbox) <= REQUEST_AT_MOST

    def next_line(self) -> bytes | None:
        end = self.inbox.find(b"\n")
        if end < 0:
            return None
        line = bytes(self.inbox[:end])
        del self.inbox[: end + 1]
        return line

    def send(self) -> None:
        """Send what fits; descriptors go with the first byte of their answer."""
        while self.outbox:
            data, descriptors = self.outbox[0]
            try:
                sent = socket.send_fds(self.stream, [data[:_CHUNK]], descriptors)
            except BlockingIOError:
                return
            _close(descriptors)
            del data[:sent]
            self.since = 0
            if not data:
                del self.outbox[0]


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
