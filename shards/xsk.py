"""AF_XDP: the system calls that make frame memory, sockets and rings. Nothing here runs per packet, nothing needs the compiler.

Frame memory (umem) is a memfd, so that it and the sockets outlive a worker: the supervisor opens both, and any worker that
inherits the descriptors maps them anew, without a privilege. All sockets, two for each queue of each port, share one umem:
a frame moves from port to port without being copied. See the kernel's `Documentation/networking/af_xdp.rst`.

    memory (memfd):  frames x 4096 bytes; what is written about them lies elsewhere (`frames`)
    region (worker): for each queue its six rings, mapped one behind the other; then those of memif ports

The second socket of a queue is that of control traffic. It has rings of its own, so that it is served first and does not queue
behind data, in the worker or in the kernel; fill and completion rings are the queue's. These are larger than what data can
take of them: a fill ring holds more frames than the receive ring of data, so that some are left for control, whatever comes.

Zero-copy is tried only when asked for, and is untested: there was no card to try it on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from shards.state import Array

FRAME_SHIFT = 12
FRAME_BYTES = 1 << FRAME_SHIFT
HEADROOM = 256  # XDP_PACKET_HEADROOM: a received frame begins this far into its memory
ENTRIES_AT_MOST, ENTRIES_AT_LEAST = 8192, 64

# A memif server may change a header's lengths after `parse` has compared them. What then goes wrong goes wrong in here: no
# length of IPv4 leads further.
_BEYOND = 2 << 16

RX, TX, FILL, COMPLETION, CONTROL_RX, CONTROL_TX = range(6)  # rings of a queue
PRODUCER, CONSUMER, DESCRIPTORS, FLAGS = range(4)  # columns of Description.offsets, as in struct xdp_ring_offset
_ENTRY_BYTES = (16, 16, 8, 8, 16, 16)
_PAGE_OFFSETS = (0, 0x80000000, 0x100000000, 0x180000000, 0, 0x80000000)

EOPNOTSUPP = errno.EOPNOTSUPP
_AF_XDP, _SOL_XDP = 44, 283
_MMAP_OFFSETS, _RX_RING, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING, _STATISTICS = 1, 2, 3, 4, 5, 6, 7
_MAX_TX_SKB_BUDGET = 9  # kernel 6.18
_SHARED_UMEM, _COPY, _ZEROCOPY, _NEED_WAKEUP = 1, 2, 4, 8  # bind flags
_SO_SNDBUFFORCE = 33
_POPULATE_WRITE = 23  # madvise(2), kernel 5.14
_SIOCETHTOOL, _ETHTOOL_GCHANNELS = 0x8946, 0x3C

# fcntl(2); Python 3.11 has no names for them
_F_ADD_SEALS, _F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 1, 2, 4

_MAP_FIXED = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]


class Queue(TypedDict):
    """The two sockets of a queue: descriptors, and the port (its position in the list given) and receive queue."""

    fd: int
    control: int
    port: int
    queue: int


class Description(TypedDict):
    """All a worker must know to take over; plain enough for JSON. Descriptors keep their numbers (`pass_fds`)."""

    frames: int
    entries: int  # of the rings of data; those shared with a control socket have twice as many
    control: int  # entries of the rings of control; 0: there are none
    offsets: list[list[int]]  # by ring: bytes to producer, consumer, descriptors, flags
    queues: list[Queue]


class Port(NamedTuple):
    """A device whose every receive queue gets a socket."""

    ifindex: int
    queues: int


# --- frame memory ---------------------------------------------------------------------------------------------------------


def new_memory(frames: int) -> int:
    """Descriptor of fresh memory for so many frames (a power of two). Nobody can resize it: others may have mapped it.

    Nor seal it further: a memif server could keep the next worker from mapping it.
    """
    if frames < 2 * ENTRIES_AT_LEAST or frames & (frames - 1):
        raise ValueError(f"{frames} frames: must be a power of two, at least {2 * ENTRIES_AT_LEAST}")
    fd = os.memfd_create("krononat-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, frames * FRAME_BYTES + _BEYOND)
    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
    # All of it now: whoever touches a page first decides on its size, and a memif server does not ask for huge ones.
    with contextlib.suppress(OSError), map_memory(fd, frames) as memory:
        memory.madvise(_POPULATE_WRITE)
    return fd


def map_memory(fd: int, frames: int) -> mmap.mmap:
    """The memory as a buffer, shared with everyone who maps it."""
    memory = mmap.mmap(fd, frames * FRAME_BYTES + _BEYOND, mmap.MAP_SHARED)
    with contextlib.suppress(OSError):  # granted where the kernel's `shmem_enabled` says so
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def frames_of(memory: Any, frames: int) -> Array:
    """The frames' bytes (uint8)."""
    return np.frombuffer(memory, np.uint8, frames * FRAME_BYTES)


