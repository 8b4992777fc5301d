"""Memif ports as the loop has them: taking from their rings, giving to them, and who is at their other end (layout: `memif`).

**The other side is not trusted.** What it can write (rings, frames) is never believed: our own cursors and which frame is at
which entry are kept in the `notes`, which it has not mapped. A tail beyond what was given breaks the link; of a descriptor only
flags and length are read, and a bad one is a runt. It can still write into any frame at any time, so it can spoil packets (what
has grown beyond its frame is not sent), not the worker. A successor of a killed worker finds in the notes what is on its way:
positions FILLED to GIVEN and TAKEN to SENT. Each cursor is written after what it makes true, before the other side sees of it.
"""

from __future__ import annotations

import numpy as np

from shards import xsk
from shards.atomics import fence, load_acquire, store_release
from shards.burst import Burst
from shards.calls import recvfrom, sendto
from shards.frames import FREE, HAND, RECEIVING, SENDING, Rings, owner, to_give
from shards.jit import hot
from shards.memif import (
    BROKEN,
    BUFFER_BYTES,
    CONNECTION,
    ENTRIES,
    FILLED,
    FLAGS,
    FRAMES_REGION,
    GIVEN,
    HEAD,
    LINE_BYTES,
    MASK_INTERRUPT,
    NEXT,
    REFUSED,
    SENT,
    TAIL,
    TAKEN,
    Connection,
    ring_bytes,
)
from shards.native import claim
from shards.notes import SLOTS
from shards.state import Array
from shards.verdict import HELD_BACK
from shards.xsk import FRAME_BYTES, FRAME_SHIFT, HEADROOM

# Where a queue's parts are. Of the rings to and from the server: place in the region, in bytes. Of the notes: first word of
# `links`, first of `slots`. Descriptors of events and tap. What is for the kernel: own and broadcast addresses, -1 none.
LINE = np.dtype(
    [(name, "i8") for name in ("up", "connection", "mask", "chained", "out", "back", "link", "slots")]
    + [(name, "i8") for name in ("out_event", "back_event", "tap", "bfd")]
    + [("own", "i8", (2,)), ("broadcast", "i8", (2,)), ("own6", "i8", (8,))]  # own6: two addresses in quarters
)

_A_LINE = 4  # descriptors of a cache line
_DONTWAIT = 0x4040  # nor a signal where nobody is there any more
_REFILL_AT_LEAST = 32  # buffers given at once: fewer would send the same line of the ring to and fro between two processors


@hot
def start(frame: int) -> int:
    """Where in a frame a packet begins."""
    return (frame << FRAME_SHIFT) + HEADROOM


@hot
def room(at: int) -> int:
    """Bytes from there to the end of its frame."""
    return FRAME_BYTES - (at & (FRAME_BYTES - 1))


# --- from the server ------------------------------------------------------------------------------------------------------


