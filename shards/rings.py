"""Rings: receive a burst, send a burst, over AF_XDP; and whose each frame is, so that a worker may be killed at any moment.

Ring protocol: the kernel's `Documentation/networking/af_xdp.rst`. A ring has a producer and a consumer cursor (free running,
32 bits), each written by one side with release and read by the other with acquire.

Who has a frame is one word of shared memory, always written **before** the cursor that makes it true:

    FREE        on the free list                    HAND      with the worker; remembers the queue it came by
    RECEIVING   given to the kernel for receiving   SENDING   given to the kernel for sending; both remember ring and position

So a successor needs neither luck nor a log (`open_rings`): a position not yet passed by the producer was never given away, and
what lies unread in a receive or completion ring was never taken. Free lists and counts are rebuilt from that; a frame is never
in two places and never in none. What the dead worker had in hand is lost, and counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from shards import xsk
from shards.atomics import load_acquire, store_release
from shards.burst import Burst
from shards.jit import PURE, hot
from shards.native import prefetch
from shards.state import Array
from shards.verdict import HAIRPINNED, HELD_BACK, TX_FULL
from shards.xsk import FRAME_SHIFT

FREE, HAND, RECEIVING, SENDING = range(4)

_LOW = 0xFFFFFFFF
_NEED_WAKEUP = 1  # XDP_RING_NEED_WAKEUP
_DONTWAIT = 0x40
_POLLIN = 1

# Where a ring's parts are: cursors and flags in 32-bit words of the region, entries in its 64-bit ones.
RING = np.dtype([("producer", "i8"), ("consumer", "i8"), ("flags", "i8"), ("entries", "i8")])
QUEUE = np.dtype([("fd", "i8"), ("port", "i8"), ("number", "i8")])
LOCAL = np.dtype([("free", "i8"), ("turn", "i8")])

_Call = Callable[[int, int, int, int, int, int], int]
_sendto: _Call
_recvfrom: _Call
_poll: Callable[[int, int, int], int]

if PURE:
    _libc = ctypes.CDLL(None)
    for _call in (_libc.sendto, _libc.recvfrom):
        _call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    _libc.poll.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int]
    _sendto, _recvfrom, _poll = _libc.sendto, _libc.recvfrom, _libc.poll
else:
    from numba import types

    _six = types.int64(types.int32, types.uintp, types.uintp, types.int32, types.uintp, types.uintp)
    _sendto = cast(_Call, types.ExternalFunction("sendto", _six))
    _recvfrom = cast(_Call, types.ExternalFunction("recvfrom", _six))
    _poll = cast(
        Callable[[int, int, int], int], types.ExternalFunction("poll", types.int32(types.uintp, types.uintp, types.int32))
    )


class Rings(NamedTuple):
    """Everything the loop needs of its ports. A *queue* below is a row: one queue of one port."""

    frames: Array  # uint8: the umem
    owners: Array  # int64, by frame: kind << 56 | queue << 32 | position
    ledger: Array  # LEDGER (1,)
    words: Array  # uint32: the region of all rings
    longs: Array  # int64: the same
    rx: Array  # RING, by queue
    tx: Array
    fill: Array
    completion: Array
    queues: Array  # QUEUE
    first: Array  # int64, by port: its first queue
    width: Array  # int64, by port: how many it has
    pending: Array  # int64, by queue: transmit producer, ahead of the one the kernel sees
    free: Array  # int64: stack of free frames
    local: Array  # LOCAL (1,): height of the stack; the queue whose turn it is
    polled: Array  # int32 (n, 2): struct pollfd
    mask: int  # entries of every ring - 1


if not PURE:
    from shards import passing

    passing.by_reference(Rings)


# --- taking over (plain Python, at start) ---------------------------------------------------------------------------------


def open_rings(description: xsk.Description, memory: Any, also: Sequence[int] = ()) -> Rings:
    """Take over the sockets of `description` with the memory of their frames, whatever became of the worker before.

    `wait` also wakes for the descriptors in `also`. The worker before must be dead: nothing here excludes two at once.
    """
    rings = rings_over(xsk.map_rings(description), description, memory, also)
    take_over(rings)
    return rings


def rings_over(region: Any, description: xsk.Description, memory: Any, also: Sequence[int] = ()) -> Rings:
    """Arrays over a region of mapped rings."""
    frames, owners, ledger = xsk.frames_of(memory, description["frames"])
    queues = np.array([(each["fd"], each["port"], each["queue"]) for each in description["queues"]], QUEUE)
    ports = np.arange(queues["port"].max() + 1)
    polled = np.zeros((len(queues) + len(also), 2), np.int32)
    polled[:, 0] = [*queues["fd"], *also]
    polled[:, 1] = _POLLIN
    rx, tx, fill, completion = (_places(description, ring) for ring in (xsk.RX, xsk.TX, xsk.FILL, xsk.COMPLETION))
    return Rings(
        frames=frames,
        owners=owners,
        ledger=ledger,
        words=np.frombuffer(region, np.uint32),
        longs=np.frombuffer(region, np.int64),
        rx=rx,
        tx=tx,
        fill=fill,
        completion=completion,
        queues=queues,
        first=np.array([int(np.argmax(queues["port"] == port)) for port in ports], np.int64),
        width=np.array([int(np.sum(queues["port"] == port)) for port in ports], np.int64),
        pending=np.zeros(len(queues), np.int64),
        free=np.zeros(description["frames"], np.int64),
        local=np.zeros(1, LOCAL),
        polled=polled,
        mask=description["entries"] - 1,
    )


def _places(description: xsk.Description, ring: int) -> Array:
    """RING rows of one ring of every queue."""
    stride, (at, _) = xsk.queue_bytes(description), xsk.ring_spans(description)[ring]
    offsets = description["offsets"][ring]
    rows = np.zeros(len(description["queues"]), RING)
    for row in range(len(rows)):
        base = row * stride + at
        rows[row] = (
            (base + offsets[xsk.PRODUCER]) // 4,
            (base + offsets[xsk.CONSUMER]) // 4,
            (base + offsets[xsk.FLAGS]) // 4,
            (base + offsets[xsk.DESCRIPTORS]) // 8,
        )
    return rows


def take_over(rings: Rings) -> None:
    """Set right who has which frame, count what was lost, and rebuild the free list."""
    filled, sent = rings.words[rings.fill["producer"]], rings.words[rings.tx["producer"]]
    rings.pending[:] = sent
    kinds, queues = rings.owners >> 56, (rings.owners >> 32) & 0xFFFF
    positions = (rings.owners & _LOW).astype(np.uint32)
    offered = (kinds == RECEIVING) & ((positions - filled[queues]).view(np.int32) >= 0)
    unsent = (kinds == SENDING) & ((positions - sent[queues]).view(np.int32) >= 0)
    ours = (kinds == FREE) | (kinds == HAND) | offered | unsent
    for queue in range(len(rings.queues)):
        for ring, kind, producer in ((rings.rx, RECEIVING, filled), (rings.completion, SENDING, sent)):
            unread = _unread(rings, ring[queue], 2 if kind == RECEIVING else 1)
            rings.owners[unread] = owner(kind, queue, (int(producer[queue]) - 1) & _LOW)
            ours[unread] = False
    rings.ledger[0]["lost"] += int(np.sum(ours & ((kinds == HAND) | unsent)))
    rings.ledger[0]["attached"] += 1
    rings.owners[ours] = FREE
    free = np.flatnonzero(ours)
    rings.free[: len(free)] = free
    rings.local[0]["free"] = len(free)


def _unread(rings: Rings, ring: Any, longs: int) -> Array:
    """Frames in the entries (of 1 or 2 longs) that the kernel has produced and nobody has consumed."""
    consumer, waiting = int(rings.words[ring["consumer"]]), ready(rings, ring)
    at = (consumer + np.arange(waiting)) & rings.mask
    frames: Array = rings.longs[int(ring["entries"]) + longs * at] >> FRAME_SHIFT
    return frames


def census(rings: Rings) -> dict[str, int]:
    """How many frames are whose; they add up to all there are."""
    counted = np.bincount(rings.owners >> 56, minlength=4)
    return dict(zip(("free", "hand", "receiving", "sending"), counted.tolist(), strict=True))


# --- cursors --------------------------------------------------------------------------------------------------------------


@hot
def owner(kind: int, queue: int, position: int) -> int:
    """The word that says who has a frame."""
    return (kind << 56) | (queue << 32) | position


@hot
def ready(rings: Rings, ring: Any) -> int:
    """Entries of a ring we consume that wait for us."""
    return (load_acquire(rings.words, ring["producer"]) - load_acquire(rings.words, ring["consumer"])) & _LOW


@hot
def room(rings: Rings, ring: Any, producer: int) -> int:
    """Entries that fit into a ring we produce, when our cursor is at `producer`."""
    return rings.mask + 1 - ((producer - load_acquire(rings.words, ring["consumer"])) & _LOW)


# --- receive --------------------------------------------------------------------------------------------------------------


@hot
def receive(rings: Rings, burst: Burst, limit: int) -> int:
    """Take up to `limit` frames from all queues in turn; fills port, at and length of the burst's first rows."""
    count = 0
    queues = len(rings.rx)
    turn = int(rings.local[0]["turn"])
    for step in range(queues):
        count += _receive(rings, (turn + step) % queues, burst, count, limit)
    rings.local[0]["turn"] = (turn + 1) % queues
    return count


