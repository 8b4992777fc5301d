"""An end of the laboratory: an AF_XDP socket on a veth's device, over the very rings that the appliance uses.

All IPv4 that arrives there is ours but what is for the device's own address; ARP is the kernel's.
"""

from __future__ import annotations

import os
from types import TracebackType

from bench.veths import entered, ifindex, mac
from krononat.lab.namespaces import command, inside
from shards import rings, xsk
from shards.burst import BURST, Burst
from shards.frames import HAND, Rings, owner
from shards.jit import hot
from shards.notes import map_notes, new_notes
from shards.steering import Steering
from shards.verdict import FORWARDED_OUT, TX_FULL
from shards.xsk import FRAME_SHIFT, HEADROOM

FRAMES = 1 << 14


class End:
    """A socket on `device` in `namespace`, whose kernel has `own`; `peer` is the namespace and device at the far end."""

    def __init__(self, namespace: str, device: str, own: str, peer: tuple[str, str]) -> None:
        self._memory, self._notes = xsk.new_memory(FRAMES), new_notes(FRAMES)
        self.source, self.station = (bytes.fromhex(mac(*each).replace(":", "")) for each in ((namespace, device), peer))
        number = ifindex(namespace, device)
        # What we send is whole; the far end's kernel must not take it for a part of something larger.
        command(*inside(namespace, ["ethtool", "--offload", device, "tx", "off"]))
        with entered(namespace):
            self._sockets = xsk.open_sockets(self._memory, FRAMES, [xsk.Port(number, 1)])
            self._steering = Steering([own])
            self._steering.place(0, self._sockets.fds()[0])
            self._steering.attach(number)
        frames, notes = xsk.map_memory(self._memory, FRAMES), map_notes(self._notes, FRAMES)
        self.rings: Rings = rings.open_rings(self._sockets.description, frames, notes)
        rings.flush(self.rings)

    def lost(self) -> int:
        """Frames that came and found no room, ever: then this end was too slow, and a loss is not the appliance's."""
        return self._sockets.lost()

    def close(self) -> None:
        """Detach, and let go of sockets and memory."""
        self._steering.close()
        self._sockets.close()
        os.close(self._memory)
        os.close(self._notes)

    def __enter__(self) -> End:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@hot
def fresh(handles: Rings, burst: Burst, row: int) -> int:
    """Put a free frame into a row: where it begins in the frame memory, 0 where there is neither frame nor row."""
    height = handles.local[0]["free"]
    if height == 0 or row >= BURST:
        return 0
    frame = handles.free[height - 1]
    handles.local[0]["free"] = height - 1
    handles.owners[frame] = owner(HAND, 0, 0)
    burst.at[row] = (frame << FRAME_SHIFT) + HEADROOM
    return int(burst.at[row])


@hot
def leave(burst: Burst, row: int, length: int) -> None:
    """The row's frame is to be sent with this length; 0: not at all."""
    burst.verdict[row] = FORWARDED_OUT
    burst.out_port[row] = 0
    burst.out_at[row] = burst.at[row]
    burst.out_length[row] = length


@hot
def send(handles: Rings, burst: Burst, rows: int) -> int:
    """Send what is to be sent, free the others; how many found no room."""
    rings.send(handles, burst, rows)
    full = 0
    for row in range(rows):
        full += burst.verdict[row] == TX_FULL
    rings.flush(handles)
    return full