@hot
def filled(rings: Rings, queue: int) -> int:
    """Buffers that were filled and wait for us. A cursor that cannot be breaks the link: it is used no more."""
    line = rings.lines[queue]
    if line["up"] == 0:
        return 0
    link = line["link"]
    consumed: int = rings.links[link + FILLED]
    waiting = (load_acquire(rings.halves, line["back"] // 2 + TAIL) - consumed) & 0xFFFF
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
    entries, first, mask = line["back"] // 8 + ENTRIES, line["slots"] + SLOTS, line["mask"]
    consumed, chained = rings.links[line["link"] + FILLED], line["chained"]
    for i in range(taken):
        slot = (consumed + i) & mask
        frame, descriptor = slots[first + slot], longs[entries + 2 * slot]
        at, length = start(frame), (descriptor >> 32) & 0xFFFFFFFF
        claim(frames, at)  # its header will be rewritten
        if (descriptor & NEXT) | chained or length > BUFFER_BYTES:
            chained, length = descriptor & NEXT, 0  # a piece of a packet: the whole would be longer than what we forward
            rings.links[line["link"] + REFUSED] += 1
        burst.port[row + i] = port
        burst.at[row + i] = at
        burst.length[row + i] = length
        owners[frame] = hand
    line["chained"] = chained
    store_release(rings.links, line["link"] + FILLED, consumed + taken)
    return taken


@hot
def refill(rings: Rings, queue: int) -> None:
    """Give free frames to be received into."""
    line = rings.lines[queue]
    if line["up"] == 0:
        return
    given, height = rings.links[line["link"] + GIVEN], int(rings.local[0]["free"])
    left = given - rings.links[line["link"] + FILLED]
    offered = min(line["mask"] + 1 - left, to_give(rings))
    if offered < _REFILL_AT_LEAST and left > _REFILL_AT_LEAST:
        return
    longs, slots, owners, free = rings.longs, rings.slots, rings.owners, rings.free
    entries, first, mask = line["back"] // 8 + ENTRIES, line["slots"] + SLOTS, line["mask"]
    for i in range(0, offered, _A_LINE):
        claim(longs, entries + 2 * ((given + i) & mask))
    for i in range(offered):
        frame, slot = free[height - 1 - i], (given + i) & mask
        longs[entries + 2 * slot] = (BUFFER_BYTES << 32) | (FRAMES_REGION << 16)
        longs[entries + 2 * slot + 1] = start(frame)
        slots[first + slot] = frame
        owners[frame] = owner(RECEIVING, queue, (given + i) & 0xFFFFFFFF)
    rings.local[0]["free"] = height - offered
    store_release(rings.links, line["link"] + GIVEN, given + offered)
    store_release(rings.halves, line["back"] // 2 + HEAD, given + offered)


# --- to the server --------------------------------------------------------------------------------------------------------


@hot
def offer_rows(rings: Rings, queue: int, burst: Burst, row: int, count: int) -> int:
    """`offer` for consecutive rows, as long as nothing is special about them; the row at which that ends.

    What does not change stands in locals: the compiler cannot know that no store touches it.
    """
    line, sent, port = rings.lines[queue], rings.pending[queue], burst.out_port[row]
    longs, slots, owners, verdict = rings.longs, rings.slots, rings.owners, burst.verdict
    entries, first, mask = line["out"] // 8 + ENTRIES, line["slots"], line["mask"]
    end = rings.links[line["link"] + TAKEN] + mask + 1 if line["up"] else sent
    for i in range(0, count - row, _A_LINE):
        claim(longs, entries + 2 * ((sent + i) & mask))
    while row < count and sent < end:
        at, length = burst.out_at[row], burst.out_length[row]
        frame = at >> FRAME_SHIFT
        if burst.out_port[row] != port or length == 0 or length > room(at):
            break
        if verdict[row] == HELD_BACK or owners[frame] >> 56 != HAND:
            break
        slot = sent & mask
        longs[entries + 2 * slot] = (length << 32) | (FRAMES_REGION << 16)
        longs[entries + 2 * slot + 1] = at
        slots[first + slot] = frame
        owners[frame] = owner(SENDING, queue, sent & 0xFFFFFFFF)
        sent, row = sent + 1, row + 1
    rings.pending[queue] = sent
    return row


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
    entry = line["out"] // 8 + ENTRIES + 2 * slot
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
    store_release(rings.halves, line["out"] // 2 + HEAD, sent)
    fence()  # a server that lies down looks at the head once it has said so: one of us must see the other
    if load_acquire(rings.halves, line["out"] // 2 + FLAGS) & MASK_INTERRUPT == 0:
        sendto(line["out_event"], rings.event.ctypes.data, 8, _DONTWAIT, 0, 0)


@hot
def reap(rings: Rings, queue: int) -> int:
    """Take back the frames that the server has taken; how many."""
    line = rings.lines[queue]
    if line["up"] == 0:
        return 0
    link = line["link"]
    reaped: int = rings.links[link + TAKEN]
    done = (load_acquire(rings.halves, line["out"] // 2 + TAIL) - reaped) & 0xFFFF
    if done > rings.links[link + SENT] - reaped:
        rings.links[link + BROKEN] = 1
        line["up"] = 0
        return 0
    slots, owners, free = rings.slots, rings.owners, rings.free
    first, mask, height = line["slots"], line["mask"], rings.local[0]["free"]
    for i in range(done):
        frame = slots[first + ((reaped + i) & mask)]
        owners[frame] = FREE
        free[height + i] = frame
    rings.local[0]["free"] = height + done
    store_release(rings.links, link + TAKEN, reaped + done)
    return done


# --- asleep and awake -----------------------------------------------------------------------------------------------------


@hot
def want_events(rings: Rings, queue: int, wanted: bool) -> None:
    """Say whether the server is to wake us; what is unread of its events is forgotten when we no longer want them."""
    line = rings.lines[queue]
    if line["up"]:
        store_release(rings.halves, line["back"] // 2 + FLAGS, 0 if wanted else MASK_INTERRUPT)
        fence()
        if not wanted:
            recvfrom(line["back_event"], rings.event.ctypes.data + 8, 8 * (len(rings.event) - 1), _DONTWAIT, 0, 0)


# --- connections (plain Python, between breaths; what is compiled it must not call, see `warm`) ----------------------------


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
    if not same:
        _begin(rings, queue)  # with none as well: what the notes have is what the worker has been told
    given, sent = on_its_way(rings, queue)
    rings.owners[given], rings.owners[sent] = owner(RECEIVING, queue, 0), owner(SENDING, queue, 0)
    if line["connection"] and not links[BROKEN]:
        _resume(rings, queue)
    return np.concatenate((given, sent))


def disconnect(rings: Rings, queue: int) -> None:
    """Nobody is there any more: what was on its way is free again, and what had not been taken is lost, and counted."""
    line = rings.lines[queue]
    if line["connection"] == 0:
        return
    given, sent = on_its_way(rings, queue)
    rings.links[int(line["link"]) + CONNECTION] = 0  # whoever is killed from here on: to its successor all of them are free
    rings.ledger[0]["lost"] += len(sent)
    _forget(rings, queue)
    freed, height = np.concatenate((given, sent)), int(rings.local[0]["free"])
    rings.owners[freed] = FREE
    rings.free[height : height + len(freed)] = freed
    rings.local[0]["free"] = height + len(freed)
    map_connection(rings, queue, None)


def connect(rings: Rings, queue: int, connection: Connection) -> bool:
    """Begin a connection; the one before, if there is one, ends. False where it had begun already."""
    if rings.lines[queue]["connection"] == connection["number"]:
        return False
    disconnect(rings, queue)
    map_connection(rings, queue, connection)
    _begin(rings, queue)
    _resume(rings, queue)
    return True


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
        store_release(rings.halves, int(line[ring]) // 2 + HEAD, int(rings.links[link + cursor]))
    rings.halves[int(line["back"]) // 2 + FLAGS] = MASK_INTERRUPT
    line["up"] = 1
