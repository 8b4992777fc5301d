"""Proof, before a port takes traffic, that each queue's socket really receives what comes in by that queue.

A socket of another queue or device in the slot drops everything without a word, so it is not enough that all calls succeeded.
The kernel runs the steering program on a frame of ours as if that queue had received it (BPF_PROG_TEST_RUN with live frames,
kernel 5.18; the program need not be attached yet), and the frame must come out of exactly that socket.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards import bpf, xsk
from shards.steering import Steering

# To 240.0.0.1, which is nobody's: neither the kernel's business nor anybody's traffic. The experimental protocol 253 (RFC 3692).
_HEADER = bytes.fromhex("02000000000102000000000208004500002e00000000 40fd0000 f0000002 f0000001")


def prove(memory_fd: int, sockets: xsk.Sockets, ifindexes: Sequence[int], steerings: Sequence[Steering]) -> None:
    """Inject one frame for each queue and find it in that queue's receive ring; all rings are left empty.

    `ifindexes` and `steerings` are by port. To be called before `attach`, before any worker, in the devices' namespace.
    Raises RuntimeError that names the first queue whose frame got lost.
    """
    description = sockets.description
    region = xsk.map_rings(description)
    words, longs = np.frombuffer(region, np.uint32), np.frombuffer(region, np.uint64)
    with xsk.map_memory(memory_fd, description["frames"]) as memory:
        for row, queue in enumerate(description["queues"]):
            frame = (_HEADER + f"krononat {row}".encode()).ljust(60, b"\0")
            _offer_frame(description, row, words, longs)
            port = queue["port"]
            bpf.inject(steerings[port].program, frame, ifindexes[port], queue["queue"])
            if _take_frame(description, row, words, longs, memory) != frame:
                raise RuntimeError(
                    f"queue {queue['queue']} of device {ifindexes[port]} does not receive: the socket in its slot is bound "
                    "elsewhere, or the driver delivers nothing to AF_XDP; try xdp-mode generic"
                )
    for steering in steerings:
        steering.reset()


def _place(description: xsk.Description, row: int, ring: int, part: int) -> int:
    return row * xsk.queue_bytes(description) + xsk.ring_spans(description)[ring][0] + description["offsets"][ring][part]


def _offer_frame(description: xsk.Description, row: int, words: xsk.Array, longs: xsk.Array) -> None:
    longs[_place(description, row, xsk.FILL, xsk.DESCRIPTORS) // 8] = row << xsk.FRAME_SHIFT
    words[_place(description, row, xsk.FILL, xsk.PRODUCER) // 4] = 1


def _take_frame(
    description: xsk.Description, row: int, words: xsk.Array, longs: xsk.Array, memory: xsk.mmap.mmap
) -> bytes | None:
    produced = int(words[_place(description, row, xsk.RX, xsk.PRODUCER) // 4])
    if produced != 1:
        return None
    entry = _place(description, row, xsk.RX, xsk.DESCRIPTORS) // 8
    at, length = int(longs[entry]), int(longs[entry + 1]) & 0xFFFF_FFFF
    words[_place(description, row, xsk.RX, xsk.CONSUMER) // 4] = produced
    return memory[at : at + length]
