"""Rings: receive a burst, send a burst, over AF_XDP or memif; a worker may be killed at any moment (see `frames`).

Ring protocol of AF_XDP: the kernel's `Documentation/networking/af_xdp.rst`. A ring has a producer and a consumer cursor (free
running, 32 bits), each written by one side with release and read by the other with acquire. That of memif: `memif`.

A successor (`open_rings`) rebuilds everything. AF_XDP: a position not yet passed by the producer was never given away, and what
lies unread in a receive or completion ring was never taken. memif: the notes have the cursors. Free lists and counts follow
from that; a frame is never in two places and never in none. What the dead worker had in hand is lost, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shards import memif, memif_rings, tap, xsk
from shards.atomics import load_acquire, store_release
from shards.burst import Burst
from shards.calls import poll, recvfrom, sendto
from shards.frames import (
    FREE,
    HAND,
    LOCAL,
    MEMIF,
    QUEUE,
    RECEIVING,
    RESERVE_AT_MOST,
    RING,
    SENDING,
    XDP,
    Rings,
    owner,
    push,
    recycle,
    to_give,
)
from shards.jit import hot
from shards.native import prefetch
from shards.notes import LINK_WORDS, SLOTS, notes_of
from shards.state import Array
from shards.verdict import HAIRPINNED, HELD_BACK, TX_FULL
from shards.xsk import FRAME_SHIFT, HEADROOM

_LOW = 0xFFFFFFFF
_NEED_WAKEUP = 1  # XDP_RING_NEED_WAKEUP
_DONTWAIT = 0x40
_POLLIN = 1


# --- taking over (plain Python, at start) ---------------------------------------------------------------------------------


def open_rings(
    description: xsk.Description, memory: Any, notes: Any, lines: Sequence[memif.Line] = (), also: Sequence[int] = ()
) -> Rings:
    """Take over the sockets and memif ports described, with the memory of their frames, whatever became of the worker before.

    `wait` also wakes for the descriptors in `also`. The worker before must be dead: nothing here excludes two at once.
    """
    rings = rings_over(xsk.map_rings(description, len(lines) * memif.LINE_BYTES), description, memory, notes, lines, also)
    for queue in np.flatnonzero(rings.queues["kind"] == MEMIF).tolist():
        memif_rings.map_connection(rings, queue, lines[queue - len(description["queues"])]["connection"])
    take_over(rings)
    return rings


def rings_over(
    region: Any,
    description: xsk.Description,
    memory: Any,
    notes: Any,
    lines: Sequence[memif.Line] = (),
    also: Sequence[int] = (),
) -> Rings:
    """Arrays over a region of mapped rings: those of the sockets, then room for those of the memif ports."""
    told = notes_of(notes, description["frames"])
    queues = _queues(description, lines)
    ports = np.arange(queues["port"].max() + 1)
    rx, tx, fill, completion, control_rx, control_tx = (_places(description, ring, len(queues)) for ring in range(6))
    fill["level"] = np.where(fill["level"] > 0, description["entries"] + description["control"], 0)
    return Rings(
        frames=xsk.frames_of(memory, description["frames"]),
        owners=told.owners,
        ledger=told.ledger,
        links=told.links,
        slots=told.slots,
        halves=np.frombuffer(region, np.uint16),
        words=np.frombuffer(region, np.uint32),
        longs=np.frombuffer(region, np.int64),
        rx=rx,
        tx=tx,
        fill=fill,
        completion=completion,
        control_rx=control_rx,
        control_tx=control_tx,
        lines=_lines(description, lines, len(queues)),
        queues=queues,
        first=np.array([int(np.argmax(queues["port"] == port)) for port in ports], np.int64),
        width=np.array([int(np.sum(queues["port"] == port)) for port in ports], np.int64),
        pending=np.zeros(len(queues), np.int64),
        free=np.zeros(description["frames"], np.int64),
        local=np.array([(0, 0, min(description["frames"] >> 6, RESERVE_AT_MOST))], LOCAL),
        polled=_polled(queues, lines, also),
        event=np.ones(64, np.int64),
    )


def _queues(description: xsk.Description, lines: Sequence[memif.Line]) -> Array:
    """QUEUE rows: of the sockets, then of the memif ports, whose descriptor is their event's."""
    sockets = [(each["fd"], each["port"], each["queue"], XDP, each["control"]) for each in description["queues"]]
    return np.array([*sockets, *((-1, line["port"], 0, MEMIF, -1) for line in lines)], QUEUE)


