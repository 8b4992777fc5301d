"""One packet's way through a copy of the state: the packet path itself, in plain Python, with a sentence for each stage.

The copy is private and copy-on-write: nothing the packet does reaches the running core, which does not even notice. This module
must be imported with NUMBA_DISABLE_JIT=1 in the environment, as `krononat.cli.trace` does; then no compiler is loaded.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import numpy as np

from krononat import view, view6
from krononat.neighbours import address_of
from krononat.packet import Packet, build, endpoint
from shards import cuckoo, firewall6, hops, nat, parse, parse6, pipeline, protocols, recovery
from shards.burst import TURNED_BARE, Burst, new_burst
from shards.state import (
    BOTH,
    EXTERNAL,
    FAILED,
    FIREWALL_SESSION6,
    ICMP,
    INTERNAL,
    OUTBOUND,
    REACHABLE,
    ROLES,
    SIDES,
    TCP,
    UDP,
    WANTED,
    WHEEL_SHIFT,
    Array,
    State,
    open_state,
    read_header,
    state_bytes,
)
from shards.verdict import HELD_BACK, PUNTED, UNDECIDED, VERDICTS, Verdict

HEADROOM = 256  # bytes before the frame, for what may grow
MISS = "miss: no session has this tuple"
TRIES = 3  # a packet asks for a neighbour on each side at most

PIECE = 1 << 16  # bytes

MAP_NORESERVE = 0x4000  # mmap(2); not in the module `mmap`


class Stage(NamedTuple):
    """What one stage decided."""

    stage: str
    told: str


class Trace(NamedTuple):
    """A packet's way; `sent` are the frames that left, described."""

    stages: list[Stage]
    verdict: Verdict
    sent: str


def copy_of(descriptor: int) -> State:
    """A private copy of the state behind a (read-only) descriptor; pages are copied as they are written to."""
    sizes = read_header(os.pread(descriptor, mmap.PAGESIZE, 0))
    size = state_bytes(sizes)
    if os.fstat(descriptor).st_blksize > mmap.PAGESIZE:
        return open_state(_read_all(descriptor, size), sizes)
    flags = mmap.MAP_PRIVATE | MAP_NORESERVE
    return open_state(mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE), sizes)


def _read_all(descriptor: int, size: int) -> mmap.mmap:
    """Copy of memory on reserved huge pages: copy-on-write would need further ones, and a missing one is a bus error."""
    memory = mmap.mmap(-1, size)
    for at in range(0, size, PIECE):
        piece = os.pread(descriptor, PIECE, at)
        if piece.strip(b"\0"):  # what is empty stays untouched, and takes no memory
            memory[at : at + len(piece)] = piece
    return memory


def settle_in(state: State, now: int) -> None:
    """Make a state that no worker has attached to ready for packets (see shards.recovery)."""
    state.core[0]["wheel_at"] = now >> WHEEL_SHIFT
    recovery.install_statics(state, now)


def side_of(state: State, packet: Packet) -> int:
    """Side a packet would come from: internal for a subscriber's source."""
    port = state.ports[int(state.settings[0]["internal_port"])]
    if isinstance(packet.source, IPv6Address):
        high = np.uint64(int(packet.source) >> 64)
        return INTERNAL if firewall6.prefix_of(state, int(port["internal_realm"]), high) >= 0 else EXTERNAL
    return INTERNAL if nat.is_internal(state, int(port["internal_realm"]), int(packet.source)) else EXTERNAL


