"""A paced generator that plays memif's server: both directions, real checksums, and every frame that comes back is verified.

Each of 100,000 subscribers talks to one remote endpoint and gets answers. Frames are 60 bytes (64 on the wire) in slots of 64,
in the order in which they are sent, so the generator reads memory as a stream while the subscribers come in random order:

    row 2k      subscriber -> remote               its number, 2k, in the payload
    row 2k + 1  remote -> the endpoint that the subscriber's frame left with, as `learn` has seen it

Beside each row lies what must come out: the translated frame, byte for byte, so verifying is eight comparisons of words.

**Pace.** A frame is due at its time; one that is due while no buffer waits for it is *missed*: offered and lost, as on a wire.
Only after a pause of the generator's own (it was not running) frames are left out, not made up for in a burst nobody asked for.

Layout of the rings: `shards.memif`; the handshake: `krononat.memif`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bench import clock, traffic
from krononat.memif import Peer
from shards.atomics import load_acquire, store_release
from shards.calls import write
from shards.jit import hot
from shards.memif import MASK_INTERRUPT, RING_HEADER_BYTES
from shards.native import prefetch
from shards.state import Array

SUBSCRIBERS = 100_000
INTERNAL, REMOTE = 0x64400000, 0xC6336400  # 100.64.0.0/15, 198.51.100.0/24
INTERNAL_PORT, REMOTE_PORT = 4000, 443
FRAME_BYTES, SLOT_BYTES = 60, 64

AT_ONCE = 64  # frames sent before it is looked what came back
PAUSE = 1024  # frames due at once: so many only if we were not running
DRAINING_NS = 50_000_000

_WORDS = SLOT_BYTES // 8
_NUMBER_AT = 48  # of the frame's number in it, 4 bytes: the low half of word 6
_LAST_WORD = 0xFFFFFFFF  # what of word 7 belongs to the frame
_FLAGS, _HEAD, _TAIL = 2, 3, 32  # in 16-bit words of a ring
_ENTRIES = RING_HEADER_BYTES // 8  # in 64-bit ones
_IPV4 = 0x0008  # as it lies in a frame; the kernel behind the client may ask by ARP
_AHEAD = 8  # frames that are asked for before they are read

TALLY = np.dtype([(name, "i8") for name in ("sent", "missed", "received", "wrong", "row", "spare0", "spare1", "spare2")])


class Stations(NamedTuple):
    """MAC addresses: the appliance's, and those of the stations towards the subscribers and the Internet."""

    appliance: bytes
    inside: bytes
    outside: bytes


class Link(NamedTuple):
    """A client's memory as arrays: region 0 in words of 16 and 64 bits, region 1 in words of 64; places in bytes."""

    halves: Array
    longs: Array
    frames: Array
    out: int  # the ring from us, "s2c"
    back: int  # the ring to us, "c2s"
    mask: int
    event: int  # descriptor that wakes the client
    one: Array  # what is written to it


class Outcome(NamedTuple):
    """Of a run: frames offered (missed ones among them), back and right, back and wrong; s from the first to the last."""

    offered: int
    returned: int
    wrong: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames offered, M/s."""
        return self.offered / self.seconds / 1e6

    @property
    def loss(self) -> float:
        """Share of the offered ones that did not come back right."""
        return 1 - self.returned / self.offered


def link(peer: Peer) -> Link:
    """The memory of a client with one ring each way in region 0 and its frames in region 1, as Krononat's."""
    back, out = sorted(peer.rings, key=lambda ring: not ring.to_server)
    if (out.region, back.region, len(peer.regions)) != (0, 0, 2) or out.log2_entries != back.log2_entries:
        raise ValueError("not the two rings in region 0 and the frames in region 1 that this generator knows")
    rings, frames = peer.regions
    return Link(
        np.frombuffer(rings, np.uint16), np.frombuffer(rings, np.int64), np.frombuffer(frames, np.int64),
        out.offset, back.offset, (1 << out.log2_entries) - 1, out.event, np.ones(1, np.int64),
    )  # fmt: skip


# --- frames ---------------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """What is sent and what must come back, uint8 (2 * subscribers, SLOT_BYTES) each."""

    sent: Array
    expected: Array


