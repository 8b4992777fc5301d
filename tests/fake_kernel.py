"""The other side of the rings, without a kernel: it refuses what the real one would suffer from in silence."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from itertools import chain

import numpy as np

from shards import memif, memif_rings, xsk
from shards.frames import Rings
from shards.notes import notes_bytes
from shards.rings import rings_over

# As kernel 6.18 has them: producer and consumer on lines of their own.
_OFFSETS = [[0, 128, 320, 196]] * 6


class FakeKernel:
    """Queues (by port) of `entries` over memory of `frames` frames. Whatever it is given twice is an AssertionError.

    `lines` are memif ports of the same worker, whose other side is somebody else (`fake_server`).
    """

    def __init__(
        self,
        queues: tuple[int, ...] = (1, 1),
        entries: int = 4,
        frames: int = 16,
        lines: Sequence[memif.Line] = (),
        control: int = 0,
    ) -> None:
        numbered = [(port, queue) for port, width in enumerate(queues) for queue in range(width)]
        self.description: xsk.Description = {
            "frames": frames,
            "entries": entries,
            "control": control,
            "offsets": _OFFSETS,
            "queues": [{"fd": -1, "control": -1, "port": port, "queue": queue} for port, queue in numbered],
        }
        self.lines = lines
        self.region = mmap.mmap(-1, xsk.queue_bytes(self.description) * len(numbered) + memif.LINE_BYTES * len(lines))
        self.memory = bytearray(frames * xsk.FRAME_BYTES)
        self.notes = bytearray(notes_bytes(frames))
        self.view = self.attach()  # arrays only; never taken over
        self.held: list[list[int]] = [[] for _ in numbered]  # by queue: taken from its fill ring and not used yet
        self.sent: list[bytes] = []

    def attach(self) -> Rings:
        """Arrays for a (new) worker, not yet taken over."""
        rings = rings_over(self.region, self.description, self.memory, self.notes, self.lines)
        for number, line in enumerate(self.lines):
            memif_rings.map_connection(rings, len(self.description["queues"]) + number, line["connection"])
        return rings

    def _take(self, ring: np.void, longs: int) -> list[int]:
        """Entries that the worker has produced; they are consumed."""
        words, producer, consumer = self.view.words, int(ring["producer"]), int(ring["consumer"])
        taken: list[int] = []
        if ring["level"] == 0:
            return taken
        while words[consumer] != words[producer]:
            at = int(ring["entries"]) + longs * (int(words[consumer]) & ring["mask"])
            taken.extend(self.view.longs[at : at + longs].tolist())
            words[consumer] = (int(words[consumer]) + 1) & 0xFFFFFFFF
        return taken

    def _give(self, ring: np.void, *entry: int) -> bool:
        words, producer, consumer = self.view.words, int(ring["producer"]), int(ring["consumer"])
        if (int(words[producer]) - int(words[consumer])) & 0xFFFFFFFF >= ring["mask"] + 1:
            return False
        at = int(ring["entries"]) + len(entry) * (int(words[producer]) & ring["mask"])
        self.view.longs[at : at + len(entry)] = entry
        words[producer] = (int(words[producer]) + 1) & 0xFFFFFFFF
        return True

    def deliver(self, queue: int, payload: bytes, control: bool = False) -> bool:
        """A frame comes in, perhaps by the control socket; whether there was room for it."""
        self.held[queue] += self._take(self.view.fill[queue], 1)
        everywhere = [*chain(*self.held), *self.unread()]
        assert len(set(everywhere)) == len(everywhere), "a frame was given twice"
        if not self.held[queue]:
            return False
        at = self.held[queue][-1]
        self.memory[at + xsk.HEADROOM : at + xsk.HEADROOM + len(payload)] = payload
        if self._give((self.view.control_rx if control else self.view.rx)[queue], at + xsk.HEADROOM, len(payload)):
            self.held[queue].pop()
            return True
        return False

    def transmit(self) -> None:
        """Send what waits in the transmit rings and say so in the completion rings."""
        for queue in range(len(self.held)):
            entries = self._take(self.view.tx[queue], 2) + self._take(self.view.control_tx[queue], 2)
            for at, length in zip(entries[0::2], entries[1::2], strict=True):
                self.sent.append(bytes(self.memory[at : at + length]))
                assert self._give(self.view.completion[queue], at), "no room for a completion"

    def waiting(self, ring: np.void, longs: int) -> list[int]:
        """First words of what lies in a ring."""
        if ring["level"] == 0:
            return []
        words, consumer = self.view.words, int(self.view.words[ring["consumer"]])
        count = (int(words[ring["producer"]]) - consumer) & 0xFFFFFFFF
        return [int(self.view.longs[int(ring["entries"]) + longs * ((consumer + i) & ring["mask"])]) for i in range(count)]

    def unread(self) -> list[int]:
        """Frames (their beginnings) that lie in receive, transmit or completion rings."""
        view, found = self.view, []
        for queue in range(len(self.held)):
            rings = (view.rx, 2), (view.tx, 2), (view.completion, 1), (view.control_rx, 2), (view.control_tx, 2)
            for ring, longs in ((ring[queue], longs) for ring, longs in rings):
                found += [at >> xsk.FRAME_SHIFT << xsk.FRAME_SHIFT for at in self.waiting(ring, longs)]
        return found

    def frames_held(self) -> list[int]:
        """Numbers of all frames that are on the kernel's side, or in a ring."""
        fills = [at for queue in range(len(self.held)) for at in self.waiting(self.view.fill[queue], 1)]
        return [at >> xsk.FRAME_SHIFT for at in (*chain(*self.held), *self.unread(), *fills)]
