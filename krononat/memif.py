"""memif's control channel: the handshake by which two processes come to share memory, in both roles.

Messages of 128 bytes over a unix SEQPACKET socket, descriptors beside them (unix(7), SCM_RIGHTS). Layout: FD.io VPP, `memif.h`,
version 2.0, as in libmemif and DPDK's `net_memif`. The server speaks first; the client owns the memory and answers:

    server  HELLO        ACK       ACK ...          ACK ...       CONNECTED      DISCONNECT (either, at any time)
    client         INIT  ADD_REGION ... ADD_RING ...       CONNECT

`Client` never waits but for what it is told to, so a selector can drive it. What comes in is not trusted: whatever does not fit
is a `Refused` with a sentence, never another error, and no descriptor stays open after it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple

from shards.memif import COOKIE, LOG2_ENTRIES_AT_MOST, ring_bytes

VERSION = 2 << 8
MESSAGE_BYTES = 128
ETHERNET = 0  # mode of an interface; the others carry bare IP packets
NAME_BYTES, SECRET_BYTES, REASON_BYTES = 32, 24, 96
REGIONS_AT_MOST, RINGS_AT_MOST = 256, 256
TIMEOUT_S = 2.0

_TO_SERVER = 1  # flag of ADD_RING
_DESCRIPTORS_AT_MOST = 4  # taken with one message, so that too many can be closed again

# fcntl(2); Python 3.11 has no names for them
_F_ADD_SEALS, _F_GET_SEALS, _F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 1034, 1, 2, 4


class Refused(Exception):
    """The other side said no, or what it said does not fit; the text says which."""


# --- messages -------------------------------------------------------------------------------------------------------------


class Ack(NamedTuple):
    """Server: understood, go on."""


class Hello(NamedTuple):
    """Server: what it can do. Numbers of regions and rings are the highest index."""

    name: str
    lowest: int = VERSION
    highest: int = VERSION
    regions: int = REGIONS_AT_MOST - 1
    from_server: int = RINGS_AT_MOST - 1
    to_server: int = RINGS_AT_MOST - 1
    log2_entries: int = LOG2_ENTRIES_AT_MOST


class Init(NamedTuple):
    """Client: which interface it wants."""

    version: int
    id: int
    mode: int
    secret: str
    name: str


class AddRegion(NamedTuple):
    """Client: a piece of memory, whose descriptor comes along."""

    number: int
    size: int


class AddRing(NamedTuple):
    """Client: a ring in a region; its event descriptor comes along. `flags` 1: towards the server."""

    flags: int
    number: int
    region: int
    offset: int
    log2_entries: int
    private_header: int = 0


class Connect(NamedTuple):
    """Client: that was all."""

    interface: str


class Connected(NamedTuple):
    """Server: mapped; packets may flow."""

    interface: str


class Disconnect(NamedTuple):
    """Either: the end, and why."""

    code: int
    reason: str


Message = Ack | Hello | Init | AddRegion | AddRing | Connect | Connected | Disconnect

# The number of a message is its place here, from 1 on; formats as in struct, packed and little-endian.
_MESSAGES: tuple[tuple[type[Message], struct.Struct], ...] = tuple(
    (kind, struct.Struct("<" + layout))
    for kind, layout in (
        (Ack, ""),
        (Hello, "32sHHHHHB"),
        (Init, "HIB24s32s"),
        (AddRegion, "HQ"),
        (AddRing, "HHHIBH"),
        (Connect, "32s"),
        (Connected, "32s"),
        (Disconnect, "I96s"),
    )
)
_NUMBERS = {kind: number for number, (kind, _) in enumerate(_MESSAGES, 1)}


def encode(message: Message) -> bytes:
    """The message as it goes over the socket. Text is cut to its field, struct.error where a number does not fit."""
    number = _NUMBERS[type(message)]
    fields = [part.encode("ascii", "replace") if isinstance(part, str) else part for part in message]
    packed = struct.pack("<H", number) + _MESSAGES[number - 1][1].pack(*fields)
    return packed.ljust(MESSAGE_BYTES, b"\0")


def decode(raw: bytes) -> Message:
    """The message that arrived; Refused where it is none."""
    if len(raw) != MESSAGE_BYTES:
        raise Refused(f"a message of {len(raw)} bytes came; all of memif's have {MESSAGE_BYTES}")
    number = int.from_bytes(raw[:2], "little")
    if not 1 <= number <= len(_MESSAGES):
        raise Refused(f"a message of unknown type {number} came")
    kind, layout = _MESSAGES[number - 1]
    fields = [_text(part) if isinstance(part, bytes) else part for part in layout.unpack_from(raw, 2)]
    make: Callable[..., Message] = kind
    return make(*fields)


def _text(field: bytes) -> str:
    """Up to the first zero byte, if there is one; what is not printable ASCII must not reach anybody's terminal."""
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in field.partition(b"\0")[0])


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Say it; Refused where the other side is gone, or does not listen."""
    try:
        socket.send_fds(channel, [encode(message)], list(descriptors))
    except OSError as error:
        raise Refused(f"{type(message).__name__} could not be said: {error.strerror}") from error


def receive(channel: socket.socket) -> tuple[Message, list[int]]:
    """The next message and its descriptors, which are the caller's to close. BlockingIOError where none has come."""
    descriptors: list[int] = []
    try:
        raw, descriptors, flags, _ = socket.recv_fds(channel, MESSAGE_BYTES + 1, _DESCRIPTORS_AT_MOST, socket.MSG_CMSG_CLOEXEC)
        if not raw:
            raise Refused("the other side hung up")
        if flags & socket.MSG_CTRUNC or len(descriptors) > 1:
            raise Refused("more than one descriptor came with a message")
        return decode(raw), descriptors
    except (Refused, OSError) as error:
        _close(descriptors)
        if isinstance(error, (Refused, BlockingIOError)):
            raise
        raise Refused(f"the other side is gone: {error.strerror or 'no answer in time'}") from error


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def address(path: str) -> str | bytes:
    """Socket address of a path; "@name" is an abstract one (unix(7)), of the network namespace and without a file."""
    return path if not path.startswith("@") else b"\0" + path[1:].encode()


