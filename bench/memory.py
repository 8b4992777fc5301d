"""`krononat bench memory`: bytes per connection, all in: computed from the layout, and measured with ten million of them.

Every connection is made by the miss path from a first packet, as in life, in a state that a configuration was composed into;
a subscriber has 63 mappings, all but one of a chunk of ports. Measured is what the kernel says is resident of the whole mapping
that the state lies in (proc(5), smaps: Rss), so pages that are partly used and what does not grow count as well. What is not in
it: the interpreter, compiled code and frames, about 250 MiB a core whatever the connections.

An index has a power of two of buckets and is filled as far as ten million connections happen to fill it; the published figure
takes its share at load 0.85, `.../resident` is as it stood. `section/...` are what the layout says of one session per mapping,
`section/rest` is what was measured beyond it: pages not used up, protocols that do not occur. A protected connection stands on
two cores, so it counts twice.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, summarize_address_range
from typing import NamedTuple

import numpy as np

from bench import environment, flows, report, traffic
from bench.report import Result, Told
from krononat import appliance, capacity, config
from krononat.client import Trouble
from shards import cuckoo, recovery
from shards.burst import new_burst
from shards.state import REACHABLE, Sizes, State, new_state
from shards.verdict import FORWARDED_OUT

KIND = "memory"
CONNECTIONS = 10_000_000
GOAL = 160  # bytes at one session per mapping
SHARED = 4  # sessions per mapping, the other way round

CONFIG = """
[interfaces.internal]
name = "internal"
address = "10.0.0.1/24"
gateway = "10.0.0.2"
[interfaces.external]
name = "external"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
[memory]
sessions = {sessions}
[[subscribers]]
prefix = "{subscribers}"
pool = "main"
[[pool]]
name = "main"
prefixes = [{prefixes}]
block-size = 64
"""

_FIRST_EXTERNAL = IPv4Address("203.0.0.0")
_BLOCKS_USED = 960  # of the 1,008 that an external address has: 95 %
_MOST = 256  # bytes per connection that must be free
_FULLEST = 0.95  # load of the index
_ROWS = 1 << 16  # frames at a time


class Taken(NamedTuple):
    """What `connections` take, as measured."""

    connections: int
    resident: int  # bytes of the whole state
    index_bytes: int  # of these
    load: float  # of the index

    def at_load(self, load: float) -> float:
        """Bytes per connection if the index were filled to `load`."""
        return (self.resident + self.index_bytes * (self.load / load - 1)) / self.connections


def compose(connections: int, sessions_each: int) -> State:
    """An empty state with room for so many connections, from a configuration; its gateways answer."""
    mappings = connections // sessions_each
    subscribers = IPv4Network((flows.SUBSCRIBERS, 32 - (mappings // capacity.MAPPINGS_EACH + 2).bit_length()))
    externals = -(-mappings // (capacity.MAPPINGS_EACH * _BLOCKS_USED))
    networks = summarize_address_range(_FIRST_EXTERNAL, _FIRST_EXTERNAL + externals - 1)
    prefixes = ", ".join(f'"{network}"' for network in networks)
    told = config.read(CONFIG.format(sessions=connections, subscribers=subscribers, prefixes=prefixes))
    state = new_state(_filled(appliance.compose(told), connections, sessions_each))
    links = [appliance.Link(bytes((2, 0, 0, 0, 0, number)), 1500, False) for number in (1, 2)]
    appliance.fill(state, told, links, bytes(range(16)), bytes(16))
    for name in ("state", "own_state"):
        state.neighbours[name][state.neighbours["kept"] == 1] = REACHABLE
    recovery.attach(state, traffic.NOW)
    return state


def _filled(sizes: Sizes, connections: int, sessions_each: int) -> Sizes:
    """The same with the smallest index, since a figure at half its load would say little."""
    keys = connections * capacity.KEYS_A_SESSION + connections // sessions_each * capacity.KEYS_A_MAPPING
    least = int(keys / (cuckoo.SLOTS * _FULLEST)) + 1
    return sizes._replace(buckets=1 << max(least - 1, 1).bit_length())


def connect(state: State, connections: int, sessions_each: int, told: Told) -> None:
    """Open so many by first packets, outbound. RuntimeError where one of them makes none."""
    burst = new_burst()
    for first in range(0, connections, _ROWS):
        some = np.arange(first, min(first + _ROWS, connections))
        traffic.run(state, flows.frames_of(some, sessions_each), burst, len(some), 1, traffic.NOW)
        if first // _ROWS % 16 == 0:
            told(f"{sessions_each} per mapping: {first:,} of {connections:,} connections")
    made = int(state.shards[0]["sessions"]), int(state.shards[0]["mappings"]), int(state.counters[FORWARDED_OUT, 0])
    if made != (connections, connections // sessions_each, connections):
        raise RuntimeError(f"{connections:,} first packets made (sessions, mappings, forwarded) {made}")


def take(connections: int, sessions_each: int, told: Told = lambda text: None) -> Taken:
    """Make so many connections and see what they take."""
    state = compose(connections, sessions_each)
    connect(state, connections, sessions_each, told)
    resident, _ = environment.resident(state.words)
    load = int(state.core[0]["index_entries"]) / (len(state.tags) * cuckoo.SLOTS)
    return Taken(connections, resident, state.tags.nbytes, load)


def run(quick: bool, told: Told) -> list[Result]:
    """Bytes per connection at one and at four sessions per mapping; it takes half a minute, so `quick` changes nothing."""
    _expect_memory()
    return figures(take(CONNECTIONS, 1, told), take(CONNECTIONS, SHARED, told))


def figures(single: Taken, shared: Taken) -> list[Result]:
    """What was measured, beside what the layout says."""
    each, sections = single.at_load(capacity.LOAD), capacity.per_connection()
    return [
        _bytes("memory/per_connection", each, GOAL),
        _bytes("memory/per_connection/computed", sum(sections.values()), GOAL),
        _bytes("memory/per_connection/resident", single.resident / single.connections),
        _bytes("memory/per_connection/4_per_mapping", shared.at_load(capacity.LOAD), each),
        _bytes("memory/per_connection/4_per_mapping/computed", sum(capacity.per_connection(SHARED).values())),
        _bytes("memory/per_connection/4_per_mapping/resident", shared.resident / shared.connections),
        _bytes("memory/protected", 2 * each),
        *(_bytes(f"memory/section/{name}", size) for name, size in sections.items()),
        _bytes("memory/section/rest", each - sum(sections.values())),
    ]


def _expect_memory() -> None:
    available = environment.available()
    if available < CONNECTIONS * _MOST:
        why = f"{CONNECTIONS:,} connections need {CONNECTIONS * _MOST >> 20} MiB, {available >> 20} MiB are free"
        raise Trouble("not enough memory to measure in", why, "stop what takes it, or use a larger machine")


def _bytes(name: str, value: float, goal: float | None = None) -> Result:
    return report.measured(name, "B", [value], goal)


memory = report.command("memory", KIND, run, "Measure the memory of a connection: computed, and resident with 10 M of them.")

if __name__ == "__main__":
    memory()
