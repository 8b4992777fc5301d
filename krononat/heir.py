"""A supervisor's part in outliving one that was killed: it leaves what the next one needs, and takes over what was left to it.

What is left to whom, and what is said meanwhile, stands in `orphan`. A worker is taken over only if nothing has to be another
one for it: the same configuration to the letter, memory of the same layout and sizes. Any other one is ended in good order
(it withdraws its routes and forwards for a moment more), and all begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from krononat import memory
from krononat.channel import MESSAGE_AT_MOST, pair
from krononat.client import Trouble
from krononat.member import Inherited, Message
from shards import xsk
from shards.state import HEADER_BYTES, Sizes, read_header
from shards.steering import Steering

_ANSWER_S = 3.0
_DESCRIPTORS_AT_MOST = 253  # unix(7), SCM_MAX_FD
_AF_XDP = 44

Send = Callable[[Message, Sequence[int]], bool]


# --- left -------------------------------------------------------------------------------------------------------------------


def listen(path: str) -> socket.socket:
    """Where a worker without a supervisor waits for the next one; only root may come."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(1)
    return listener


def leave(send: Send, about: Message, listener: int, steerings: Sequence[Steering]) -> bool:
    """Give a worker what the next supervisor needs; whether it was told all of it."""
    told = [
        send({"do": "keep", "names": [f"{name}{number}" for name in _OF_A_PORT]}, [getattr(one, name) for name in _OF_A_PORT])
        for number, one in enumerate(steerings)
    ]
    return all(told) and send({"do": "keep", "names": ["listener"], "about": about}, [listener])


_OF_A_PORT = ("link", "sockets", "controls", "counters")


def digest(text: str) -> str:
    """Of a configuration in canonical form."""
    return hashlib.sha256(text.encode()).hexdigest()


# --- taken over -------------------------------------------------------------------------------------------------------------


class Heritage(NamedTuple):
    """A worker that forwards, and everything that it was left."""

    member: Inherited
    about: Message
    said: Message  # of its routes, see `orphan`
    descriptors: dict[str, int]

    @property
    def memory(self) -> memory.Memory:
        """Of the state."""
        descriptor = self.descriptors["state"]
        return memory.Memory(descriptor, memory.attach(descriptor), self.about["pages"])

    def sockets(self) -> xsk.Sockets:
        """Under our numbers: the worker has others, and keeps them."""
        told: xsk.Description = json.loads(json.dumps(self.about["sockets"]))
        for number, queue in enumerate(told["queues"]):
            queue["fd"], queue["control"] = self.descriptors[f"data{number}"], self.descriptors[f"control{number}"]
        numbers = xsk.Sockets(told, []).fds()
        return xsk.Sockets(told, [socket.socket(_AF_XDP, socket.SOCK_RAW, 0, number) for number in numbers])

    def steer(self, steering: Steering, number: int) -> Steering:
        """Have a port's steering go on with the maps and the link that are in use: in one step its program is there."""
        for fd in (steering.program, steering.sockets, steering.controls, steering.counters):
            xsk.close(fd)
        steering.program = -1
        for name in _OF_A_PORT:
            setattr(steering, name, self.descriptors[f"{name}{number}"])
        steering.quarantine([])
        return steering

    def refuse(self) -> None:
        """End it, and let go of everything."""
        self.member.end()
        for descriptor in self.descriptors.values():
            os.close(descriptor)


def claim(path: str, digest: str, sizes: Sizes, say: Callable[[str], None]) -> Heritage | None:
    """The worker that waits at `path`, if there is one that goes by the same configuration; any other one is ended.

    Trouble where one is there that says nothing: it has our devices.
    """
    channel = _call(path)
    if channel is None:
        return None
    found = _hear(channel)
    if found is None:
        return None
    why = _misfit(found, digest, sizes)
    if why:
        say(f"worker {found.member.pid}, which a killed run left, is ended: {why}")
        found.refuse()
        return None
    say(f"worker {found.member.pid} has forwarded on without a supervisor, and is taken over")
    return found


def _call(path: str) -> socket.socket | None:
    """Our end of a channel whose other one was handed to whoever waits there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stream:
        stream.settimeout(_ANSWER_S)
        try:
            stream.connect(path)
            ours, theirs = pair()
            with theirs:
                socket.send_fds(stream, [json.dumps({"do": "adopt"}).encode()], [theirs.fileno()])
        except OSError:  # nobody is there, or no more
            return None
    ours.settimeout(_ANSWER_S)
    return ours


def _hear(channel: socket.socket) -> Heritage | None:
    try:
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_AT_MOST, _DESCRIPTORS_AT_MOST)
    except TimeoutError:
        channel.close()
        told = f"it has our devices, and did not answer in {_ANSWER_S:g} s"
        remedy = "end it: `ps ax | grep krononat.standby`"
        raise Trouble("a worker that a killed run left is in the way", told, remedy) from None
    except ConnectionError:
        message, descriptors = b"", []
    if not message:
        channel.close()
        return None
    told = json.loads(message)
    channel.setblocking(False)
    by_name = dict(zip(told["names"], descriptors, strict=True))
    return Heritage(Inherited(channel, told["pid"]), told["heritage"], told["said"], by_name)


def _misfit(found: Heritage, digest: str, sizes: Sizes) -> str:
    """Why it cannot be gone on with; empty: it can."""
    if found.about["digest"] != digest:
        return "it goes by another configuration"
    try:
        there = read_header(os.pread(found.descriptors["state"], HEADER_BYTES, 0))
    except ValueError as other:
        return str(other)
    return "" if there == sizes else "its memory is of another size"