@hot
def _receive(rings: Rings, queue: int, burst: Burst, row: int, limit: int) -> int:
    ring = rings.rx[queue]
    taken = min(ready(rings, ring), limit - row)
    if taken == 0:
        return 0
    consumer = load_acquire(rings.words, ring["consumer"])
    for i in range(taken):
        entry = int(ring["entries"]) + 2 * ((consumer + i) & rings.mask)
        at = rings.longs[entry]
        prefetch(rings.frames, at)
        burst.port[row + i] = rings.queues[queue]["port"]
        burst.at[row + i] = at
        burst.length[row + i] = rings.longs[entry + 1] & _LOW
        rings.owners[at >> FRAME_SHIFT] = owner(HAND, queue, 0)
    store_release(rings.words, ring["consumer"], consumer + taken)
    return taken


# --- send -----------------------------------------------------------------------------------------------------------------


@hot
def send(rings: Rings, burst: Burst, count: int) -> None:
    """Put rows with an `out_length` on the transmit ring of their `out_port`, free all others but those held back.

    Where the ring is full even after the kernel was told, the frame is freed, `out_length` becomes 0, and a packet that was to
    be forwarded gets the verdict TX_FULL; one that was dropped keeps its verdict and its sender stays untold.
    """
    for i in range(count):
        if burst.verdict[i] == HELD_BACK:
            continue
        if burst.out_length[i] == 0:
            recycle(rings, burst.at[i])
        elif not _offer(rings, burst.out_port[i], burst.out_at[i], burst.out_length[i]):
            recycle(rings, burst.at[i])
            burst.out_length[i] = 0
            if burst.verdict[i] <= HAIRPINNED:
                burst.verdict[i] = TX_FULL
    for queue in range(len(rings.queues)):
        store_release(rings.words, rings.tx[queue]["producer"], rings.pending[queue])