def _places(description: xsk.Description, ring: int, queues: int) -> Array:
    """RING rows of one ring of every queue; zeros for those that are not XDP, or have no such ring."""
    stride, (at, _) = xsk.queue_bytes(description), xsk.ring_spans(description)[ring]
    offsets, entries = description["offsets"][ring], xsk.ring_sizes(description)[ring]
    rows = np.zeros(queues, RING)
    for row in range(len(description["queues"]) if entries else 0):
        base = row * stride + at
        rows[row] = (
            (base + offsets[xsk.PRODUCER]) // 4,
            (base + offsets[xsk.CONSUMER]) // 4,
            (base + offsets[xsk.FLAGS]) // 4,
            (base + offsets[xsk.DESCRIPTORS]) // 8,
            entries - 1,
            entries,
        )
    return rows


def _lines(description: xsk.Description, lines: Sequence[memif.Line], queues: int) -> Array:
    """LINE rows; zeros for queues that are not of memif ports."""
    sockets = len(description["queues"])
    first = sockets * xsk.queue_bytes(description)
    rows = np.zeros(queues, memif_rings.LINE)
    for number, line in enumerate(lines):
        row = rows[sockets + number]
        row["out"], row["tap"] = first + number * memif.LINE_BYTES, line["tap"]
        row["link"], row["slots"] = number * LINK_WORDS, number * 2 * SLOTS
        row["bfd"] = line["bfd"]
        row["own"], row["broadcast"], row["own6"] = line["own"], line["broadcast"], line["own6"]
    return rows


def _polled(queues: Array, lines: Sequence[memif.Line], also: Sequence[int]) -> Array:
    """The descriptor of every queue (a memif port has none before it is connected), then control sockets, taps and others."""
    descriptors = [*queues["fd"], *queues["control"], *(line["tap"] for line in lines), *also]
    return np.array([(descriptor, _POLLIN) for descriptor in descriptors], np.int32).reshape(-1, 2)


def take_over(rings: Rings) -> None:
    """Set right who has which frame, count what was lost, and rebuild the free list."""
    filled, sent = rings.words[rings.fill["producer"]], rings.words[rings.tx["producer"]]
    rings.pending[:] = sent
    given = np.concatenate((sent, rings.words[rings.control_tx["producer"]]))  # by queue, then by queue of control
    kinds, queues = rings.owners >> 56, (rings.owners >> 32) & 0xFFFF
    positions = (rings.owners & _LOW).astype(np.uint32)
    of_queue = queues % len(rings.queues)
    of_memif = rings.queues["kind"][of_queue] == MEMIF  # until its notes say otherwise
    offered = (kinds == RECEIVING) & (of_memif | ((positions - filled[of_queue]).view(np.int32) >= 0))
    unsent = (kinds == SENDING) & (of_memif | ((positions - given[queues]).view(np.int32) >= 0))
    ours = (kinds == FREE) | (kinds == HAND) | offered | unsent
    for queue in range(len(rings.queues)):
        if rings.queues[queue]["kind"] == MEMIF:
            ours[memif_rings.take_over(rings, queue)] = False
        else:
            ours[_take_over(rings, queue, filled, sent)] = False
    rings.ledger[0]["lost"] += int(np.sum(ours & ((kinds == HAND) | unsent)))
    rings.ledger[0]["attached"] += 1
    rings.owners[ours] = FREE
    free = np.flatnonzero(ours)
    rings.free[: len(free)] = free
    rings.local[0]["free"] = len(free)


