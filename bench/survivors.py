"""Traffic that must outlive a worker: a thousand TCP connections, both ways, and beside them UDP flows that come and go.

Frames are laid down once and sent by packet sockets, many with one system call (sendmmsg(2)); a filter lets in only what
belongs to the connections (`PORT`), which are opened by a real handshake. Each packet carries its connection's number and the
time of its sending, and is checked when it arrives: the same external endpoint as ever outbound, the right subscriber inbound.
The churn never comes back to a flow before that has ended, so all of its packets make sessions.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import time

import numpy as np

from bench import traffic, veths
from bench.veths import Place, entered
from shards.state import TCP, UDP, Array

CONNECTIONS = 1000
PORT = 7781  # where the established ones talk to
CHURN_PORT, CHURN_FLOWS = 9, 400_000
SUBSCRIBERS, REMOTE = 0x64400100, 0xC6336409
SLOT = 128  # bytes of a frame's place

_SYN, _SYN_ACK, _ACK = 2, 18, 16
_PAYLOAD = struct.Struct("<IQ")  # number, time of sending in ns
_L4 = 34
_PAYLOAD_AT = _L4 + 20
_SETTLED_S = 0.5
_TRIES, _TRY_S = 5, 0.1  # a connection is lost that is heard of in none of them
_SO_ATTACH_FILTER, _ETH_P_ALL = 26, 3

# struct mmsghdr and struct iovec of 64-bit Linux
_MESSAGE = np.dtype([(name, "u8") for name in ("name", "namelen", "iov", "iovlen", "control", "controllen", "flags", "sent")])
_IOVEC = np.dtype([("base", "u8"), ("length", "u8")])

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]


class Batch:
    """Frames at hand for `sendmmsg`, in the order of their rows."""

    def __init__(self, out: socket.socket, frames: Array, length: int) -> None:
        self._out, self._frames = out, frames
        self._pieces = np.zeros(len(frames), _IOVEC)
        self._pieces["base"] = frames.ctypes.data + SLOT * np.arange(len(frames))
        self._pieces["length"] = length
        self._messages = np.zeros(len(frames), _MESSAGE)
        self._messages["iov"] = self._pieces.ctypes.data + _IOVEC.itemsize * np.arange(len(frames))
        self._messages["iovlen"] = 1
        self._at = 0

    def send(self, count: int) -> int:
        """The next frames, as many as there is room for in the socket; how many went."""
        count = min(count, len(self._frames) - self._at)
        where = self._messages.ctypes.data + _MESSAGE.itemsize * self._at
        sent = max(int(_libc.sendmmsg(self._out.fileno(), where, count, socket.MSG_DONTWAIT)), 0)
        self._at = (self._at + sent) % len(self._frames)
        return sent


class Survivors:
    """The connections and both their ends, in a place whose device forwards already."""

    def __init__(self, place: Place) -> None:
        self._macs = {name: bytes.fromhex(veths.mac(*where).replace(":", "")) for name, where in _stations(place).items()}
        self._inside, self._outside = _end(place.client, "gen0"), _end(place.server, "sink0")
        self._external: dict[int, bytes] = {}  # by number: address and port
        self._turn = 0
        self._heard: set[int] = set()  # numbers of those that have come through, by the endpoint of theirs
        self.arrived: list[tuple[int, int]] = []  # of outbound ones: sent at and arrived at, ns of the monotonic clock
        churn = np.zeros((CHURN_FLOWS, SLOT), np.uint8)
        churn[:, :60] = self._churn_frames()
        self._churn = Batch(self._inside, churn, 60)

    # --- frames -------------------------------------------------------------------------------------------------------

    def _churn_frames(self) -> Array:
        number = np.arange(CHURN_FLOWS)
        frames = np.zeros((CHURN_FLOWS, 60), np.uint8)
        frames[:, :14] = np.frombuffer(self._macs["device_in"] + self._macs["client"] + b"\x08\x00", np.uint8)
        frames[:, 14:26] = np.frombuffer(bytes([0x45, 0, 0, 46, 0, 0, 0x40, 0, traffic.TTL, UDP, 0, 0]), np.uint8)
        traffic.put(frames, 26, SUBSCRIBERS + 0x400 + number % 2000, 4)
        traffic.put(frames, 30, REMOTE + 1 + number // 2000 % 50, 4)
        traffic.put(frames, 34, 1024 + number // 2000, 2)
        traffic.put(frames, 36, np.full(CHURN_FLOWS, CHURN_PORT), 2)
        traffic.put(frames, 38, np.full(CHURN_FLOWS, 26), 2)
        traffic.write_checksums(frames)
        return frames

    def _outbound(self, number: int, flags: int = _ACK) -> bytes:
        internal = struct.pack("!IH", *self._endpoint(number))
        return _frame(
            self._macs["device_in"] + self._macs["client"], internal, struct.pack("!IH", REMOTE, PORT),
            flags, number,
        )  # fmt: skip

    def _answer(self, number: int, flags: int = _ACK) -> bytes:
        return _frame(
            self._macs["device_out"] + self._macs["server"], struct.pack("!IH", REMOTE, PORT),
            self._external[number], flags, number,
        )  # fmt: skip

    def _endpoint(self, number: int) -> tuple[int, int]:
        return SUBSCRIBERS + number // 4, 2000 + number % 4

    # --- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Every connection, with its handshake. RuntimeError where one does not come about."""
        for flags, answering in ((_SYN, False), (_SYN_ACK, True), (_ACK, False)):
            for number in range(CONNECTIONS):
                self._send_one(number, flags, answering)
                if number % 50 == 49:
                    self._listen_for(0.01)
            self._listen_for(_SETTLED_S)
            if len(self._external) < CONNECTIONS:
                raise RuntimeError(f"{CONNECTIONS - len(self._external)} of {CONNECTIONS} connections were not opened")

    def _send_one(self, number: int, flags: int, answering: bool) -> None:
        if answering:
            self._outside.send(self._answer(number, flags))
        else:
            self._inside.send(self._outbound(number, flags))

    def _listen_for(self, seconds: float) -> None:
        latest = time.monotonic() + seconds
        while time.monotonic() < latest:
            self.listen()

    # --- under way ----------------------------------------------------------------------------------------------------

    def send(self, established: int, churn: int) -> None:
        """So many packets of each kind; the established connections take turns."""
        for _ in range(established):
            self._inside.send(self._outbound(self._turn))
            self._turn = (self._turn + 1) % CONNECTIONS
        self._churn.send(churn)

    def listen(self) -> int:
        """Take in what has arrived outside; how many packets of established connections."""
        before = len(self.arrived)
        while (frame := _receive(self._outside)) is not None:
            if frame[36:38] != struct.pack("!H", PORT):
                continue  # our own answers: a packet socket sees what is sent, too
            number, sent = _read(frame)
            self.arrived.append((sent, time.monotonic_ns()))
            external = frame[26:30] + frame[34:36]
            if self._external.setdefault(number, external) == external:
                self._heard.add(number)
        return len(self.arrived) - before

    def lost(self) -> int:
        """Connections that do not work any more, as they did, in both directions; every one is tried."""
        out, back = set(range(CONNECTIONS)), set(range(CONNECTIONS))
        for _ in range(_TRIES):
            self._heard.clear()
            for number in out | back:
                self._send_one(number, _ACK, False)
                self._send_one(number, _ACK, True)
                self.listen()
            self._listen_for(_TRY_S)
            out -= self._heard
            back -= self._answered()
            if not out | back:
                break
        return len(out | back)

    def _answered(self) -> set[int]:
        """Connections whose answers have reached the subscriber that they were for."""
        found = set()
        while (frame := _receive(self._inside)) is not None:
            if frame[34:36] == struct.pack("!H", PORT):
                number, _ = _read(frame)
                if frame[30:34] + frame[36:38] == struct.pack("!IH", *self._endpoint(number)):
                    found.add(number)
        return found

    def close(self) -> None:
        """Both ends."""
        self._inside.close()
        self._outside.close()