@hot
def _offer(rings: Rings, port: int, at: int, length: int) -> bool:
    """Write a descriptor behind the producer; `send` moves that for all of them at once."""
    word = rings.owners[at >> FRAME_SHIFT]
    if word >> 56 != HAND:
        return False
    queue = rings.first[port] + rings.queues[(word >> 32) & 0xFFFF]["number"] % rings.width[port]
    ring, producer = rings.tx[queue], rings.pending[queue]
    if room(rings, ring, producer) == 0:
        store_release(rings.words, ring["producer"], producer)
        _drive(rings, queue)
        if room(rings, ring, producer) == 0:
            return False
    entry = int(ring["entries"]) + 2 * (producer & rings.mask)
    rings.longs[entry] = at
    rings.longs[entry + 1] = length
    rings.owners[at >> FRAME_SHIFT] = owner(SENDING, queue, producer & _LOW)
    rings.pending[queue] = (producer + 1) & _LOW
    return True


@hot
def recycle(rings: Rings, at: int) -> None:
    """Free a frame that is in hand, by any offset inside it. One that is not is left alone, and counted as refused."""
    frame = at >> FRAME_SHIFT
    if rings.owners[frame] >> 56 == HAND:
        _push(rings, frame)
    else:
        rings.ledger[0]["refused"] += 1


