"""The log of NAT events: what is written when, at which level, and what a slow reader gets."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from krononat import appliance, config, models, natlog
from krononat.view import ticks
from shards import events, invariants
from shards.core_rows import LOG_BLOCKS, LOG_MAPPINGS, LOG_OFF, LOG_SESSIONS
from shards.jit import PURE
from shards.state import EVENTS, NAT_MAPPING, NAT_SESSION, Array, State
from tests import fuzz
from tests.bare_core import Core
from tests.bed import LOGS, Bed
from tests.frames import address, build, build_frame, mac_of, read
from tests.pair import EPOCH, Pair
from tests.test_config import RIGHT

START = 50_000_000


def new_core(*statements: str) -> Core:
    bed = Bed()
    for statement in statements:
        bed.say(statement)
    core = Core(bed.complete(), START)
    core.resolve(*(address(f"100.64.0.{n}") for n in range(2, 9)))
    return core


def send(core: Core, now: int, *lines: str) -> list[str]:
    """Have packets come from inside, in one burst; verdicts."""
    arrivals = []
    for line in lines:
        packet = read(line)
        arrivals.append(("inside", build_frame(mac_of(address("100.64.0.1")), mac_of(packet.source), build(packet))))
    return [result.verdict for result in core.receive(arrivals, now)]


def told(state: State) -> list[natlog.Event]:
    return [natlog.event(row) for row in natlog.Reader(state).rows()]


def kinds(state: State) -> list[str]:
    return [event.kind for event in told(state)]


# --- kinds ----------------------------------------------------------------------------------------------------------------


def test_kinds_levels_and_words_are_those_of_the_packet_path() -> None:
    for number, word in natlog.KINDS.items():
        assert getattr(events, word.upper()) == number
    assert tuple(LOGS) == models.LOG_LEVELS
    assert (LOG_OFF, LOG_BLOCKS, LOG_MAPPINGS, LOG_SESSIONS) == (0, 1, 2, 3)


def test_a_session_from_its_beginning_to_its_end() -> None:
    core = new_core("pool 203.0.113.1/32 block 64")
    send(core, START, "udp 100.64.0.2:4000 > 198.51.100.9:53", "udp 100.64.0.2:4000 > 198.51.100.9:53")
    core.pass_time(START + 301_000)
    first, *_, last = seen = told(core.state)
    assert [event.kind for event in seen] == [
        "block_allocated", "mapping_created", "session_created", "session_deleted", "mapping_deleted", "block_released"
    ]  # fmt: skip
    assert (first.internal, first.external, first.external_last - first.external_port) == ("100.64.0.2", "203.0.113.1", 63)
    assert last[3:] == first[3:]
    created, deleted = seen[2], seen[3]
    assert (created.protocol, created.internal, created.internal_port) == ("udp", "100.64.0.2", 4000)
    assert (created.remote, created.remote_port, created.external) == ("198.51.100.9", 53, "203.0.113.1")
    assert first.external_port <= created.external_port <= first.external_last
    assert (created.row, created.generation) == (deleted.row, deleted.generation) and deleted.packets == 2
    assert created.account == first.account and seen[1].external_port == created.external_port


def test_refusals_say_why_once_a_second() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 blocks 1", "subscribers 100.64.0.0/24 sessions 2", "log blocks")
    send(core, START, *(f"udp 100.64.0.2:{port} > 198.51.100.9:53" for port in range(4000, 4010)))
    send(core, START + 1000, "udp 100.64.0.2:4010 > 198.51.100.9:53")
    refused = [event for event in told(core.state) if event.kind == "quota_exceeded"]
    assert [(event.reason, event.internal, event.internal_port, event.packets) for event in refused] == [
        ("session_limit", "100.64.0.2", 4002, 1),
        ("session_limit", "100.64.0.2", 4010, 9),
    ]


def test_ports_and_pools_that_are_exhausted() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 blocks 1 ports 1024-1087", "subscribers 100.64.0.0/24")
    verdicts = send(core, START, *(f"udp 100.64.0.2:{port} > 198.51.100.9:53" for port in range(4000, 4065)))
    assert verdicts[-1] == "ports_exhausted"
    assert send(core, START, "udp 100.64.0.3:4000 > 198.51.100.9:53") == ["pool_exhausted"]
    seen = [(event.kind, event.nat_event) for event in told(core.state)[-2:]]
    assert seen == [("ports_exhausted", 12), ("addresses_exhausted", 3)]


def test_a_static_mapping_is_told_once() -> None:
    core = new_core("static tcp 203.0.113.1:8080 to 100.64.0.7:80")
    assert kinds(core.state) == ["mapping_created"]


# --- levels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("off", []),
        ("blocks", ["block_allocated"]),
        ("mappings", ["block_allocated", "mapping_created"]),
        ("sessions", ["block_allocated", "mapping_created", "session_created"]),
    ],
)
def test_each_level_includes_those_before(level: str, expected: list[str]) -> None:
    core = new_core(f"log {level}")
    send(core, START, "udp 100.64.0.2:4000 > 198.51.100.9:53")
    assert kinds(core.state) == expected


def test_off_tells_no_refusal_either() -> None:
    core = new_core("subscribers 100.64.0.0/24 sessions 1", "log off")
    assert send(core, START, *(f"udp 100.64.0.2:{n} > 198.51.100.9:53" for n in (1, 2)))[1] == "session_limit"
    assert kinds(core.state) == []


# --- readers --------------------------------------------------------------------------------------------------------------


def write(state: State, count: int) -> None:
    for _ in range(count):
        events.block(state, events.BLOCK_ALLOCATED, 1, 0, 1024, 64, START)


def numbered(state: State, begin: int) -> natlog.Reader:
    """A reader of a log that has come to event number `begin`, nothing of it left to read."""
    state.logged[0] = begin
    state.events["kind"] = events.BLOCK_ALLOCATED
    reader = natlog.Reader(state)
    reader.rows()
    reader.missed = 0
    return reader


@pytest.mark.parametrize("begin", [0, 12345, 2**32 - 3])
def test_each_event_is_read_once_also_where_the_count_wraps(begin: int) -> None:
    state = new_core("log blocks").state
    reader = numbered(state, begin)
    for count in (1, 0, 7):
        write(state, count)
        assert len(reader.rows()) == count
    assert reader.missed == 0


def test_an_event_that_is_being_written_is_not_there_yet() -> None:
    state = new_core("log blocks").state
    write(state, 2)
    events._begin(state, events.BLOCK_ALLOCATED, 1, START)
    assert kinds(state) == ["block_allocated"] * 2


@pytest.mark.parametrize("written", [EVENTS - 2, EVENTS - 1, EVENTS, EVENTS + 1])
def test_a_reader_begins_with_the_oldest(written: int) -> None:
    state = new_core("log blocks").state
    state.events["kind"][:written] = events.BLOCK_ALLOCATED
    state.logged[0] = written
    assert len(natlog.Reader(state).rows()) == min(written, EVENTS - 1)


def test_what_was_overwritten_is_counted() -> None:
    state = new_core("log blocks").state
    reader = numbered(state, 2**32 - 70_000)
    state.logged[0] += np.uint32(EVENTS + 10)  # as if so many had been written
    assert len(reader.rows()) == EVENTS - 1 and reader.missed == 11
    write(state, 2)
    assert len(reader.rows()) == 2 and reader.missed == 11


def test_what_is_overwritten_while_it_is_copied_is_not_shown() -> None:
    core = new_core("log blocks")
    reader = numbered(core.state, 100)
    write(core.state, 5)

    class Overtaken:
        """The ring, whose writer goes on by nearly a whole turn while it is copied."""

        def __getitem__(self, places: Array) -> Any:
            core.state.logged[0] += np.uint32(EVENTS - 4)
            return core.state.events[places]

    reader._state = core.state._replace(events=Overtaken())  # type: ignore[arg-type]
    assert len(reader.rows()) == 3 and reader.missed == 2


# --- all together ---------------------------------------------------------------------------------------------------------


def test_whoever_reads_along_knows_what_lives() -> None:
    pair = Pair(fuzz.bed(fuzz.RICH))
    pair.core.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
    state, reader = pair.core.state, natlog.Reader(pair.core.state)
    traffic = fuzz.Traffic(3, pair.bed, lambda: [(p, e, m.internal) for (p, e), m in pair.model.owners.items()])
    living: dict[tuple[str, int], natlog.Event] = {}
    blocks: Counter[tuple[str, int]] = Counter()
    for number in range(20 if PURE else 120):
        pair.pass_time(EPOCH + 2000 * number)
        pair.receive(traffic.burst(64))
        for row in reader.rows():
            follow(living, blocks, natlog.event(row))
    assert reader.missed == 0
    for what, kind in (("session", NAT_SESSION), ("mapping", NAT_MAPPING)):
        rows, each = (state.sessions, 2) if kind == NAT_SESSION else (state.mappings, 1)
        alive = {(int(at) * each, int(rows[at]["generation"])) for at in np.flatnonzero(rows["kind"] == kind)}
        alive = {(half, life) for half, life in alive if in_extent(state, half, kind)}
        assert {(half, event.generation) for (name, half), event in living.items() if name == what} == alive
    owned = {key for key, count in blocks.items() if count}
    assert len(owned) == int(np.count_nonzero(state.accounts["blocks"])) and max(blocks.values()) == 1
    assert invariants.complaints(state) == []


def in_extent(state: State, half: int, kind: int) -> bool:
    return bool(state.extents[half // 2 >> 16]["kind"] == kind)


def follow(living: dict[tuple[str, int], natlog.Event], blocks: Counter[tuple[str, int]], event: natlog.Event) -> None:
    """Take one event to heart; what ends must have begun, in that very life of its row."""
    what, _, happened = event.kind.partition("_")
    if happened == "created":
        assert (what, event.row) not in living
        living[what, event.row] = event
    elif happened == "deleted":
        begun = living.pop((what, event.row))
        assert begun[3:14] == event[3:14], (begun, event)
    elif what == "block":
        blocks[event.external, event.external_port] += 1 if happened == "allocated" else -1


# --- around it ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(4))
def test_the_configuration_chooses_the_level(level: int) -> None:
    written = f'{RIGHT}\n[log]\nevents = "{LOGS[level]}"\n'
    assert appliance.offline(config.read(written)).settings[0]["log"] == level
    assert appliance.offline(config.read(RIGHT)).settings[0]["log"] == LOG_BLOCKS


def test_ticks_are_told_as_time_of_day() -> None:
    state = new_core("log blocks").state
    age_ms = min(3_600_000, ticks() // 2)  # a machine may have been up for less than an hour
    events.block(state, events.BLOCK_ALLOCATED, 1, 0, 1024, 64, ticks() - age_ms)
    told_at = datetime.fromisoformat(told(state)[0].time)
    assert abs(datetime.now(UTC) - timedelta(milliseconds=age_ms) - told_at) < timedelta(minutes=1)
