"""BFD with the neighbours of our ports (RFC 5880, RFC 5881, asynchronous mode): the loop that forwards also says it is alive.

A session is a row of the state, one for each port and peer, so it outlives a worker: a successor goes on with the same
discriminators, and where it comes within the detection time nobody notices. Names are those of RFC 5880 6.8.1. Time is in
ticks, intervals are in microseconds; so an interval is kept to a millisecond, late rather than early.

    a packet for us: `receive`        time passes: `expire`, then `due` and `write`        a clean stop: `part`

Packets are taken from a neighbour on the link only: their TTL is 255 (RFC 5082), their source and discriminator the session's.
Left out on purpose: demand mode of our own (the peer's is heeded), echo, authentication, IPv6, several hops (RFC 5883).
"""

from __future__ import annotations

import numpy as np

from shards import neighbours, parse, rewrite, wire
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import read16, read32, write16, write32
from shards.outcomes import BFD_PORT
from shards.state import NEIGHBOUR_BYTES, NEIGHBOUR_OWN, REACHABLE, UDP, Array, Row, State
from shards.timers import remaining
from shards.verdict import (
    BFD_AUTHENTICATED,
    BFD_CLOSED,
    BFD_HOPS,
    BFD_MALFORMED,
    BFD_TAKEN,
    BFD_UNKNOWN_PEER,
    BFD_UNKNOWN_SESSION,
    UNDECIDED,
)
from shards.wire import read8, write8

STATES = ("admin_down", "down", "init", "up")
ADMIN_DOWN, DOWN, INIT, UP = range(4)

DIAGNOSTICS = (
    "none", "detection time expired", "echo failed", "neighbour signalled down", "forwarding plane reset", "path down",
    "concatenated path down", "administratively down", "reverse concatenated path down",
)  # fmt: skip
NO_DIAGNOSTIC, EXPIRED, SIGNALLED, ADMINISTRATIVE = 0, 1, 3, 7

# RFC 5880 6.8.6: our state by that which the peer tells, where it is another one then.
_PICTURE = """
        admin_down  down   init   up
down    -           init   up     -
init    down        -      up     up
up      down        down   -      -
"""


def _parse(picture: str) -> Array:
    following = np.repeat(np.arange(len(STATES), dtype=np.uint8), len(STATES)).reshape(-1, len(STATES))
    for line in picture.strip().splitlines()[1:]:
        name, *cells = line.split()
        for told, cell in enumerate(cells):
            if cell != "-":
                following[STATES.index(name), told] = STATES.index(cell)
    return following


FOLLOWING = _parse(_PICTURE)

BYTES = 24  # of a packet without authentication
LENGTH = wire.IPV4_BYTES + 8 + BYTES  # with its headers, from IPv4 on
_VERSION = 1
_POLL, _FINAL, _AUTHENTICATED, _DEMAND, _MULTIPOINT = 0x20, 0x10, 0x04, 0x02, 0x01
_TTL = 255
_FIRST_SOURCE_PORT = 49152  # RFC 5881 4
_SERVICE = 0xC0  # class selector 6: network control
_DONT_FRAGMENT = 0x4000

SLOW = 1_000_000  # us, at least, between packets while a session is not up (RFC 5880 6.8.3)
ASK_AGAIN = 100  # ticks between two looks for the peer's MAC address
_LOW32 = 0xFFFF_FFFF

# --- what comes in --------------------------------------------------------------------------------------------------------


@hot
def is_for_us(state: State, burst: Burst, i: int) -> bool:
    """Whether an undecided row is addressed to its port as BFD over a single hop."""
    if burst.protocol[i] != UDP or burst.destination_port[i] != BFD_PORT:
        return False
    return bool(burst.destination[i] == whole(state.ports[burst.port[i]]["address"]) and state.bfd[0]["address"] != 0)


