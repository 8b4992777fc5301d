"""A backup's copy: the same as the authority's after whatever happened, and useful when it takes over."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from shards import apply, gather, invariants, journal, ports, recovery, sessions, tcp, timers
from shards.apply_sessions import NEWS
from shards.jit import PURE
from shards.records import HOLD
from shards.state import (
    ACTIVE,
    HELD,
    ICMP,
    MAPPING_0,
    MAPPING_1,
    NAT_MAPPING,
    NAT_SESSION,
    PASSIVE,
    SESSION_0,
    SESSION_1,
    SYNCING,
    TCP,
    UDP,
    Array,
    Row,
    State,
)
from tests.bare_core import Core, Result
from tests.frames import Packet, address, filler
from tests.fuzz import RICH, STICK, Traffic, bed
from tests.pair import EPOCH
from tests.twins import PLAIN, SNAPSHOT, Receiver, Sender, Twins, differences, endpoint_of, frame, mapped, ready, say

BEDS = {"rich": RICH, "stick": STICK}
SEEDS = range(2 if PURE else 12)
# --- a backup follows -----------------------------------------------------------------------------------------------------


class Life:
    """Random traffic, ends, drains, losses and snapshots."""

    def __init__(self, name: str, seed: int, everything: bool = False, threshold: int = 0) -> None:
        self.dice, self.now = random.Random(seed), EPOCH
        self.twins = Twins(bed(BEDS[name]), EPOCH, everything, threshold)
        self.one, self.other = self.twins.one, self.twins.other
        self.one.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
        self.traffic = Traffic(seed, self.one.bed, lambda: mapped(self.one.state))
        self.copying: tuple[int, int] | None = None

    def step(self) -> None:
        """Some packets, some time, and perhaps something about the copy."""
        self.one.receive(self.traffic.burst(48), self.now)
        self.now += self.dice.choice((1, 10, 400, 3000))
        for core in (self.one, self.other):
            core.pass_time(self.now)
        self.one.resolve()
        self.one.again(self.now)
        for _ in range(self.dice.randrange(3)):
            self.dice.choice((self.delete, self.drain, self.drain, self.deliver, self.deliver, self.copy, self.alive))()

    def delete(self) -> None:
        """An operator deletes sessions."""
        rows = invariants.lines(self.one.state)
        for line in self.dice.sample(rows.tolist(), min(len(rows), 4)):
            sessions.delete(self.one.state, line, self.now)

    def drain(self) -> None:
        """What changed goes on its way."""
        self.twins.sender.changes(self.now)

    def deliver(self) -> None:
        """Some of it arrives."""
        self.twins.deliver(self.now, self.dice.randrange(6))

    def alive(self) -> None:
        """Who was refreshed."""
        self.twins.sender.liveness(self.now)

    def copy(self) -> None:
        """Some steps of a snapshot; before a new one all that was under way is lost, tombstones too."""
        if self.copying is None:
            self.twins.sender.way.clear()
            self.twins.sender.number = int(self.one.state.core[0]["tombstones"])
            self.twins.sender.begin()
            self.copying = 0, 0
        for _ in range(self.dice.randrange(1, 9)):
            self.copying = self.copying and self.twins.sender.piece(self.copying, self.now)

    def copy_anew(self) -> None:
        """Begin a snapshot, whatever was under way."""
        self.copying = None
        self.copy()

    def quiet(self) -> None:
        """All is told, and both are the same."""
        while self.copying:
            self.copy()
        self.alive()
        self.twins.settle(self.now)
        self.twins.check()
        self.other.resolve()


@pytest.mark.parametrize("name", BEDS)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("everything", "threshold"), [(False, 0), (True, 0), (False, 4)][: 1 if PURE else 3])
def test_at_quiet_points_both_copies_are_the_same_and_sound(name: str, seed: int, everything: bool, threshold: int) -> None:
    life = Life(name, seed, everything, threshold)
    for _ in range(2 if PURE else 8):
        for _ in range(8):
            life.step()
        life.quiet()
    told, all_of_them = (len(invariants.living(core.state)) for core in (life.other, life.one))
    assert told == all_of_them if everything else 0 < told < all_of_them


@pytest.mark.parametrize("name", BEDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_backup_that_takes_over_does_with_every_packet_what_the_authority_would_have_done(name: str, seed: int) -> None:
    life = Life(name, seed)
    for _ in range(15):
        life.step()
    life.quiet()
    life.twins.role(life.other, ACTIVE, 0, epoch=2)
    life.now += 5
    for core in (life.one, life.other):
        core.pass_time(life.now)
    compared = 0
    for row in life.one.state.sessions[invariants.lines(life.one.state)]:
        if not tcp.half_open(int(row["state"])) and timers.remaining(life.now, int(row["expiry"])) > 0:
            compared += compare(life.one, life.other, row, life.now)
    assert compared >= 20
    for core in (life.one, life.other):
        assert invariants.complaints(core.state) == []


def compare(one: Core, other: Core, row: Row, now: int) -> int:
    """A packet each way; both cores send the same bytes. How many were sent."""
    sent = 0
    for side, packet in both_ways(row):
        results = [core.receive([frame(core.bed, side, packet)], now)[0] for core in (one, other)]
        assert results[0][: 3 if results[0].sent else 2] == results[1][: 3 if results[1].sent else 2], f"{packet}"
        sent += results[0].sent is not None
    return sent


def both_ways(row: Row) -> list[tuple[str, Packet]]:
    """A packet of a session from inside, and one from outside unless that is one of ours."""
    protocol = int(row["internal_realm"]) >> 24
    internal, external, remote = (int(row[f"{who}_address"]) for who in ("internal", "external", "remote"))
    inner, outer, far = (int(row[f"{who}_port"]) for who in ("internal", "external", "remote"))
    if protocol == ICMP:
        out, back = Packet(ICMP, internal, remote, inner, kind=0x0800), Packet(ICMP, remote, external, 0, outer, kind=0)
    else:
        flags = 16 if protocol == TCP else 0
        out = Packet(protocol, internal, remote, inner, far, flags, payload=filler(40))
        back = Packet(protocol, remote, external, far, outer, flags, payload=filler(40))
    return [("inside", out)] if row["outward"] == sessions.HAIRPIN_HOP else [("inside", out), ("outside", back)]


def test_new_mappings_after_a_takeover_have_the_ports_they_would_have_had() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    for host in range(2, 40):
        for port in range(host % 5 + 1):
            say(twins.one, f"udp 100.64.0.{host}:{4000 + port} > 198.51.100.1:53", EPOCH)
    twins.settle(EPOCH)
    twins.role(twins.other, ACTIVE, 0, epoch=2)
    for host in range(2, 40):
        text = f"udp 100.64.0.{host}:5000 > 198.51.100.1:53"
        assert say(twins.one, text, EPOCH + 1) == say(twins.other, text, EPOCH + 1)
    assert [int(state.pools[0]["blocks_free"]) for state in (twins.one.state, twins.other.state)] == [
        int(twins.one.state.pools[0]["blocks_free"])
    ] * 2


def test_ports_at_rest_rest_on_the_backup_too_and_get_older_there() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    say(twins.one, "udp 100.64.0.2:4001 > 198.51.100.1:53", EPOCH)
    twins.settle(EPOCH)
    delete_all(twins.one.state, EPOCH + 1000)
    twins.sender.changes(EPOCH + 1000)
    twins.sender.way.clear()  # lost
    twins.sender.snapshot(EPOCH + 50_000)
    twins.deliver(EPOCH + 50_000)
    twins.check()
    marks = [np.sort(state.owners[state.owners != 0] & (HELD - 1)) for state in (twins.one.state, twins.other.state)]
    assert len(marks[0]) == 2
    # Its mappings were unseen only now: of the two ages the younger counts.
    assert np.all(marks[1] >= marks[0]) and np.all(marks[1] <= (EPOCH + 50_000) // 1000)
    fresh = Core(bed(PLAIN), EPOCH)
    fresh.state.shards[0]["role"] = PASSIVE
    for sent in list_of_holds(twins.one.state, EPOCH + 60_000):
        assert apply.holds(fresh.state, 0, sent, len(sent), EPOCH + 160_000) == len(sent)
    at = np.nonzero(twins.one.state.owners)
    assert np.all(((EPOCH + 160_000) // 1000 - fresh.state.owners[at]) & 0x7FFFFFFF == 59)


def list_of_holds(state: State, now: int) -> list[Array]:
    """What is held down, in pieces."""
    told, cursor = [], 0
    while cursor != gather.END:
        out = np.zeros(64, HOLD)
        count, cursor = gather.holds(state, 0, cursor, now, out)
        told.append(out[:count])
    return told


def delete_all(state: State, now: int) -> None:
    """End every session."""
    for line in invariants.lines(state).tolist():
        sessions.delete(state, line, now)


def test_ages_of_copies_are_those_of_the_originals() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    twins.settle(EPOCH + 12_345)
    assert invariants.living(twins.other.state)["created"].tolist() == [EPOCH + 345]


# --- what stands in the way -----------------------------------------------------------------------------------------------


def test_a_static_mapping_that_both_have_made_becomes_one() -> None:
    given = bed(PLAIN + "static tcp 203.0.113.0:8080 to 100.64.0.7:80")
    twins = Twins(given, EPOCH)
    other = Core(given, EPOCH)  # began as an authority: it has made the mapping itself, of its own side, and uses it
    other.state.shards[0]["side"] = 1
    ready(twins.one, other)
    say(other, "tcp 100.64.0.7:80 > 198.51.100.9:50000 syn ack", EPOCH)
    other.state.shards[0]["role"] = SYNCING
    say(twins.one, "tcp 100.64.0.7:80 > 198.51.100.9:50001 syn", EPOCH)
    say(twins.one, "tcp 198.51.100.9:50001 > 203.0.113.0:8080 syn ack", EPOCH, "outside")
    receiver = Receiver(other)
    twins.sender.snapshot(EPOCH)
    for sent in twins.sender.way:
        receiver.take(sent, EPOCH)
    assert receiver.refused == 0 and differences(twins.one.state, other.state) == []
    assert invariants.complaints(other.state) == [] and len(invariants.living(other.state)) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_core_that_lived_alone_becomes_a_true_copy(seed: int) -> None:
    """Whatever rows, ports, blocks and keys it has: with one snapshot it has the authority's, changes going on meanwhile."""
    life, stranger = Life("rich", seed), Life("rich", 100 + seed)
    for _ in range(15):
        life.step()
        stranger.step()
    stranger.one.state.shards[0]["role"], stranger.one.state.shards[0]["creates"] = SYNCING, 0
    life.twins.other, life.twins.receiver, life.other = stranger.one, Receiver(stranger.one), stranger.one
    life.copy_anew()
    while life.copying:
        life.one.receive(life.traffic.burst(16), life.now)
        life.now += 100
        life.one.pass_time(life.now)
        life.drain()
        life.copy()
        life.deliver()
    life.quiet()


