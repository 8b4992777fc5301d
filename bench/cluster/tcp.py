"""TCP connections that are really opened, remembered one by one, and asked again later whether they still live.

    client                               server
    SYN ───────────────────────────────►
        ◄─────────────────────────────── SYN-ACK
    ACK, and a request of round 0 ─────►
        ◄─────────────────────────────── answer: the connection is *established* when it arrives
    a request of a later round ────────►
        ◄─────────────────────────────── answer: it lives
    RST ───────────────────────────────► it is *closed*, and asked no more; only where that was ordered

A connection's number travels in its sequence numbers, which a NAT leaves alone: initial ones are number << 8. So requests of
round 31 have the sequence number of round 0 again, and look like retransmissions of that. The server needs no memory but one:
the external endpoint of each connection. What comes from another is *moved*, and not answered. Nothing is retransmitted but by
asking once more.
"""

from __future__ import annotations

from bench.cluster.ends import fresh, leave
from bench.cluster.ledger import Ledger
from bench.cluster.packets import (
    ACKNOWLEDGED,
    DESTINATION,
    FLAGS,
    L4,
    LENGTH,
    SEQUENCE,
    SOURCE,
    TCP_DATA,
    begin,
    end_tcp,
    turn,
)
from shards.burst import Burst
from shards.frames import Rings
from shards.jit import hot
from shards.native import read16, read32, write32
from shards.state import TCP
from shards.wire import ACK, PSH, RST, SYN, read8

_DATA = 8  # bytes of a request and of an answer: number of the connection, round
_ROUNDS = 31  # of which the requests have sequence numbers of their own
_REMOTES = 100


@hot
def internal_of(ledger: Ledger, number: int) -> int:
    """Internal endpoint of a connection or resident, address << 16 | port."""
    row, each, bases = ledger.people[0], number // len(ledger.bases), ledger.bases
    port = row["first_port"] + each // row["subscribers"] % row["ports"]
    return int((bases[number % len(bases)] + each % row["subscribers"]) << 16 | port)


@hot
def remote_of(ledger: Ledger, number: int) -> int:
    """Remote endpoint of a connection, address << 16 | port: another one when all internal endpoints have had their turn."""
    row = ledger.people[0]
    lap = number // len(ledger.bases) // (row["subscribers"] * row["ports"])
    return int((row["remote"] + lap % _REMOTES) << 16 | (row["remote_port"] + lap // _REMOTES))


@hot
def open_one(client: Rings, burst: Burst, row: int, ledger: Ledger, number: int, now: int) -> int:
    """Write the SYN of a connection into a row; rows used."""
    used = _write(client, burst, row, ledger, number, SYN, -1)
    if used:
        ledger.connections[number]["opened"] = now
    return used


@hot
def ask_one(client: Rings, burst: Burst, row: int, ledger: Ledger, number: int, turned: int) -> int:
    """Write a request of a round into a row; rows used."""
    return _write(client, burst, row, ledger, number, PSH | ACK, turned)


@hot
def close_one(client: Rings, burst: Burst, row: int, ledger: Ledger, number: int) -> int:
    """Write the end of a connection into a row; rows used."""
    used = _write(client, burst, row, ledger, number, RST, -1)
    if used:
        ledger.connections[number]["closed"] = 1
    return used


@hot
def _write(client: Rings, burst: Burst, row: int, ledger: Ledger, number: int, flags: int, turned: int) -> int:
    at, first, data = fresh(client, burst, row), number << 8, 0
    if at == 0:
        return 0
    internal, remote = internal_of(ledger, number), remote_of(ledger, number)
    ports = (internal & 0xFFFF) << 16 | remote & 0xFFFF
    begin(client.frames, at, ledger.client_macs, TCP, internal >> 16, remote >> 16, ports)
    if flags & ACK:
        write32(client.frames, at + TCP_DATA, number)
        write32(client.frames, at + TCP_DATA + 4, turned)
        data, first = _DATA, first + 1 + _DATA * (turned % _ROUNDS)
    leave(burst, row, end_tcp(client.frames, at, first, first if flags & ACK else 0, flags, data))
    return 1


@hot
def answer(server: Rings, burst: Burst, row: int, ledger: Ledger) -> bool:
    """Serve in its place what came to the server; False where it is nothing of ours."""
    memory, at = server.frames, burst.at[row]
    flags, sequence = read8(memory, at + FLAGS), read32(memory, at + SEQUENCE)
    number = sequence >> 8
    if number >= len(ledger.connections):
        return False
    one = ledger.connections[number]
    if flags & RST:
        return bool(one["closed"] == 1)
    external = read32(memory, at + SOURCE) << 16 | read16(memory, at + L4)
    if flags & SYN:
        one["external"] = external
        turn(memory, at)
        leave(burst, row, end_tcp(memory, at, sequence, sequence + 1, SYN | ACK, 0))
    elif one["external"] != external:
        one["moved"] = 1
    elif read16(memory, at + LENGTH) == 40 + _DATA:
        turn(memory, at)
        leave(burst, row, end_tcp(memory, at, sequence, sequence + _DATA, PSH | ACK, _DATA))
    return True


@hot
def take(client: Rings, burst: Burst, row: int, end: int, ledger: Ledger, now: int) -> int:
    """Serve what came to the client; how many rows it added at `end`, -1 where it is nothing of ours."""
    memory, at = client.frames, burst.at[row]
    flags, acknowledged = read8(memory, at + FLAGS), read32(memory, at + ACKNOWLEDGED)
    number = acknowledged >> 8
    if number >= len(ledger.connections) or not flags & ACK:
        return -1
    one = ledger.connections[number]
    if read32(memory, at + DESTINATION) << 16 | read16(memory, at + L4 + 2) != internal_of(ledger, number):
        one["moved"] = 1
    elif flags & RST:
        one["refused"] = 1
    elif flags & SYN:
        sequence = read32(memory, at + SEQUENCE)
        turn(memory, at)
        leave(burst, row, end_tcp(memory, at, acknowledged, sequence + 1, ACK, 0))
        return ask_one(client, burst, end, ledger, number, 0)
    elif read16(memory, at + LENGTH) == 40 + _DATA and read32(memory, at + TCP_DATA) == number:
        one["round"] = max(one["round"], read32(memory, at + TCP_DATA + 4) + 1)
        if one["established"] == 0:
            one["established"] = now
    return 0
