"""Proof, before a port takes traffic, that each queue's sockets really receive what comes in by that queue.

A socket of another queue or device in the slot drops everything without a word, so it is not enough that every call succeeded.
The obvious way, BPF_PROG_TEST_RUN with live frames, proves queue 0 only: those frames claim queue 0 whatever the context says.
So frames are received for real: a probe with the port's own socket map is attached for a moment in generic mode, and a
classifier that we run by hand clones a frame into the device's receive path, as received by a queue of our choice. The frame
has an EtherType for experiments, which the probe alone looks at; other traffic is not touched. It must come out of exactly
the socket of that queue. The same is done with the map of the control sockets.

Left out on purpose: the driver's own delivery into native XDP, for which a peer would have to send; `status` shows it at work.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

import numpy as np

from shards import bpf, xsk
from shards.bpf import I16, I32, I64, POINTER
from shards.outcomes import SHUNT_PORT
from shards.state import Array
from shards.steering import Steering, to_socket

_ETHERTYPE = bytes.fromhex("88b5")  # IEEE 802: local experimental
# To 240.0.0.1, which is nobody's: what the steering program must redirect.
_FOR_US = bytes.fromhex("020000000001 020000000002 0800 45000014 00000000 40fd0000 f0000002 f0000001")
_CONTEXT_MAPPING = 12  # of struct __sk_buff: receive queue + 1
_INGRESS = 1  # BPF_F_INGRESS
_PATIENCE_S = 1.0


def prove(memory_fd: int, sockets: xsk.Sockets, ifindexes: Sequence[int], steerings: Sequence[Steering | None]) -> None:
    """Let a frame in by each queue and find it in that queue's receive ring, of data and of control; all rings are left empty,
    all counters 0.

    `ifindexes` and `steerings` are by port, None for one without sockets. To be called before `attach`, before any worker, in
    the devices' namespace.
    Raises RuntimeError that names the first queue that does not receive, OSError if a program cannot be loaded or attached.
    """
    ring = _Ring(memory_fd, sockets.description)
    for port, (ifindex, steering) in enumerate(zip(ifindexes, steerings, strict=True)):
        if steering is None:
            continue
        rows = [(row, queue["queue"]) for row, queue in enumerate(sockets.description["queues"]) if queue["port"] == port]
        _prove_all(ring, steering, steering.sockets, xsk.RX, _FOR_US, ifindex, rows)
        if steering.own:
            _prove_all(ring, steering, steering.controls, xsk.CONTROL_RX, _control(steering.own), ifindex, rows)
        steering.reset()


def _prove_all(
    ring: _Ring, steering: Steering, sockets: int, kind: int, ours: bytes, ifindex: int, rows: list[tuple[int, int]]
) -> None:
    """For the map `sockets`, and frames like `ours`, which must come out of the rings of this kind."""
    program = bpf.load_program(_probe(sockets), "krn_probe")
    link = bpf.attach(program, ifindex, bpf.GENERIC)
    try:
        for row, queue in rows:
            _prove(ring, row, kind, steering, ours, ifindex, queue)
    finally:
        xsk.close(link)
        xsk.close(program)


def _prove(ring: _Ring, row: int, kind: int, steering: Steering, ours: bytes, ifindex: int, queue: int) -> None:
    what = "" if kind == xsk.RX else " control traffic"
    told = f"queue {queue} of device {ifindex} does not receive{what}"
    context = struct.pack("<6I", 0, len(ours), 0, ifindex, queue, 0)
    if bpf.run(steering.program, ours, context) != bpf.XDP_REDIRECT:
        raise RuntimeError(f"{told}: the steering program finds no socket in its slot; has `place` been called for it?")
    frame = (bytes(12) + _ETHERTYPE + f"krononat {kind} {row}".encode()).ljust(60, b"\0")
    ring.offer(row)
    injector = bpf.load_program(_injector(ifindex, queue), "krn_injector", bpf.CLASSIFIER)
    bpf.run(injector, frame)
    xsk.close(injector)
    if ring.take(row, kind) != frame:
        raise RuntimeError(f"{told}: the socket in its slot is bound to another queue or device")


def _control(own: str) -> bytes:
    """A frame to the core's own address that is control: what another core shunts begins like this."""
    packet = bytes.fromhex("4500001c 00000000 40110000 f0000002") + socket.inet_aton(own)
    return _FOR_US[:14] + packet + struct.pack(">HHHH", SHUNT_PORT, SHUNT_PORT, 8, 0)