# --- both were the authority ----------------------------------------------------------------------------------------------


ALL_OVER = 7_600_000  # ms: also of a connection that the random traffic has established


class Partition:
    """Two synced cores lose each other, both serve; then the one with the older epoch contributes and is copied to."""

    def __init__(self, statements: str, seed: int) -> None:
        self.dice, self.now = random.Random(seed), EPOCH
        self.twins = Twins(bed(statements), EPOCH)
        self.one, self.other = self.twins.one, self.twins.other
        ready(self.one, self.other)
        self.traffic = [Traffic(seed + k, self.one.bed, self._known(core)) for k, core in enumerate((self.one, self.other))]
        self.run((self.one,), 10)
        self.twins.settle(self.now)
        self.twins.check()
        self.twins.role(self.other, ACTIVE, 1, epoch=2)

    @staticmethod
    def _known(core: Core) -> Any:
        return lambda: mapped(core.state)

    def run(self, cores: tuple[Core, ...], bursts: int) -> None:
        """Traffic on some cores."""
        for _ in range(bursts):
            self.now += self.dice.choice((1, 10, 300))
            for core, traffic in zip((self.one, self.other), self.traffic, strict=True):
                if core in cores:
                    core.receive(traffic.burst(48), self.now)
                    core.resolve()
                    core.again(self.now)

    def heal(self) -> None:
        """`one` tells `other` all it has, then becomes its copy."""
        self.one.state.shards[0]["role"], self.one.state.shards[0]["creates"] = SYNCING, 0
        contribution, receiver = Sender(self.one, everything=True), Receiver(self.other)
        for step in range(len(SNAPSHOT)):
            at: tuple[int, int] | None = (step, 0)
            while at and at[0] == step:
                at = contribution.piece(at, self.now)
        for sent in contribution.way:
            receiver.take(sent, self.now)
        self.contributed = receiver
        self.back = Sender(self.other, everything=True)
        self.copy = Receiver(self.one)
        self.back.snapshot(self.now)
        self.back.changes(self.now)
        for sent in self.back.way:
            self.copy.take(sent, self.now)


