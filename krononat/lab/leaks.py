"""A count of packets that reach the Internet's side of the switches with a source that only subscribers have. It must stay 0.

A packet socket on each device of the Internet's router that leads to a switch, with a filter in the kernel (classic BPF), sees
each frame before anything is decided about it. The kernel counts what passes the filter, also what nobody has room for
(packet(7), PACKET_STATISTICS). ``python -m krononat.lab.leaks FILE DEVICE…`` adds up and writes the file; `counted` reads it.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from krononat.lab.laboratory import Lab

EVERY_S = 0.05
NODE = "core"
_NETWORKS = (("100.64.0.0", 10), ("10.0.0.0", 8))  # RFC 6598; and what routers inside have

_ETH_P_ALL, _SOL_PACKET, _PACKET_STATISTICS, _SO_ATTACH_FILTER = 0x0003, 263, 6, 26
_LOAD2, _LOAD4, _AND, _EQUAL, _RETURN = 0x28, 0x20, 0x54, 0x15, 0x06  # opcodes of linux/filter.h
_PACKET_TYPE, _OUTGOING = 0xFFFFF000 + 4, 4
_ETHERTYPE, _SOURCE, _IPV4 = 12, 26, 0x0800  # offsets in a frame of Ethernet and IPv4


def start(lab: Lab, devices: list[str]) -> None:
    """Count from now on."""
    words = (sys.executable, "-m", "krononat.lab.leaks", str(_file(lab)), *devices)
    lab.start(NODE, "leaks", words)
    deadline = time.monotonic() + 10
    while not _file(lab).exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def counted(lab: Lab) -> int | None:
    """Untranslated packets so far, as of the last `EVERY_S`; None where nobody counts any more."""
    try:
        told = json.loads(_file(lab).read_text())
        os.kill(told["process"], 0)
    except (OSError, ValueError):
        return None
    return int(sum(told["packets"].values()))


def _file(lab: Lab) -> Path:
    return lab.folder / "leaks.json"


def _filter(networks: tuple[tuple[str, int], ...] = _NETWORKS) -> list[tuple[int, int, int, int]]:
    """Opcode, jump if true, jump if not, operand: one byte of what came in from one of the networks, nothing of the rest."""
    lines = [(_LOAD2, 0, 0, _PACKET_TYPE), (_EQUAL, 0, 1, _OUTGOING), (_RETURN, 0, 0, 0)]
    lines += [(_LOAD2, 0, 0, _ETHERTYPE), (_EQUAL, 1, 0, _IPV4), (_RETURN, 0, 0, 0)]
    for address, length in networks:
        mask = 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
        wanted = int.from_bytes(socket.inet_aton(address), "big")
        lines += [(_LOAD4, 0, 0, _SOURCE), (_AND, 0, 0, mask), (_EQUAL, 0, 1, wanted), (_RETURN, 0, 0, 1)]
    return [*lines, (_RETURN, 0, 0, 0)]


def _counting(device: str) -> socket.socket:
    lines = _filter()
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    each = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: hears nothing until the filter stands
    each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(lines), ctypes.addressof(program)))
    each.bind((device, _ETH_P_ALL))
    return each


def _write(path: Path, counts: dict[str, int]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"process": os.getpid(), "packets": counts}))
    new.rename(path)


def main(path: Path, devices: list[str]) -> None:
    """Until it is ended."""
    sockets = {device: _counting(device) for device in devices}
    counts = dict.fromkeys(devices, 0)
    _write(path, counts)
    while True:
        time.sleep(EVERY_S)
        before = dict(counts)
        for device, each in sockets.items():
            counts[device] += struct.unpack("II", each.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[0]
        if counts != before:
            _write(path, counts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
