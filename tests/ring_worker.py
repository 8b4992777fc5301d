"""A worker that only forwards: what comes in by a port goes out by the next one. Told by JSON how to take over.

    python -m tests.ring_worker '{"memory_fd": …, "notes_fd": …, "description": …}'

Says `ready` when it forwards and stops when its standard input ends; its last word is JSON: who has which frame, the ledger,
and what privileges it had.
"""

from __future__ import annotations

import json
import select
import sys

from shards import rings, xsk
from shards.burst import BURST, Burst, new_burst
from shards.frames import Rings, census
from shards.jit import hot
from shards.notes import map_notes
from shards.state import Array
from shards.verdict import FORWARDED_OUT


@hot
def forward(handles: Rings, burst: Burst, breaths: int) -> int:
    """Pass on what waits, each frame to the next port; how many."""
    total = 0
    for _ in range(breaths):
        count = rings.receive(handles, burst, BURST)
        for i in range(count):
            burst.verdict[i] = FORWARDED_OUT
            burst.out_port[i] = (burst.port[i] + 1) % len(handles.first)
            burst.out_at[i] = burst.at[i]
            burst.out_length[i] = burst.length[i]
        rings.send(handles, burst, count)
        rings.flush(handles)
        total += count
    return total


def _privileges() -> int:
    with open("/proc/self/status") as told:
        return max(int(line.split()[1], 16) for line in told if line.startswith("Cap"))


def _ledger(handles: Rings) -> dict[str, int]:
    row: Array = handles.ledger[0]
    return {name: int(row[name]) for name in ("attached", "lost", "refused")}


def main() -> None:
    """Take over, forward, say what became of it."""
    order = json.loads(sys.argv[1])
    frames = order["description"]["frames"]
    memory, notes = xsk.map_memory(order["memory_fd"], frames), map_notes(order["notes_fd"], frames)
    handles = rings.open_rings(order["description"], memory, notes, also=(sys.stdin.fileno(),))
    burst, total = new_burst(), 0
    forward(handles, burst, 1)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        rings.wait(handles, 100)
        total += forward(handles, burst, 64)
    for _ in range(100):  # what is on its way comes back
        total += forward(handles, burst, 1)
    report = {"forwarded": total, "census": census(handles), "ledger": _ledger(handles), "privileges": _privileges()}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
