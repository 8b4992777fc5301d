"""A supervisor's part in outliving one that was killed: it leaves what the next one needs, and takes over what was left to it.

What is left to whom, and what is said meanwhile, stands in `orphan`. A worker is taken over only if nothing has to be another
one for it: a configuration that differs in nothing but what may change while it runs (`reload`), memory of the same layout and
sizes. What was changed while it ran goes on to be so. Any other one is ended in good order (it withdraws its routes and
forwards for a moment more), and all begins anew; one that says nothing is killed. The worker is nobody, so nothing is believed
of it that the system can tell.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from krononat import appliance, memory, reload
from krononat.channel import MESSAGE_AT_MOST, is_ready, pair
from krononat.client import Trouble
from krononat.cluster import Cluster
from krononat.config import ConfigError, canonical, read
from krononat.control import REQUEST_AT_MOST
from krononat.member import Inherited, Message
from krononat.models import Config
from krononat.orphan import VERSION
from shards import xsk
from shards.state import HEADER_BYTES, Sizes, read_header
from shards.steering import Steering

_ANSWER_S = 10.0  # as long as a worker of our own may be without a breath
_TRIES = 3  # at one that hangs up on us
_WAITING_AT_MOST = 16  # who come to a worker, one after the other: those before us may be dead
_DESCRIPTORS_AT_MOST = 253  # unix(7), SCM_MAX_FD
_AF_XDP = 44
_CREDENTIALS = struct.Struct("iII")  # unix(7), struct ucred: pid, uid, gid
_F_GET_SEALS = 1034  # fcntl(2)

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
    listener.listen(_WAITING_AT_MOST)
    return listener


def leave(send: Send, about: Message, config: Config, listener: int, steerings: Sequence[Steering]) -> bool:
    """Give a worker what the next supervisor needs; whether it was told all of it. `config`: what is gone by."""
    told = [
        send({"do": "keep", "names": [f"{name}{number}" for name in _OF_A_PORT]}, [getattr(one, name) for name in _OF_A_PORT])
        for number, one in enumerate(steerings)
    ]
    text = os.memfd_create("krononat-config", os.MFD_CLOEXEC)  # it may be longer than a message
    with open(text, "w") as file:
        file.write(canonical(config))
        file.flush()
        about = {"version": VERSION, "uid": os.geteuid(), **about}
        return all(told) and send({"do": "keep", "names": ["listener", "config"], "about": about}, [listener, text])


_OF_A_PORT = ("link", "sockets", "controls", "counters")


def note(path: str, pid: int) -> None:
    """Write down who waits at `path`, for somebody whom it does not answer. Nobody else may write there."""
    descriptor = os.open(_noted(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        json.dump([pid, _born(pid)], file)


def forget(path: str) -> None:
    """Nobody waits there any more."""
    for each in (path, _noted(path)):
        Path(each).unlink(missing_ok=True)


def _noted(path: str) -> str:
    return f"{path}.pid"


def _born(pid: int) -> str:
    """When a process began; "" where there is none: proc(5), field starttime."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


# --- taken over -------------------------------------------------------------------------------------------------------------


class Heritage(NamedTuple):
    """A worker that forwards, and everything that it was left."""

    member: Inherited
    version: object  # of what it has said
    about: Message
    said: Message  # of its routes, see `orphan`
    descriptors: dict[str, int]

    @property
    def config(self) -> Config:
        """What it goes by."""
        descriptor = self.descriptors["config"]
        return read(os.pread(descriptor, REQUEST_AT_MOST, 0).decode())

    @property
    def sizes(self) -> Sizes:
        """Of the state. ValueError where it has another layout."""
        return read_header(os.pread(self.descriptors["state"], HEADER_BYTES, 0))

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
        _let_go(self.descriptors)


