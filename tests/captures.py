"""Captures: the IP datagrams in a pcap or pcapng file, in its order and with its times, whatever link they were caught on.

Link types as https://www.tcpdump.org/linktypes.html numbers them. What is no IP is counted by what it is instead.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapReader

IPV4, IPV6 = 0x0800, 0x86DD
TAGS = (0x8100, 0x88A8, 0x9100, 0x9200)  # 802.1Q, 802.1ad, and what there was before that
PPPOE, MPLS = 0x8864, (0x8847, 0x8848)
PPP = {0x0021: IPV4, 0x0057: IPV6}  # RFC 1332, RFC 5072
SNAP = b"\xaa\xaa\x03"
logging.getLogger("scapy").setLevel(logging.ERROR)  # it says of every capture what else it could have read


class NoCapture(Exception):
    """A file that is no capture, or a damaged one."""


class Caught(NamedTuple):
    """One datagram: when, in ms since the epoch; its bytes; and how many the capture has cut off behind it."""

    number: int  # from 1, as Wireshark counts frames
    ms: int
    data: bytes
    cut: int


Inner = tuple[int, bytes]  # ethertype, and what is behind it


def datagrams(path: Path, other: Counter[str]) -> Iterator[Caught]:
    """The IP datagrams of a file; `other` counts what is none. Raises `NoCapture`."""
    number = 0
    for number, (data, told) in enumerate(_records(path), 1):
        link = int(told["linktype"]) & 0x03FFFFFF  # above: how long a frame check sequence is
        if link not in LINKS:
            other[f"link type {link}"] += 1
            continue
        try:
            kind, inner = LINKS[link](data)
        except (IndexError, struct.error):
            other["cut in its link header"] += 1
            continue
        if kind not in (IPV4, IPV6) or not inner:
            other[f"ethertype {kind:#06x}"] += 1
            continue
        yield Caught(number, told["ms"], inner, max(told["wirelen"] - len(data), 0))


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, int]]]:
    """Bytes of each record, with its link type, its time in ms and its length on the wire."""
    try:
        with RawPcapReader(str(path)) as reader:
            for data, meta in reader:
                link = getattr(meta, "linktype", None)
                told = {"linktype": reader.linktype if link is None else link, "ms": _ms(meta, getattr(reader, "nano", False))}
                yield data, told | {"wirelen": meta.wirelen or len(data)}
    except (Scapy_Exception, OSError, EOFError, struct.error) as error:
        raise NoCapture(f"{path} is no capture that can be read: {error}") from error


def _ms(meta: Any, nano: bool) -> int:
    """Time of a record; pcapng's simple packet blocks have none."""
    if hasattr(meta, "sec"):
        return int(meta.sec) * 1000 + int(meta.usec) // (1_000_000 if nano else 1000)
    if meta.tshigh is None:
        return 0
    return ((int(meta.tshigh) << 32) + int(meta.tslow)) * 1000 // int(meta.tsresol)


# --- what stands before the datagram ----------------------------------------------------------------------------------------


def _ethernet(data: bytes) -> Inner:
    return _behind(_word(data, 12), data[14:])


def _behind(kind: int, rest: bytes) -> Inner:
    """Through tags, sessions and labels to what they carry."""
    while kind in TAGS:
        kind, rest = _word(rest, 2), rest[4:]
    if kind == PPPOE:
        return _ppp(rest[6:])
    if kind in MPLS:
        return _unlabelled(kind, rest)
    if kind < 0x0600:  # a length: IEEE 802.3
        return _llc(rest)
    return kind, rest


def _unlabelled(kind: int, rest: bytes) -> Inner:
    """Behind the label that says it is the last (RFC 3032)."""
    while not rest[2] & 1:
        rest = rest[4:]
    inner = rest[4:]
    return _raw(inner) if inner[:1] and inner[0] >> 4 in (4, 6) else (kind, inner)


def _llc(rest: bytes) -> Inner:
    return (_word(rest, 6), rest[8:]) if rest[:3] == SNAP else (0, rest)


def _raw(data: bytes) -> Inner:
    return {4: IPV4, 6: IPV6}.get(data[0] >> 4, 0), data


def _null(data: bytes) -> Inner:
    """An address family of the machine that caught it, in its byte order: 2 is IPv4, and IPv6 is one of several."""
    family = min(struct.unpack("<I", data[:4])[0], struct.unpack(">I", data[:4])[0])
    return {2: IPV4, 10: IPV6, 24: IPV6, 28: IPV6, 30: IPV6}.get(family, 0), data[4:]


def _ppp(data: bytes) -> Inner:
    data = data[2:] if data[:2] == b"\xff\x03" else data
    return PPP.get(_word(data, 0), 0), data[2:]


def _cooked(data: bytes) -> Inner:
    return _behind(max(_word(data, 14), 0x0600), data[16:])


def _cooked2(data: bytes) -> Inner:
    return _behind(max(_word(data, 0), 0x0600), data[20:])


def _wlan(data: bytes) -> Inner:
    """A data frame of 802.11 that is not encrypted."""
    control, flags = data[0], data[1]
    if control & 0x0C != 0x08 or control & 0x40 or flags & 0x40:
        return 0, data
    at = 24 + (6 if flags & 3 == 3 else 0) + (2 if control & 0x80 else 0)
    return _llc(data[at:])


def _radiotap(data: bytes) -> Inner:
    return _wlan(data[int.from_bytes(data[2:4], "little") :])


def _word(data: bytes, at: int) -> int:
    return int(struct.unpack_from(">H", data, at)[0])


LINKS: dict[int, Callable[[bytes], Inner]] = {
    0: _null, 108: _null, 1: _ethernet, 9: _ppp, 50: _ppp, 51: lambda data: _ppp(data[6:]),
    104: lambda data: (_word(data, 2), data[4:]),  # Cisco HDLC
    12: _raw, 14: _raw, 101: _raw, 228: _raw, 229: _raw, 113: _cooked, 276: _cooked2, 105: _wlan, 127: _radiotap,
}  # fmt: skip
