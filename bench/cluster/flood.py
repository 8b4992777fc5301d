"""A flood out of a port of a switch: small datagrams of a few subscribers, by a packet socket that waits for no queue.

`python -m bench.cluster.flood DEVICE STATION SUBSCRIBER RATE SECONDS CPU`, in the switch's namespace; RATE 0: unpaced.
It says in JSON what it sent. Sources are 64 subscribers from the first one on with 4 ports each: few sessions come of it, and
what is flooded is the core's ring, not its memory. The destination is nobody's; the Internet's router drops it.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path

SUBSCRIBERS, PORTS = 64, 4
DESTINATION, PORT, FIRST_PORT = IPv4Address("192.0.2.99"), 9, 40_000  # RFC 5737; RFC 863
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_DATA = bytes(18)  # to the shortest frame, IEEE 802.3
_UDP, _IPV4 = 17, 0x0800


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("at", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr (sendmmsg(2)): a msghdr, and how much of it was sent."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.POINTER(_Part)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def frame(stations: bytes, source: IPv4Address, port: int) -> bytes:
    """A datagram to nobody; without a UDP checksum (RFC 768)."""
    udp = struct.pack("!HHHH", port, PORT, 8 + len(_DATA), 0) + _DATA
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, _UDP, 0, source.packed, DESTINATION.packed)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checked = head[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:]
    return stations + struct.pack("!H", _IPV4) + checked + udp


def frames(stations: bytes, first: IPv4Address) -> list[bytes]:
    """One of each subscriber and port."""
    return [frame(stations, first + person, FIRST_PORT + port) for port in range(PORTS) for person in range(SUBSCRIBERS)]


def flood(device: str, told: list[bytes], rate: int, seconds: float) -> int:
    """Send these again and again; how many went."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        out.bind((device, 0))
        buffers = [ctypes.create_string_buffer(each, len(each)) for each in told]
        parts = [_Part(ctypes.addressof(each), len(each)) for each in buffers]
        messages = (_Message * len(parts))(*(_Message(parts=ctypes.pointer(each), count=1) for each in parts))
        return _send(out.fileno(), messages, rate, seconds)


def _send(descriptor: int, messages: ctypes.Array[_Message], rate: int, seconds: float) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    began, sent = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        if rate and sent > rate * passed:
            time.sleep(0.0002)
            continue
        sent += max(library.sendmmsg(descriptor, messages, len(messages), 0), 0)
    return sent


def main(device: str, station: str, first: str, rate: str, seconds: str, cpu: str) -> None:
    """See the module."""
    own = Path(f"/sys/class/net/{device}/address").read_text().strip()
    stations = b"".join(bytes.fromhex(each.replace(":", "")) for each in (station, own))
    os.sched_setaffinity(0, {int(cpu)})
    began = time.monotonic()
    sent = flood(device, frames(stations, IPv4Address(first)), int(rate), float(seconds))
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
