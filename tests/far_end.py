"""What is at the other ends of a real core's wires: every station there is, in one namespace that says nothing by itself.

It answers whoever asks for a station's MAC address, by ARP (RFC 826) and neighbour discovery (RFC 4861), for all but the silent
ones; it sends the frames that a scenario's stations send, and keeps those that reach them, in the order in which they came.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

from tests.bed import Port
from tests.frames import build_frame, mac_of, ones_sum
from tests.frames6 import mac_of6
from tests.netns import Namespace

_ETH_P_ALL, _SOL_PACKET, _AUXDATA, _IGNORE_OUTGOING = 3, 263, 8, 23  # if_packet.h
_SO_RCVBUFFORCE = 33
_VLAN_VALID = 0x10  # TP_STATUS_VLAN_VALID: the kernel has taken the tag off, and tells it beside
ARP, IPV6 = 0x0806, 0x86DD
# ICMPv6 that no router forwards: multicast listeners (RFC 2710, RFC 3810), neighbours and routers (RFC 4861).
_OF_THE_LINK = (*range(130, 138), 143)
_SOLICITATION, _ADVERTISEMENT, _SOLICITED_OVERRIDE = 135, 136, 0x60


class Came(NamedTuple):
    """A frame that has reached a station; `place`: by which wire, as scenarios call it."""

    place: str
    frame: bytes


class FarEnd:
    """The stations. `devices`: wire -> device in the namespace. Nothing but `listen` takes in what has come."""

    def __init__(self, where: Namespace, devices: Mapping[str, str]) -> None:
        self._device, self._place = dict(devices), {device: place for place, device in devices.items()}
        self.silent: set[int] = set()
        self.came: list[Came] = []
        self.said = 0  # frames that stations have sent to the core's ports of themselves, no scenario's
        with where.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        self._socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        self._socket.setblocking(False)

    def also(self, wires: Mapping[str, str]) -> None:
        """By these devices, too, places are reached: device -> place."""
        self._place = {device: place for place, device in self._device.items()} | dict(wires)

    def close(self) -> None:
        """Let the namespace go."""
        self._socket.close()

    def send(self, place: str, frame: bytes) -> None:
        """Have a frame arrive at the core's port."""
        self._socket.sendto(frame, (self._device[place], 0))

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what comes, answering those who ask; return as soon as nothing more is there, after `seconds` at the most."""
        if seconds:
            select.select([self._socket], [], [], seconds)
        while True:
            try:
                frame, beside, _, address = self._socket.recvmsg(1 << 16, 64)
            except BlockingIOError:
                return
            if address[0] in self._place:
                self._take(address[0], _retagged(frame, beside))

    def forget(self) -> None:
        """Whatever has come is of no interest, nor who has asked."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)

    def announce(self, place: str, host: int, port: Port) -> None:
        """A station says, unasked, who it is; a kernel that waits for it believes that. `port`: the core's."""
        core = mac_of(port.address)
        told = _advertisement(host, port.address6) if host >> 32 else _arp_reply(host, core, port.address)
        self._answer(self._device[place], told, core, port.vlan, host)

    # --- who asks -----------------------------------------------------------------------------------------------------

    def _take(self, device: str, frame: bytes) -> None:
        at = 18 if frame[12:14] == b"\x81\0" else 14
        ethertype, vlan = int.from_bytes(frame[at - 2 : at], "big"), int.from_bytes(frame[14:16], "big") & 0xFFF
        vlan = vlan if at == 18 else 0
        if ethertype == ARP:
            self._hear_arp(device, frame[at:], vlan)
        elif ethertype == IPV6 and is_of_the_link(frame[at:]):
            self._hear_discovery(device, frame[at:], frame[6:12], vlan)
        else:
            self.came.append(Came(self._place[device], frame))

    def _hear_arp(self, device: str, data: bytes, vlan: int) -> None:
        operation, sender = int.from_bytes(data[6:8], "big"), data[8:14]
        asks, wanted = int.from_bytes(data[14:18], "big"), int.from_bytes(data[24:28], "big")
        if operation == 1 and asks != wanted and wanted not in self.silent:
            self._answer(device, _arp_reply(wanted, sender, asks), sender, vlan, wanted)

    def _hear_discovery(self, device: str, data: bytes, sender: bytes, vlan: int) -> None:
        asks, wanted = int.from_bytes(data[8:24], "big"), int.from_bytes(data[48:64], "big")
        if data[6] == 58 and data[40] == _SOLICITATION and asks and wanted not in self.silent:
            self._answer(device, _advertisement(wanted, asks), sender, vlan, wanted)

    def _answer(self, device: str, told: tuple[int, bytes], to: bytes, vlan: int, host: int) -> None:
        sender = mac_of6(host) if host >> 32 else mac_of(host)
        self._socket.sendto(build_frame(to, sender, told[1], vlan, told[0]), (device, 0))
        self.said += device in self._device.values()  # not by the wire that stands for a tag


def _arp_reply(host: int, to: bytes, asks: int) -> tuple[int, bytes]:
    ends = mac_of(host) + host.to_bytes(4, "big") + to + asks.to_bytes(4, "big")
    return ARP, struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + ends


def _advertisement(host: int, to: int) -> tuple[int, bytes]:
    """RFC 4861 4.4, with the target's link-layer address."""
    addresses = host.to_bytes(16, "big") + to.to_bytes(16, "big")
    body = bytes([_SOLICITED_OVERRIDE, 0, 0, 0]) + host.to_bytes(16, "big") + b"\x02\x01" + mac_of6(host)
    covered = addresses + struct.pack(">IHBB", 4 + len(body), 0, 0, 58) + bytes([_ADVERTISEMENT, 0, 0, 0]) + body
    check = (-ones_sum(covered)) % 0xFFFF
    message = bytes([_ADVERTISEMENT, 0]) + check.to_bytes(2, "big") + body
    return IPV6, struct.pack(">IHBB", 6 << 28, len(message), 58, 255) + addresses + message


def is_of_the_link(data: bytes) -> bool:
    """Whether a datagram is one of those by which a link keeps house."""
    if data[24] == 0xFF:
        return True
    return len(data) > 40 and data[6] == 58 and data[40] in _OF_THE_LINK


def _retagged(frame: bytes, beside: list[tuple[int, int, bytes]]) -> bytes:
    """The frame as it was on the wire: struct tpacket_auxdata has the tag."""
    for level, kind, data in beside:
        if (level, kind) == (_SOL_PACKET, _AUXDATA):
            status, _, _, _, _, control, protocol = struct.unpack("=IIIHHHH", data[:20])
            if status & _VLAN_VALID:
                return frame[:12] + struct.pack(">HH", protocol or 0x8100, control) + frame[12:]
    return frame