def new_rows(stations: Stations, subscribers: int = SUBSCRIBERS, seed: int = 1) -> Rows:
    """Rows of which the subscribers' halves can be sent; what comes back of them is not known yet."""
    rows = Rows(*(np.zeros((2 * subscribers, SLOT_BYTES), np.uint8) for _ in range(2)))
    order = np.random.default_rng(seed).permutation(subscribers)
    rows.sent[0::2, :FRAME_BYTES] = _frames(stations.appliance, stations.inside, order, 0, *_endpoints(order))
    return rows


def _endpoints(order: Array) -> tuple[Array, Array]:
    """Subscribers' and remotes' endpoints, address << 16 | port."""
    return (INTERNAL + 256 + order) << 16 | INTERNAL_PORT, (REMOTE + 10 + order % 200) << 16 | REMOTE_PORT


def _frames(to: bytes, source: bytes, order: Array, odd: int, origin: Array, target: Array, ttl: int = traffic.TTL) -> Array:
    """UDP frames between these endpoints; row k has number 2k + odd in its payload."""
    frames = np.zeros((len(order), FRAME_BYTES), np.uint8)
    frames[:, 0:14] = np.frombuffer(to + source + b"\x08\x00", np.uint8)
    frames[:, 14:26] = np.frombuffer(bytes([0x45, 0, 0, 46, 0, 0, 0x40, 0, ttl, 17, 0, 0]), np.uint8)
    for at, values, size in ((26, origin >> 16, 4), (30, target >> 16, 4), (34, origin, 2), (36, target, 2)):
        traffic.put(frames, at, values, size)
    traffic.put(frames, 38, np.full(len(order), FRAME_BYTES - 34), 2)
    frames[:, _NUMBER_AT : _NUMBER_AT + 4] = (2 * np.arange(len(order), dtype="<u4") + odd).view(np.uint8).reshape(-1, 4)
    traffic.write_checksums(frames)
    return frames


