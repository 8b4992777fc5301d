"""A core without rings, for a bed: what the loop of a core does, one burst after another, by hand."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shards import cut, fragments, pipeline, recovery, sessions, unasked
from shards.burst import BURST, new_burst
from shards.verdict import HELD_BACK, VERDICTS
from tests import bed6
from tests.bed import Bed, answer, new_bed_state, want
from tests.outcome import Outcome

FRAME_BYTES, HEADROOM = 4096, 256


class Result(NamedTuple):
    """What the pipeline did with one frame."""

    verdict: str
    sent: bytes | None  # the frame that is to leave, if one is
    port: int  # row of PORT that it leaves by
    pieces: tuple[bytes, ...] = ()  # as which it leaves instead, where it must be cut


class Core:
    """A state, frame memory and a burst, driven by hand: what the shard's loop does, without rings and clock."""

    def __init__(self, bed: Bed, now: int) -> None:
        self.bed = bed
        self.now = now  # when it begins
        self.state = new_bed_state(bed, now)
        self.frames = np.zeros((BURST + 1) * FRAME_BYTES, np.uint8)  # the last one is where pieces are made
        self.burst = new_burst()
        self.held: list[list[int]] = []  # port, at, length, deadline, slot
        self.slots = list(range(BURST))
        self._said: list[Result] = []  # by itself, since time passed
        recovery.attach(self.state, now)
        answer(self.state, bed)

    def receive(self, arrivals: list[tuple[str, bytes]], now: int) -> list[Result]:
        """Process frames that arrive `inside` or `outside`, as one burst."""
        rows = []
        for side, frame in arrivals:
            slot = self.slots.pop()
            at = slot * FRAME_BYTES + HEADROOM
            self.frames[at : at + len(frame)] = np.frombuffer(frame, np.uint8)
            port, _ = self.bed.at(side)
            rows.append([port, at, len(frame), 0, slot])
        return self._process(rows, now)

    def again(self, now: int) -> list[Result]:
        """Process the frames that were held back once more."""
        rows, self.held = self.held, []
        return self._process(rows, now)

    def lose(self) -> None:
        """The frames that were held back are gone, as with the worker that held them."""
        self.slots += [row[4] for row in self.held]
        self.held = []

    def claimed(self, result: Result, _: Outcome) -> Result:
        """What has become of a frame of which the model says that outcome: here each frame is known by its row."""
        return result

    def _process(self, rows: list[list[int]], now: int) -> list[Result]:
        for i, (port, at, length, deadline, _) in enumerate(rows):
            self.burst.port[i], self.burst.at[i], self.burst.length[i], self.burst.deadline[i] = port, at, length, deadline
        pipeline.process(self.state, self.frames, self.burst, len(rows), now)
        results = [self._result(i, row) for i, row in enumerate(rows)]
        pipeline.settle(self.state, self.burst, len(rows))
        return results

    def _result(self, i: int, row: list[int]) -> Result:
        verdict, length, at = int(self.burst.verdict[i]), int(self.burst.out_length[i]), int(self.burst.out_at[i])
        if verdict == HELD_BACK:
            self.held.append([*row[:3], int(self.burst.deadline[i]), row[4]])
        else:
            self.slots.append(row[4])
        sent = self.frames[at : at + length].tobytes() if length else None
        return Result(VERDICTS[verdict].name, sent, int(self.burst.out_port[i]), self._pieces(i))

    def _pieces(self, i: int) -> tuple[bytes, ...]:
        """The frames that a row must be cut into, none where it leaves as it is."""
        self.state.core[0]["cuts"] = 0
        made, at = [], BURST * FRAME_BYTES + HEADROOM
        for number in range(cut.pieces(self.state, self.frames, self.burst, i)):
            length = cut.make(self.state, self.frames, self.burst, i, number, at)
            made.append(self.frames[at : at + length].tobytes())
        return tuple(made)

    def pass_time(self, now: int) -> None:
        """What the loop does beside packets: end what is due, tell who is to be told."""
        fragments.sweep(self.state, now)
        while sessions.expire(self.state, now, 1 << 20) == 1 << 20:
            pass
        while unasked.is_due(self.state, now):
            unasked.bring_back(self.state, self.frames, self.burst, BURST * FRAME_BYTES + HEADROOM, now)
            if self.burst.out_length[0]:
                at, length = int(self.burst.out_at[0]), int(self.burst.out_length[0])
                sent = self.frames[at : at + length].tobytes()
                self._said.append(Result(VERDICTS[int(self.burst.verdict[0])].name, sent, int(self.burst.out_port[0])))

    def said(self, _: list[str]) -> list[Result]:
        """What it has sent by itself since this was asked last; by which ports that was the model says."""
        said, self._said = self._said, []
        return said

    def resolve(self, *hosts: int) -> None:
        """Let neighbours be known before the packet that needs them comes."""
        for host in hosts:
            if host >> 32:
                bed6.resolve(self.state, self.bed, host)
                continue
            for number, (_, port) in enumerate(self.bed.ports()):
                if host & int(port.on_link.netmask) == int(port.on_link.network_address):
                    want(self.state, number, host, 0)
        answer(self.state, self.bed)
