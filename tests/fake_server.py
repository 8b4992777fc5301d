"""The other side of a memif port without a process: it does what a server may do, and says what it sees."""

from __future__ import annotations

import itertools
import mmap
import os
import struct

import numpy as np

from krononat.memif import _event as memif_events
from krononat.memif import new_region
from shards import memif
from shards.memif import COOKIE, Connection, Line, ring_bytes

_numbers = itertools.count(1)


class FakeServer:
    """A server of port `port` whose rings have 2**log2_entries entries; `memory` are the client's frames."""

    def __init__(self, port: int, memory: bytearray | None = None, log2_entries: int = 4, tap: int = -1) -> None:
        self.port, self.memory, self.log2_entries, self.tap = port, memory, log2_entries, tap
        self.connect()

    def connect(self) -> None:
        """Come (again): rings of its own, empty."""
        size = ring_bytes(self.log2_entries)
        self.region = new_region("rings", 2 * size)
        self.map = mmap.mmap(self.region, 2 * size)
        self.halves = np.frombuffer(self.map, np.uint16).reshape(2, -1)
        for ring in (0, 1):
            struct.pack_into("<I", self.map, ring * size, COOKIE)
        pairs = [memif_events() for _ in range(2)]
        self.client_events, self.events = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
        self.connection = Connection(
            number=next(_numbers),
            region=self.region,
            out_event=self.client_events[0],
            back_event=self.client_events[1],
            log2_entries=self.log2_entries,
        )

    def line(self) -> Line:
        """What a worker is told of it."""
        none = [-1, -1]
        return Line(
            port=self.port, tap=self.tap, own=none, broadcast=none, bfd=False, own6=[-1] * 8, connection=self.connection
        )

    def close(self) -> None:
        """Be gone."""
        for descriptor in (self.region, *self.events, *self.client_events):
            os.close(descriptor)

    def _descriptor(self, ring: int, position: int) -> int:
        return ring * ring_bytes(self.log2_entries) + 128 + 16 * (position & (1 << self.log2_entries) - 1)

    def given(self) -> list[int]:
        """Offsets of the buffers it may fill."""
        head, tail = int(self.halves[1, 3]), int(self.halves[1, 32])
        return [self._read(1, tail + i)[3] for i in range((head - tail) & 0xFFFF)]

    def _read(self, ring: int, position: int) -> tuple[int, ...]:
        return struct.unpack_from("<HHII", self.map, self._descriptor(ring, position))

    def deliver(self, payload: bytes, flags: int = 0, length: int | None = None) -> bool:
        """A packet for the client; whether there was a buffer."""
        assert self.memory is not None
        given, tail = self.given(), int(self.halves[1, 32])
        if not given:
            return False
        assert len(set(given)) == len(given), "a buffer was given twice"
        self.memory[given[0] : given[0] + len(payload)] = payload
        place = self._descriptor(1, tail)
        assert self._read(1, tail)[1:3] == (1, memif.BUFFER_BYTES)
        struct.pack_into("<H", self.map, place, flags)
        struct.pack_into("<I", self.map, place + 4, len(payload) if length is None else length)
        self.halves[1, 32] = (tail + 1) & 0xFFFF
        return True

    def sent(self) -> list[tuple[int, bytes]]:
        """What the client has sent and it has not taken: offset and packet."""
        assert self.memory is not None
        head, tail = int(self.halves[0, 3]), int(self.halves[0, 32])
        told = []
        for i in range((head - tail) & 0xFFFF):
            flags, region, length, at = self._read(0, tail + i)
            assert (flags, region) == (0, 1)
            told.append((at, bytes(self.memory[at : at + length])))
        return told

    def take(self) -> list[bytes]:
        """The same, taken."""
        packets = [packet for _, packet in self.sent()]
        self.halves[0, 32] = self.halves[0, 3]
        return packets
