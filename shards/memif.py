"""memif: rings in shared memory between two processes, as VPP and DPDK have them. Layout: FD.io VPP, `memif.h`, version 2.0.

A ring is a header of two cache lines and its descriptors of 16 bytes; cursors are free running and 16 bits wide.

    byte 0 cookie u32 | 4 flags u16 | 6 head u16 | ... | 64 tail u16 | ... | 128 descriptors
    descriptor: 0 flags u16 | 2 region u16 | 4 length u32 | 8 offset u32 | 12 metadata u32

The client (we) owns all memory. It advances the head of both rings, the server their tails. Towards the server (c2s) head says
what was sent, tail what was taken; from it (s2c) head says which buffers were given, tail which of them were filled.

**The other side is not trusted.** What it can write (rings, frames) is never believed: our own cursors and which frame is at
which entry are kept in the notes (`frames`), which it has not mapped. A tail beyond what was given breaks the link; of a
descriptor only flags and length are read, and a bad one is a runt. It can still write into any frame at any time, so it can
spoil packets, not the worker. A successor of a killed worker finds in the notes what is on its way: positions FILLED to GIVEN
and TAKEN to SENT. Each of these cursors is written after what it makes true, and before what the other side sees of it.
"""

from __future__ import annotations

import mmap
from typing import Any, TypedDict

import numpy as np

from shards import xsk
from shards.atomics import load_acquire, store_release
from shards.burst import Burst
from shards.calls import read, write
from shards.frames import HAND, RECEIVING, SENDING, SLOTS, Rings, owner, push
from shards.jit import hot
from shards.native import prefetch
from shards.state import Array
from shards.xsk import FRAME_BYTES, FRAME_SHIFT

COOKIE = 0x3E31F20
RING_HEADER_BYTES, DESCRIPTOR_BYTES = 128, 16
MASK_INTERRUPT = 1  # of a ring's flags: whoever reads it polls, and wants no event
NEXT = 1  # of a descriptor's flags: the packet goes on in the next one
LOG2_ENTRIES_AT_MOST = 14
FRAMES_REGION = 1  # index of the region that packets lie in; 0 has the rings

assert SLOTS == 1 << LOG2_ENTRIES_AT_MOST

_FLAGS, _HEAD, _TAIL = 2, 3, 32  # in 16-bit words of a ring
_ENTRIES = RING_HEADER_BYTES // 8  # in its 64-bit ones

# Frames lie 4 KiB apart, and were they all to begin at the same offset, they would share one set of each cache: they begin at
# one of eight (6 % more packets/s). Before them is room for headers to grow.
_HEADROOM, _COLOURS = 64, 7
BUFFER_BYTES = FRAME_BYTES - _HEADROOM - 64 * _COLOURS

# A port's words in `rings.links`: its cursors (64 bits, never wrapping), which connection they belong to (0: none), whether
# its other side broke the rules, bad descriptors, frames from the kernel; then counts by `outcomes`.
CONNECTION, GIVEN, FILLED, SENT, TAKEN, BROKEN, REFUSED, FROM_KERNEL, OUTCOME = range(9)

# Where a queue's parts are. Of the rings to and from the server: place in the region, in bytes. Of the notes: first word of
# `links`, first of `slots`. Descriptors of events and tap. What is for the kernel: own and broadcast addresses, -1 none.
LINE = np.dtype(
    [(name, "i8") for name in ("up", "connection", "mask", "chained", "out", "back", "link", "slots")]
    + [(name, "i8") for name in ("out_event", "back_event", "tap")]
    + [("own", "i8", (2,)), ("broadcast", "i8", (2,))]
)


class Connection(TypedDict):
    """Rings that a server has mapped: a number that no other one has, descriptors of their region and their events."""

    number: int
    region: int
    out_event: int
    back_event: int
    log2_entries: int


class Line(TypedDict):
    """A memif port: its number, the descriptor of its tap, two own and two broadcast addresses (-1: none), who is there."""

    port: int
    tap: int
    own: list[int]
    broadcast: list[int]
    connection: Connection | None


_REFILL_AT_LEAST = 32  # buffers given at once: fewer would send the same line of the ring to and fro between two processors


def ring_bytes(log2_entries: int) -> int:
    """Bytes of a ring."""
    return RING_HEADER_BYTES + (DESCRIPTOR_BYTES << log2_entries)