# --- sockets --------------------------------------------------------------------------------------------------------------


class Sockets:
    """Open AF_XDP sockets over one umem. `description` is what a worker needs."""

    def __init__(self, description: Description, opened: Sequence[socket.socket]) -> None:
        self.description = description
        self._opened = list(opened)

    def fds(self) -> list[int]:
        """Descriptors that a worker must inherit: the sockets of data, then those of control."""
        return [queue[which] for which in ("fd", "control") for queue in self.description["queues"]]

    def lost(self) -> int:
        """Frames that were redirected to a socket and did not get in (no free frame, ring full, too long), ever."""
        counted = [statistics(fd) for fd in self.fds()]
        return sum(each["rx_dropped"] + each["rx_ring_full"] for each in counted)

    def close(self) -> None:
        """Close all; the umem goes with the last one and the last map of its rings."""
        while self._opened:
            self._opened.pop().close()


def open_sockets(memory_fd: int, frames: int, ports: Sequence[Port | None], zero_copy: bool = False) -> Sockets:
    """Open and bind both sockets for each queue of each port, over the memory. None is a port that needs no sockets.

    Raises OSError whose text says which device and queue, and what to do. Needs CAP_NET_RAW, and CAP_NET_ADMIN for buffers.
    """
    wanted = [(row, port.ifindex, queue) for row, port in enumerate(ports) if port for queue in range(port.queues)]
    entries = ring_entries(frames, len(wanted) + sum(port is None for port in ports))
    control = control_entries(entries)
    with contextlib.ExitStack() as opening:
        data, controls = (
            [opening.enter_context(socket.socket(_AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC)) for _ in wanted]
            for _ in range(2)
        )
        if data:
            _register(data[0], memory_fd, frames)
        for number, (_, ifindex, queue) in enumerate(wanted):
            _make_rings(data[number], entries)
            _bind(data[number], ifindex, queue, data[0].fileno() if number else None, zero_copy)
            _make_control_rings(controls[number], control)
            _bind(controls[number], ifindex, queue, data[number].fileno(), zero_copy)
        opening.pop_all()
    queues: list[Queue] = [
        {"fd": one.fileno(), "control": other.fileno(), "port": row, "queue": queue}
        for one, other, (row, _, queue) in zip(data, controls, wanted, strict=True)
    ]
    offsets = _offsets(data[0]) if data else [[0] * 4] * 6
    told: Description = {"frames": frames, "entries": entries, "control": control, "offsets": offsets, "queues": queues}
    return Sockets(told, [*data, *controls])


def control_entries(entries: int) -> int:
    """Of the control rings beside data rings of so many: shunted packets come by them, too, while a shard moves."""
    return max(entries // 4, ENTRIES_AT_LEAST)


def ring_entries(frames: int, queues: int) -> int:
    """Half of the frames may wait in fill rings; the other half is on its way."""
    each = frames // (2 * max(queues, 1))
    if each < ENTRIES_AT_LEAST:
        raise ValueError(f"{frames} frames are too few for {queues} queues: at least {2 * ENTRIES_AT_LEAST * queues}")
    return min(1 << (each.bit_length() - 1), ENTRIES_AT_MOST)


def _register(first: socket.socket, memory_fd: int, frames: int) -> None:
    # The kernel pins the pages, so the map itself may go again.
    with map_memory(memory_fd, frames) as memory:
        start = ctypes.c_char.from_buffer(memory)
        registration = struct.pack("<QQIIII", ctypes.addressof(start), frames * FRAME_BYTES, FRAME_BYTES, 0, 0, 0)
        del start
        first.setsockopt(_SOL_XDP, _UMEM_REG, registration)


def _make_control_rings(opened: socket.socket, entries: int) -> None:
    """Fill and completion it has from the socket that is bound to its queue already, by `XDP_SHARED_UMEM`."""
    for option in (_RX_RING, _TX_RING):
        opened.setsockopt(_SOL_XDP, option, entries)


def _make_rings(opened: socket.socket, entries: int) -> None:
    for option, size in ((_FILL_RING, 2 * entries), (_COMPLETION_RING, 2 * entries), (_RX_RING, entries), (_TX_RING, entries)):
        opened.setsockopt(_SOL_XDP, option, size)
    # In copy mode the default of 32 frames a `sendto` is slow, and the default send buffer stalls long before the ring is full.
    with contextlib.suppress(OSError):
        opened.setsockopt(_SOL_XDP, _MAX_TX_SKB_BUDGET, min(entries, 512))
    opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, entries * 2 * FRAME_BYTES)


