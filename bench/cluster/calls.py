"""A call as a browser makes one (WebRTC, RFC 8834): 50 datagrams of 160 bytes a second each way, over one UDP flow.

``python -m bench.cluster.calls call ADDRESS`` sends from one port and listens there; ``… answer`` answers to where it was
called from, with a stream of its own. Each notes what it has heard and the longest silence, and says so in JSON at SIGTERM.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time
from typing import NamedTuple

PORT = 3478  # as STUN has it
EVERY_S = 0.02
_BYTES = 160
_HEADER = struct.Struct("!IQ")  # what it is, number
_MAGIC = 0x6B726E63


class Heard(NamedTuple):
    """What one side has heard of the other."""

    numbers: int
    highest: int
    longest_gap_ms: float
    sources: int  # endpoints that it came from; one is right


def run(listen: tuple[str, int], to: tuple[str, int] | None) -> Heard:
    """Send and listen until SIGTERM."""
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    numbers: set[int] = set()
    sources: set[tuple[str, int]] = set()
    gap, last, sent, due = 0.0, 0.0, 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
        flow.bind(listen)
        while not stopping:
            if time.monotonic() >= due:
                sent, due = _send(flow, to, sent), due + EVERY_S
            if not select.select([flow], [], [], max(due - time.monotonic(), 0))[0]:
                continue
            told, source = flow.recvfrom(2048)
            magic, number = _HEADER.unpack_from(told) if len(told) == _BYTES else (0, 0)
            if magic != _MAGIC:
                continue
            now, to = time.monotonic(), to or source
            gap, last = max(gap, now - last if last else 0.0), now
            numbers.add(number)
            sources.add(source)
    return Heard(len(numbers), max(numbers, default=-1) + 1, 1000 * gap, len(sources))


def _send(flow: socket.socket, to: tuple[str, int] | None, number: int) -> int:
    if to is None:
        return number
    try:
        flow.sendto(_HEADER.pack(_MAGIC, number).ljust(_BYTES, b"\0"), to)
    except OSError:  # an ICMP error that came for an earlier one (udp(7))
        return number
    return number + 1


def main(what: str, address: str = "0.0.0.0") -> None:
    """`call ADDRESS`, or `answer`."""
    called = what == "answer"
    heard = run(("0.0.0.0", PORT if called else 0), None if called else (address, PORT))
    print(json.dumps(heard._asdict()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