@hot
def receive(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Let a packet for us do what it does to its session. Verdict: BFD_TAKEN, or why it was refused; then it did nothing."""
    s = _session_of(state, whole(burst.port[i]), whole(burst.source[i]))
    verdict = _refuse(state, frames, burst, i, s)
    if verdict == UNDECIDED:
        row, at = state.bfd[s], burst.l4[i] + 8
        row["received"] += 1
        row["mac"] = wire.mac_at(frames, burst.at[i] + 6)
        _take(row, frames, at, now)
        return BFD_TAKEN
    if s >= 0:
        state.bfd[s]["refused"] += 1
    return verdict


@hot
def _session_of(state: State, port: int, address: int) -> int:
    """Row of the session with a peer on a port, -1 if there is none."""
    for s in range(len(state.bfd)):
        row = state.bfd[s]
        if whole(row["address"]) == address and whole(row["port"]) == port:
            return s
    return -1


@hot
def _refuse(state: State, frames: Array, burst: Burst, i: int, s: int) -> int:
    """Verdict on what must not be heeded, or UNDECIDED: RFC 5881 5, then RFC 5880 6.8.6 from the top."""
    if read8(frames, burst.l3[i] + 8) != _TTL:
        return BFD_HOPS
    if s < 0:
        return BFD_UNKNOWN_PEER
    if _is_malformed(frames, burst, i):
        return BFD_MALFORMED
    at = burst.l4[i] + 8
    yours, told = read32(frames, at + 8), read8(frames, at + 1) >> 6
    if yours != 0 and yours != whole(state.bfd[s]["discriminator"]):
        return BFD_UNKNOWN_SESSION
    if yours == 0 and told != DOWN and told != ADMIN_DOWN:
        return BFD_UNKNOWN_SESSION
    if read8(frames, at + 1) & _AUTHENTICATED:
        return BFD_AUTHENTICATED
    return BFD_CLOSED if state.bfd[s]["state"] == ADMIN_DOWN else UNDECIDED


@hot
def _is_malformed(frames: Array, burst: Burst, i: int) -> bool:
    l4 = burst.l4[i]
    at, payload = l4 + 8, read16(frames, l4 + 4) - 8
    if payload < BYTES or read8(frames, at) >> 5 != _VERSION:
        return True
    flags, length = read8(frames, at + 1), read8(frames, at + 3)
    if length < (BYTES + 2 if flags & _AUTHENTICATED else BYTES) or length > payload:
        return True
    if read8(frames, at + 2) == 0 or flags & _MULTIPOINT or read32(frames, at + 4) == 0:
        return True
    if read16(frames, l4 + 6) == 0:
        return False
    return bool(
        wire.fold(parse.pseudo_sum(frames, burst.l3[i], UDP, payload + 8) + wire.sum16(frames, l4, payload + 8)) != 0xFFFF
    )


@hot
def _take(row: Row, frames: Array, at: int, now: int) -> None:
    """What an accepted packet says: RFC 5880 6.8.6, from "Set bfd.RemoteDiscr" on."""
    flags = read8(frames, at + 1)
    row["remote_discriminator"] = read32(frames, at + 4)
    row["remote_state"], row["remote_diagnostic"] = flags >> 6, read8(frames, at) & 31
    row["remote_demand"] = 1 if flags & _DEMAND else 0
    row["remote_multiplier"] = read8(frames, at + 2)
    row["remote_desired"], row["remote_required"] = read32(frames, at + 12), read32(frames, at + 16)
    if flags & _FINAL:
        row["polling"] = 0
    following = whole(FOLLOWING[whole(row["state"]), flags >> 6])
    if following != whole(row["state"]):
        _move(row, following, SIGNALLED, now)
    if flags & _POLL:
        row["final"] = 1
    row["watched"] = 1
    row["detect_at"] = (now + detection_ticks(row)) & _LOW32
    if remaining(now, whole(row["transmit_at"])) > interval_of(row) // 1000:  # it shortened: RFC 5880 6.8.3
        _schedule(row, now)


@hot
def _move(row: Row, following: int, why: int, now: int) -> None:
    """Enter another state, and let the peer know at once; it is asked to confirm another interval (RFC 5880 6.8.3)."""
    before = whole(row["state"])
    row["state"] = following
    if following == UP:
        row["ever_up"], row["diagnostic"] = 1, NO_DIAGNOSTIC
    elif following != INIT:
        row["diagnostic"] = why
    if before == UP and following == DOWN:
        row["flaps"] += 1
    if before == UP or following == UP:
        row["changed_at"] = now
        desired = whole(row["interval"]) if following == UP else max(whole(row["interval"]), SLOW)
        row["polling"] = 1 if desired != whole(row["desired"]) else whole(row["polling"])
        row["desired"] = desired
    row["transmit_at"] = now & _LOW32


@hot
def interval_of(row: Row) -> int:
    """Microseconds between packets of ours, before jitter (RFC 5880 6.8.2)."""
    return max(whole(row["desired"]), whole(row["remote_required"]))


@hot
def detection_ticks(row: Row) -> int:
    """Ticks of silence after which the peer is gone: RFC 5880 6.8.4. What we require never changes, so it is in force."""
    return -(-whole(row["remote_multiplier"]) * max(whole(row["interval"]), whole(row["remote_desired"])) // 1000)


# --- as time passes -------------------------------------------------------------------------------------------------------


@hot
def expire(state: State, now: int) -> None:
    """End sessions whose peer has been silent for the detection time (RFC 5880 6.8.4); its MAC is asked for anew then."""
    for s in range(len(state.bfd)):
        row = state.bfd[s]
        if row["watched"] and remaining(now, whole(row["detect_at"])) <= 0:
            row["watched"] = row["remote_discriminator"] = row["remote_demand"] = 0
            row["remote_required"] = 1  # its first value: RFC 5880 6.8.1
            row["mac"] = 0
            if row["state"] == INIT or row["state"] == UP:
                _move(row, DOWN, EXPIRED, now)


@hot
def due(state: State, s: int, now: int) -> bool:
    """Whether a session has something to send now: RFC 5880 6.8.7. Where to send it must be known."""
    row = state.bfd[s]
    if row["address"] == 0 or (row["mac"] == 0 and not _find_mac(state, row, now)):
        return False
    if row["final"]:
        return True
    return _is_talking(row) and remaining(now, whole(row["transmit_at"])) <= 0


@hot
def _is_talking(row: Row) -> bool:
    """Whether it sends at intervals, which an administratively closed one does, too (6.8.16)."""
    if row["remote_required"] == 0:
        return False
    quiet = row["remote_demand"] and row["state"] == UP and row["remote_state"] == UP and row["polling"] == 0
    return not quiet


@hot
def _find_mac(state: State, row: Row, now: int) -> bool:
    """Ask for the peer's MAC address as for any neighbour's, as long as it has not been heard."""
    if remaining(now, whole(row["transmit_at"])) > 0:
        return False
    at = neighbours.want(state, whole(row["port"]), whole(row["address"]), now)
    if at != 0 and state.neighbours[at]["own_state"] == REACHABLE:  # itself: the way to it may be another's (see `legs`)
        row["mac"] = wire.mac_at(state.neighbour_bytes, at * NEIGHBOUR_BYTES + NEIGHBOUR_OWN)
        return True
    row["transmit_at"] = (now + ASK_AGAIN) & _LOW32
    return False


@hot
def wait(state: State, now: int) -> int:
    """Ticks until a session has something to do, if nothing comes; at least 1, `ASK_AGAIN` where there is none."""
    least = ASK_AGAIN
    for s in range(len(state.bfd)):
        row = state.bfd[s]
        if row["address"] != 0 and _is_talking(row):
            least = min(least, remaining(now, whole(row["transmit_at"])))
        if row["watched"]:
            least = min(least, remaining(now, whole(row["detect_at"])))
    return max(least, 1)


@hot
def _schedule(row: Row, now: int) -> None:
    """The next packet: the interval less up to a quarter, at random; with a multiplier of 1 at least a tenth (6.8.7)."""
    part = 75 + _random(row) % (16 if row["multiplier"] == 1 else 26)
    row["transmit_at"] = (now + max(interval_of(row) * part // 100_000, 1)) & _LOW32


@hot
def _random(row: Row) -> int:
    """Xorshift of 32 bits (Marsaglia 2003): only so that peers do not fall in step."""
    x = whole(row["random"])
    x ^= (x << 13) & _LOW32
    x ^= x >> 17
    x ^= (x << 5) & _LOW32
    row["random"] = x
    return x


# --- what goes out --------------------------------------------------------------------------------------------------------


@hot
def write(state: State, frames: Array, l3: int, s: int, now: int) -> int:
    """Write a session's packet behind `l3` and its Ethernet header before that; where the frame begins. It counts as sent."""
    row = state.bfd[s]
    _write_headers(state, frames, l3, s)
    _write_control(row, frames, l3 + wire.IPV4_BYTES + 8)
    l4 = l3 + wire.IPV4_BYTES
    check = ~wire.fold(parse.pseudo_sum(frames, l3, UDP, BYTES + 8) + wire.sum16(frames, l4, BYTES + 8)) & 0xFFFF
    write16(frames, l4 + 6, check if check else 0xFFFF)
    if row["final"] == 0 or remaining(now, whole(row["transmit_at"])) <= 0:
        _schedule(row, now)
    row["final"] = 0
    row["sent"] += 1
    return rewrite.link_header(state, frames, l3, whole(row["port"]), whole(row["mac"]))


@hot
def _write_headers(state: State, frames: Array, l3: int, s: int) -> None:
    """IPv4 and UDP; checksum of UDP 0."""
    row = state.bfd[s]
    write16(frames, l3, 0x4500 | _SERVICE)
    write16(frames, l3 + 2, LENGTH)
    write32(frames, l3 + 4, _DONT_FRAGMENT)
    write16(frames, l3 + 8, _TTL << 8 | UDP)
    write16(frames, l3 + 10, 0)
    write32(frames, l3 + 12, whole(state.ports[whole(row["port"])]["address"]))
    write32(frames, l3 + 16, whole(row["address"]))
    write16(frames, l3 + 10, wire.checksum(frames, l3, wire.IPV4_BYTES))
    l4 = l3 + wire.IPV4_BYTES
    write16(frames, l4, _FIRST_SOURCE_PORT + s)
    write16(frames, l4 + 2, BFD_PORT)
    write16(frames, l4 + 4, 8 + BYTES)
    write16(frames, l4 + 6, 0)


@hot
def _write_control(row: Row, frames: Array, at: int) -> None:
    """RFC 5880 4.1. A packet that answers does not ask."""
    flags = whole(row["state"]) << 6
    if row["final"]:
        flags |= _FINAL
    elif row["polling"]:
        flags |= _POLL
    write8(frames, at, _VERSION << 5 | whole(row["diagnostic"]))
    write8(frames, at + 1, flags)
    write8(frames, at + 2, whole(row["multiplier"]))
    write8(frames, at + 3, BYTES)
    write32(frames, at + 4, whole(row["discriminator"]))
    write32(frames, at + 8, whole(row["remote_discriminator"]))
    write32(frames, at + 12, whole(row["desired"]))
    write32(frames, at + 16, whole(row["interval"]))
    write32(frames, at + 20, 0)


@hot
def part(state: State, now: int) -> None:
    """A clean stop: every session is administratively down, and says so at once (RFC 5880 6.8.16)."""
    for s in range(len(state.bfd)):
        row = state.bfd[s]
        if row["address"] != 0 and row["state"] != ADMIN_DOWN:
            _move(row, ADMIN_DOWN, ADMINISTRATIVE, now)
            row["polling"] = 0


@hot
def begin(state: State, now: int) -> None:
    """Whoever takes over: what was closed begins anew, all else goes on where it was."""
    for s in range(len(state.bfd)):
        if state.bfd[s]["address"] != 0 and state.bfd[s]["state"] == ADMIN_DOWN:
            _move(state.bfd[s], DOWN, ADMINISTRATIVE, now)


# --- what others make of it -----------------------------------------------------------------------------------------------


@hot
def is_dead(row: Row) -> bool:
    """Whether a session says that its peer cannot be reached: it was up, and is no more.

    What an administrator closed at either end does not say so (RFC 5882 4.2).
    """
    return bool(row["ever_up"] and row["state"] != UP and row["state"] != ADMIN_DOWN and row["remote_state"] != ADMIN_DOWN)


@hot
def port_is_dead(state: State, port: int) -> bool:
    """Whether a port has dead sessions and none that is up: nothing should be sent by it while another of its side is left."""
    dead = False
    for s in range(len(state.bfd)):
        row = state.bfd[s]
        if row["address"] != 0 and whole(row["port"]) == port:
            if row["state"] == UP:
                return False
            dead = dead or is_dead(row)
    return dead


@hot
def _has_settled(state: State, port: int, now: int) -> bool:
    """Whether a port whose peer was lost is to be used again: a session of it has been up for as long as was asked for.

    A switch's loop answers before its routes are back: it would drop what it is sent, or send it round.
    """
    young = False
    for s in range(len(state.bfd)):
        row = state.bfd[s]
        if row["address"] != 0 and whole(row["port"]) == port and row["state"] == UP:
            if now - whole(row["changed_at"]) >= whole(row["hold"]):
                return True
            young = True
    return not young


@hot
def publish(state: State, now: int) -> None:
    """Let `legs` know of each port that has sessions whether its peer is lost."""
    for s in range(len(state.bfd)):
        if state.bfd[s]["address"] != 0:
            p = whole(state.bfd[s]["port"])
            lost = port_is_dead(state, p) or (state.ports[p]["peer_lost"] != 0 and not _has_settled(state, p, now))
            state.ports[p]["peer_lost"] = 1 if lost else 0