def answer(rows: Rows, stations: Stations, seed: int = 1) -> None:
    """Take the endpoints from the translated frames in `expected`, verify those frames, and write the answers' rows.

    RuntimeError where a frame is not what a NAT makes of it, or where two subscribers left with one endpoint.
    """
    order = np.random.default_rng(seed).permutation(len(rows.sent) // 2)
    internal, remote = _endpoints(order)
    seen = rows.expected[0::2, :FRAME_BYTES].astype(np.int64)
    external = _number(seen[:, 26:30]) << 16 | _number(seen[:, 34:36])
    right = _frames(stations.outside, stations.appliance, order, 0, external, remote, traffic.TTL - 1)
    if wrong := int((seen != right).any(axis=1).sum()):
        raise RuntimeError(f"{wrong} of {len(seen)} subscribers' frames came back translated wrongly, or not at all")
    if len(np.unique(external)) != len(external):
        raise RuntimeError("two subscribers left with the same external endpoint")
    rows.sent[1::2, :FRAME_BYTES] = _frames(stations.appliance, stations.outside, order, 1, remote, external)
    back = _frames(stations.inside, stations.appliance, order, 1, remote, internal, traffic.TTL - 1)
    rows.expected[1::2, :FRAME_BYTES] = back


def _number(columns: Array) -> Array:
    value = np.zeros(len(columns), np.int64)
    for column in columns.T:
        value = value << 8 | column
    return value


# --- the run --------------------------------------------------------------------------------------------------------------


def learn(link: Link, rows: Rows, rate: int) -> None:
    """Send what subscribers send, until all of it has come back once; it is left in `expected` for `answer`."""
    tally, box = np.zeros(1, TALLY), clock.new_box()
    lap = len(rows.sent) * 1_000_000_000 // (2 * rate)
    for _ in range(5):
        run(link, _words(rows.sent), _words(rows.expected), rate, lap, 2, tally, box)
        if rows.expected[0::2, 12].all():
            return
    raise RuntimeError(f"after five laps {int((rows.expected[0::2, 12] == 0).sum())} subscribers' frames have not come back")


def measure(link: Link, rows: Rows, rate: int, seconds: float) -> Outcome:
    """Offer `rate` frames a second (0: as many as there are buffers for), both directions in turn."""
    tally, box = np.zeros(1, TALLY), clock.new_box()
    took_ns = run(link, _words(rows.sent), _words(rows.expected), rate, int(seconds * 1e9), 1, tally, box)
    told = tally[0]
    return Outcome(int(told["sent"] + told["missed"]), int(told["received"] - told["wrong"]), int(told["wrong"]), took_ns / 1e9)


def _words(rows: Array) -> Array:
    words: Array = rows.view(np.int64)
    return words


@hot
def run(link: Link, sent: Array, expected: Array, rate: int, duration_ns: int, step: int, tally: Array, box: Array) -> int:
    """Send every `step`-th row, round and round, for so long, then receive what is under way; ns of the sending.

    Step 1: what comes back is held against `expected`. Step 2: it is written there.
    """
    begun = base = now = clock.now_ns(box)
    done = 0  # frames since `base`
    while now - begun < duration_ns:
        due = AT_ONCE
        if rate:
            due = (now - base) * rate // 1_000_000_000 - done
            if due > PAUSE:
                base, done, due = now, 0, AT_ONCE
        if due > 0:
            _send(link, sent, min(due, AT_ONCE), step, rate > 0, tally)
            done += min(due, AT_ONCE)
        _receive(link, expected, step, tally)
        now = clock.now_ns(box)
    ended = now
    while now - ended < DRAINING_NS:
        _receive(link, expected, step, tally)
        now = clock.now_ns(box)
    return ended - begun


@hot
def _send(link: Link, sent: Array, wanted: int, step: int, paced: bool, tally: Array) -> None:
    """Fill buffers of the client; at a pace, frames for which there are none are missed."""
    halves, longs, frames = link.halves, link.longs, link.frames
    tail = load_acquire(halves, link.out // 2 + _TAIL)
    count = min(wanted, (load_acquire(halves, link.out // 2 + _HEAD) - tail) & 0xFFFF)
    row, entries = int(tally[0]["row"]), link.out // 8 + _ENTRIES
    for i in range(count):
        entry = entries + 2 * ((tail + i) & link.mask)
        at = (longs[entry + 1] & 0xFFFFFFFF) >> 3
        for word in range(_WORDS):
            frames[at + word] = sent[row, word]
        longs[entry] = (longs[entry] & 0xFFFF0000) | (FRAME_BYTES << 32)
        row += step
        if row >= len(sent):
            row = 0
    store_release(halves, link.out // 2 + _TAIL, tail + count)
    if count and load_acquire(halves, link.out // 2 + _FLAGS) & MASK_INTERRUPT == 0:
        write(link.event, link.one.ctypes.data, 8)
    tally[0]["row"] = row
    tally[0]["sent"] += count
    if paced:
        tally[0]["missed"] += wanted - count


@hot
def _receive(link: Link, expected: Array, step: int, tally: Array) -> None:
    """Take what came back, and verify or learn it."""
    halves, longs, frames = link.halves, link.longs, link.frames
    tail = load_acquire(halves, link.back // 2 + _TAIL)
    count = (load_acquire(halves, link.back // 2 + _HEAD) - tail) & 0xFFFF
    if count == 0:
        return
    entries, wrong, others = link.back // 8 + _ENTRIES, 0, 0
    for i in range(count):
        entry = entries + 2 * ((tail + i) & link.mask)
        further = entries + 2 * ((tail + i + _AHEAD) & link.mask)
        prefetch(frames, (longs[further + 1] & 0xFFFFFFFF) >> 3)
        at = (longs[entry + 1] & 0xFFFFFFFF) >> 3
        row = frames[at + _NUMBER_AT // 8] & 0xFFFFFFFF
        if frames[at + 1] >> 32 & 0xFFFF != _IPV4:
            others += 1
        elif longs[entry] >> 32 != FRAME_BYTES or row >= len(expected):
            wrong += 1
        elif step == 2:
            for word in range(_WORDS - 1):
                expected[row, word] = frames[at + word]
            expected[row, _WORDS - 1] = frames[at + _WORDS - 1] & _LAST_WORD
        else:
            differing = (frames[at + _WORDS - 1] & _LAST_WORD) ^ expected[row, _WORDS - 1]
            for word in range(_WORDS - 1):
                differing |= frames[at + word] ^ expected[row, word]
            wrong += differing != 0
    store_release(halves, link.back // 2 + _TAIL, tail + count)
    tally[0]["received"] += count - others
    tally[0]["wrong"] += wrong