def trace(state: State, packet: Packet, side: int, rules: Sequence[str], now: int) -> Trace:
    """Way of `packet` coming in at the first port of `side` (INTERNAL or EXTERNAL) through `state`, which it changes.

    `rules` are for telling.
    """
    number = int(state.settings[0]["internal_port" if side == INTERNAL else "external_port"])
    frame = build(packet, state.ports[number]["mac"].tobytes(), int(state.ports[number]["vlan"]))
    stages = [Stage("receive", f"{packet}, {len(frame)} bytes, ttl {packet.ttl}, at the {_side(state, number)} port")]
    if isinstance(packet.destination, IPv6Address):
        kept = _kept6(state, number, packet.destination)
    else:
        kept = _kept(state, number, int(packet.destination))
    if kept:
        return Trace([*stages, Stage("steering", f"{kept}: given to the kernel")], VERDICTS[PUNTED], "")
    stages += _first_stages(state, frame, number)
    missed = stages[-1].told == MISS
    six = packet.source.version == 6
    rows = state.rules6 if six else state.rules
    hits, holes, passes = rows["hits"].copy(), state.pinholes["hits"].copy(), state.bypasses["hits"].copy()
    assumed: list[str] = []
    for _ in range(TRIES):
        frames, burst = _receive(frame, number)
        pipeline.process(state, frames, burst, 1, now)
        unknown = _answer_for_neighbours(state)
        assumed += unknown
        if burst.verdict[0] != HELD_BACK or not unknown:
            break
    if len(struck := np.flatnonzero(state.bypasses["hits"] != passes)):
        stages.append(Stage("bypass", f"entry {state.bypasses[struck[0]]['number']} fits: it is not translated"))
    if missed or (rows["hits"] != hits).any():
        stages += _rule_stage(rows, burst, hits, rules)
        if len(struck := np.flatnonzero(state.pinholes["hits"] != holes)):
            stages.append(Stage("pinhole", f"pinhole {state.pinholes[struck[0]]['number']} lets it in"))
    stages += [*_service_stages(state, burst, missed), *_shard_stage(state, burst), *_hop_stage(state, burst, assumed)]
    verdict = VERDICTS[int(burst.verdict[0])]
    sent = _sent(frames, burst)
    stages.append(Stage("send", f"{sent}, at the {_side(state, int(burst.out_port[0]))} port" if sent else "nothing"))
    return Trace(stages, verdict, sent)


def _receive(frame: bytes, port: int) -> tuple[Array, Burst]:
    """Fresh frame memory and columns with the frame as their only packet."""
    frames, burst = np.zeros(HEADROOM + len(frame) + HEADROOM, np.uint8), new_burst()
    frames[HEADROOM : HEADROOM + len(frame)] = np.frombuffer(frame, np.uint8)
    burst.port[0], burst.at[0], burst.length[0] = port, HEADROOM, len(frame)
    return frames, burst


def _side(state: State, port: int) -> str:
    """A port in a sentence; of several of a side, which."""
    side = int(state.ports[port]["side"])
    rows = np.flatnonzero(state.ports["side"] == side).tolist()
    name = "only" if side == BOTH else SIDES[side]
    return name if len(rows) == 1 else f"{'both' if side == BOTH else name}[{rows.index(port)}]"


def _kept(state: State, number: int, destination: int) -> str:
    """Why the steering program of a port gives a packet to the kernel (`shards.steering`); "" if the core gets it."""
    here = state.ports[number]
    own = state.ports["address"][(state.ports["side"] != INTERNAL) | (here["side"] == INTERNAL)]
    reached = here["side"] == INTERNAL or state.settings[0]["shunt_side"] != INTERNAL
    if destination in own or (reached and destination == int(state.peers[0]["address"])):
        return "the core's own address"
    if destination == 0xFFFFFFFF or hops.names_no_host(here, destination):
        return "a broadcast address"
    if destination >> 28 == 0xE or destination >> 16 == 0xA9FE:
        return "multicast or link-local"
    return ""


def _kept6(state: State, number: int, destination: IPv6Address) -> str:
    """The same for IPv6."""
    if destination.is_multicast or destination.is_link_local:
        return "multicast or link-local"
    reached = (state.ports["side"] != INTERNAL) | (state.ports[number]["side"] == INTERNAL)
    seen = state.ports[reached & (state.ports["length6"] > 0)]
    own = {int(port["address6_high"]) << 64 | int(port["address6_low"]) for port in seen}
    return "the core's own address" if int(destination) in own else ""


