"""Sessions of IPv6 on two cores: told of, refreshed, ended, compared, taken over; and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest

from shards import apply, digest, gather, invariants, recovery, resume, sessions, slabs
from shards.jit import PURE
from shards.lifetimes import SLACK
from shards.records import CONTINUED, MAPPING_RECORD, SESSION_RECORD
from shards.state import ACTIVE, ICMP6, PASSIVE, SESSION6_0, SESSION6_1, SESSION_0, TCP, Array, State
from tests import frames6
from tests.frames import build_frame, mac_of
from tests.fuzz import bed
from tests.pair import EPOCH, sender_of6
from tests.twins import KEYS, NOTHING_SEEN, Twins

BED = """
subscribers 100.64.0.0/24
subscribers6 2400:c0de::/48 each 56 of 100.64.0.0/24 udp endpoint-independent
pinhole tcp internal-ports 80
inside address6 2400:c0de:fff::1/64 gateway6 fe80::2
outside address6 2600:1::2/64 gateway6 fe80::1
"""


def twins(everything: bool = True) -> Twins:
    return Twins(bed(BED), EPOCH, everything)


def inside(made: Twins, *lines: str, now: int = EPOCH) -> list[str]:
    """Let the authority get packets from inside; their verdicts."""
    return [hand(made.one, "inside", line, now) for line in lines]


def hand(core: object, side: str, line: str, now: int = EPOCH) -> str:
    packet, given = frames6.read(line), core.bed  # type: ignore[attr-defined]
    port = given.inside if side == "inside" else given.outside
    frame = build_frame(mac_of(port.address), sender_of6(given, side, packet), frames6.build(packet), port.vlan, 0x86DD)
    return str(core.receive([(side, frame)], now)[0].verdict)  # type: ignore[attr-defined]


def told(made: Twins, now: int = EPOCH) -> None:
    made.sender.changes(now)
    made.deliver(now)


def rows(state: State) -> list[tuple[int, ...]]:
    """What must be equal of every living session: its row, its tuple, its state and life."""
    found = []
    for line in invariants.lines6(state).tolist():
        row, flow = state.sessions[line], state.flows6[line + 1]
        names = (
            "internal_high",
            "internal_low",
            "remote_high",
            "remote_low",
            "realm",
            "internal_port",
            "remote_port",
            "filtering",
        )
        wire = tuple(int(number) for number in slabs.wire_row(state, line << 1))
        found.append((*wire, *(int(flow[name]) for name in names), int(row["state"]), int(row["generation"])))
    return sorted(found)


def digests(state: State, klass: int = SESSION6_0) -> Array:
    found = np.zeros(256, np.uint64)
    digest.digest(state, 0, klass, *KEYS, 0, 256, np.zeros(4, np.uint64), found)
    return found


MANY = [f"udp [2400:c0de:0:{n:x}00::5]:4000 > [2600::9]:53" for n in range(1, 100)]


def test_what_one_opens_the_other_has() -> None:
    made = twins()
    verdicts = inside(made, *MANY, "udp [2400:c0de:0:100::5]:4000 > [2400:c0de:0:200::5]:53")
    assert set(verdicts) == {"forwarded_out", "unsolicited"}
    told(made)
    assert rows(made.one.state) == rows(made.other.state) and len(rows(made.one.state)) == 100
    assert made.receiver.refused == 0 and gather.unsent(made.one.state, 0) == 0
    assert (digests(made.one.state) == digests(made.other.state)).all() and np.count_nonzero(digests(made.one.state)) == 100
    for core in (made.one, made.other):
        assert not (wrong := invariants.complaints(core.state)), wrong
    assert hand(made.other, "outside", "udp [2600::9]:53 > [2400:c0de:0:700::5]:4000") == "forwarded_in"
    assert hand(made.other, "outside", "udp [2600::8]:7 > [2400:c0de:0:700::5]:4000") != "forwarded_in"  # not the authority


def test_only_open_ones_travel_and_their_ends_do() -> None:
    made = twins(everything=False)
    inside(made, "tcp [2400:c0de:0:100::5]:4000 > [2600::9]:80 syn")
    told(made)
    assert rows(made.other.state) == []
    hand(made.one, "outside", "tcp [2600::9]:80 > [2400:c0de:0:100::5]:4000 syn ack")
    told(made)
    assert rows(made.other.state) == rows(made.one.state) != []
    line = int(invariants.lines6(made.one.state)[0])
    sessions.delete(made.one.state, line, EPOCH)
    told(made)
    assert rows(made.other.state) == [] and not invariants.complaints(made.other.state)


def test_a_snapshot_sets_right_what_was_lost() -> None:
    made = twins()
    inside(made, *MANY[:50])
    made.sender.changes(EPOCH)
    made.sender.way.clear()
    inside(made, *MANY[50:])
    stale = int(invariants.lines6(made.one.state)[3])
    told(made)
    sessions.delete(made.one.state, stale, EPOCH)
    made.sender.way.clear()
    made.sender.snapshot(EPOCH)
    made.deliver(EPOCH)
    assert rows(made.one.state) == rows(made.other.state) and len(rows(made.one.state)) == 98
    assert not invariants.complaints(made.other.state)


def test_who_is_refreshed_lives_on() -> None:
    made = twins()
    inside(made, *MANY[:3])
    told(made)
    inside(made, MANY[1], now=EPOCH + 200_000)
    made.sender.since = EPOCH + 100_000
    made.sender.liveness(EPOCH + 200_000)
    made.deliver(EPOCH + 200_000)
    state = made.other.state
    left = {int(state.sessions[line]["expiry"]) - EPOCH for line in invariants.lines6(state).tolist()}
    assert left == {300_000 + SLACK | 1, 500_000 + SLACK | 1}  # odd: as another core told


if not PURE:  # plain Python walks whole extents for minutes

    def test_the_backup_goes_on_and_its_restart_finds_them() -> None:
        made = twins()
        inside(made, *MANY[:9])
        told(made)
        state = made.other.state
        assert recovery.attach(state, EPOCH) == 9 and not invariants.complaints(state)
        assert resume.resume(state, False, EPOCH) == (9, 0)
        state.shards[0]["role"], state.shards[0]["creates"] = ACTIVE, 1
        made.other.resolve()
        assert hand(made.other, "inside", "udp [2400:c0de:0:f00::5]:4000 > [2600::9]:53") in ("forwarded_out", "held")


def records() -> tuple[Twins, Array]:
    made = twins()
    inside(made, MANY[6])
    out = np.zeros(8, SESSION_RECORD)
    count, mapped = gather.drain(made.one.state, 0, True, 0, EPOCH, out, np.zeros(4, MAPPING_RECORD))
    assert (count, mapped) == (2, 0) and out["klass"][:2].tolist() == [SESSION6_0, CONTINUED]
    return made, out[:2].copy()


@pytest.mark.parametrize(
    ("at", "field", "value"),
    [
        (0, "klass", 4), (0, "klass", 7), (0, "klass", SESSION_0), (1, "klass", 0), (1, "klass", SESSION6_0), (0, "state", 1),
        (0, "protocol", TCP), (0, "protocol", ICMP6), (0, "protocol", 50), (0, "internal_realm", 0), (0, "flags", 1),
        (0, "remaining", 1 << 31), (0, "row", 2**32 - 1), (1, "row", 0x2600_0000), (1, "row", 0xFC00_0000),
        (1, "mapping_row", 0),
        (1, "external_address", 0xFF02_0000), (1, "external_address", 0),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_changes_nothing(at: int, field: str, value: int) -> None:
    made, told_of = records()
    told_of[field][at] = value
    if (at, field, value) == (1, "mapping_row", 0):  # another subscriber's: that could be
        assert apply.sessions(made.other.state, 0, told_of, 2, NOTHING_SEEN, EPOCH) == 2
        return
    assert apply.sessions(made.other.state, 0, told_of, 2, NOTHING_SEEN, EPOCH) < 2
    assert rows(made.other.state) == [] and not invariants.complaints(made.other.state)


def test_half_a_session_and_any_nonsense_are_refused() -> None:
    made, told_of = records()
    assert apply.sessions(made.other.state, 0, told_of, 1, NOTHING_SEEN, EPOCH) == 0
    chance = np.random.default_rng(1)
    noise = chance.integers(0, 256, (400, 64), np.uint8).view(SESSION_RECORD).reshape(-1)
    noise["klass"][::2] = SESSION6_1
    noise["klass"][1::4] = CONTINUED
    apply.sessions(made.other.state, 0, noise, len(noise), NOTHING_SEEN, EPOCH)
    assert rows(made.other.state) == [] and not invariants.complaints(made.other.state)


def test_two_authorities_keep_what_either_has() -> None:
    made = twins()
    inside(made, *MANY[:4])
    state = made.other.state
    state.shards[0]["role"], state.shards[0]["creates"] = ACTIVE, 1
    made.other.resolve(*(frames6.address6("fe80::1"), frames6.address6("fe80::2")))
    for line in MANY[2:6]:
        hand(made.other, "inside", line)
    told(made)
    tuples = [row[3:9] for row in rows(state)]
    assert len(tuples) == len(set(tuples)) == 6 and not invariants.complaints(state)
    state.shards[0]["role"], state.shards[0]["creates"] = PASSIVE, 0
