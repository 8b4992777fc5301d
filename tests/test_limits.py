"""Refusals: counted for whom, told to whom, logged how often; and what is nearly full is told before it bites (RFC 6888)."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

import numpy as np
import pytest

from krononat import config, natlog, usage
from krononat.cli import subscribers
from shards import accounts, alarms, icmp, invariants, recovery, refusals
from shards.account_rows import CLASSES, REASONS
from shards.core_rows import NO_REPLY
from shards.lifetimes import STATES, TIMERS
from shards.state import ICMP, OUTBOUND, TCP, UDP, State
from shards.verdict import BY_NAME, DROP, VERDICTS
from tests import limits
from tests.bare_core import Core
from tests.frames import address, build, build_frame, mac_of, piece, read
from tests.test_cli import Fake, Run, fake, run
from tests.test_config import RIGHT
from tests.test_events import START, new_core, send, told

__all__ = ["fake", "run"]

PEOPLE = "subscribers 100.64.0.0/24 sessions 2"
LINE = "udp 100.64.0.{}:{} > 198.51.100.9:53"


def refused(state: State, host: str) -> dict[str, int]:
    """What was refused to the subscriber with an address, by reason, where there is something."""
    (row,) = usage.of_address(state, IPv4Address(host))
    return {reason: packets for reason, packets in row.refused_for.items() if packets}


# --- counted --------------------------------------------------------------------------------------------------------------


def test_rfc6888_req11_refusals_are_counted_for_whom_they_hit() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 blocks 1", PEOPLE, "subscriber 100.64.0.3/32 rate 1 burst 1 udp-ports 1")
    send(core, START, *(LINE.format(2, port) for port in range(4000, 4005)))
    send(core, START, *(LINE.format(3, port) for port in range(4000, 4003)))
    send(core, START + 5000, LINE.format(3, 4009))
    assert refused(core.state, "100.64.0.2") == {"sessions": 3}
    assert refused(core.state, "100.64.0.3") == {"protocol": 3}
    assert [row.prefix for row in usage.top(core.state, "refused", 5)] == ["100.64.0.2/32", "100.64.0.3/32"]
    first, second = usage.top(core.state, "sessions", 2)
    assert (first.sessions, first.ports, first.sessions_of["udp"], second.sessions) == (2, 2, 2, 1)


def test_a_devices_refusals_are_its_subscribers_too() -> None:
    core = new_core("subscribers 10.1.0.0/16 each 24", "device 10.1.5.16/28 each 32 of 10.1.5.0/24 sessions 1",
                    "inside address 10.1.0.1/16")  # fmt: skip
    core.resolve(address("10.1.5.17"))
    arrivals = []
    for port in (1, 2, 3):
        packet = read(f"udp 10.1.5.17:{port} > 198.51.100.9:53")
        arrivals.append(("inside", build_frame(mac_of(address("10.1.0.1")), mac_of(packet.source), build(packet))))
    core.receive(arrivals, START)
    mine, device = usage.of_address(core.state, IPv4Address("10.1.5.17"))
    assert (mine.prefix, mine.kind, mine.refused) == ("10.1.5.0/24", "subscriber", 2)
    assert (device.prefix, device.kind, device.refused_for["sessions"]) == ("10.1.5.17/32", "device", 2)


def test_fragments_that_are_too_many_are_counted_for_their_sender() -> None:
    core = new_core()
    for number in range(70):
        packet = read(f"udp 100.64.0.2:4000 > 198.51.100.9:53 len 1000 id {number}")
        data = piece(build(packet), 400, 800)
        core.receive([("inside", build_frame(mac_of(address("100.64.0.1")), mac_of(packet.source), data))], START)
    assert refused(core.state, "100.64.0.2") == {"fragments": 6}
    (event,) = [event for event in told(core.state) if event.kind == "quota_exceeded"]
    assert (event.reason, event.detail, event.internal) == ("fragment_limit", 5, "100.64.0.2")


def test_counts_by_class_of_protocol_survive_the_worker() -> None:
    core = new_core("pool 203.0.113.1/32 block 64")
    send(core, START, LINE.format(2, 4000), "tcp 100.64.0.2:4000 > 198.51.100.9:80 syn", "echo 100.64.0.2:7 > 198.51.100.9")
    before = core.state.accounts["sessions_of"].copy(), core.state.accounts["mappings_of"].copy()
    assert before[0].sum() == before[1].sum() == 3
    recovery.attach(core.state, START)
    assert np.array_equal(before[0], core.state.accounts["sessions_of"])
    assert np.array_equal(before[1], core.state.accounts["mappings_of"])
    core.pass_time(START + 8_000_000)
    assert not core.state.accounts["sessions_of"].any() and not core.state.accounts["mappings_of"].any()
    assert not invariants.complaints(core.state)


def test_classes_are_those_of_the_model() -> None:
    assert [limits.class_of(protocol) for protocol in range(256)] == accounts.CLASS_OF.tolist()
    assert CLASSES == limits.CLASSES
    assert {CLASSES[accounts.CLASS_OF[protocol]] for protocol in (TCP, UDP, ICMP, 47)} == set(CLASSES)


def test_what_is_told_is_what_the_model_tells() -> None:
    known = {verdict.name for verdict in VERDICTS if refusals.TOLD[verdict.number]}
    assert known >= limits.TOLD_REFUSALS and all(BY_NAME[name].fate == DROP for name in known)
    assert set(refusals.REASON.tolist()) == set(range(len(REASONS) + 1))


# --- told -----------------------------------------------------------------------------------------------------------------


def test_rfc6888_req11_a_flood_of_refusals_leaves_path_mtu_discovery_its_rate() -> None:
    core = new_core(PEOPLE, "refusal-code 1", "errors 2")
    answered = 0
    for k in range(50):
        packet = read(LINE.format(2 + k % 7, 5000 + k))
        frame = build_frame(mac_of(address("100.64.0.1")), mac_of(packet.source), build(packet))
        answered += core.receive([("inside", frame)], START)[0].sent is not None and k >= 14
    assert answered == 2  # of 36 refusals of seven subscribers
    assert icmp.rate_allows(core.state, OUTBOUND, START)


def test_a_code_that_is_off_tells_nobody() -> None:
    core = new_core(PEOPLE)
    assert core.state.settings[0]["refusal_code"] == NO_REPLY
    frames = [read(LINE.format(2, port)) for port in (1, 2, 3)]
    arrivals = [("inside", build_frame(mac_of(address("100.64.0.1")), mac_of(p.source), build(p))) for p in frames]
    assert [result.sent is None for result in core.receive(arrivals, START)] == [False, False, True]


# --- nearly full ----------------------------------------------------------------------------------------------------------


def levels(core: Core, now: int) -> dict[str, str]:
    alarms.look(core.state, now)
    return {row.what: row.level for row in usage.alarms(core.state, ["main"], now) if row.level != "none"}


def thresholds(state: State) -> list[tuple[str, str, int, int]]:
    return [(e.what, e.level, e.packets, e.detail) for e in told(state) if e.kind == "threshold_reached"]


def test_a_pool_that_runs_dry_is_told_before_and_not_again_and_again() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 blocks 1 ports 1024-1663")  # ten blocks
    core.resolve(*(address(f"100.64.0.{n}") for n in range(2, 20)))
    for n in range(2, 10):
        assert levels(core, START) == {}
        send(core, START, LINE.format(n, 4000))
    assert levels(core, START) == {"pool": "warning"}
    send(core, START + 1000, LINE.format(10, 4000))
    assert levels(core, START + 1000) == levels(core, START + 2000) == {"pool": "critical"}
    assert usage.sentences(usage.alarms(core.state, ["main"], START)) == [
        "critical: 90 % of the blocks of pool main are in use: krononat pool add main PREFIX"
    ]
    core.pass_time(START + 300_500)  # eight ends, the last one is a second younger
    assert levels(core, START + 300_500) == {}
    assert thresholds(core.state) == [("pool 0", "warning", 80, 1), ("pool 0", "critical", 90, 1), ("pool 0", "none", 10, 2)]


def test_an_alarm_ends_only_well_below_its_threshold() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 blocks 1 ports 1024-2303")  # twenty blocks
    pool = core.state.pools[0]
    seen = []
    for used in (15, 16, 15, 16, 15, 14, 15, 16, 18, 17, 16):
        pool["blocks_free"] = 20 - used
        seen.append(levels(core, START).get("pool", "none"))
    assert seen == [
        "none", "warning", "warning", "warning", "warning", "none", "none", "warning", "critical", "critical", "warning",
    ]  # fmt: skip
    assert int(core.state.alarms[3]["raised"]) == 3


def test_rows_and_index_are_watched() -> None:
    core = new_core()
    core.state.settings["room"] = 4
    send(core, START, *(LINE.format(2, port) for port in range(4)))
    core.state.core["index_entries"] = len(core.state.tags) * 8 * 85 // 100
    assert levels(core, START) == {"rows": "critical", "index": "warning"}


def test_a_subscriber_with_nearly_all_his_blocks_is_told_of_once() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 blocks 4 ports 1024-4095", "subscribers 100.64.0.0/24")
    send(core, START, *(LINE.format(2, port) for port in range(4000, 4064 + 128)))
    assert levels(core, START) == {}
    send(core, START, LINE.format(2, 6000))
    assert levels(core, START) == {"subscribers": "warning"} and thresholds(core.state) == [("subscriber", "warning", 100, 4)]
    recovery.attach(core.state, START)
    assert levels(core, START) == {"subscribers": "warning"}
    core.pass_time(START + 301_000)
    assert levels(core, START) == {} and thresholds(core.state)[-1][:2] == ("subscriber", "none")
    assert int(core.state.alarms[2]["count"]) == 0


# --- lifetimes ------------------------------------------------------------------------------------------------------------


def test_every_timer_has_a_lifetime_in_every_state() -> None:
    core = new_core("timeout-port udp 53 10")
    table = core.state.settings[0]["lifetimes"].reshape(TIMERS, 16)[:, : len(STATES)]
    assert (table > 0).all()
    assert table[1, STATES.index("udp")] == 10_000 and table[0, STATES.index("udp")] == table[2, STATES.index("udp")] == 300_000
    assert (table[1] == table[0]).sum() == len(STATES) - 1


# --- configured -----------------------------------------------------------------------------------------------------------

TIMERS_OF_PORTS = '[timeouts]\nport = [{ ports = 53, seconds = 10 }, { protocol = "tcp", ports = "22", seconds = 7500 }]\n'


def test_timers_and_shares_are_read_and_written() -> None:
    text = RIGHT + TIMERS_OF_PORTS + "[limits]\nports = 1000\ntcp.reserve = 100\nudp = { ports = 500, sessions = 2000 }\n"
    read_back = config.read(text)
    assert [timer.seconds for timer in read_back.timeouts.port] == [10, 7500]
    assert read_back.limits.tcp.reserve == 100 and read_back.limits.udp.sessions == 2000
    assert config.read(config.canonical(read_back)) == read_back


def test_short_timers_are_loud() -> None:
    text = RIGHT + "[timeouts]\ntcp-transitory-open = 30\n"
    assert any("RFC 7857 2.1 advises 240 s" in line for line in config.warnings(config.read(text), text, "nat.toml"))
    text = RIGHT + "[timeouts]\nallow-short-timers = true\nudp = 2\n"
    assert any("minimum of 120 s" in line for line in config.warnings(config.read(text), text, "nat.toml"))


# --- shown ----------------------------------------------------------------------------------------------------------------


def test_orders_are_those_that_the_command_offers() -> None:
    assert subscribers.ORDERS == usage.ORDERS


def test_who_was_refused_most_is_shown(run: Run, fake: Fake) -> None:
    state = fake.state
    state.settings["prefixes"] = 1
    state.prefixes[0]["network"], state.prefixes[0]["mask"] = address("100.64.0.0"), 0xFFFFFFFE
    state.prefixes[0]["first_account"] = 0
    account = state.accounts[1]
    account["base"], account["sessions"] = address("100.64.0.1"), 12
    account["refused"][REASONS.index("rate")] = 70
    (row,) = json.loads(run("subscribers", "top", "-o", "json").out)
    assert (row["prefix"], row["refused"], row["refused_for"]["rate"], row["sessions"]) == ("100.64.0.1/32", 70, 70, 12)
    assert "rate" in run("subscribers", "top").out.splitlines()[1]
    assert json.loads(run("subscribers", "show", "100.64.0.1", "-o", "json").out) == [row]
    assert run("subscribers", "show", "100.64.0.9").status == 4
    assert run("subscribers", "top", "--by", "fragments").out == ""


@pytest.mark.parametrize("level", [0, 2])
def test_levels_have_words(level: int) -> None:
    assert natlog.LEVELS[level] == usage.LEVELS[level]
