"""UDP in two kinds. A *population*: sessions that are opened once and asked again later, each with its number and a round.
A *stream*: numbered datagrams both ways at a pace, whose every number is remembered: when it left, when it came, how often.

Both carry a word that says what they are, a number, and a round or flow. The server answers the population; its own part of the
stream goes to the external endpoints that it has seen.
"""

from __future__ import annotations

from bench.cluster.ends import fresh, leave
from bench.cluster.ledger import Ledger
from bench.cluster.packets import DESTINATION, L4, SOURCE, UDP_DATA, begin, end_udp, turn
from bench.cluster.tcp import internal_of, remote_of
from shards.burst import Burst
from shards.frames import Rings
from shards.jit import hot
from shards.native import read16, read32, write32
from shards.state import UDP, Array

RESIDENT, STREAM = 0x6B726E31, 0x6B726E32  # what they say they are
_POPULATION_PORT, _STREAM_PORT, _FIRST_PORT = 7001, 7002, 50_000
_DATA = 12
_OUT, _IN = 0, 1


@hot
def flow_of(ledger: Ledger, flow: int) -> int:
    """Internal endpoint of a flow of the stream, address << 16 | port: each is another subscriber's."""
    bases = ledger.bases
    address = bases[flow % len(bases)] + flow // len(bases) % ledger.people[0]["subscribers"]
    return int(address << 16 | _FIRST_PORT)


@hot
def ask_one(client: Rings, burst: Burst, row: int, ledger: Ledger, number: int, turned: int) -> int:
    """Write a question to one of the population into a row; rows used."""
    remote = remote_of(ledger, number) >> 16 << 16 | _POPULATION_PORT
    return _write(client, burst, row, ledger.client_macs, internal_of(ledger, number), remote, RESIDENT, number, turned)


@hot
def stream_out(client: Rings, burst: Burst, row: int, ledger: Ledger, number: int, now: int) -> int:
    """Write the stream's next datagram outbound into a row; rows used."""
    flow = number % len(ledger.externals)
    remote = ledger.people[0]["remote"] << 16 | _STREAM_PORT
    used = _write(client, burst, row, ledger.client_macs, flow_of(ledger, flow), remote, STREAM, number, flow)
    if used:
        ledger.out[number]["sent"] = now
    return used


@hot
def stream_in(server: Rings, burst: Burst, row: int, ledger: Ledger, number: int, now: int) -> int:
    """Write the stream's next datagram inbound into a row; rows used."""
    flow = number % len(ledger.externals)
    remote = ledger.people[0]["remote"] << 16 | _STREAM_PORT
    used = _write(server, burst, row, ledger.server_macs, remote, ledger.externals[flow], STREAM, number, flow)
    if used:
        ledger.into[number]["sent"] = now
    return used


@hot
def _write(
    handles: Rings, burst: Burst, row: int, macs: Array, source: int, destination: int, what: int, number: int, more: int
) -> int:
    at = fresh(handles, burst, row)
    if at == 0:
        return 0
    ports = (source & 0xFFFF) << 16 | destination & 0xFFFF
    begin(handles.frames, at, macs, UDP, source >> 16, destination >> 16, ports)
    write32(handles.frames, at + UDP_DATA, what)
    write32(handles.frames, at + UDP_DATA + 4, number)
    write32(handles.frames, at + UDP_DATA + 8, more)
    leave(burst, row, end_udp(handles.frames, at, _DATA))
    return 1


@hot
def answer(server: Rings, burst: Burst, row: int, ledger: Ledger, now: int) -> bool:
    """Serve in its place what came to the server; False where it is nothing of ours."""
    memory, at = server.frames, burst.at[row]
    what, number, flow = read32(memory, at + UDP_DATA), read32(memory, at + UDP_DATA + 4), read32(memory, at + UDP_DATA + 8)
    external = read32(memory, at + SOURCE) << 16 | read16(memory, at + L4)
    if what == RESIDENT and number < len(ledger.residents):
        one = ledger.residents[number]
        if one["external"] == 0:
            one["external"] = external
        if one["external"] != external:
            one["moved"] = 1
            return True
        turn(memory, at)
        leave(burst, row, end_udp(memory, at, _DATA))
        return True
    if what != STREAM or number >= len(ledger.out) or flow >= len(ledger.externals):
        return False
    ledger.tally[0]["moved"] += ledger.externals[flow] != 0 and ledger.externals[flow] != external
    ledger.externals[flow] = external
    _arrived(ledger.out, number, ledger.high, _OUT, now)
    return True


@hot
def take(client: Rings, burst: Burst, row: int, ledger: Ledger, now: int) -> bool:
    """Note what came to the client; False where it is nothing of ours."""
    memory, at = client.frames, burst.at[row]
    what, number, more = read32(memory, at + UDP_DATA), read32(memory, at + UDP_DATA + 4), read32(memory, at + UDP_DATA + 8)
    endpoint = read32(memory, at + DESTINATION) << 16 | read16(memory, at + L4 + 2)
    if what == RESIDENT and number < len(ledger.residents):
        one = ledger.residents[number]
        if endpoint == internal_of(ledger, number):
            one["round"] = max(one["round"], more + 1)
        else:
            one["moved"] = 1
        return True
    if what != STREAM or number >= len(ledger.into):
        return False
    ledger.tally[0]["moved"] += endpoint != flow_of(ledger, more)
    _arrived(ledger.into, number, ledger.high, _IN, now)
    return True


@hot
def _arrived(datagrams: Array, number: int, high: Array, direction: int, now: int) -> None:
    one = datagrams[number]
    one["times"] = min(one["times"] + 1, 255)
    if one["times"] > 1:
        return
    one["came"] = now
    if number < high[direction]:
        one["late"] = 1
    high[direction] = max(high[direction], number)