def _first_stages(state: State, frame: bytes, port: int) -> Iterator[Stage]:
    """The stages that change nothing, run on their own to be told."""
    frames, burst = _receive(frame, port)
    parse.parse(state, frames, burst, 0)
    six = bool(burst.six[0])
    refused = parse6.refuse_addresses(frames, int(burst.l3[0])) if six else parse.refuse_addresses(burst, 0)
    burst.verdict[0] = burst.verdict[0] or refused
    if burst.verdict[0] != UNDECIDED:
        yield Stage("parse", f"refused: {VERDICTS[int(burst.verdict[0])].name}")
        return
    yield Stage("parse", f"IPv{6 if six else 4} and {protocols.name(int(burst.protocol[0]))} headers are sound")
    if six:
        firewall6.choose_key(state, frames, burst, 0)
    else:
        nat.choose_key(state, burst, 0)
    outbound = burst.direction[0] == OUTBOUND
    why = (
        "its source is a subscriber's" if int(state.ports[port]["side"]) == BOTH and outbound else f"{_side(state, port)} port"
    )
    yield Stage("direction", f"{'outbound' if outbound else 'inbound'} ({why})")
    cuckoo.lookup_bulk(state, burst.key0, burst.key1, burst.ref, burst.verdict, 1)
    line = int(burst.ref[0]) >> 2
    yield Stage("lookup", f"hit: session {_told_session(state, line)}" if line else MISS)


def _endpoint(address: int, port: int, protocol: int) -> str:
    """Generic protocols have no ports, nor do their mappings show a place."""
    return (
        f"{IPv4Address(address)}:{port}"
        if protocol in (ICMP, TCP, UDP)
        else f"{protocols.name(protocol)} {IPv4Address(address)}"
    )


def _told_session(state: State, line: int) -> str:
    row = state.sessions[line]
    if row["kind"] == FIREWALL_SESSION6:
        flow = state.flows6[line + 1]
        internal, remote = (
            endpoint(IPv6Address(view6.address(flow, end)), int(flow[f"{end}_port"])) for end in ("internal", "remote")
        )
        return f"{line}, {internal} with {remote}, {view.SESSION_STATES[int(row['state'])]}"
    protocol = int(row["internal_realm"]) >> 24
    ends = ("internal", "external", "remote")
    internal, external, remote = (_endpoint(int(row[f"{end}_address"]), int(row[f"{end}_port"]), protocol) for end in ends)
    return f"{line}, {internal} = {external} with {remote}, {view.SESSION_STATES[int(row['state'])]}"


def _rule_stage(rows: Array, burst: Burst, before: Array, rules: Sequence[str]) -> Iterator[Stage]:
    """The rule that decided: the one whose hits grew."""
    struck = np.flatnonzero(rows["hits"] != before)
    if len(struck):
        number = int(rows[int(struck[0])]["number"])
        told = rules[number] if number < len(rules) else ""
        yield Stage("rules", f"rule {number} decides: {told}".rstrip(": "))
    elif burst.session[0] or burst.mapping[0] or burst.turned[0]:
        yield Stage("rules", "none fits: accepted")


def _service_stages(state: State, burst: Burst, missed: bool) -> Iterator[Stage]:
    """Session and mapping that serve it."""
    line, turned, half = int(burst.session[0]), int(burst.turned[0]), int(burst.mapping[0])
    if turned:
        own = f"its own session is {_told_session(state, turned)}" if turned > 0 else "it has no session of its own"
        yield Stage("hairpin", f"turns round by its external endpoint; {own}")
    if line:
        yield Stage("session", f"{'opened' if missed else 'found'}: {_told_session(state, line)}")
    if half and (turned == TURNED_BARE or not line):
        row = state.mappings[half]
        protocol = int(row["internal_realm"]) >> 24
        internal = _endpoint(int(row["internal_address"]), int(row["internal_port"]), protocol)
        external = _endpoint(int(row["external_address"]), int(row["external_port"]), protocol)
        kind = ("mapping", "static mapping", "mapping that was asked for")[int(row["static"])]
        refuses = turned == TURNED_BARE or int(burst.direction[0]) == OUTBOUND
        does = (
            "is what it leaves by; it refuses, and opens nothing"
            if refuses
            else "lets it in; a session appears with the answer"
        )
        yield Stage("mapping", f"{kind} {external} = {internal} {does}")