@pytest.mark.parametrize("name", BEDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_partition_all_is_united_and_no_endpoint_has_two_owners(name: str, seed: int) -> None:
    cut = Partition(BEDS[name], seed)
    cut.run((cut.one, cut.other), 8)
    before = [set(map(str, mapped(core.state))) for core in (cut.one, cut.other)]
    outbound = [{row.tobytes()[:16] for row in invariants.living(core.state)} for core in (cut.one, cut.other)]
    cut.heal()
    assert differences(cut.other.state, cut.one.state) == []
    for core in (cut.one, cut.other):
        assert invariants.complaints(core.state) == []
        owned = mapped(core.state)
        assert len({(protocol, external) for protocol, external, _ in owned}) == len(owned)
        assert set(map(str, owned)) == before[0] | before[1]
        assert {row.tobytes()[:16] for row in invariants.living(core.state)} == outbound[0] | outbound[1]
    assert cut.contributed.refused == cut.copy.refused == 0


def test_two_mappings_of_one_endpoint_the_older_becomes_a_shadow_whose_sessions_go_on() -> None:
    cut = Partition(PLAIN, 1)
    text = "udp 100.64.0.99:7000 > 198.51.100.{}:53"
    old = say(cut.one, text.format(1), cut.now)
    new = say(cut.other, text.format(2), cut.now)
    cut.heal()
    endpoints = [external(result) for result in (old, new)]
    assert endpoints[0] != endpoints[1]
    for core in (cut.one, cut.other):
        assert external(say(core, text.format(1), cut.now + 1)) == endpoints[0]
        assert external(say(core, text.format(2), cut.now + 1)) == endpoints[1]
        assert back(core, 1, endpoints[0], cut.now + 1) == back(core, 2, endpoints[1], cut.now + 1) == "forwarded_in"
    assert external(say(cut.other, text.format(3), cut.now + 1)) == endpoints[1]
    for core, sender, receiver in ((cut.other, cut.back, cut.copy),):  # the shadow ends with its sessions, on both
        core.pass_time(cut.now + ALL_OVER)
        sender.changes(cut.now + ALL_OVER)
        for sent in sender.way:
            receiver.take(sent, cut.now + ALL_OVER)
    assert mapped(cut.one.state) == mapped(cut.other.state) == [] and receiver.refused == 0
    assert invariants.complaints(cut.one.state) == invariants.complaints(cut.other.state) == []


def external(result: Result) -> tuple[int, int]:
    """Source address and port of a packet that was sent out."""
    assert result.sent is not None, result.verdict
    return int.from_bytes(result.sent[26:30], "big"), int.from_bytes(result.sent[34:36], "big")


def back(core: Core, remote: int, endpoint: tuple[int, int], now: int) -> str:
    """Verdict on an answer."""
    packet = Packet(UDP, address(f"198.51.100.{remote}"), endpoint[0], 53, endpoint[1])
    return core.receive([frame(core.bed, "outside", packet)], now)[0].verdict


def test_what_the_newer_authority_ended_and_the_older_has_alive_is_alive_again() -> None:
    cut = Partition(PLAIN, 2)
    say(cut.one, "udp 100.64.0.77:7000 > 198.51.100.1:53", cut.now)
    assert "100.64.0.77" not in str(mapped(cut.other.state))
    living = len(invariants.living(cut.one.state))
    delete_all(cut.other.state, cut.now)
    cut.heal()
    assert len(invariants.living(cut.one.state)) == len(invariants.living(cut.other.state)) == living
    assert differences(cut.other.state, cut.one.state) == []


def test_a_row_that_lives_twice_is_given_another_number_and_both_go_on() -> None:
    cut = Partition(PLAIN, 3)
    lines = invariants.lines(cut.one.state).tolist()
    ended = {sessions_key(cut.other.state, line) for line in invariants.lines(cut.other.state).tolist()}
    delete_all(cut.one.state, cut.now)  # its rows, and its mappings' rows, are taken again while the other keeps them
    for host in range(120, 120 + len(lines)):
        say(cut.one, f"udp 100.64.0.{host}:7000 > 198.51.100.1:53", cut.now)
    made = {sessions_key(cut.one.state, line) for line in invariants.lines(cut.one.state).tolist()}
    assert set(invariants.lines(cut.one.state).tolist()) & set(lines) and len(made) > 5
    cut.heal()
    for core in (cut.one, cut.other):
        assert invariants.complaints(core.state) == []
        assert {sessions_key(core.state, line) for line in invariants.lines(core.state).tolist()} == ended | made
    assert differences(cut.other.state, cut.one.state) == []


def sessions_key(state: State, line: int) -> bytes:
    """The outbound tuple."""
    key: bytes = state.sessions[line].tobytes()[:16]
    return key


@pytest.mark.parametrize(
    ("ours", "theirs", "newer_by", "both"),
    [
        ("fin_out", "fin_in", 10, "closing"),
        ("fin_in", "fin_out", -10, "closing"),
        ("established", "closing", -10, "closing"),
        ("closing", "established", 60_000, "established"),
        ("established", "fin_in", 60_000, "fin_in"),
        ("fin_in", "established", -60_000, "fin_in"),
        ("reset", "established", 10, "established"),
        ("established", "init", 60_000, "init"),
    ],
)
def test_states_that_two_have_seen_are_merged(ours: str, theirs: str, newer_by: int, both: str) -> None:
    """`newer_by`: ticks by which their word is younger than ours."""
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "tcp 100.64.0.2:4000 > 198.51.100.1:80 syn", EPOCH)
    say(twins.one, "tcp 198.51.100.1:80 > {}:{} syn ack".format(*endpoint_of(twins.one)), EPOCH, "outside")
    twins.settle(EPOCH)
    at = EPOCH + 100_000
    for core, state, refreshed in ((twins.one, theirs, at + newer_by), (twins.other, ours, at)):
        row = core.state.sessions[invariants.lines(core.state)[0]]
        row["state"] = tcp.STATES.index(state)
        row["expiry"] = refreshed + tcp.timeout(core.state.settings, int(row["state"]))
    twins.role(twins.other, ACTIVE, 0, epoch=2)
    before = int(invariants.living(twins.other.state)["expiry"][0])
    journal.mark(twins.one.state, int(invariants.lines(twins.one.state)[0]) << 1)
    twins.settle(at + 100_000)
    row = invariants.living(twins.other.state)[0]
    assert tcp.STATES[row["state"]] == both
    marked = bool(np.any(twins.other.state.dirty))
    assert marked == (both != theirs or timers.remaining(before, int(row["expiry"])) > NEWS)
    assert invariants.complaints(twins.other.state) == []