def _bind(opened: socket.socket, ifindex: int, queue: int, first: int | None, zero_copy: bool) -> None:
    # Flags of a further socket are those of the first, and must not be repeated.
    flags = _SHARED_UMEM if first is not None else _NEED_WAKEUP | (_ZEROCOPY if zero_copy else _COPY)
    address = struct.pack("<HHIII", _AF_XDP, flags, ifindex, queue, first or 0)
    for attempt in range(20):
        if _libc.bind(opened.fileno(), address, len(address)) == 0:
            return
        if ctypes.get_errno() != errno.EBUSY or attempt == 19:
            raise OSError(ctypes.get_errno(), _why_not_bound(ctypes.get_errno(), ifindex, queue))
        time.sleep(0.05)  # the kernel lets go of a closed socket's queue a little later


def _why_not_bound(number: int, ifindex: int, queue: int) -> str:
    reason = {
        errno.EBUSY: "another AF_XDP socket holds it; end the program that does",
        errno.EINVAL: "the device has no such queue",
        errno.ENODEV: "there is no such device in this network namespace",
        errno.ENETDOWN: "the device is down; set it up first",
        errno.EOPNOTSUPP: "the driver has no zero-copy; leave `zero-copy` off",
        errno.EPERM: "AF_XDP sockets need root (CAP_NET_RAW)",
    }.get(number, os.strerror(number))
    return f"cannot bind to queue {queue} of device {ifindex}: {reason}"


def _offsets(opened: socket.socket) -> list[list[int]]:
    raw = struct.unpack("<16Q", opened.getsockopt(_SOL_XDP, _MMAP_OFFSETS, 128))
    return [list(raw[4 * ring : 4 * ring + 4]) for ring in (RX, TX, FILL, COMPLETION, RX, TX)]


def statistics(fd: int) -> dict[str, int]:
    """The kernel's own counters of a socket (struct xdp_statistics), since it was opened."""
    names = ("rx_dropped", "rx_invalid", "tx_invalid", "rx_ring_full", "fill_ring_empty", "tx_ring_empty")
    with socket.socket(_AF_XDP, socket.SOCK_RAW, 0, os.dup(fd)) as borrowed:
        return dict(zip(names, struct.unpack("<6Q", borrowed.getsockopt(_SOL_XDP, _STATISTICS, 48)), strict=True))


def receive_queues(name: str) -> int:
    """How many receive queues the device has now; 1 where its driver does not say."""
    channels = ctypes.create_string_buffer(struct.pack("<9I", _ETHTOOL_GCHANNELS, *([0] * 8)), 36)
    request = struct.pack("<16sQ16x", name.encode(), ctypes.addressof(channels))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError as refused:
            if refused.errno == EOPNOTSUPP:
                return 1
            raise
    told: tuple[int, ...] = struct.unpack("<9I", channels.raw)
    return max(1, told[5] + told[8])  # receive-only and combined channels


def close(fd: int) -> None:
    """Close a descriptor; below 0 there is none."""
    if fd >= 0:
        os.close(fd)


# --- rings ----------------------------------------------------------------------------------------------------------------


def ring_sizes(description: Description) -> list[int]:
    """Entries by ring."""
    data, control = description["entries"], description["control"]
    shared = 2 * data if control else data
    return [data, data, shared, shared, control, control]


def ring_spans(description: Description) -> list[tuple[int, int]]:
    """By ring: where it begins within a queue's part of the region, and its bytes (whole pages; 0 without entries)."""
    spans, at = [], 0
    for ring, entries in enumerate(ring_sizes(description)):
        size = description["offsets"][ring][DESCRIPTORS] + entries * _ENTRY_BYTES[ring] if entries else 0
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        spans.append((at, size))
        at += size
    return spans


def queue_bytes(description: Description) -> int:
    """Bytes of a queue's part of the region."""
    return sum(size for _, size in ring_spans(description))


def map_rings(description: Description, more: int = 0) -> mmap.mmap:
    """The rings of all queues in one region, and `more` bytes. It is unmapped when the last array over it is gone."""
    stride, spans = queue_bytes(description), ring_spans(description)
    region = mmap.mmap(-1, stride * len(description["queues"]) + more)
    base = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for row, queue in enumerate(description["queues"]):
        for ring, (at, size) in enumerate(spans):
            fd = queue["control"] if ring in (CONTROL_RX, CONTROL_TX) else queue["fd"]
            map_at(base + row * stride + at, size, fd, _PAGE_OFFSETS[ring])
    return region


def map_at(place: int, size: int, fd: int, offset: int) -> None:
    """Map over a part of a region that was reserved."""
    _map_over(place, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, fd, offset)


def map_nothing(place: int, size: int) -> None:
    """Zeros instead of what is mapped at a part of a region."""
    _map_over(place, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)


def _map_over(place: int, size: int, flags: int, fd: int, offset: int) -> None:
    if _libc.mmap(place, size, mmap.PROT_READ | mmap.PROT_WRITE, flags | _MAP_FIXED, fd, offset) != place:
        raise OSError(ctypes.get_errno(), f"cannot map the rings behind descriptor {fd}: {os.strerror(ctypes.get_errno())}")