def _shard_stage(state: State, burst: Burst) -> Iterator[Stage]:
    """Whose a packet is that only the core with the authority over its shard may serve."""
    if not burst.shard[0]:
        return
    row = state.shards[int(burst.shard[0]) - 1]
    peer = state.peers[int(row["authority"])]
    told = (
        f"{IPv4Address(int(peer['address']))} has the authority"
        if row["authority"]
        else "nobody is known to have the authority"
    )
    if row["authority"] and not peer["alive"]:
        told += ", and is not heard from"
    yield Stage("shard", f"{row['id']}, of which this core is {ROLES[int(row['role'])]}: {told}")


def _hop_stage(state: State, burst: Burst, assumed: Sequence[str]) -> Iterator[Stage]:
    hop = int(burst.next_hop[0])
    told_already = str(address_of(state.neighbours[hop])) if 0 < hop < len(state.neighbours) else ""
    for address in assumed:
        if address != told_already:
            yield Stage("way back", f"{address} has not answered yet; assumed to, else the packet waits and is dropped")
    if 0 < hop < len(state.neighbours):
        row = state.neighbours[hop]
        address = str(address_of(row))
        mac = ":".join(f"{byte:02x}" for byte in row["mac"])
        told = "nobody answers for it" if row["state"] == FAILED else f"MAC {mac}"
        told = "its MAC is not known yet; assumed to answer" if address in assumed else told
        own, out = int(row["own_port"]), int(row["port"])
        instead = f"is not reached there, {told} at the {_side(state, out)} port instead" if out != own else told
        yield Stage("next hop", f"{address} at the {_side(state, own)} port, {instead}")


def _answer_for_neighbours(state: State) -> list[str]:
    """Pretend that every neighbour asked for has answered, so that the trace can go on; their addresses."""
    asked = np.flatnonzero(state.neighbours["state"] == WANTED)
    for number in asked:
        for own in ("", "own_"):
            state.neighbours[int(number)][f"{own}mac"] = (2, 0, 0, 0, 0, 255)
            state.neighbours[int(number)][f"{own}state"] = REACHABLE
    return [str(address_of(state.neighbours[int(number)])) for number in asked]


def _sent(frames: Array, burst: Burst) -> str:
    """The frame that is to be sent, as people write packets; "" if there is none."""
    if not burst.out_length[0]:
        return ""
    at = int(burst.out_at[0])
    frame = frames[at : at + int(burst.out_length[0])].tobytes()
    ip = frame[18 if frame[12:14] == b"\x81\x00" else 14 :]
    return f"{describe(ip)}, {len(frame)} bytes, ttl {ip[7 if ip[0] >> 4 == 6 else 8]}"


def describe(ip: bytes) -> str:
    """A packet as people write it."""
    if ip[0] >> 4 == 6:  # without extension headers: what is described is what `build` made, or an error of ours
        body, protocol, ends = ip[40:], protocols.name(ip[6]).removesuffix("6"), (ip[8:24], ip[24:40])
    else:
        body, protocol, ends = ip[4 * (ip[0] & 15) :], protocols.name(ip[9]), (ip[12:16], ip[16:20])
    source, destination = map(ip_address, ends)
    if protocol not in ("icmp", "tcp", "udp"):
        return str(Packet(protocol, source, 0, destination, 0))
    first, second = int.from_bytes(body[0:2], "big"), int.from_bytes(body[2:4], "big")
    if protocol != "icmp":
        return str(Packet(protocol, source, first, destination, second, flags=body[13] if protocol == "tcp" else 0))
    if body[0] in ((1, 2, 3, 4) if ip[0] >> 4 == 6 else (3, 11, 12)):
        return f"icmp error {body[0]}/{body[1]} {source} > {destination}"
    kind = {128: 8, 129: 0}.get(body[0], body[0])
    return str(Packet(protocol, source, 0, destination, 0, kind=kind, identifier=int.from_bytes(body[4:6], "big")))