def _probe(sockets: int) -> bpf.Source:
    """XDP: frames of our EtherType to the socket of their queue, all others on their way."""
    source = bpf.Source()
    build = source.build
    data, end = (build.inttoptr(build.zext(build.load(source.context(at)), I64), POINTER) for at in (0, 4))
    long_enough, ours, other = (source.block() for _ in range(3))
    build.cbranch(build.icmp_unsigned("<=", build.gep(data, [I64(14)]), end), long_enough, other)
    build.position_at_end(long_enough)
    ethertype = build.load(build.bitcast(build.gep(data, [I64(12)]), I16.as_pointer()))
    build.cbranch(build.icmp_unsigned("==", ethertype, I16(int.from_bytes(_ETHERTYPE, "little"))), ours, other)
    build.position_at_end(ours)
    build.ret(build.trunc(to_socket(source, sockets, bpf.XDP_DROP), I32))
    build.position_at_end(other)
    build.ret(I32(bpf.XDP_PASS))
    return source


def _injector(ifindex: int, queue: int) -> bpf.Source:
    """Classifier: a clone of the frame is received by this queue of the device."""
    source = bpf.Source()
    source.build.store(I32(queue + 1), source.context(_CONTEXT_MAPPING))
    source.call(bpf.CLONE_REDIRECT, [POINTER, I64, I64], [source.function.args[0], I64(ifindex), I64(_INGRESS)])
    source.build.ret(I32(0))
    return source


class _Ring:
    """The receiving side of each queue, as far as one frame at a time needs it. Frame number = row of the queue."""

    def __init__(self, memory_fd: int, description: xsk.Description) -> None:
        region = xsk.map_rings(description)
        self.words: Array = np.frombuffer(region, np.uint32)
        self.longs: Array = np.frombuffer(region, np.uint64)
        self.description = description
        self.memory = xsk.map_memory(memory_fd, description["frames"])

    def _place(self, row: int, ring: int, part: int) -> int:
        base = row * xsk.queue_bytes(self.description) + xsk.ring_spans(self.description)[ring][0]
        return base + self.description["offsets"][ring][part]

    def offer(self, row: int) -> None:
        """Give the kernel one frame to receive into."""
        producer = self._place(row, xsk.FILL, xsk.PRODUCER) // 4
        slot = int(self.words[producer]) % xsk.ring_sizes(self.description)[xsk.FILL]
        self.longs[self._place(row, xsk.FILL, xsk.DESCRIPTORS) // 8 + slot] = row << xsk.FRAME_SHIFT
        self.words[producer] += 1

    def take(self, row: int, kind: int) -> bytes | None:
        """The frame that was received by a ring of this kind; None if there is none in good time."""
        producer, consumer = (self._place(row, kind, part) // 4 for part in (xsk.PRODUCER, xsk.CONSUMER))
        latest = time.monotonic() + _PATIENCE_S
        while self.words[producer] == self.words[consumer]:
            if time.monotonic() > latest:
                return None
            time.sleep(0.001)
        entries = xsk.ring_sizes(self.description)[kind]
        entry = self._place(row, kind, xsk.DESCRIPTORS) // 8 + 2 * (int(self.words[consumer]) % entries)
        at, length = self.longs[entry : entry + 2].tolist()
        self.words[consumer] += 1
        return self.memory[at : at + (length & 0xFFFF_FFFF)]
