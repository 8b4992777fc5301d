"""An independent count of what the kernel itself sends and is given at the appliance's interfaces.

AF_XDP's frames bypass packet sockets both ways: a redirected one never reaches them, and copy-mode transmit skips them. So a
packet socket sees just what the steering program passed to the kernel, and what the kernel sent of its own (ARP, ICMP). Its
counter (packet(7), PACKET_STATISTICS) also counts what finds no room in the socket's buffer, so nobody needs to read it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4

# A classic filter of four instructions: load the packet type (SKF_AD_PKTTYPE), compare it, keep one byte or nothing.
_LOAD, _EQUAL, _RETURN = 0x28, 0x15, 0x06
_PACKET_TYPE = 0xFFFFF000 + 4


class Witness:
    """Packet sockets on the interfaces of a namespace, counting from the moment they are made."""

    def __init__(self, namespace: str, interfaces: list[str]) -> None:
        with ThreadPoolExecutor(1) as thread:  # a thread of its own may move to the namespace; its sockets stay there
            self._sockets = thread.submit(_open, namespace, interfaces).result()
        self._counted = dict.fromkeys(self._sockets, 0)

    def counts(self) -> dict[tuple[str, str], int]:
        """Packets so far by (interface, "given" or "sent")."""
        for key, each in self._sockets.items():
            # Reading resets it; tp_packets includes those of tp_drops.
            self._counted[key] += struct.unpack("II", each.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[0]
        return dict(self._counted)

    def close(self) -> None:
        """Let the namespace go."""
        for each in self._sockets.values():
            each.close()


def _open(namespace: str, interfaces: list[str]) -> dict[tuple[str, str], socket.socket]:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        if libc.setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")
    finally:
        os.close(handle)
    ways = {"given": False, "sent": True}
    return {(name, way): _counting(name, outgoing) for name in interfaces for way, outgoing in ways.items()}


def _counting(interface: str, outgoing: bool) -> socket.socket:
    kept, rest = (1, 0) if outgoing else (0, 1)
    lines = ((_LOAD, 0, _PACKET_TYPE), (_EQUAL, 1, _PACKET_OUTGOING), (_RETURN, 0, kept), (_RETURN, 0, rest))
    program = b"".join(struct.pack("HBBI", code, 0, skip, value) for code, skip, value in lines)
    memory = ctypes.create_string_buffer(program)
    each = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: hears nothing until the filter stands
    each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 4, ctypes.addressof(memory)))
    each.bind((interface, _ETH_P_ALL))
    return each
