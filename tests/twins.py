"""A shard on two cores that number their extents differently, and the stream between them, driven by hand.

`Twins.one` begins as the authority, `other` as its passive replica. Frames of the stream wait in `way`, in their order, until
they are delivered, or lost; then a snapshot sets things right, in pieces, while changes go on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from shards import apply, digest, gather, invariants, slabs, tcp
from shards.records import HOLD, MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import (
    ACTIVE,
    CLASSES,
    MAPPING_0,
    MAPPING_1,
    NAT_MAPPING,
    PERMISSION,
    SESSION6_0,
    SESSION6_1,
    SESSION_0,
    SESSION_1,
    Array,
    State,
)
from tests.bare_core import Core, Result
from tests.bed import Bed, Shard
from tests.frames import Packet, address, build, build_frame, mac_of, read
from tests.pair import sender_of

KEYS = np.uint64(0x0123456789ABCDEF), np.uint64(0xFEDCBA9876543210)
SESSIONS = SESSION_0, SESSION_1, SESSION6_0, SESSION6_1
SNAPSHOT = MAPPING_0, MAPPING_1, *SESSIONS
NOTHING_SEEN: Array = np.zeros(0, np.uint64)
PIECE = 40  # records, and so more than one frame of most things
HOLDS_EACH = 256


class Frame(NamedTuple):
    """What travels; `told` are more facts, by kind."""

    kind: str
    records: Array
    told: tuple[int, ...] = ()


class Sender:
    """One direction of a link, at its sender."""

    def __init__(self, core: Core, everything: bool = False, threshold: int = 0) -> None:
        self.state, self.everything, self.threshold = core.state, everything, threshold
        self.way: deque[Frame] = deque()
        self.number = int(core.state.core[0]["tombstones"])
        self.since = 0

    def changes(self, now: int) -> None:
        """All that changed: ends first, then mappings, then sessions."""
        count = PIECE
        while count == PIECE:
            out = np.zeros(PIECE, TOMBSTONE)
            count, self.number = gather.tombstones(self.state, 0, self.number, out)
            if count == gather.LAPPED:
                return self.snapshot(now)
            self._put("tombstones", out[:count])
        while gather.unsent(self.state, 0):
            sessions, mappings = np.zeros(PIECE, SESSION_RECORD), np.zeros(PIECE, MAPPING_RECORD)
            said, mapped = gather.drain(self.state, 0, self.everything, self.threshold, now, sessions, mappings)
            self._put("mappings", mappings[:mapped])
            self._put("sessions", sessions[:said])
        return None

    def begin(self) -> None:
        """Whatever the other side has and is not told of from now on has ended."""
        self._put("begin", np.zeros(1, TOMBSTONE))

    def piece(self, at: tuple[int, int], now: int) -> tuple[int, int] | None:
        """One piece of a snapshot, from step and row `at` on; where to go on, None after the last."""
        step, row = at
        if step == len(SNAPSHOT):
            out = np.zeros(HOLDS_EACH, HOLD)
            count, row = gather.holds(self.state, 0, row, now, out)
            self._put("holds", out[:count])
        else:
            out = np.zeros(PIECE, MAPPING_RECORD if SNAPSHOT[step] in (MAPPING_0, MAPPING_1) else SESSION_RECORD)
            count, row = gather.snapshot(self.state, 0, SNAPSHOT[step], row, self.everything, now, out)
            self._put("sessions" if SNAPSHOT[step] in SESSIONS else "mappings", out[:count])
        if row != gather.END:
            return step, row
        if step == len(SNAPSHOT):
            self._put("end", np.zeros(1, TOMBSTONE))
            return None
        return step + 1, 0

    def snapshot(self, now: int) -> None:
        """All of it at once."""
        self.number = int(self.state.core[0]["tombstones"])
        self.begin()
        at: tuple[int, int] | None = (0, 0)
        while at:
            at = self.piece(at, now)

    def liveness(self, now: int) -> None:
        """Which sessions were refreshed since this was asked last."""
        for klass in SESSIONS:
            for first in range(0, gather.rows(self.state, 0, klass), 128):
                bits = np.zeros(2, np.uint64)
                if gather.refreshed(self.state, 0, klass, first, self.since, now, bits):
                    self.way.append(Frame("refresh", bits, (klass, first)))
        self.since = now

    def forgotten(self) -> list[int]:
        """Lines of sessions, open and old enough long since, that were never sent."""
        rows: Any = self.state.sessions
        sent = (line for line in invariants.lines(self.state).tolist() if not gather.is_shipped(self.state, 2 * line))
        return [line for line in sent if not self.threshold and not tcp.half_open(int(rows[line]["state"]))]

    def _put(self, kind: str, records: Array) -> None:
        if len(records):
            self.way.append(Frame(kind, records.copy()))


class Receiver:
    """The same at its receiver."""

    def __init__(self, core: Core) -> None:
        self.state = core.state
        self.seen = NOTHING_SEEN
        self.refused = 0

    def take(self, frame: Frame, now: int) -> None:
        """Apply a frame."""
        if frame.kind == "begin":
            self.seen = np.zeros_like(self.state.dirty)
        elif frame.kind == "end":
            self._end(now)
        elif frame.kind == "refresh":
            klass, first = frame.told
            apply.refresh(self.state, 0, klass, first, frame.records, now)
        else:
            self._apply(frame.kind, frame.records, now)

    def _apply(self, kind: str, records: Array, now: int) -> None:
        seen = () if kind == "holds" else (self.seen,)
        taken = getattr(apply, kind)(self.state, 0, records, len(records), *seen, now)
        self.refused += len(records) - int(taken)

    def _end(self, now: int) -> None:
        for klass in range(CLASSES):
            row = 0
            while row != apply.END:
                row = apply.end_unseen(self.state, 0, klass, row, self.seen, now, 100)
        self.seen = NOTHING_SEEN


class Twins:
    """Two cores of one configuration."""

    def __init__(self, bed: Bed, now: int, everything: bool = False, threshold: int = 0) -> None:
        bed.extents, bed.two_sides, bed.shards = 10, True, {0: Shard(), 1: Shard()}
        self.one = Core(bed, now)
        self.other = Core(replace(bed, shards={0: Shard(role="passive", side=1), 1: Shard()}), now)
        self.disorder(self.other.state)
        self.sender, self.receiver = Sender(self.one, everything, threshold), Receiver(self.other)
        self.sender.snapshot(now)  # static mappings are there already
        self.deliver(now)

    @staticmethod
    def disorder(state: State) -> None:
        """Give extents to another shard first, so that ours have other numbers."""
        state.shards[1]["side"] = 1
        slabs.new_line(state, 1), slabs.new_half(state, 1)
        slabs.free_line(state, slabs.new_line(state, 0))

    @staticmethod
    def role(core: Core, role: int, side: int, epoch: int = 1) -> None:
        """What the core is to the shard from now on."""
        row = core.state.shards[0]
        row["role"], row["side"], row["creates"], row["epoch"] = role, side, role == ACTIVE, epoch

    def deliver(self, now: int, at_most: int = 1 << 30) -> None:
        """Let frames arrive."""
        while self.sender.way and at_most:
            self.receiver.take(self.sender.way.popleft(), now)
            at_most -= 1

    def settle(self, now: int) -> None:
        """Everything is sent and arrives."""
        self.sender.changes(now)
        self.deliver(now)

    def check(self) -> None:
        """Both copies are sound and the same."""
        for core in (self.one, self.other):
            assert invariants.complaints(core.state) == []
        assert differences(self.one.state, self.other.state) == []
        assert self.receiver.refused == 0 and self.sender.forgotten() == []


def differences(one: State, other: State) -> list[tuple[int, int]]:
    """(class, row) of what is not the same."""
    found: list[tuple[int, int]] = []
    for klass in range(PERMISSION):
        end = -(-max(gather.rows(state, 0, klass) for state in (one, other)) // 64) * 64
        if not end:
            continue
        left_out = np.zeros(end // 64, np.uint64)
        digest.unsettled(one, 0, klass, 0, end, left_out)
        ours, theirs = (digests(state, klass, end, left_out) for state in (one, other))
        found += [(klass, int(row)) for row in np.flatnonzero(ours != theirs)]
    return found


def digests(state: State, klass: int, end: int, left_out: Array) -> Array:
    """Digest of each row of a class; their sum is what the walk says it is."""
    rows = np.full(end, 7, np.uint64)
    total = digest.digest(state, 0, klass, *KEYS, 0, end, left_out, rows)
    assert int(total) == int(rows.sum())
    return rows


def mapped(state: State) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """(protocol, external endpoint, internal endpoint) of the mappings there are: what traffic aims at."""
    rows: Any = state.mappings[invariants.halves(state)]
    assert np.all(rows["kind"] == NAT_MAPPING)
    return [
        (
            int(row["internal_realm"]) >> 24,
            (int(row["external_address"]), int(row["external_port"])),
            (int(row["internal_address"]), int(row["internal_port"])),
        )
        for row in rows
    ]


# --- packets through one of them ---------------------------------------------------------------------------------------------

PLAIN = """
pool 203.0.113.0/31 block 128 blocks 4
subscribers 100.64.0.0/24
timeout udp 300
hold-down 120
"""


def frame(given: Bed, side: str, packet: Packet) -> tuple[str, bytes]:
    """A frame as its station would send it."""
    port = given.inside if side == "inside" else given.outside
    return side, build_frame(mac_of(port.address), sender_of(given, side, packet), build(packet), port.vlan)


def say(core: Core, text: str, now: int, side: str = "inside") -> Result:
    """Send one packet, in the words of scenarios, through a core."""
    return core.receive([frame(core.bed, side, read(text))], now)[0]


def ready(*cores: Core) -> None:
    """Whoever is written to in these tests is known."""
    for core in cores:
        core.resolve(*range(address("192.0.2.64"), address("192.0.2.80")), address("192.0.2.1"))
        core.resolve(*range(address("100.64.0.0"), address("100.64.0.128")))


def endpoint_of(core: Core) -> tuple[str, int]:
    """The external endpoint of its only mapping."""
    (_, (host, port), _), *_ = mapped(core.state)
    return ".".join(str(byte) for byte in host.to_bytes(4, "big")), port