@hot
def _push(rings: Rings, frame: int) -> None:
    height = rings.local[0]["free"]
    rings.owners[frame] = FREE
    rings.free[height] = frame
    rings.local[0]["free"] = height + 1


# --- flush ----------------------------------------------------------------------------------------------------------------


@hot
def flush(rings: Rings) -> int:
    """Have the kernel send, take back what it has sent, offer it free frames to receive into; frames taken back."""
    back = 0
    for queue in range(len(rings.queues)):
        back += _drive(rings, queue)
        _refill(rings, queue)
    return back


@hot
def _drive(rings: Rings, queue: int) -> int:
    """Ask for sending as long as it gets on, and reap: a full completion ring would stop it. Frames taken back."""
    ring = rings.tx[queue]
    waiting = rings.mask + 2
    back = _reap(rings, queue)
    while True:
        left = rings.mask + 1 - room(rings, ring, load_acquire(rings.words, ring["producer"]))
        if left == 0 or left == waiting or not load_acquire(rings.words, ring["flags"]) & _NEED_WAKEUP:
            return back
        waiting = left
        _sendto(rings.queues[queue]["fd"], 0, 0, _DONTWAIT, 0, 0)
        back += _reap(rings, queue)


@hot
def _reap(rings: Rings, queue: int) -> int:
    ring = rings.completion[queue]
    done = ready(rings, ring)
    if done == 0:
        return 0
    consumer = load_acquire(rings.words, ring["consumer"])
    for i in range(done):
        _push(rings, rings.longs[int(ring["entries"]) + ((consumer + i) & rings.mask)] >> FRAME_SHIFT)
    store_release(rings.words, ring["consumer"], consumer + done)
    return done


@hot
def _refill(rings: Rings, queue: int) -> None:
    ring = rings.fill[queue]
    producer = load_acquire(rings.words, ring["producer"])
    height = int(rings.local[0]["free"])
    offered = min(room(rings, ring, producer), height)
    if offered == 0:
        return
    for i in range(offered):
        frame = rings.free[height - 1 - i]
        rings.longs[int(ring["entries"]) + ((producer + i) & rings.mask)] = frame << FRAME_SHIFT
        rings.owners[frame] = owner(RECEIVING, queue, (producer + i) & _LOW)
    rings.local[0]["free"] = height - offered
    store_release(rings.words, ring["producer"], producer + offered)
    if load_acquire(rings.words, ring["flags"]) & _NEED_WAKEUP:  # a zero-copy driver that ran dry
        _recvfrom(rings.queues[queue]["fd"], 0, 0, _DONTWAIT, 0, 0)


@hot
def wait(rings: Rings, timeout: int) -> bool:
    """Sleep until a frame, or something on the other descriptors, arrives; at most `timeout` ms. Whether anything did."""
    return _poll(rings.polled.ctypes.data, len(rings.polled), timeout) > 0