def _take_over(rings: Rings, queue: int, filled: Array, sent: Array) -> Array:
    """Frames that lie unread in the rings of an XDP queue; their words say so from now on."""
    found = []
    for ring, kind, producer, longs in (
        (rings.rx, RECEIVING, filled, 2), (rings.control_rx, RECEIVING, filled, 2), (rings.completion, SENDING, sent, 1),
    ):  # fmt: skip
        found.append(_unread(rings, ring[queue], longs))
        rings.owners[found[-1]] = owner(kind, queue, (int(producer[queue]) - 1) & _LOW)
    return np.concatenate(found)


def _unread(rings: Rings, ring: Any, longs: int) -> Array:
    """Frames in the entries (of 1 or 2 longs) that the kernel has produced and nobody has consumed."""
    if ring["level"] == 0:
        return np.zeros(0, np.int64)
    consumer, waiting = int(rings.words[ring["consumer"]]), ready(rings, ring)
    at = (consumer + np.arange(waiting)) & ring["mask"]
    frames: Array = rings.longs[int(ring["entries"]) + longs * at] >> FRAME_SHIFT
    return frames


# --- cursors --------------------------------------------------------------------------------------------------------------


@hot
def ready(rings: Rings, ring: Any) -> int:
    """Entries of a ring we consume that wait for us."""
    return (load_acquire(rings.words, ring["producer"]) - load_acquire(rings.words, ring["consumer"])) & _LOW


@hot
def room(rings: Rings, ring: Any, producer: int) -> int:
    """Entries that may go into a ring we produce, when our cursor is at `producer`."""
    return int(ring["level"]) - ((producer - load_acquire(rings.words, ring["consumer"])) & _LOW)


# --- receive --------------------------------------------------------------------------------------------------------------


@hot
def receive(rings: Rings, burst: Burst, limit: int) -> int:
    """Take up to `limit` frames from all queues in turn; fills port, at and length of the burst's first rows."""
    count = 0
    queues = len(rings.rx)
    turn = int(rings.local[0]["turn"])
    for step in range(queues):
        queue = (turn + step) % queues
        if rings.queues[queue]["kind"] == MEMIF:
            taken = memif_rings.receive(rings, queue, burst, count, limit)
            count += tap.sort(rings, queue, burst, count, taken)
        else:
            count += _receive(rings, rings.rx[queue], queue, burst, count, limit)
    rings.local[0]["turn"] = (turn + 1) % queues
    return count


@hot
def receive_control(rings: Rings, burst: Burst, limit: int) -> int:
    """Take up to `limit` frames from the control sockets of all queues, as `receive` does from those of data."""
    count = 0
    for queue in range(len(rings.queues)):
        if rings.control_rx[queue]["level"] > 0:
            count += _receive(rings, rings.control_rx[queue], queue, burst, count, limit)
    return count


@hot
def _receive(rings: Rings, ring: Any, queue: int, burst: Burst, row: int, limit: int) -> int:
    taken = min(ready(rings, ring), limit - row)
    if taken == 0:
        return 0
    consumer = load_acquire(rings.words, ring["consumer"])
    for i in range(taken):
        entry = int(ring["entries"]) + 2 * ((consumer + i) & ring["mask"])
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
    row = 0
    while row < count:
        following = _offer_rows(rings, burst, row, count)
        if following == row:
            _send_one(rings, burst, row)
            following += 1
        row = following
    for queue in range(len(rings.queues)):
        if rings.queues[queue]["kind"] == MEMIF:
            memif_rings.publish(rings, queue)
        else:
            store_release(rings.words, rings.tx[queue]["producer"], rings.pending[queue])


@hot
def _offer_rows(rings: Rings, burst: Burst, row: int, count: int) -> int:
    """The row at which consecutive ones for one memif port end; `row` itself where it is not the first of such."""
    queue = rings.first[burst.out_port[row]]
    if rings.queues[queue]["kind"] != MEMIF:
        return row
    return memif_rings.offer_rows(rings, queue, burst, row, count)


@hot
def take(rings: Rings, at: int) -> int:
    """Where a packet may begin in a free frame, now in hand as that at `at` is; 0 where none is free."""
    return _grasp(rings, rings.owners[at >> FRAME_SHIFT])


