"""Veth pairs between namespaces of our own: real wires for tests of what only a kernel can answer."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Sequence

from tests.netns import Namespace, namespace

_serial = itertools.count()
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3


class Wires(contextlib.ExitStack):
    """A namespace `core` with devices port0, port1, …, each wired to peer0, peer1, … in a namespace of its own.

    `queues[i]` is the number of transmit and receive queues at both ends of wire i.
    """

    def __init__(self, queues: Sequence[int] = (1,)) -> None:
        super().__init__()
        self.queues = list(queues)
        self._prefix = f"krnio{os.getpid()}-{next(_serial)}"

    def __enter__(self) -> Wires:
        self.core = self._quiet("core")
        self.peers = [self._quiet(f"peer{row}") for row in range(len(self.queues))]
        for row, (peer, queues) in enumerate(zip(self.peers, self.queues, strict=True)):
            many = f"numrxqueues {queues} numtxqueues {queues}"
            self.core.ip(f"link add name port{row} {many} type veth peer name peer{row} netns {peer.name} {many}")
            self.core.ip(f"link set port{row} up")
            peer.ip(f"link set peer{row} up")
        return self

    def _quiet(self, name: str) -> Namespace:
        """Nothing but what a test sends shall be on its wires."""
        made = self.enter_context(namespace(f"{self._prefix}-{name}"))
        made.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        return made

    def peer(self, row: int) -> socket.socket:
        """The tap at the far end of a wire."""
        return tap(self.peers[row], f"peer{row}")

    def kernel(self, row: int) -> socket.socket:
        """A tap at our end: it sees what the steering program passes."""
        return tap(self.core, f"port{row}")

    def counters(self, row: int) -> dict[str, tuple[int, int]]:
        """Packets and bytes received and sent by the far end, as its kernel counts them."""
        peer, device = self.peers[row], f"peer{row}"
        told = json.loads(peer.ip(f"-s -j link show {device}"))[0]["stats64"]
        return {way: (told[way]["packets"], told[way]["bytes"]) for way in ("rx", "tx")}


def tap(where: Namespace, device: str) -> socket.socket:
    """A packet socket that sends, and sees, whole frames; it never blocks."""
    with where.entered():
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        opened.bind((device, _ETH_P_ALL))
    opened.setblocking(False)
    return opened


def drain(tap: socket.socket) -> list[bytes]:
    """Frames that came in and wait at a tap (not those it sent)."""
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, address = tap.recvfrom(1 << 16)
            if address[2] != socket.PACKET_OUTGOING:
                frames.append(frame)
    return frames


def ipv4(destination: str, payload: bytes = b"", tags: bytes = b"", flow: int = 0, port: int = 53) -> bytes:
    """A frame that looks like IPv4 and UDP as far as steering and queues care; its checksums are not for a host."""
    udp = (4000 + flow).to_bytes(2, "big") + port.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    header = b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0" + socket.inet_aton("10.0.0.9")
    return bytes.fromhex("020000000001 020000000002") + tags + b"\x08\0" + header + socket.inet_aton(destination) + udp


def ipv6(destination: str, protocol: int = 17, payload: bytes = bytes(8), tags: bytes = b"") -> bytes:
    """The same of IPv6."""
    header = b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes([protocol, 255])
    addresses = socket.inet_pton(socket.AF_INET6, "2001:db8::9") + socket.inet_pton(socket.AF_INET6, destination)
    return bytes.fromhex("020000000001 020000000002") + tags + b"\x86\xdd" + header + addresses + payload
