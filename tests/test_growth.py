"""Addresses that come to a pool, and leave it, while packets pass: rows stay, places are in order, nothing by half."""

from __future__ import annotations

import json
import random
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from krononat import appliance, config, growth, interfaces, memory, reload
from krononat.announcer import LOOK_EACH, Announcer
from krononat.client import Trouble
from krononat.drained import Drained
from krononat.models import Config
from krononat.pools import EXTERNALS_AT_MOST, externals_in, spare_in
from krononat.speaking import orders
from krononat.view import ticks
from krononat.worker import Worker
from routing.health import Facts
from shards import externals, invariants, membership, recovery, resume, sessions, sides
from shards.membership import COMING, RETURNING, Order
from shards.state import DRAINED, OPEN, State, external_rows
from tests.bed import Bed
from tests.test_announcer import Far
from tests.test_cli import Run, run
from tests.test_config import RIGHT
from tests.test_drained import BGP
from tests.test_reload import BEFORE, Running, running, written
from tests.twins import Twins, ready, say

__all__ = ["run", "running"]

PLACE = 'prefixes = ["203.0.113.0/28"]'
MORE = BEFORE.replace(PLACE, 'prefixes = ["203.0.113.0/28", "192.88.99.0/29"]')
NOW = 1_000_000


def told(*prefixes: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Their addresses in ascending order."""
    return np.array(sorted(int(host) for prefix in prefixes for host in IPv4Network(prefix)), np.uint32)


def have(state: State, *prefixes: str, number: int = 0) -> Order | None:
    """Let a pool have these prefixes."""
    order = membership.prepare(state, number, told(*prefixes), {})
    assert order is None or membership.settle(state, [order])
    return order


def has(state: State, number: int = 0) -> list[int]:
    """The addresses of a pool, as packets find them, in the order of places."""
    rows = external_rows(state, number)
    hosts: list[int] = state.externals["address"][rows].tolist()
    pool = state.pools[number]
    assert [sessions.external_ordinal(state, host) for host in hosts] == rows.tolist()
    assert [externals.place_of(state, pool, host) for host in hosts] == list(range(len(hosts)))
    assert [externals.nth(state, pool, place) for place in range(len(hosts))] == rows.tolist()
    return hosts


# --- rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_rfc6888_req3_whatever_comes_and_goes_each_address_is_found_and_keeps_its_row(seed: int) -> None:
    dice, hosts = random.Random(seed), set(range(0xCB007100, 0xCB007110))
    state = appliance.offline(config.read(RIGHT))
    where = dict(zip(has(state), external_rows(state, 0).tolist(), strict=True))
    for _ in range(8):
        free = 32 - len(hosts)
        hosts -= set(dice.sample(sorted(hosts), dice.randint(0, len(hosts) - 1)))
        nets = (0xC0586300, 0xCB007100, 0xCB007180)
        hosts |= {dice.choice(nets) + dice.randrange(64) for _ in range(dice.randint(min(free, 1), free))}
        order = membership.prepare(state, 0, np.array(sorted(hosts), np.uint32), {})
        before = has(state)  # not until the worker has done it
        assert set(before) == set(where)
        assert order is None or membership.settle(state, [order])
        assert has(state) == sorted(hosts)
        now = dict(zip(has(state), external_rows(state, 0).tolist(), strict=True))
        assert all(now[host] == row for host, row in where.items() if host in now), "a row has moved"
        assert len(set(now.values())) == len(now) and max(now.values()) < int(state.pools[0]["rooms"])
        strangers = {dice.randrange(1 << 32) for _ in range(50)} | {min(hosts) - 1, max(hosts) + 1, 0} | (set(where) - hosts)
        assert {sessions.external_ordinal(state, host) for host in strangers - hosts} == {-1}
        assert invariants.complaints(state) == [] and resume.resume(state, True, NOW)[0] == 0
        assert has(state) == sorted(hosts)
        where = now


def test_the_other_pools_are_as_they_were() -> None:
    text = BEFORE + '[[pool]]\nname = "second"\nprefixes = ["198.18.0.0/30"]\n'
    state = appliance.offline(config.read(text))
    have(state, "203.0.113.0/28", "198.17.0.0/28")
    have(state, "198.18.0.0/30", "198.18.1.0/30", number=1)
    assert has(state) == told("203.0.113.0/28", "198.17.0.0/28").tolist()
    assert has(state, 1) == told("198.18.0.0/30", "198.18.1.0/30").tolist()
    assert state.pools["blocks_free"].tolist() == [32 * 126, 8 * 126]


def test_what_is_counted_is_right_at_once_and_after_a_restart() -> None:
    state = appliance.offline(config.read(RIGHT))
    each = int(state.pools[0]["blocks_free"]) // 16
    state.pools[0]["dry"] = 3
    have(state, "203.0.113.0/28", "192.88.99.0/30")
    assert (state.pools[0]["blocks_free"], state.pools[0]["dry"]) == (20 * each, 0)
    recovery.attach(state, NOW)
    assert state.pools[0]["blocks_free"] == 20 * each


def test_a_worker_that_is_killed_amid_it_leaves_it_as_it_was_or_as_it_is_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    state = appliance.offline(config.read(RIGHT))
    resume.resume(state, True, NOW)
    order = membership.prepare(state, 0, told("203.0.113.0/28", "192.88.99.0/30"), {})
    assert order and resume.resume(state, False, NOW) == (0, 0)
    assert len(has(state)) == 16, "nobody had told it yet"
    with monkeypatch.context() as patched:
        patched.setattr(membership, "_recount", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            membership.settle(state, [order])
    assert resume.resume(state, False, NOW) == (0, 1), "in doubt, so all that is derived was made anew"
    assert len(has(state)) == 20 and state.pools[0]["blocks_free"] == 20 * 126
    assert membership.settle(state, [order]), "told again"
    assert invariants.complaints(state) == []


@pytest.mark.parametrize("killed", ["worker", "both"])
def test_what_a_killed_worker_has_not_swept_up_its_successor_does(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the pool's word and the rows: new addresses would wait for ever, and those that went come back drained."""
    state = appliance.offline(config.read(RIGHT))
    state.externals["closed"][:8] = DRAINED
    wanted = told("203.0.113.8/29", "192.88.99.0/30")
    order = membership.prepare(state, 0, wanted, {}, COMING)
    with monkeypatch.context() as patched:
        patched.setattr(membership, "_recount", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            membership.settle(state, [order] if order else [])
    resume.resume(state, False, NOW)
    rows = external_rows(state, 0)
    assert has(state) == wanted.tolist() and Counter(state.externals["closed"][rows].tolist()) == {COMING: 4, OPEN: 8}
    if killed == "both":  # who comes after them finds what it wants, but for this
        order = membership.prepare(state, 0, wanted, {}, COMING)
    assert order and not membership.is_in_force(state, [order]), "so it is told again"
    assert membership.settle(state, [order]) and membership.is_in_force(state, [order])
    assert Counter(state.externals["closed"][rows].tolist()) == {RETURNING: 4, OPEN: 8}
    assert state.pools[0]["blocks_free"] == 12 * 126 and invariants.complaints(state) == []
    assert membership.prepare(state, 0, wanted, {}, COMING) is None
    assert np.count_nonzero(state.externals["address"]) == 12 and Drained(state).look().empty == frozenset()


def test_a_row_in_use_does_not_become_free(running: Running) -> None:
    state = appliance.offline(config.read(RIGHT))
    order = membership.prepare(state, 0, told("203.0.113.0/29"), {})
    assert order
    state.chunks["account"][9, 20] = 7  # somebody has a block there meanwhile
    assert not membership.settle(state, [order]) and len(has(state)) == 16
    state.chunks["account"][9, 20] = 0
    assert membership.settle(state, [order]) and has(state) == told("203.0.113.0/29").tolist()
    assert state.externals["address"][8:16].tolist() == [0] * 8 and not membership.is_used(state, np.arange(32)).any()


def test_new_addresses_are_cut_into_sides_as_the_others_even_if_these_were_cut_meanwhile() -> None:
    state = appliance.offline(config.read(RIGHT))
    order = membership.prepare(state, 0, told("203.0.113.0/28", "192.88.99.0/30"), {})
    sides.lay(state, 0)  # the shard has got a backup
    assert order and membership.settle(state, [order])
    assert (state.chunks["side"][external_rows(state, 0)] == state.chunks["side"][0]).all() and state.chunks["side"][0].any()


def test_spare_rows_take_no_memory() -> None:
    state = appliance.offline(config.read(RIGHT.replace(PLACE, PLACE + "\nspare-addresses = 64")))
    populated: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "_populate", lambda array, at, size: populated.append((at, size)))
        memory.populate_addresses(state, np.flatnonzero(state.externals["address"]))
    assert populated == [(0, 16 * 65536 * 4)] * 2 + [(0, 16 * 1024 * 16)]


# --- replicas -------------------------------------------------------------------------------------------------------------


def twins() -> Twins:
    """Two cores; the pool has 4 addresses, and room for as many."""
    bed = Bed()
    bed.say("pool 203.0.113.8/30 block 64 blocks 2 spare 4")
    bed.say("subscribers 100.64.0.0/20")
    made = Twins(bed.complete(), NOW)
    ready(made.one, made.other)
    return made


def speak(made: Twins, hosts: range) -> set[str]:
    """Each has a mapping at the first core; the external addresses."""
    found = set()
    for host in hosts:
        result = say(made.one, f"udp 100.64.{host >> 8}.{host & 255}:4000 > 198.51.100.9:53", NOW)
        assert result.verdict == "forwarded_out" and result.sent
        found.add(str(IPv4Address(result.sent[26:30])))
    return found


def test_what_a_backup_does_not_know_yet_is_counted_and_comes_with_the_next_copy() -> None:
    made = twins()
    have(made.one.state, "203.0.113.8/30", "203.0.113.0/30")
    used = speak(made, range(2, 40))
    new = {host for host in used if IPv4Address(host) in IPv4Network("203.0.113.0/30")}
    assert new and len(used) > len(new)
    made.settle(NOW)
    lacking = made.receiver.refused
    assert lacking and invariants.complaints(made.other.state) == []
    told_of = made.other.state.mappings["external_address"][invariants.halves(made.other.state)]
    assert len(told_of) and set(map(int, told_of)) <= set(map(int, told("203.0.113.8/30"))), "none was applied wrongly"
    have(made.other.state, "203.0.113.8/30", "203.0.113.0/30")
    made.receiver.refused = 0
    made.sender.snapshot(NOW)
    made.deliver(NOW)
    made.check()


def test_rows_differ_by_history_places_do_not_so_a_copy_pairs_as_the_authority_would() -> None:
    """One core began with all, the other was given the lower ones later; after a takeover both pair strangers alike."""
    made = twins()
    have(made.one.state, "203.0.113.0/30", "203.0.113.10/31")
    have(made.other.state, "203.0.113.0/31", "203.0.113.10/31")
    have(made.other.state, "203.0.113.0/30", "203.0.113.10/31")
    assert external_rows(made.one.state, 0).tolist() != external_rows(made.other.state, 0).tolist()
    assert has(made.one.state) == has(made.other.state)
    speak(made, range(2, 30))
    made.settle(NOW)
    made.check()
    made.role(made.other, 4, 0, 2)  # ACTIVE
    for host in range(100, 128):
        packet = f"udp 100.64.0.{host}:4000 > 198.51.100.9:53"
        one, other = say(made.one, packet, NOW), say(made.other, packet, NOW)
        assert one.sent and other.sent and one.sent[26:30] == other.sent[26:30], packet


# --- an appliance ---------------------------------------------------------------------------------------------------------


def hired(running: Running) -> Running:
    worker: Worker = running.hired.worker
    worker._announcer = worker._replica = None
    return running


def test_rfc6888_req3_a_prefix_is_added_by_a_file(run: Run, running: Running, tmp_path: Path) -> None:
    state, file = hired(running).state, written(tmp_path, MORE)
    would = ["would change: pool.prefixes", "would change: pool main: 192.88.99.0/29 comes (8 addresses); room for 8 more"]
    assert run("config", "apply", "-n", file).out.splitlines() == would and len(has(state)) == 16
    assert run("config", "apply", file).out.splitlines() == [line.replace("would change", "changed") for line in would]
    assert has(state) == told("192.88.99.0/29", "203.0.113.0/28").tolist()
    assert not state.externals["closed"].any()
    assert run("config", "apply", file).out == "nothing differs from what runs\n"
    (pool,) = json.loads(run("pool", "list", "-o", "json").out)
    assert (pool["addresses"], pool["first"], pool["last"], pool["room"]) == (24, "192.88.99.0", "203.0.113.15", 8)


def test_rfc6888_req3_verbs_for_who_has_no_file_at_hand(run: Run, running: Running) -> None:
    state = hired(running).state
    assert "would change" in run("pool", "add", "main", "192.88.99.0/29", "--dry-run").out and len(has(state)) == 16
    assert "changed: pool main: 192.88.99.0/29 comes" in run("pool", "add", "main", "192.88.99.0/29").out
    assert "overlaps" in run("pool", "add", "main", "192.88.99.4").err
    assert "would change: pool.drain" in run("pool", "drain", "192.88.99.4", "-n").out
    refused = run("pool", "remove", "main", "192.88.99.4/30")
    assert refused.status == 1 and "is handed out still" in refused.err and "pool drain 192.88.99.4" in refused.err
    run("pool", "drain", *(f"192.88.99.{number}" for number in range(4, 8)))
    state.chunks["used"][21, 33] = 2
    assert "192.88.99.5 has 2 mappings" in run("pool", "remove", "main", "192.88.99.4/30").err
    assert "would be refused" in run("pool", "remove", "main", "192.88.99.4/30", "-n").out
    state.chunks["used"][21, 33] = 0
    assert "192.88.99.4/30 goes (4 addresses); room for 12 more" in run("pool", "remove", "main", "192.88.99.4/30").out
    assert has(state) == told("192.88.99.0/30", "203.0.113.0/28").tolist()
    (pool,) = json.loads(run("config", "show", "-o", "json").out)["pool"]
    assert pool["prefixes"] == ["203.0.113.0/28", "192.88.99.0/30"] and pool["drain"] == []
    assert "changed: pool.exclude" in run("pool", "exclude", "main", "203.0.113.0").out
    assert np.count_nonzero(state.externals["closed"]) == 1
    assert "changed: pool.exclude" in run("pool", "include", "main", "203.0.113.0").out
    assert not state.externals["closed"].any()
    assert "is not in pool main" in run("pool", "remove", "main", "198.51.100.0/24").err
    assert "there is no pool 'other'" in run("pool", "add", "other", "192.88.99.0/29").err
    assert run("pool", "add", "main", "nonsense").status == 1


def test_what_there_is_no_room_for_is_refused_with_what_is_free(run: Run, running: Running) -> None:
    refused = run("pool", "add", "main", "192.88.99.0/27")
    assert "of which 16 are free; 32 are to be added" in refused.err and "spare-addresses" in refused.err
    assert len(has(running.state)) == 16 and running.state.settings[0]["rules_version"] == 1


def test_an_address_of_a_deterministic_pool_would_move_everybody(run: Run, running: Running, tmp_path: Path) -> None:
    fixed = 'allocation = "deterministic"\nblock-size = 64\nports-per-subscriber = 64\nsubscribers-per-address = 900\n'
    before, after = (config.read(text.replace("[[pool]]\n", "[[pool]]\n" + fixed)) for text in (BEFORE, MORE))
    plan = reload.plan(before, after)
    assert plan == reload.Plan([], ["pool.prefixes"])
    assert "other addresses of main would give everybody others" in reload.because(plan, after)
    assert spare_in(before.pool) == [0]
    with pytest.raises(config.ConfigError, match="spare-addresses"):
        config.read(BEFORE.replace("[[pool]]\n", "[[pool]]\nspare-addresses = 1\n" + fixed))


def test_a_worker_that_dies_before_it_has_done_it_has_its_successor_told(run: Run, running: Running, tmp_path: Path) -> None:
    state, worker = hired(running).state, running.hired.worker
    obey, worker._obey = worker._obey, lambda *_: None  # type: ignore[method-assign]
    assert run("pool", "add", "main", "192.88.99.0/29").status == 0 and len(has(state)) == 16
    assert "not in force yet" in run("pool", "drain", "203.0.113.3").err
    worker._obey = obey  # type: ignore[method-assign]
    running.answers._settle(ticks() + 2000)
    assert len(has(state)) == 24
    running.answers._settle(ticks() + 2001)
    assert running.answers._unsettled == {} and run("pool", "drain", "203.0.113.3").status == 0


def test_a_supervisor_that_comes_after_sees_what_the_worker_did_not_hear(running: Running) -> None:
    hired(running).answers._parts = running.answers._parts._replace(config=config.read(MORE))
    running.answers.go_on()
    running.answers._settle(ticks() + 2000)
    assert len(has(running.state)) == 24


def test_the_kernel_is_told_of_what_is_on_link_first_and_asked_back_if_the_worker_cannot_be_told(
    run: Run, running: Running
) -> None:
    asked: list[int] = []
    told_of = running.answers._parts._replace(readdress=lambda before, after: asked.append(externals_in(after.pool[0])))
    running.answers._parts, running.hired.reached = told_of, False
    assert "cannot be told" in run("pool", "add", "main", "192.88.99.0/29").err
    assert asked == [24, 16] and len(has(running.state)) == 16


# --- around it ------------------------------------------------------------------------------------------------------------


def test_room_is_for_as_many_again_as_far_as_a_core_goes() -> None:
    def pools(text: str) -> Config:
        return config.read(BEFORE.replace(PLACE, text))

    assert spare_in(pools(PLACE).pool) == [16]
    assert spare_in(pools('prefixes = ["203.0.113.0/32"]').pool) == [16]
    assert spare_in(pools('prefixes = ["198.18.0.0/20"]').pool) == [4096]
    assert spare_in(pools(PLACE + "\nspare-addresses = 0").pool) == [0]
    assert spare_in(pools('prefixes = ["198.18.0.0/15"]'.replace("/15", "/16")).pool) == [0]
    assert spare_in(pools('prefixes = ["198.18.0.0/17", "198.18.128.0/18"]').pool) == [EXTERNALS_AT_MOST // 4]
    with pytest.raises(config.ConfigError, match="and room for 65,536 more; one core holds 65,536"):
        pools(PLACE + "\nspare-addresses = 65536")


def test_what_is_on_link_is_answered_for_and_what_goes_is_not() -> None:
    before, after = (
        config.read(text) for text in (BEFORE, BEFORE.replace(PLACE, 'prefixes = ["203.0.113.0/28", "192.0.2.8/30"]'))
    )
    steps, gone = interfaces.readdressed(before, after)
    assert [(step.kind, step.value) for step in steps] == [("sysctl", "0"), ("local route", "192.0.2.8/30")] and gone == []
    assert interfaces.readdressed(after, before) == ([], [steps[1]])
    assert interfaces.readdressed(before, before) == ([], [])


def test_a_new_address_is_announced_before_anybody_gets_it() -> None:
    before, after = config.read(RIGHT + BGP), config.read(MORE + BGP)
    state = appliance.offline(before)
    said = Announcer(cast(Any, orders(before, None)), None, lambda now: Facts(), Drained(state))
    worker, far = Worker.__new__(Worker), Far()
    worker._state, worker._announcer, worker._replica = state, said, None
    said.attach(far.descriptor, 0)

    def passes(at: int, answer: bool = True) -> list[str]:
        for now in range(at, at + LOOK_EACH, 20):
            said.turn(now)
            for number in [each["n"] for each in far.hear() if "routes" in each] if answer else []:
                far.stream.send(b'{"done": %d}' % number)
        return [route.prefix for route in said.routes]

    assert passes(0) == ["203.0.113.0/28"]
    pools = growth.orders(state, after)
    assert set(state.externals["closed"][growth.new_rows(state, pools)].tolist()) == {COMING}
    passes(200), passes(400)
    assert COMING in state.externals["closed"], "nobody hands out what is not announced"
    worker._obey(json.loads(json.dumps({"do": "settle", "settings": {}, "pools": pools, "bgp": orders(after, None)})), [], 600)
    rows = external_rows(state, 0)[:8]
    assert set(state.externals["closed"][rows].tolist()) == {RETURNING}
    assert passes(600, False) == ["192.88.99.0/29", "203.0.113.0/28"]
    passes(800, False)
    assert set(state.externals["closed"][rows].tolist()) == {RETURNING}, "the speaker has not got it yet"
    far.stream.send(b'{"done": %d}' % said._number)
    passes(1000), passes(1200)
    assert not state.externals["closed"].any()


def test_a_map_that_names_the_prefixes_must_be_changed_first(running: Running, run: Run) -> None:
    follower: Any = type(
        "Follower", (), {"misfit": lambda _, after: "the map does not go with it: shard[0].external: 203.0.113.0/28"}
    )()
    running.answers._parts = running.answers._parts._replace(follower=follower)
    refused = run("pool", "add", "main", "192.88.99.0/29")
    assert "the map does not go with it" in refused.err and "shard map apply" in refused.err and len(has(running.state)) == 16


def test_not_a_change_of_a_pool(running: Running) -> None:
    for wrong in (
        {"verb": "eat"},
        {"verb": "add", "pool": 7},
        {"verb": "add", "pool": "main", "prefixes": []},
        {"prefixes": [1.5]},
    ):
        answer = running.answer({"do": "pool", "pool": "main", "prefixes": ["192.88.99.0/29"], **wrong})
        assert not answer["ok"], wrong
    with pytest.raises(Trouble, match="there is no pool"):
        growth.changed(config.read(BEFORE), "add", "none", [])


def test_drained_rows_of_a_pool_that_has_shrunk_are_nobodys() -> None:
    state = appliance.offline(config.read(RIGHT))
    state.externals["closed"][8:16] = DRAINED
    have(state, "203.0.113.0/29")
    assert state.externals["closed"].tolist() == [OPEN] * 32 and Drained(state).look().empty == frozenset()