@hot
def spare(rings: Rings, port: int) -> int:
    """The same for a packet that no frame has brought: in hand as if it had come by a port."""
    return _grasp(rings, owner(HAND, rings.first[port], 0))


@hot
def _grasp(rings: Rings, word: int) -> int:
    """Take a free frame into hand, with this word of whose it is."""
    height = int(rings.local[0]["free"])
    if height == 0:
        return 0
    frame = int(rings.free[height - 1])
    rings.owners[frame] = word
    rings.local[0]["free"] = height - 1
    return (frame << FRAME_SHIFT) + HEADROOM


@hot
def _send_one(rings: Rings, burst: Burst, i: int) -> None:
    if burst.verdict[i] == HELD_BACK:
        return
    if burst.out_length[i] == 0:
        recycle(rings, burst.at[i])
    elif not offer(rings, burst.out_port[i], burst.out_at[i], burst.out_length[i]):
        recycle(rings, burst.at[i])
        burst.out_length[i] = 0
        if burst.verdict[i] <= HAIRPINNED:
            burst.verdict[i] = TX_FULL


@hot
def offer(rings: Rings, port: int, at: int, length: int) -> bool:
    """Write a descriptor behind the producer; `send` moves that for all of them at once. False also for what is no frame's."""
    word = rings.owners[at >> FRAME_SHIFT]
    if word >> 56 != HAND or length > memif_rings.room(at):
        return False
    queue = rings.first[port]
    if rings.queues[queue]["kind"] == MEMIF:
        return memif_rings.offer(rings, queue, at, length)
    queue += rings.queues[(word >> 32) & 0xFFFF]["number"] % rings.width[port]
    ring, producer = rings.tx[queue], rings.pending[queue]
    if room(rings, ring, producer) == 0:
        store_release(rings.words, ring["producer"], producer)
        _drive(rings, queue)
        if room(rings, ring, producer) == 0:
            return False
    entry = int(ring["entries"]) + 2 * (producer & ring["mask"])
    rings.longs[entry] = at
    rings.longs[entry + 1] = length
    rings.owners[at >> FRAME_SHIFT] = owner(SENDING, queue, producer & _LOW)
    rings.pending[queue] = (producer + 1) & _LOW
    return True


# --- flush ----------------------------------------------------------------------------------------------------------------


@hot
def flush(rings: Rings) -> int:
    """Have the kernel send, take back what it has sent, offer it free frames to receive into; frames taken back."""
    back = 0
    for queue in range(len(rings.queues)):
        if rings.queues[queue]["kind"] == MEMIF:
            back += memif_rings.reap(rings, queue)
            memif_rings.refill(rings, queue)
        else:
            back += _drive(rings, queue)
            _refill(rings, queue)
            _drive_control(rings, queue)
    return back


# --- what this core itself has to say -------------------------------------------------------------------------------------


@hot
def spare_frame(rings: Rings, port: int) -> int:
    """A frame in hand to be given to `send_control` for this port, or -1 while there is none, or no room for it."""
    queue = rings.first[port]
    height = int(rings.local[0]["free"])
    if height == 0:
        return -1
    if rings.queues[queue]["kind"] == XDP:
        ring = rings.control_tx[queue]
        if ring["level"] == 0 or room(rings, ring, load_acquire(rings.words, ring["producer"])) <= 0:
            return -1
    frame = int(rings.free[height - 1])
    rings.owners[frame] = owner(HAND, queue, 0)
    rings.local[0]["free"] = height - 1
    return frame


@hot
def send_control(rings: Rings, port: int, at: int, length: int) -> bool:
    """Send a spare frame, by an XDP port before all data that waits. False where a memif port has no room for it, or nobody."""
    queue = rings.first[port]
    if rings.queues[queue]["kind"] == MEMIF:
        taken = memif_rings.offer(rings, queue, at, length)
        if not taken:
            push(rings, at >> FRAME_SHIFT)
        memif_rings.publish(rings, queue)
        return bool(taken)
    ring = rings.control_tx[queue]
    producer = load_acquire(rings.words, ring["producer"])
    entry = int(ring["entries"]) + 2 * (producer & ring["mask"])
    rings.longs[entry] = at
    rings.longs[entry + 1] = length
    rings.owners[at >> FRAME_SHIFT] = owner(SENDING, len(rings.queues) + queue, producer)
    store_release(rings.words, ring["producer"], (producer + 1) & _LOW)
    _drive_control(rings, queue)
    return True