# --- client ---------------------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """What a client asks for. `frames`: descriptor and bytes of the memory that packets lie in, region 1."""

    id: int
    frames: int
    frames_bytes: int
    name: str = "krononat"
    secret: str = ""
    log2_entries: int = 11


class Client:
    """Our half of a connection, over a socket that is connected. It owns the socket, the rings' memory and the events.

    Region 0 is made anew for each connection, so that what an earlier server still writes reaches nobody: the ring towards the
    server first, the other one behind it.
    """

    def __init__(self, channel: socket.socket, wanted: Wanted) -> None:
        self.channel, self._wanted = channel, wanted
        self._due: list[tuple[Message, list[int]]] = []
        self._greeted = False
        self.connected = False
        self.peer = ""  # what the server calls itself, and its interface
        self.log2_entries = 0
        self.region = -1  # descriptor of region 0
        self.events: list[int] = []  # our ends of the ring to the server's and of the one from it
        self._theirs: list[int] = []  # held as well: who closes his does not keep the worker awake

    def fileno(self) -> int:
        """For a selector: call `hear` when it can be read."""
        return self.channel.fileno()

    def hear(self) -> None:
        """Take one message and answer it. Refused where that ends the connection; then call `close`."""
        message, descriptors = receive(self.channel)
        _close(descriptors)  # a server has none to give
        if isinstance(message, Disconnect):
            raise Refused(f"the server disconnected: {message.reason or 'it gave no reason'}")
        if isinstance(message, Hello) and not self._greeted:
            self._agree(message)
        elif isinstance(message, Connected) and self._greeted and not self._due and not self.connected:
            self.connected = True
            self.peer = f"{self.peer} {message.interface}".strip()
        elif not isinstance(message, Ack) or not self._due:
            raise Refused(f"{type(message).__name__} came out of turn")
        if self._due:
            send(self.channel, *self._due.pop(0))

    def _agree(self, hello: Hello) -> None:
        """Make what the server can take, and plan what to say about it."""
        if not hello.lowest <= VERSION <= hello.highest:
            told = f"{hello.lowest >> 8}.{hello.lowest & 255} to {hello.highest >> 8}.{hello.highest & 255}"
            raise Refused(f"the server speaks version {told}, we 2.0")
        if hello.regions < 1:
            raise Refused("the server takes one region only; frames of ours need a second one")
        self._greeted, self.peer = True, hello.name
        self.log2_entries = min(self._wanted.log2_entries, hello.log2_entries)
        self._make_rings()
        wanted, size = self._wanted, ring_bytes(self.log2_entries)
        self._due = [
            (Init(VERSION, wanted.id, ETHERNET, wanted.secret, wanted.name), []),
            (AddRegion(0, 2 * size), [self.region]),
            (AddRegion(1, wanted.frames_bytes), [wanted.frames]),
            (AddRing(_TO_SERVER, 0, 0, 0, self.log2_entries), [self._theirs[0]]),
            (AddRing(0, 0, 0, size, self.log2_entries), [self._theirs[1]]),
            (Connect(wanted.name), []),
        ]

    def _make_rings(self) -> None:
        size = ring_bytes(self.log2_entries)
        self.region = new_region("krononat-rings", 2 * size)
        for at in (0, size):
            os.pwrite(self.region, struct.pack("<I", COOKIE), at)
        pairs = [_event() for _ in range(2)]
        self.events, self._theirs = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]

    def close(self, reason: str = "") -> None:
        """Hang up, after a word about why; the descriptors go with it."""
        if reason:
            with contextlib.suppress(Refused):
                send(self.channel, Disconnect(0, reason))
        self.channel.close()
        _close([each for each in (self.region, *self.events, *self._theirs) if each >= 0])
        self.region, self.events, self._theirs, self.connected = -1, [], [], False


