"""The supervisor's part of packet I/O, as small as a test needs it: memory, sockets, steering, attached."""

from __future__ import annotations

import socket
from types import TracebackType

from shards import rings, selftest, xsk
from shards.frames import Rings
from shards.notes import map_notes, new_notes
from shards.steering import Steering
from tests.veth import Wires

FRAMES = 1024


class Core:
    """Opens all queues of all ports of the wires; `unplaced` (port, queue) get no socket in their slot."""

    def __init__(
        self,
        wires: Wires,
        own: tuple[str, ...] = (),
        broadcast: tuple[str, ...] = (),
        mode: str = "native",
        unplaced: tuple[tuple[int, int], ...] = (),
        frames: int = FRAMES,
    ) -> None:
        self.wires, self.mode = wires, mode
        self.memory_fd, self.notes_fd = xsk.new_memory(frames), new_notes(frames)
        with wires.core.entered():
            self.ifindexes = [socket.if_nametoindex(f"port{row}") for row in range(len(wires.queues))]
            ports = [xsk.Port(ifindex, xsk.receive_queues(f"port{row}")) for row, ifindex in enumerate(self.ifindexes)]
            self.sockets = xsk.open_sockets(self.memory_fd, frames, ports)
            self.steerings = [Steering(own, broadcast, port.queues) for port in ports]
        for queue in self.sockets.description["queues"]:
            if (queue["port"], queue["queue"]) not in unplaced:
                self.steerings[queue["port"]].place(queue["queue"], queue["fd"])
                self.steerings[queue["port"]].place_control(queue["queue"], queue["control"])

    def prove(self) -> None:
        """Run the self-test."""
        with self.wires.core.entered():
            selftest.prove(self.memory_fd, self.sockets, self.ifindexes, self.steerings)

    def attach(self) -> None:
        """Take traffic."""
        with self.wires.core.entered():
            for ifindex, steering in zip(self.ifindexes, self.steerings, strict=True):
                assert steering.attach(ifindex, self.mode) == self.mode

    def open_rings(self) -> Rings:
        """Take over as a worker does."""
        described, frames = self.sockets.description, self.sockets.description["frames"]
        return rings.open_rings(described, xsk.map_memory(self.memory_fd, frames), map_notes(self.notes_fd, frames))

    def __enter__(self) -> Core:
        self.attach()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything."""
        for steering in self.steerings:
            steering.close()
        self.sockets.close()
        xsk.close(self.memory_fd)
        xsk.close(self.notes_fd)