def _stations(place: Place) -> dict[str, tuple[str, str]]:
    return {
        "client": (place.client, "gen0"),
        "device_in": (place.device, "in0"),
        "device_out": (place.device, "out0"),
        "server": (place.server, "sink0"),
    }


def _end(namespace: str, device: str) -> socket.socket:
    """A packet socket that takes in frames from or to `PORT` only."""
    # Classic BPF: half-words of the ports behind an IPv4 header without options.
    program = [
        (0x28, 0, 0, _L4),
        (0x15, 2, 0, PORT),
        (0x28, 0, 0, _L4 + 2),
        (0x15, 0, 1, PORT),
        (0x06, 0, 0, 0xFFFF),
        (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    with entered(namespace):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        made.bind((device, _ETH_P_ALL))
    made.setblocking(False)
    return made


def _frame(stations: bytes, source: bytes, destination: bytes, flags: int, number: int) -> bytes:
    """Without TCP's checksum, which nobody verifies on this way."""
    payload = _PAYLOAD.pack(number, time.monotonic_ns())
    segment = source[4:] + destination[4:] + struct.pack("!IIBBHHH", 1, 1, 5 << 4, flags, 512, 0, 0)
    total = 20 + len(segment) + len(payload)
    header = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, traffic.TTL, TCP, 0) + source[:4] + destination[:4]
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    return stations + b"\x08\x00" + header + segment + payload


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _receive(end: socket.socket) -> bytes | None:
    try:
        frame, (_, _, kind, _, _) = end.recvfrom(256)
    except BlockingIOError:
        return None
    return frame if kind != socket.PACKET_OUTGOING else b"\0" * 64


def _read(frame: bytes) -> tuple[int, int]:
    number, sent = _PAYLOAD.unpack_from(frame, _PAYLOAD_AT)
    return int(number), int(sent)
