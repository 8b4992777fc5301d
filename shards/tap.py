"""The kernel's share of a memif port: a tap device carries the port's own address (linux `Documentation/networking/tuntap`).

What the steering program of an XDP port leaves to the kernel (see `steering`, same order of questions) is written to the tap;
what the kernel has to say comes from it and leaves by the port. One read or write is one frame. Counted in the port's link.
"""

from __future__ import annotations

from typing import Any

from shards import memif_rings
from shards.burst import Burst
from shards.calls import read, write
from shards.frames import HAND, Rings, owner, push, to_give
from shards.jit import hot
from shards.memif import BUFFER_BYTES, FROM_KERNEL, OUTCOME
from shards.native import read16, read32
from shards.outcomes import (
    BFD_PORT,
    BROADCAST,
    LINK_LOCAL,
    MULTICAST,
    NEIGHBOUR_DISCOVERY,
    NOT_IP,
    OWN_ADDRESS,
    REDIRECTED,
    SHUNT_PORT,
)
from shards.state import UDP, Array
from shards.wire import (
    ETHERNET_BYTES,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_TAG,
    IPV4_BYTES,
    TAG_BYTES,
    read8,
)
from shards.xsk import FRAME_SHIFT

_ETHERTYPE_SERVICE_TAG = 0x88A8  # IEEE 802.1ad
_TAGS_AT_MOST = 2
_IPV6_BYTES, _UDP_BYTES = 40, 8
_ICMPV6 = 58
_AT_ONCE = 32  # frames of the kernel's taken between two breaths


@hot
def outcome(frames: Array, at: int, length: int, line: Any) -> int:
    """REDIRECTED for a frame that is ours, else why it is the kernel's. Shorter than its headers: ours to say so."""
    l3, end = at + ETHERNET_BYTES, at + length
    for _ in range(_TAGS_AT_MOST + 1):
        if l3 > end:
            return REDIRECTED
        ethertype = read16(frames, l3 - 2)
        if ethertype == ETHERTYPE_IPV4:
            return _ipv4(frames, l3, end, line) if l3 + IPV4_BYTES <= end else REDIRECTED
        if ethertype == ETHERTYPE_IPV6:
            return _ipv6(frames, l3, end, line)
        if ethertype != ETHERTYPE_TAG and ethertype != _ETHERTYPE_SERVICE_TAG:
            return NOT_IP
        l3 += TAG_BYTES
    return REDIRECTED


@hot
def _ipv4(frames: Array, l3: int, end: int, line: Any) -> int:
    destination = read32(frames, l3 + 16)
    if destination >> 28 == 0xE:
        return MULTICAST
    if destination >> 16 == 0xA9FE:
        return LINK_LOCAL
    if destination == 0xFFFFFFFF or destination == line["broadcast"][0] or destination == line["broadcast"][1]:
        return BROADCAST
    if destination == line["own"][0] or destination == line["own"][1]:
        return REDIRECTED if _is_control(frames, l3, end, line) else OWN_ADDRESS
    return REDIRECTED


@hot
def _is_control(frames: Array, l3: int, end: int, line: Any) -> bool:
    """Whether a packet to the core's own address is BFD, or shunted to it by another core: UDP, without options, whole.

    There is one ring for all: where it is full, control is lost as data is.
    """
    if l3 + IPV4_BYTES + _UDP_BYTES > end or read8(frames, l3) != 0x45 or read8(frames, l3 + 9) != UDP:
        return False
    port = read16(frames, l3 + IPV4_BYTES + 2)
    return bool(read16(frames, l3 + 6) & 0x3FFF == 0 and (port == SHUNT_PORT or (line["bfd"] and port == BFD_PORT)))


@hot
def _ipv6(frames: Array, l3: int, end: int, line: Any) -> int:
    if l3 + _IPV6_BYTES > end:
        return REDIRECTED
    destination = read16(frames, l3 + 24)
    if destination >> 8 == 0xFF:
        return MULTICAST
    if destination >> 6 == 0xFE80 >> 6:
        return LINK_LOCAL
    if _is_own6(frames, l3 + 24, line["own6"], 0) or _is_own6(frames, l3 + 24, line["own6"], 4):
        return OWN_ADDRESS
    if read8(frames, l3 + 6) == _ICMPV6 and l3 + _IPV6_BYTES + 1 <= end and 133 <= read8(frames, l3 + _IPV6_BYTES) <= 137:
        return NEIGHBOUR_DISCOVERY
    return REDIRECTED


@hot
def _is_own6(frames: Array, at: int, own: Array, first: int) -> bool:
    """Whether the address at `at` is that whose quarters stand from `first` on."""
    different = 0
    for quarter in range(4):
        different |= read32(frames, at + 4 * quarter) ^ own[first + quarter]
    return different == 0


@hot
def sort(rings: Rings, queue: int, burst: Burst, row: int, count: int) -> int:
    """Give the kernel's among `count` rows from `row` on to the kernel, and close the gaps; how many rows are left."""
    line, frames, kept = rings.lines[queue], rings.frames, row
    counts = line["link"] + OUTCOME
    for i in range(row, row + count):
        at, length = burst.at[i], burst.length[i]
        told = outcome(frames, at, length, line)
        if told == REDIRECTED:
            burst.at[kept] = at
            burst.length[kept] = length
            kept += 1
        else:
            rings.links[counts + told] += 1
            write(line["tap"], frames.ctypes.data + at, length)  # what it does not take, it drops and counts
            push(rings, at >> FRAME_SHIFT)
    rings.links[counts + REDIRECTED] += kept - row
    return kept - row


@hot
def listen(rings: Rings, queue: int) -> int:
    """Send what the kernel has to send by a port; how many frames that were. They are lost where nobody is connected."""
    line, told = rings.lines[queue], 0
    while told < _AT_ONCE and to_give(rings) > 0:
        frame = rings.free[rings.local[0]["free"] - 1]
        at = memif_rings.start(frame)
        length = read(line["tap"], rings.frames.ctypes.data + at, BUFFER_BYTES)
        if length <= 0:
            break
        rings.local[0]["free"] -= 1
        rings.owners[frame] = owner(HAND, queue, 0)
        if not memif_rings.offer(rings, queue, at, length):
            push(rings, frame)
        told += 1
    memif_rings.publish(rings, queue)
    rings.links[line["link"] + FROM_KERNEL] += told
    return told