def _event() -> tuple[int, int]:
    """Our end and the server's of what one wakes the other by, eight bytes each time.

    Not an eventfd, as others have it: the server could fill that and have both ends wait (O_NONBLOCK is the same for both), and
    the worker would never return.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    return ours.detach(), theirs.detach()


def new_region(name: str, size: int) -> int:
    """Descriptor of fresh memory that nobody can resize, which would be a bus error for the other side, nor seal further:

    sealed against writing, it could not be mapped by our worker any more.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
    return descriptor


def call(path: str, wanted: Wanted) -> Client:
    """Begin a connection to the server at `path`, without waiting: its socket does not block. Refused where nobody is there."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        channel.connect(address(path))
    except OSError as error:
        channel.close()
        raise Refused(f"nobody answers at {path}: {error.strerror}") from error
    return Client(channel, wanted)


def connect(path: str, wanted: Wanted, timeout_s: float = TIMEOUT_S) -> Client:
    """A whole connection to the server at `path`; Refused where that does not come about in time."""
    client = call(path, wanted)
    client.channel.settimeout(timeout_s)
    try:
        while not client.connected:
            client.hear()
    except Refused:
        client.close()
        raise
    return client


# --- server ---------------------------------------------------------------------------------------------------------------


class Ring(NamedTuple):
    """A ring of a client, known to lie inside its region. `event` is a descriptor to be closed."""

    to_server: bool
    number: int
    region: int
    offset: int
    log2_entries: int
    event: int


class Peer:
    """A client that is connected: its regions mapped, each sealed against shrinking, and its rings, checked."""

    def __init__(self, channel: socket.socket, secret: str = "") -> None:
        self.channel, self._secret = channel, secret
        self.id = -1
        self.name = self.interface = ""
        self.regions: list[mmap.mmap] = []
        self.rings: list[Ring] = []

    def take(self, message: Message, descriptors: list[int]) -> bool:
        """Heed a message of the handshake and answer it; whether that was the last. Refused where it does not fit."""
        if isinstance(message, Disconnect):
            raise Refused(f"the client disconnected: {message.reason or 'it gave no reason'}")
        if isinstance(message, Init) and self.id < 0:
            self._begin(message)
        elif isinstance(message, AddRegion) and self.id >= 0:
            self._add_region(message, descriptors)
        elif isinstance(message, AddRing) and self.id >= 0:
            self._add_ring(message, descriptors)
        elif isinstance(message, Connect) and self.id >= 0:
            return self._finish(message)
        else:
            raise Refused(f"{type(message).__name__} came out of turn")
        send(self.channel, Ack())
        return False

    def _begin(self, init: Init) -> None:
        if init.version != VERSION or init.mode != ETHERNET:
            raise Refused(f"version {init.version >> 8}.{init.version & 255}, mode {init.mode}: only 2.0 with Ethernet frames")
        if init.secret != self._secret:
            raise Refused("the secret is not the right one")
        self.id, self.name = init.id, init.name

    def _add_region(self, told: AddRegion, descriptors: list[int]) -> None:
        if not descriptors or told.number != len(self.regions) or told.number >= REGIONS_AT_MOST:
            raise Refused(f"region {told.number} came out of order, or without a descriptor")
        try:
            sealed = fcntl.fcntl(descriptors[0], _F_GET_SEALS) & _F_SEAL_SHRINK
            if not sealed or not 0 < told.size <= os.fstat(descriptors[0]).st_size:
                raise Refused(f"region {told.number} is not {told.size} bytes of memory sealed against shrinking")
            self.regions.append(mmap.mmap(descriptors[0], told.size))
        except (OSError, ValueError, OverflowError) as error:
            raise Refused(f"region {told.number} cannot be mapped: {error}") from error

    def _add_ring(self, told: AddRing, descriptors: list[int]) -> None:
        to_server = bool(told.flags & _TO_SERVER)
        same = sum(ring.to_server == to_server for ring in self.rings)
        if not descriptors or told.number != same or told.number >= RINGS_AT_MOST:
            raise Refused(f"ring {told.number} came out of order, or without a descriptor")
        if told.log2_entries > LOG2_ENTRIES_AT_MOST or told.offset % 16 or told.region >= len(self.regions):
            raise Refused(f"ring {told.number} has 2^{told.log2_entries} entries at {told.offset} of region {told.region}")
        end = told.offset + ring_bytes(told.log2_entries)
        if end > len(self.regions[told.region]):
            raise Refused(f"ring {told.number} ends at {end}, beyond region {told.region}")
        ring = Ring(to_server, told.number, told.region, told.offset, told.log2_entries, descriptors.pop())
        self.rings.append(ring)

    def _finish(self, told: Connect) -> bool:
        if {ring.to_server for ring in self.rings} != {False, True}:
            raise Refused("a client must add a ring each way")
        for ring in self.rings:
            (cookie,) = struct.unpack_from("<I", self.regions[ring.region], ring.offset)
            if cookie != COOKIE:
                raise Refused(f"ring {ring.number} begins with {cookie:#x} instead of memif's cookie")
        self.interface = told.interface
        return True

    def close(self, reason: str = "") -> None:
        """Hang up, after a word about why. Maps go when the last array over them has gone."""
        if reason:
            with contextlib.suppress(Refused):
                send(self.channel, Disconnect(0, reason))
        self.channel.close()
        _close([ring.event for ring in self.rings])
        self.rings.clear()
        self.regions.clear()


class Server:
    """Listens for clients at `path` ("@name": abstract), one at a time: for generators and tests."""

    def __init__(self, path: str, name: str = "krononat", secret: str = "", log2_entries: int = LOG2_ENTRIES_AT_MOST) -> None:
        self._path, self._name, self._secret = path, name, secret
        self._hello = Hello(name, log2_entries=log2_entries)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(address(path))
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise Refused(f"cannot listen at {path}: {error.strerror}") from error

    def accept(self, timeout_s: float = TIMEOUT_S) -> Peer:
        """The next client, all of whose handshake went well; Refused (the client is told why) or TimeoutError where none is."""
        self._listener.settimeout(timeout_s)
        channel, _ = self._listener.accept()
        channel.settimeout(timeout_s)
        peer = Peer(channel, self._secret)
        try:
            send(channel, self._hello)
            self._greet(peer)
        except Refused as refused:
            peer.close(str(refused))
            raise
        return peer

    def _greet(self, peer: Peer) -> None:
        done = False
        while not done:
            message, descriptors = receive(peer.channel)
            try:
                done = peer.take(message, descriptors)
            finally:
                _close(descriptors)
        send(peer.channel, Connected(self._name))

    def close(self) -> None:
        """Listen no more; the socket's file goes."""
        self._listener.close()
        if not self._path.startswith("@"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