LINE_BYTES = -(-2 * ring_bytes(LOG2_ENTRIES_AT_MOST) // mmap.PAGESIZE) * mmap.PAGESIZE  # room for a port's two rings


@hot
def start(frame: int) -> int:
    """Where in a frame a packet begins."""
    return (frame << FRAME_SHIFT) + _HEADROOM + 64 * (frame & _COLOURS)


# --- from the server ------------------------------------------------------------------------------------------------------


@hot
def filled(rings: Rings, queue: int) -> int:
    """Buffers that were filled and wait for us. A cursor that cannot be breaks the link: it is used no more."""
    line = rings.lines[queue]
    if line["up"] == 0:
        return 0
    link = line["link"]
    consumed: int = rings.links[link + FILLED]
    waiting = (load_acquire(rings.halves, line["back"] // 2 + _TAIL) - consumed) & 0xFFFF
    if waiting > rings.links[link + GIVEN] - consumed:
        rings.links[link + BROKEN] = 1
        line["up"] = 0
        return 0
    return waiting


@hot
def receive(rings: Rings, queue: int, burst: Burst, row: int, limit: int) -> int:
    """Take what fits below `limit`; how many rows were filled from `row` on. What cannot be a packet has length 0."""
    taken = min(filled(rings, queue), limit - row)
    if taken <= 0:
        return 0
    line, port, hand = rings.lines[queue], rings.queues[queue]["port"], owner(HAND, queue, 0)
    longs, slots, owners, frames = rings.longs, rings.slots, rings.owners, rings.frames
    entries, first, mask = line["back"] // 8 + _ENTRIES, line["slots"] + SLOTS, line["mask"]
    consumed = rings.links[line["link"] + FILLED]
    for i in range(taken):
        slot = (consumed + i) & mask
        frame = slots[first + slot]
        at = start(frame)
        prefetch(frames, at)
        burst.port[row + i] = port
        burst.at[row + i] = at
        burst.length[row + i] = _length(rings, line, longs[entries + 2 * slot])
        owners[frame] = hand
    store_release(rings.links, line["link"] + FILLED, consumed + taken)
    return taken


@hot
def _length(rings: Rings, line: Any, descriptor: int) -> int:
    """Length of the packet, 0 for a bad descriptor or a piece of a packet, which would be longer than we forward."""
    length, piece = (descriptor >> 32) & 0xFFFFFFFF, descriptor & NEXT
    if piece | line["chained"] or length > BUFFER_BYTES:
        rings.links[line["link"] + REFUSED] += 1
        line["chained"] = piece
        return 0
    return length


@hot
def refill(rings: Rings, queue: int) -> None:
    """Give free frames to be received into."""
    line = rings.lines[queue]
    if line["up"] == 0:
        return
    given, height = rings.links[line["link"] + GIVEN], int(rings.local[0]["free"])
    left = given - rings.links[line["link"] + FILLED]
    offered = min(line["mask"] + 1 - left, height)
    if offered < _REFILL_AT_LEAST and left > _REFILL_AT_LEAST:
        return
    longs, slots, owners, free = rings.longs, rings.slots, rings.owners, rings.free
    entries, first, mask = line["back"] // 8 + _ENTRIES, line["slots"] + SLOTS, line["mask"]
    for i in range(offered):
        frame, slot = free[height - 1 - i], (given + i) & mask
        longs[entries + 2 * slot] = (BUFFER_BYTES << 32) | (FRAMES_REGION << 16)
        longs[entries + 2 * slot + 1] = start(frame)
        slots[first + slot] = frame
        owners[frame] = owner(RECEIVING, queue, (given + i) & 0xFFFFFFFF)
    rings.local[0]["free"] = height - offered
    store_release(rings.links, line["link"] + GIVEN, given + offered)
    store_release(rings.halves, line["back"] // 2 + _HEAD, given + offered)


# --- to the server --------------------------------------------------------------------------------------------------------


@hot
def offer(rings: Rings, queue: int, at: int, length: int) -> bool:
    """Write a descriptor for a frame in hand behind the cursor; `publish` moves that for all of them at once."""
    line, sent = rings.lines[queue], rings.pending[queue]
    if line["up"] == 0:
        return False
    if sent - rings.links[line["link"] + TAKEN] > line["mask"]:
        publish(rings, queue)
        reap(rings, queue)
        if sent - rings.links[line["link"] + TAKEN] > line["mask"]:
            return False
    slot = sent & line["mask"]
    entry = line["out"] // 8 + _ENTRIES + 2 * slot
    rings.longs[entry] = (length << 32) | (FRAMES_REGION << 16)
    rings.longs[entry + 1] = at
    rings.slots[line["slots"] + slot] = at >> FRAME_SHIFT
    rings.owners[at >> FRAME_SHIFT] = owner(SENDING, queue, sent & 0xFFFFFFFF)
    rings.pending[queue] = sent + 1
    return True


@hot
def publish(rings: Rings, queue: int) -> None:
    """Let the server see what was offered, and wake it if it wants that."""
    line, sent = rings.lines[queue], rings.pending[queue]
    if line["up"] == 0 or sent == rings.links[line["link"] + SENT]:
        return
    store_release(rings.links, line["link"] + SENT, sent)
    store_release(rings.halves, line["out"] // 2 + _HEAD, sent)
    if load_acquire(rings.halves, line["out"] // 2 + _FLAGS) & MASK_INTERRUPT == 0:
        write(line["out_event"], rings.event.ctypes.data, 8)


@hot
def reap(rings: Rings, queue: int) -> int:
    """Take back the frames that the server has taken; how many."""
    line = rings.lines[queue]
    if line["up"] == 0:
        return 0
    link = line["link"]
    reaped: int = rings.links[link + TAKEN]
    done = (load_acquire(rings.halves, line["out"] // 2 + _TAIL) - reaped) & 0xFFFF
    if done > rings.links[link + SENT] - reaped:
        rings.links[link + BROKEN] = 1
        line["up"] = 0
        return 0
    for i in range(done):
        push(rings, rings.slots[line["slots"] + ((reaped + i) & line["mask"])])
    store_release(rings.links, link + TAKEN, reaped + done)
    return done


# --- asleep and awake -----------------------------------------------------------------------------------------------------


@hot
def want_events(rings: Rings, queue: int, wanted: bool) -> None:
    """Say whether the server is to wake us; what is unread of its events is forgotten when we no longer want them."""
    line = rings.lines[queue]
    if line["up"]:
        store_release(rings.halves, line["back"] // 2 + _FLAGS, 0 if wanted else MASK_INTERRUPT)
        if not wanted:
            read(line["back_event"], rings.event.ctypes.data, 8)


# --- connections (plain Python, between breaths) --------------------------------------------------------------------------


def on_its_way(rings: Rings, queue: int) -> tuple[Array, Array]:
    """Frames that, by the notes, the server has for receiving and for sending."""
    line = rings.lines[queue]
    link, slots = int(line["link"]), int(line["slots"])

    def between(first: int, start: int, end: int) -> Array:
        at: Array = rings.links[link + start] + np.arange(rings.links[link + end] - rings.links[link + start])
        frames: Array = rings.slots[slots + first + (at & line["mask"])]
        return frames

    return between(SLOTS, FILLED, GIVEN), between(0, TAKEN, SENT)


def take_over(rings: Rings, queue: int) -> Array:
    """Go on where the worker before was, or begin anew if it had not come to this connection; frames on their way."""
    line, links = rings.lines[queue], rings.links[int(rings.lines[queue]["link"]) :]
    same = links[CONNECTION] == line["connection"]
    if not same or links[BROKEN] or not line["connection"]:
        _forget(rings, queue)
    if line["connection"] and not same:
        _begin(rings, queue)
    given, sent = on_its_way(rings, queue)
    rings.owners[given], rings.owners[sent] = owner(RECEIVING, queue, 0), owner(SENDING, queue, 0)
    if line["connection"] and not links[BROKEN]:
        _resume(rings, queue)
    return np.concatenate((given, sent))


def disconnect(rings: Rings, queue: int) -> None:
    """Nobody is there: what was on its way is free again, and what had not been taken is lost, and counted."""
    line = rings.lines[queue]
    given, sent = on_its_way(rings, queue)
    rings.links[int(line["link"]) + CONNECTION] = 0  # whoever is killed from here on: to its successor all of them are free
    rings.ledger[0]["lost"] += len(sent)
    _forget(rings, queue)
    for frame in (*given.tolist(), *sent.tolist()):
        push(rings, frame)
    map_connection(rings, queue, None)


def connect(rings: Rings, queue: int, connection: Connection) -> None:
    """Begin a connection; the one before, if there is one, ends. A repeated word about one that stands is passed over."""
    line = rings.lines[queue]
    if line["connection"] == connection["number"]:
        return
    if line["connection"]:
        disconnect(rings, queue)
    map_connection(rings, queue, connection)
    _begin(rings, queue)
    _resume(rings, queue)


def map_connection(rings: Rings, queue: int, connection: Connection | None) -> None:
    """Have the connection's rings (None: zeros) at the queue's place, and its descriptors where they are used."""
    line = rings.lines[queue]
    place = rings.halves.ctypes.data + int(line["out"])
    line["up"] = line["connection"] = line["chained"] = 0
    line["out_event"] = line["back_event"] = rings.polled[queue, 0] = -1
    if connection is None:
        xsk.map_nothing(place, LINE_BYTES)
        return
    size = ring_bytes(connection["log2_entries"])
    xsk.map_at(place, 2 * size, connection["region"], 0)
    line["connection"], line["mask"] = connection["number"], (1 << connection["log2_entries"]) - 1
    line["back"] = line["out"] + size
    line["out_event"], line["back_event"] = connection["out_event"], connection["back_event"]
    rings.polled[queue, 0] = connection["back_event"]


def _forget(rings: Rings, queue: int) -> None:
    """Have nothing on its way; killed in here, the next worker does it again."""
    rings.lines[queue]["up"] = 0
    link = int(rings.lines[queue]["link"])
    rings.links[[link + GIVEN, link + FILLED, link + SENT, link + TAKEN]] = 0


def _begin(rings: Rings, queue: int) -> None:
    link = int(rings.lines[queue]["link"])
    rings.links[link + BROKEN] = 0
    rings.links[link + CONNECTION] = rings.lines[queue]["connection"]


def _resume(rings: Rings, queue: int) -> None:
    """What the last worker did not come to publish is published."""
    line, link = rings.lines[queue], int(rings.lines[queue]["link"])
    rings.pending[queue] = rings.links[link + SENT]
    for ring, cursor in (("out", SENT), ("back", GIVEN)):
        store_release(rings.halves, int(line[ring]) // 2 + _HEAD, int(rings.links[link + cursor]))
    line["up"] = 1
    want_events(rings, queue, False)