# --- ends and restarts --------------------------------------------------------------------------------------------------


def truth(state: State) -> list[bytes]:
    """Every living row, and who owns what."""
    rows = [state.sessions[invariants.lines(state)], state.mappings[invariants.halves(state)]]
    return [part.tobytes() for part in (*rows, state.owners, state.chunks)]


def test_mappings_whose_sessions_never_came_end_some_time_after_a_takeover() -> None:
    twins = Twins(bed(PLAIN + "static tcp 203.0.113.0:8080 to 100.64.0.7:80"), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "tcp 100.64.0.2:4000 > 198.51.100.1:53 syn", EPOCH)  # half-open: only the mapping travels
    twins.settle(EPOCH)
    assert len(mapped(twins.other.state)) == 2
    twins.role(twins.other, ACTIVE, 0, epoch=2)
    for klass in (MAPPING_0, MAPPING_1):
        assert apply.end_idle(twins.other.state, 0, klass, 0, EPOCH, 100) == apply.END
    assert [internal[1] for _, _, internal in mapped(twins.other.state)] == [80]
    assert int(twins.other.state.core[0]["tombstones"]) == 1  # whoever copies us now is told
    assert invariants.complaints(twins.other.state) == []


def test_kinds_are_what_the_records_say_they_are() -> None:
    assert (NAT_SESSION, NAT_MAPPING) == (1, 2) and (SESSION_0, SESSION_1, MAPPING_0, MAPPING_1) == (0, 1, 2, 3)
    assert ports.port_space(ICMP) == 0


def test_a_restart_finds_shadows_and_of_two_that_have_one_port_only_one() -> None:
    cut = Partition(PLAIN, 1)
    for core, remote in ((cut.one, 1), (cut.other, 2)):
        say(core, f"udp 100.64.0.99:7000 > 198.51.100.{remote}:53", cut.now)
    cut.heal()
    before = truth(cut.one.state)[:2]
    recovery.attach(cut.one.state, cut.now)
    assert truth(cut.one.state)[:2] == before and invariants.complaints(cut.one.state) == []
    some, other = invariants.halves(cut.one.state)[:2].tolist()
    cut.one.state.owners[cut.one.state.owners == some] = 0
    for field in ("external_address", "external_port"):
        cut.one.state.mappings[some][field] = cut.one.state.mappings[other][field]
    recovery.attach(cut.one.state, cut.now)
    assert invariants.complaints(cut.one.state) == []