@hot
def _drive_control(rings: Rings, queue: int) -> None:
    """Ask for sending once: what cannot leave now is asked for again with the next burst."""
    ring = rings.control_tx[queue]
    if ring["level"] > 0 and ready(rings, ring) > 0:
        sendto(rings.queues[queue]["control"], 0, 0, _DONTWAIT, 0, 0)


@hot
def listen(rings: Rings) -> int:
    """Send what the kernel has to send by memif ports; how many frames. To be called between breaths, now and then."""
    told = 0
    for queue in range(len(rings.queues)):
        if rings.queues[queue]["kind"] == MEMIF:
            told += tap.listen(rings, queue)
    return told


@hot
def _drive(rings: Rings, queue: int) -> int:
    """Ask for sending as long as it gets on, and reap: a full completion ring would stop it. Frames taken back."""
    ring = rings.tx[queue]
    waiting = int(ring["level"]) + 1
    back = _reap(rings, queue)
    while True:
        left = ready(rings, ring)
        if left == 0 or left == waiting or not load_acquire(rings.words, ring["flags"]) & _NEED_WAKEUP:
            return back
        waiting = left
        sendto(rings.queues[queue]["fd"], 0, 0, _DONTWAIT, 0, 0)
        back += _reap(rings, queue)


@hot
def _reap(rings: Rings, queue: int) -> int:
    ring = rings.completion[queue]
    done = ready(rings, ring)
    if done == 0:
        return 0
    consumer = load_acquire(rings.words, ring["consumer"])
    for i in range(done):
        push(rings, rings.longs[int(ring["entries"]) + ((consumer + i) & ring["mask"])] >> FRAME_SHIFT)
    store_release(rings.words, ring["consumer"], consumer + done)
    return done


@hot
def _refill(rings: Rings, queue: int) -> None:
    ring = rings.fill[queue]
    producer = load_acquire(rings.words, ring["producer"])
    height = int(rings.local[0]["free"])
    offered = min(room(rings, ring, producer), to_give(rings))
    if offered <= 0:
        return
    for i in range(offered):
        frame = rings.free[height - 1 - i]
        rings.longs[int(ring["entries"]) + ((producer + i) & ring["mask"])] = frame << FRAME_SHIFT
        rings.owners[frame] = owner(RECEIVING, queue, (producer + i) & _LOW)
    rings.local[0]["free"] = height - offered
    store_release(rings.words, ring["producer"], producer + offered)
    if load_acquire(rings.words, ring["flags"]) & _NEED_WAKEUP:  # a zero-copy driver that ran dry
        recvfrom(rings.queues[queue]["fd"], 0, 0, _DONTWAIT, 0, 0)


@hot
def wait(rings: Rings, timeout: int) -> bool:
    """Sleep until a frame, or something on the other descriptors, arrives; at most `timeout` ms. Whether anything did.

    The first look at the descriptors is there because a memif server may have put a frame in and seen no wish to be woken yet;
    a system call later neither side's stores are on their way any more, so only the look at its rings after that one counts.
    """
    _want_events(rings, True)
    told = poll(rings.polled.ctypes.data, len(rings.polled), 0)
    if told == 0 and _want_events(rings, True) and timeout:
        told = poll(rings.polled.ctypes.data, len(rings.polled), timeout)
    return not _want_events(rings, False) or told > 0


@hot
def _want_events(rings: Rings, wanted: bool) -> bool:
    """Ask memif servers to wake us, or no more; whether none of them has filled a buffer."""
    empty = True
    for queue in range(len(rings.queues)):
        if rings.queues[queue]["kind"] == MEMIF:
            memif_rings.want_events(rings, queue, wanted)
    for queue in range(len(rings.queues)):
        if rings.queues[queue]["kind"] == MEMIF and memif_rings.filled(rings, queue):
            empty = False
    return empty
