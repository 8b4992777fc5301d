"""The benches of several servers: what they count is told with its denominator, and what they run is what they say."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import click
import numpy as np
import pytest
from click.testing import CliRunner

from bench import events, failover, migrate, overload, report, showing, verify
from bench.cluster import flood, happenings, stream
from bench.cluster.ledger import DATAGRAM, Sizes, new_ledger
from bench.cluster.moving import Moved
from bench.cluster.scene import Scene
from bench.cluster.stream import Became, Survival
from bench.report import Result, Told
from krononat.client import NOT_FOUND, Trouble
from krononat.lab import chaos, cluster, fabric
from krononat.lab.cluster import Wanted
from shards.jit import PURE


def _value(results: list[Result], name: str) -> Result:
    return next(result for result in results if result.name == name)


def test_a_takeover_is_told_with_what_it_is_a_share_of() -> None:
    made = [
        failover.Takeover(Survival(1000, 1000), Survival(200, 199), 12.0, 0, 0, 0.0),
        failover.Takeover(Survival(1000, 999), Survival(0, 0), 14.0, 1, 0, 0.2),
    ]
    told = failover._figures(failover.WAYS[0], made)
    assert _value(told, "failover/last10ms").value == 99.5
    assert _value(told, "failover/last10ms/connections").value == 200
    assert (_value(told, "failover/older").low, _value(told, "failover/older").loss) == (99.9, 0.1)
    for way in failover.WAYS:  # two owners are wrong whatever is left out
        assert _value(failover._figures(way, made), f"{way.name}/two_owners").ok is False
        assert _value(failover._figures(way, made[:1]), f"{way.name}/two_owners").ok is True


def test_what_was_not_compared_is_not_the_same() -> None:
    def done(status: int, out: str, err: str = "") -> set[tuple[int, int]]:
        return verify.differing(subprocess.CompletedProcess((), status, out, err))

    assert done(0, '[{"differing": [], "error": ""}]') == set()
    assert done(1, '[{"differing": [[2, 77]], "error": ""}]') == {(2, 77)}
    for status, out, err in (
        (1, '[{"differing": [], "error": "the copy is not in sync"}]', ""),
        (3, "", "the appliance cannot be reached"),
        (6, '[{"differing": [], "error": ""}]', "cut off"),
    ):
        with pytest.raises(Trouble, match="was not compared"):
            done(status, out, err)


def test_a_move_that_loses_a_packet_misses_its_goal() -> None:
    fine, lossy = Became(1000, 0, 0, 0, 3.0, 1.0, 0.1), Became(1000, 1, 0, 2, 9.0, 1.0, 7.5)
    told = {"pause_ms": 1, "duration_ms": 1000, "sessions": 5, "shunted": 7}
    results = migrate._figures("migrate", [Moved(told, fine, fine), Moved(told, fine, lossy)], 2, 8.0)
    assert (_value(results, "migrate/lost").value, _value(results, "migrate/lost").loss) == (1, 1 / 4000)
    assert _value(results, "migrate/lost").ok is False
    assert _value(results, "migrate/moves").ok is True
    assert (_value(results, "migrate/gap_ms").value, _value(results, "migrate/gap_ms").ok) == (6.0, True)
    assert _value(results, "migrate/longest_gap_ms").ok is False
    assert _value(results, "migrate/sender_ms").high == 7.5


def test_a_bench_has_options_of_its_own() -> None:
    def run(quick: bool, told: Told, count: int | None = None) -> list[Result]:
        return [report.measured("some/count", "moves", [count or 0])]

    made = report.command("some", "memory", run, "Something.", (click.Option(["--count"], type=int),))
    done = CliRunner().invoke(made, ["--count", "7", "-o", "json"])
    assert done.exit_code == 0
    assert '"value": 7.0' in done.stdout


if not PURE:
    from bench.cluster import pair
    from bench.replication import _free_ports

    def test_what_one_core_forwards_another_comes_to_know() -> None:
        with pair.cores(4_000, 20_000, _free_ports()) as made:
            made.replicating.ask("stream")
            slots = [made.replicating.ask("slot", 0.05, 20_000) for _ in range(4)]
            for _ in range(200):
                if made.replicating.ask("synced"):
                    break
                made.replicating.ask("slot", 0.01, 0)
            assert sum(slot.lost for slot in slots) == 0
            assert made.applying.ask("sessions") >= 4_000
            first, then = (made.alone.ask("slot", 0.05, 20_000) for _ in range(2))
            assert (then.lost, then.lag_p99_s, then.io_share) == (0, 0.0, 0.0)
            assert 0 < first.made + then.made <= 20_000 * (first.seconds + then.seconds)


def test_what_happens_follows_from_the_switches_there_are() -> None:
    one, two = ({each.name for each in events.all_of("bird", tors)} for tors in (1, 2))
    assert {"worker", "freeze", "switch"} <= one and {"tor", "isolate", "torn"} <= two and not one & two
    assert (events.wanted("frr").tor, events.wanted("bird", 2).tors) == ("frr", 2)
    for tors in (1, 2):
        fabric.check(events.wanted("bird", tors))
    with pytest.raises(Trouble, match="nothing is called flood") as told:
        events.run(True, lambda _: None, only=("tor", "flood"), tors=2)
    assert told.value.status == NOT_FOUND and "isolate" in told.value.remedy


def test_silence_is_when_nothing_came_and_not_who_came_late() -> None:
    """Of a span that ends at 100 ms: ten of each ten ms come after 5 ms, and one that left at 95 comes at 160."""
    datagrams = np.zeros(16, DATAGRAM)
    datagrams["sent"] = [10 * number * 1_000_000 for number in range(16)]
    datagrams["came"], datagrams["times"] = datagrams["sent"] + 5_000_000, 1
    datagrams["came"][9] = 160_000_000
    ms = 1_000_000
    clock = stream.awake(datagrams)
    assert not len(clock.edges)
    assert stream.became(datagrams, 0, 100 * ms).longest_gap_ms == 75.0  # among those that left in the span
    assert stream.silence_ms(datagrams, clock, 0, 90 * ms) == 10.0
    assert stream.silence_ms(datagrams, clock, 0, 100 * ms) == 15.0  # what should have come at 95
    datagrams["times"][3:6] = 0  # lost
    assert stream.silence_ms(datagrams, clock, 0, 100 * ms) == 40.0
    assert stream.silence_ms(datagrams, clock, 30 * ms, 100 * ms) == 35.0  # what of it lies in the span
    datagrams["times"] = 0
    assert stream.silence_ms(datagrams, clock, 0, 100 * ms) == 100.0


def test_a_shard_that_is_silent_is_heard_of_beside_one_that_is_not() -> None:
    """Two shards, a datagram each ms in turns: of shard 1 nothing comes for 40 ms, outward only."""
    ms, ledger = 1_000_000, new_ledger(Sizes(datagrams=200), np.zeros(2), (1, 1, 1, 1, 1), np.zeros(1), np.zeros(1))
    for part in (ledger.out, ledger.into):
        part["sent"] = [number * ms for number in range(1, 201)]
        part["came"], part["times"] = part["sent"] + 1000, 1
    ledger.out["times"][[number for number in range(50, 90) if number % 2]] = 0
    here = cast(Scene, SimpleNamespace(generator=SimpleNamespace(ledger=ledger), wanted=Wanted(2, 2)))
    hit, others = (events._between(here, [shard], 10 * ms, 190 * ms, happenings.SERVER) for shard in (1, 0))
    assert (hit.lost, hit.others_lost, hit.outage_ms) == (20, 0, 42.0)
    assert (others.lost, others.others_lost, others.outage_ms) == (0, 20, 2.0)
    assert hit.losers == others.losers == ("shard 1 outward 20, of 8 flows (silent for 42.0 ms)",)
    assert events._between(here, [0, 1], 10 * ms, 190 * ms, happenings.SERVER).outage_ms == 42.0  # not 2


def test_what_the_generator_slept_is_no_silence_of_the_network() -> None:
    """A datagram each ms comes at once, but: nothing leaves from 20 to 60 ms, and what left from 60 to 70 is lost."""
    ms = 1_000_000
    datagrams = np.zeros(61, DATAGRAM)
    datagrams["sent"] = [(100 + each if each <= 20 else 139 + each) * ms for each in range(61)]
    datagrams["came"], datagrams["times"] = datagrams["sent"] + 1000, 1
    clock = stream.awake(datagrams)
    assert clock.edges.tolist() == [120 * ms, 160 * ms]
    assert clock.at(np.array([110, 120, 140, 160, 200]) * ms).tolist() == [110 * ms, 120 * ms, 120 * ms, 120 * ms, 160 * ms]
    told = stream.became(datagrams, 0, 300 * ms)
    assert told.longest_gap_ms == pytest.approx(1.0, abs=0.01)
    assert (told.longest_silence_ms, told.longest_pause_ms) == (40.0, 40.0)
    assert stream.silence_ms(datagrams, clock, 101 * ms, 199 * ms) == pytest.approx(1.0, abs=0.01)
    datagrams["times"][21:31] = 0
    told = stream.became(datagrams, 0, 300 * ms)
    assert told.longest_gap_ms == pytest.approx(10.0, abs=0.01)
    assert told.longest_silence_ms == 50.0
    assert stream.silence_ms(datagrams, clock, 101 * ms, 199 * ms) == pytest.approx(10.0, abs=0.01)


def test_servers_have_as_many_cores_as_the_machine_has_cpus_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, cores in ((2, 1), (events.CPUS_FOR_TWO - 1, 1), (events.CPUS_FOR_TWO, 2)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)))
        assert events.wanted("bird").cores == cores and events.wanted("bird", cores=3).cores == 3
        assert events.wanted("bird", 2).cores == 1


def test_a_return_is_told_by_itself_and_must_cost_nothing() -> None:
    """What a killed server does while it starts is not the outage that its death was; and who loses a packet then is told."""
    server = next(each for each in events.all_of("bird", 1) if each.name == "server")
    for lost, held in ((0, True), (1, False)):
        noticed = events.Noticed(
            events.Heard(9, 0, 19.0), events.Heard(lost, 0, 90.0), Survival(9, 9), Survival(0, 0), 8.0, 0.5, 0, {}
        )
        results = events._figures(server, [noticed])
        assert showing.held(results) is held and _value(results, "events/server/back/lost").value == lost
        away, back = showing.rows([server], results)
        assert away[:4] == [server.told, "9", "0 (≤ 0)", "19 (≤ 20)"] and "MISSED" not in " ".join(away)
        assert back[0] == showing.BACK["server"] and back[3] == "90" and ("MISSED" in back[1]) is not held
        assert back[4:] == ["", "", ""] and away[5] == "nobody connected then"  # nothing was missed
    assert showing.BACK.keys() >= {each.name for each in showing.chosen("bird") if each.lasts_s}


def test_a_move_that_fails_is_told_and_missed_and_not_the_end_of_the_bench() -> None:
    said: list[str] = []

    def refused() -> int:
        raise Trouble("shard 0 was not moved to s2/1", "s2/1 did not say that it has it")

    assert events._tried(lambda: 7, "migrate", said.append) == (7, False) and said == []
    assert events._tried(refused, "migrate", said.append) == (None, True)
    assert said == ["migrate has failed: shard 0 was not moved to s2/1: s2/1 did not say that it has it"]
    fine = events.Noticed(events.Heard(0, 0, 1.0), None, Survival(9, 9), Survival(9, 9), 2.0, 0.5, 0, {})
    moves = [each for each in events.all_of("bird", 1) if each.name == "migrate"]
    for noticed, held in (([fine, fine], True), ([fine, fine._replace(failed=True)], False)):
        results = events._figures(moves[0], noticed)
        assert _value(results, "events/migrate/failed").ok is held and showing.held(results) is held
        assert ("MISSED" in showing.rows(moves, results)[0][0]) is not held


def test_what_did_not_happen_took_no_time_to_be_routed() -> None:
    """A refused move changes no route: its 0 ms would better the median."""
    fine = events.Noticed(events.Heard(0, 0, 1.0), None, Survival(9, 9), Survival(9, 9), 60.0, 0.5, 0, {})
    refused = fine._replace(routing_ms=0.0, failed=True)
    swap = next(each for each in events.all_of("bird", 1) if each.name == "swap")
    told = _value(events._figures(swap, [refused, fine, refused]), "events/swap/routing_ms")
    assert (told.value, told.low, told.ok) == (60.0, 60.0, False)
    assert "events/swap/routing_ms" not in [each.name for each in events._figures(swap, [refused])]


def test_what_could_not_be_made_to_happen_is_a_failure_and_a_missed_figure_is_none() -> None:
    def run(quick: bool, told: Told, failed: int = 0) -> list[Result]:
        return [report.measured("some/lost", "count", [3], 0), report.measured("some/failed", "count", [failed], 0)]

    count = click.Option(["--failed"], type=int)
    made = report.command("some", "memory", run, "Something.", (count,), "failed")
    asked = [["--failed", "0"], ["--failed", "1"], ["--failed", "0", "--strict"]]
    assert [CliRunner().invoke(made, words).exit_code for words in asked] == [0, 1, 1]


def test_while_the_store_is_away_a_move_must_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has nothing to do is refused by nobody: a rebalance would have shown nothing."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(chaos, "fail", lambda *_: 5)
    monkeypatch.setattr(happenings, "until", lambda *_: 0.0)
    monkeypatch.setattr(happenings, "operate", lambda here, *words: asked.append(words))
    with pytest.raises(Trouble, match="was moved while the store"):
        happenings._lose_store(cast(Scene, SimpleNamespace(lab=None)), "s1/0")
    assert asked == [("shard", "swap", "0", "--yes")]
    for why, is_fine in (("krononat: the map cannot be changed now", True), ("krononat: there is no shard 0", False)):
        monkeypatch.setattr(happenings, "operate", _refusing(why))
        with contextlib.nullcontext() if is_fine else pytest.raises(Trouble, match="refused"):
            assert happenings._lose_store(cast(Scene, SimpleNamespace(lab=None)), "s1/0") == 5


def _refusing(why: str) -> Callable[..., None]:
    def operate(*_: object) -> None:
        raise Trouble("refused", why)

    return operate


def test_a_flood_is_sound_datagrams_of_one_shards_subscribers() -> None:
    first = cluster.subscribers_of(1).network_address
    told = flood.frames(bytes(range(12)), first)
    assert len(set(told)) == flood.SUBSCRIBERS * flood.PORTS and {len(each) for each in told} == {60}
    for each in told:
        words = sum(struct.unpack("!10H", each[14:34]))
        assert (words & 0xFFFF) + (words >> 16) == 0xFFFF  # RFC 1071
        assert IPv4Address(each[26:30]) in IPv4Network(f"{first}/26") and IPv4Address(each[30:34]) == flood.DESTINATION


def test_cores_have_cpus_of_their_own_as_long_as_there_are_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The flooded core and the other one, too; and what is written into each core's configuration."""
    for wanted, cpus, told in (
        (overload.WANTED, 2, [1, 0]),
        (events.ONE, 1, [0, 0, 0]),
        (events.ONE, 2, [1, 0, 1]),
        (events.ONE, 3, [2, 1, 0]),
        (Wanted(3, 3), 3, [2, 1, 2]),
        (events.ONE, 8, [7, 6, 5]),
        (Wanted(3, 3), 2, [1, 1, 1]),
        (Wanted(3, 3, apart=True), 2, [1, 0, 1]),
        (Wanted(2, tor="bird", cores=2), 2, [1, 0, 1, 0]),
        (Wanted(3, tor="bird", cores=2), 8, [7, 6, 5, 4, 3, 2]),
    ):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)))
        cores = sorted(cluster.cores(wanted))
        assert [cluster.cpu_of(wanted, core) for core in cores] == told
        appliances = (fabric if wanted.routed else cluster).topology(wanted, tmp_path).appliances.values()
        written = [tomllib.loads(text)["server"] for text in appliances]
        assert {f"{each['name']}/{each['core']}": each["cpu"] for each in written} == dict(zip(cores, told, strict=True))