def _let_go(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def claim(path: str, ours: Config, cluster: Cluster | None, say: Callable[[str], None]) -> Heritage | None:
    """The worker that waits at `path`, if there is one that can be gone on with; any other one is ended.

    Trouble where one is there that hangs up, or that says nothing and cannot be ended: it has our devices.
    """
    for _ in range(_TRIES):
        channel = _call(path)
        if channel is None:
            return None
        try:
            found = _hear(channel)
        except TimeoutError:
            _end_silent(path, say)
            return None
        if found:
            return _judged(found, ours, cluster, say)
        time.sleep(0.05)  # it may have been about to end
    raise _in_the_way("it hangs up on who comes")


def _judged(found: Heritage, ours: Config, cluster: Cluster | None, say: Callable[[str], None]) -> Heritage | None:
    why = _misfit(found, ours, cluster)
    if why:
        say(f"worker {found.member.pid}, which a killed run left, is ended: {why}")
        found.refuse()
        return None
    say(f"worker {found.member.pid} has forwarded on without a supervisor, and is taken over")
    if live := reload.plan(found.config, ours).live:
        say(f"it goes on by what was changed while it ran ({', '.join(live)}); `krononat config apply FILE` undoes that")
    return found


def _in_the_way(why: str) -> Trouble:
    remedy = "end it: `ps ax | grep krononat.standby`"
    return Trouble("a worker that a killed run left is in the way", f"it has our devices, and {why}", remedy)


def _call(path: str) -> socket.socket | None:
    """Our end of a channel whose other one was handed to whoever waits there. Trouble where that is not to be known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stream:
        stream.settimeout(_ANSWER_S)
        ours, theirs = pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with theirs:
            try:
                stream.connect(path)
                socket.send_fds(stream, [json.dumps({"do": "adopt"}).encode()], [theirs.fileno()])
            except (FileNotFoundError, ConnectionError):  # nobody is there, or no more
                ours.close()
                return None
            except OSError as error:  # EAGAIN: too many have come before us, and were not heard
                ours.close()
                raise _in_the_way(f"cannot be told that we are there ({error.strerror})") from None
    ours.settimeout(_ANSWER_S)
    return ours


def _hear(channel: socket.socket) -> Heritage | None:
    """What it says, in one message or several; None where it hangs up. TimeoutError where it says nothing."""
    by_name: dict[str, int] = {}
    told: Message = {"more": True}
    with contextlib.ExitStack() as failing:
        failing.callback(channel.close)
        failing.callback(_let_go, by_name)
        while told.get("more"):
            message, descriptors, pid = _received(channel)
            if not message:
                return None
            said = json.loads(message)
            by_name |= dict(zip(said["names"], descriptors, strict=False))
            told |= said
            if len(said["names"]) != len(descriptors):
                raise _in_the_way("too few descriptors are to be had to take it over (LimitNOFILE, ulimit -n)")
        try:
            member = Inherited(channel, pid)
        except ProcessLookupError:
            return None
        failing.pop_all()
    channel.setblocking(False)
    return Heritage(member, told.get("version"), told["heritage"], told.get("said", {}), by_name)


def _received(channel: socket.socket) -> tuple[bytes, list[int], int]:
    """A message, its descriptors, and by the system's word the process that has sent it (unix(7), SCM_CREDENTIALS)."""
    room = socket.CMSG_SPACE(_DESCRIPTORS_AT_MOST * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
    try:
        message, ancillary, _, _ = channel.recvmsg(MESSAGE_AT_MOST, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return b"", [], 0
    came, pid = array.array("i"), 0
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            came.frombytes(data[: len(data) - len(data) % came.itemsize])
        elif kind == socket.SCM_CREDENTIALS:
            pid, _, _ = _CREDENTIALS.unpack(data)
    return message, list(came), pid


def _end_silent(path: str, say: Callable[[str], None]) -> None:
    """Kill who does not answer: his supervisor would have. Trouble where nobody wrote down who that is."""
    silent = f"it did not answer in {_ANSWER_S:g} s"
    try:
        pid, born = json.loads(Path(_noted(path)).read_text())
        process = os.pidfd_open(pid)
    except (OSError, ValueError):
        raise _in_the_way(silent) from None
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, process)
        if not born or _born(pid) != born:  # asked after it was opened: it is that one for good
            raise _in_the_way(silent)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        is_ready(process, _ANSWER_S)
    say(f"worker {pid}, which a killed run left, was killed: {silent}")


def told_of_others() -> str:
    """For who finds a device in use: workers that are there (of ours there is none yet); one may wait at another socket."""
    found = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if _is_worker(path)]
    named = (
        f"; krononat.standby of other runs: {', '.join(found)}. One whose supervisor was killed, and that waits at the socket"
    )
    return f"{named} of before, has its devices until `server.orphan-s` are over: end it, or wait" if found else ""


def _is_worker(cmdline: Path) -> bool:
    with contextlib.suppress(OSError):
        return b"krononat.standby" in cmdline.read_bytes().split(b"\0")
    return False


# Of SIZES, what may be another one than the configuration's of today: room for cores, by the map of the day on which it was
# made, and what there is room for to change while it runs, which is looked at when it is changed (`reload.room`).
_MAY_DIFFER = ("peers", "externals", "rules", "rules6", "pinholes", "bypasses", "extents", "buckets")


def _misfit(found: Heritage, ours: Config, cluster: Cluster | None) -> str:
    """Why it cannot be gone on with; empty: it can."""
    if (found.version, found.about.get("version")) != (VERSION, VERSION):
        return "it was left by another version of this program"
    try:
        theirs, there = found.config, found.sizes
    except ConfigError as wrong:
        return wrong.what
    except ValueError as other:
        return str(other)
    if restart := reload.plan(theirs, ours).restart:
        return f"it goes by another configuration ({', '.join(restart)})"
    wanted = appliance.compose(theirs, cluster)
    if wanted != there._replace(**{name: getattr(wanted, name) for name in _MAY_DIFFER}):
        return "its memory is of another size"
    if cluster and there.peers < len(cluster.map.core):
        return f"it has room for {there.peers} cores, and the map has {len(cluster.map.core)}"
    return "" if _are_sealed(found) else "its memory could be cut off while it is looked at"


def _are_sealed(found: Heritage) -> bool:
    """Whether nobody can shrink the large memories, which would be a bus error for us."""
    seals = [fcntl.fcntl(found.descriptors[name], _F_GET_SEALS) for name in ("state", "frames")]
    return all(each & memory.F_SEAL_SHRINK for each in seals)
