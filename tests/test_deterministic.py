"""RFC 7422: ports that are somebody's by the configuration alone, both ways; what cannot work is refused in words."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from krononat import appliance, checks_deterministic, config, deterministic, history, reload
from krononat.client import BAD_CONFIG, Trouble
from krononat.models import Config
from shards import events, nat, ports, sides
from shards.state import State
from tests.test_cli import Run, run
from tests.test_config import RIGHT, complaints
from tests.test_events import START, kinds, new_core, send

__all__ = ["run"]

HEAD = RIGHT[: RIGHT.index("[[subscribers]]")]
# Two prefixes of unlike subscribers, addresses out of order and with holes, places that nobody has, static mappings.
TOLD = (
    HEAD
    + """
[[subscribers]]
prefix = "100.64.8.0/28"
pool = "main"
[[subscribers]]
prefix = "100.64.16.0/24"
each = 28
pool = "main"
[[subscribers.subscriber]]
prefix = "100.64.16.32/28"
mappings = [
  { protocol = "tcp", internal = "100.64.16.40:80", external = "203.0.113.10:1800" },
  { protocol = "udp", internal = "100.64.16.40:53", external = "203.0.113.10:53" },
]
[[subscribers]]
prefix = "100.64.32.0/30"
pool = "other"
[[pool]]
name = "main"
prefixes = ["203.0.113.8/29", "203.0.113.2/31"]
exclude = ["203.0.113.8/32"]
icmp-address = "203.0.113.9"
ports = "1024-2400"
block-size = 64
allocation = "deterministic"
subscribers-per-address = 7
ports-per-subscriber = 192
[[pool]]
name = "other"
prefixes = ["203.0.113.32/32"]
"""
)


def single(**told: Any) -> str:
    """A configuration with 256 subscribers and 16 addresses whose one pool is deterministic, and as told."""
    lines = {"allocation": '"deterministic"'} | {key.replace("_", "-"): value for key, value in told.items()}
    return RIGHT + "".join(f"{key} = {value}\n" for key, value in lines.items())


def every_subscriber(read: Config) -> list[IPv4Network]:
    return [unit for group in read.subscribers for unit in group.prefix.subnets(new_prefix=group.each)]


# --- both ways ------------------------------------------------------------------------------------------------------------


def test_rfc7422_every_port_of_every_subscriber_leads_back_to_him_and_no_other_port_to_anybody() -> None:
    read, found = config.read(TOLD), Counter[str]()
    for unit in every_subscriber(read)[:32]:
        portions = {deterministic.forward(read, host) for host in unit}
        assert len(portions) == 1
        (portion,) = portions
        assert portion and portion.last - portion.first == 191
        for port in range(portion.first, portion.last + 1):
            owner = deterministic.reverse(read, portion.address, port, "udp")
            assert owner and (owner.kind, owner.subscriber) == ("deterministic", unit)
            assert (owner.first, owner.last) == (portion.first, portion.last)
    for address in (host for prefix in read.pool[0].prefixes for host in prefix):
        for port in (*range(0, 2600), *range(65500, 65536)):
            owner = deterministic.reverse(read, address, port, "udp")
            assert owner
            found[f"{owner.kind} {owner.subscriber}"] += 1
    assert {name: count for name, count in found.items() if "unused" not in name} == {
        f"deterministic {unit}": 192 for unit in every_subscriber(read)[:32]
    } | {"static 100.64.16.32/28": 1}


def test_rfc7422_a_core_gives_out_what_the_configuration_says() -> None:
    read = config.read(TOLD)
    state = appliance.offline(read)
    for number, unit in enumerate(every_subscriber(read)[:32]):
        portion = deterministic.forward(read, unit[0])
        account = account_of(state, unit[-1])
        for port in range(5):
            verdict, external, given = ports.claim(state, account, 17, int(unit[-1]), 1, 4000 + port, False, 1000 * number)
            assert portion and verdict == 0 and portion.first <= given <= portion.last
            assert IPv4Address(int(state.externals["address"][external])) == portion.address


def account_of(state: State, host: IPv4Address) -> int:
    """Account of an internal address, as its first packet makes it."""
    rows = state.prefixes[: int(state.settings[0]["prefixes"])]
    row = next(n for n, each in enumerate(rows) if int(host) & int(each["mask"]) == int(each["network"]))
    return int(nat.use_account(state, state.prefixes[row], int(host)))


def test_rfc6056_within_ones_own_ports_the_next_one_cannot_be_told_from_the_last() -> None:
    read = config.read(single())
    state = appliance.offline(read, secret=bytes(range(16)))
    account, portion = account_of(state, IPv4Address("100.64.0.9")), deterministic.forward(read, IPv4Address("100.64.0.9"))
    given = [ports.claim(state, account, 6, 0x64400009, 1, 4000 + n, False, 0)[2] for n in range(64)]
    steps = Counter(after - before for before, after in pairwise(given))
    assert portion and max(given) - min(given) > (portion.last - portion.first) // 2 and max(steps.values()) < 6


def test_what_is_left_out_follows_from_the_rest() -> None:
    read = config.read(single())
    assert deterministic.plan(read, read.pool[0]) == (16, 7, False)  # 256 of 16; 126 blocks of 512 for 16
    read = config.read(single(subscribers_per_address=32, ports_per_subscriber=1024, overflow="true"))
    assert deterministic.plan(read, read.pool[0]) == (32, 2, True)
    behind = deterministic.reverse(read, IPv4Address("203.0.113.1"), 1024 + 32 * 1024)
    assert behind and (behind.kind, behind.subscriber, behind.last - behind.first) == ("dynamic", None, 511)


def test_what_the_configuration_cannot_tell() -> None:
    read = config.read(TOLD)
    assert deterministic.reverse(read, IPv4Address("198.51.100.1"), 4000) is None
    assert deterministic.forward(read, IPv4Address("100.64.32.1")) is None  # his pool is dynamic
    other = deterministic.reverse(read, IPv4Address("203.0.113.32"), 4000)
    assert other and (other.kind, other.subscriber, other.first, other.last) == ("dynamic", None, 3584, 4095)


# --- what cannot work -----------------------------------------------------------------------------------------------------

MAPPING = '[[mapping]]\nprotocol = "tcp"\ninternal = '
REFUSED = {
    "subscribers-per-address = 8": "256 subscribers use this pool; 16 addresses with 8 each have places for 128",
    "subscribers-per-address = 200": "200 subscribers of an address, 512 ports for each: 102,400 ports; an address has 64,512",
    "ports-per-subscriber = 500": "500 is no multiple of block-size 512",
    "ports-per-subscriber = 5120": "5120 ports are 10 blocks of 512, more than the 8",
    "ports-per-subscriber = 4096\nsubscribers-per-address = 16": "4,096 ports for each: 65,536 ports; an address has 64,512",
    "overflow = true": "needs `ports-per-subscriber`",
    "overflow = true\nports-per-subscriber = 4096\nsubscribers-per-address = 16": "4,096 ports for each: 65,536 ports",
    "overflow = true\nports-per-subscriber = 1024\nmax-blocks-per-subscriber = 2": "he may have no other",
    "overflow = true\nports-per-subscriber = 512\nsubscribers-per-address = 126": "leave nothing of an address for it",
    'drain = ["203.0.113.3"]': "whose ports these are would get none elsewhere",
    'exclude = ["203.0.113.0/29"]\nsubscribers-per-address = 16': "8 addresses with 16 each have places for 128",
    MAPPING + '"100.64.0.9:80"\nexternal = "203.0.113.1:8080"': "has ports of 203.0.113.0",
    MAPPING + '"100.64.0.1:80"\nexternal = "203.0.113.0:1024"': "is not one of the ports 4608-8191",
}


@pytest.mark.parametrize("lines", REFUSED)
def test_what_cannot_work_is_refused_in_words(lines: str) -> None:
    told = complaints(RIGHT + 'allocation = "deterministic"\n' + lines + "\n")
    assert len(told) == 1 and REFUSED[lines] in told[0], told


def test_a_dynamic_pool_has_none_of_it() -> None:
    told = complaints(RIGHT + "subscribers-per-address = 8\nports-per-subscriber = 64\noverflow = true\n")
    assert [line.partition(": needs ")[2] for line in told] == ['`allocation = "deterministic"`; this pool is dynamic'] * 3


def test_a_backup_needs_a_part_of_every_block() -> None:
    text = single(block_size=64) + '[cluster]\nmap = "/tmp/map"\nkey-file = "/tmp/key"\n'
    assert any("64 ports cannot be divided between a core and its backup" in told for told in complaints(text))


def test_ports_that_nobody_has_are_doubted() -> None:
    text = single(subscribers_per_address=16, ports_per_subscriber=512)
    assert any("leaves 56,320 ports of each address unused" in told for told in config.warnings(config.read(text), text, "nat"))


def test_what_would_move_everybody_needs_a_restart() -> None:
    before = config.read(single(subscribers_per_address=20))
    after = config.read(single(subscribers_per_address=20, exclude='["203.0.113.4"]'))
    assert reload.plan(before, after).restart == ["pool.exclude"]
    dynamic = [config.read(RIGHT + lines) for lines in ("", 'exclude = ["203.0.113.4"]\n')]
    assert reload.plan(*dynamic) == (["pool.exclude"], [])


def test_the_addresses_are_those_that_are_neither_excluded_nor_kept_for_icmp() -> None:
    dice = random.Random(5)
    for _ in range(200):
        prefixes = [IPv4Network((0xCB007100 + 32 * n, dice.randint(27, 32))) for n in dice.sample(range(8), 3)]
        exclude = [
            IPv4Network((0xCB007100 + dice.randrange(256), 32)).supernet(dice.randrange(5)) for _ in range(dice.randrange(6))
        ]
        kept = dice.choice([None, prefixes[0][-1]])
        pool = config.read(single()).pool[0].model_copy(update={"prefixes": prefixes, "exclude": exclude, "icmp_address": kept})
        hosts = [host for prefix in sorted(prefixes) for host in prefix if not any(host in each for each in exclude)]
        assert deterministic.addresses_of(pool) == [host for host in hosts if host != kept]


def test_a_thousand_static_mappings_are_judged_by_one_look_at_the_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute of a /20 pool, in the supervisor whose only thread it was."""
    few, many = (config.read(single() + _mappings_of(count)) for count in (1, 200))
    looked = Counter[str]()
    for name in ("plan", "addresses_of", "subscribers_of"):
        asked = getattr(deterministic, name)
        monkeypatch.setattr(deterministic, name, _counted(looked, name, asked))
    assert not list(checks_deterministic.mappings(few))
    once = looked.copy()
    looked.clear()
    assert not list(checks_deterministic.mappings(many)) and looked == once


def _mappings_of(count: int) -> str:
    line = '[[mapping]]\nprotocol = "tcp"\ninternal = "100.64.0.15:{}"\nexternal = "203.0.113.0:{}"\n'
    return "".join(line.format(port, 1024 + 512 * 7 * 15 - 1 + port) for port in range(1, count + 1))


def _counted(looked: Counter[str], name: str, asked: Callable[..., Any]) -> Callable[..., Any]:
    def count(*of: Any) -> Any:
        looked[name] += 1
        return asked(*of)

    return count


def test_blocks_that_are_no_blocks_are_refused_and_nothing_breaks() -> None:
    lines = MAPPING + '"100.64.0.255:80"\nexternal = "203.0.113.1:8080"\n'
    told = complaints(RIGHT + 'allocation = "deterministic"\nblock-size = 1000\nsubscribers-per-address = 1\n' + lines)
    assert any("block-size" in line or "block_size" in line for line in told), told


# --- the log, and the other side ------------------------------------------------------------------------------------------


def test_rfc7422_only_what_the_configuration_does_not_tell_is_logged() -> None:
    """The first block is his own; the second one is given dynamically."""
    pool = "pool 203.0.113.1/32 block 64 ratio 2 fixed 1 blocks 3 ports 1024-1343"
    core = new_core(pool, "subscribers 100.64.0.2/31", "log mappings")
    send(core, START, *(f"udp 100.64.0.2:{port} > 198.51.100.9:53" for port in range(4000, 4065)))
    assert kinds(core.state) == ["block_allocated", "mapping_created"]
    core.pass_time(START + 301_000)
    assert sorted(kinds(core.state)) == ["block_allocated", "block_released", "mapping_created", "mapping_deleted"]


def test_all_of_it_is_logged_where_that_is_wanted() -> None:
    core = new_core("pool 203.0.113.1/32 block 64 ratio 2", "subscribers 100.64.0.2/31", "log mappings")
    core.state.settings[0]["log_fixed"] = 1
    send(core, START, "udp 100.64.0.2:4000 > 198.51.100.9:53")
    assert kinds(core.state) == ["block_allocated", "mapping_created"]
    assert appliance.behaviour(config.read(single() + "[log]\ndeterministic = true\n"))["log_fixed"] == 1
    assert events.BLOCK_ALLOCATED == 16


def test_every_place_has_as_much_for_the_backup_as_any_other() -> None:
    state = appliance.offline(config.read(single(ports_per_subscriber=1024, overflow="true")))
    sides.lay(state, 0)
    row = state.pools[0]
    first, loose, end = int(row["first_block"]), int(row["loose_block"]), int(row["end_block"])
    chunks = state.chunks["side"][0].reshape(-1, 8)
    assert (first, loose, end) == (2, 34, 128)
    assert np.array_equal(chunks[first:loose], np.tile([0] * 7 + [1], (32, 1)))
    assert set(chunks[loose:end, 0].tolist()) == {0, 1}


# --- the tool -------------------------------------------------------------------------------------------------------------


def test_rfc7422_the_reverse_tool_needs_nothing_but_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "of-that-day.toml"
    path.write_text(TOLD)
    told = json.loads(run("pool", "forward", "100.64.16.40", "-c", str(path), "-o", "json").out)
    assert told == {"file": str(path), "subscriber": "100.64.16.40", "address": "203.0.113.10", "first": 1792, "last": 1983}
    back = run("pool", "reverse", "203.0.113.10:1801", "-c", str(path), "-o", "json")
    assert (back.status, json.loads(back.out)["subscriber"]) == (0, "100.64.16.32/28")
    nobody = run("pool", "reverse", "203.0.113.8:1800", "-c", str(path))
    assert (nobody.status, "unused" in nobody.out, "nobody" in nobody.out) == (1, True, True)


def test_rfc7422_an_older_file_answers_for_its_time(run: Run, tmp_path: Path) -> None:
    other = TOLD.replace("subscribers-per-address = 7", "subscribers-per-address = 5")
    other = other.replace("203.0.113.10:1800", "203.0.113.11:1700").replace("203.0.113.10:53", "203.0.113.11:53")
    for name, text in (("2026-03-01.toml", TOLD), ("2026-03-02T0930Z-denser.toml", other), ("notes.toml", ""), ("x.txt", "")):
        (tmp_path / name).write_text(text)
    for at, file in (("2026-03-01", "2026-03-01.toml"), ("2026-03-02T11:30:00+02:00", "2026-03-02T0930Z-denser.toml")):
        told = json.loads(run("pool", "reverse", "203.0.113.3:1025", "-c", str(tmp_path), "--at", at, "-o", "json").out)
        assert (Path(told["file"]).name, told["subscriber"]) == (file, f"100.64.8.{7 if 'denser' not in file else 5}/32")
    before = run("pool", "reverse", "203.0.113.3:1025", "-c", str(tmp_path), "--at", "2026-02-28T23:59:59")
    assert before.status == 4 and "the first of 2 is of 2026-03-01T00:00:00+00:00" in before.err
    assert "say by --at of which moment" in run("pool", "forward", "100.64.8.1", "-c", str(tmp_path)).err
    assert "is none" in run("pool", "forward", "100.64.8.1", "-c", str(tmp_path / "x.txt"), "--at", "2026-03-02").err
    assert run("pool", "forward", "100.64.8.1", "-c", str(tmp_path), "--at", "yesterday").status == 2


@pytest.mark.parametrize(
    "name",
    [
        "2026-11-22T09.toml",
        "2026-11-22-0930.toml",
        "2026-11-22_0930.toml",
        "2026-11-22-T0930.toml",
        "2026-11-22T0930+0100.toml",
        "2026-11-22T0930-0100.toml",
        "2026-11-22T09:3000.toml",
        "2026-11-22 09:30.toml",
        "2026-11-2209.toml",
        "20261122.toml",
        "2026-11-22.TOML",
        "2026-13-01.toml",
        "2026-11-22T2530.toml",
        "2026-11-21T0000Z.toml",
    ],
)
def test_a_name_that_is_not_wholly_understood_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    """Passed over, or taken for midnight or UTC, it would have another subscriber named, and nobody would notice."""
    for each in ("2026-11-21.toml", name):
        (tmp_path / each).write_text(TOLD)
    done = run("pool", "reverse", "203.0.113.3:1025", "-c", str(tmp_path), "--at", "2026-11-25")
    assert done.status == BAD_CONFIG and name in done.err and "--at" not in done.err and done.out == ""


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("2026-11-22.toml", "2026-11-22T00:00:00"),
        ("2026-11-22T0930.toml", "2026-11-22T09:30:00"),
        ("2026-11-22T09:30:15Z.toml", "2026-11-22T09:30:15"),
        ("2026-11-22T093015Z-more-addresses.toml", "2026-11-22T09:30:15"),
        ("2026-11-22_v2.toml", "2026-11-22T00:00:00"),
    ],
)
def test_a_file_is_in_force_from_the_moment_of_its_name(tmp_path: Path, name: str, since: str) -> None:
    (tmp_path / name).write_text("")
    moment = history.read_moment(since)
    assert history.in_force(tmp_path, moment).name == name
    with pytest.raises(Trouble, match="has no configuration of"):
        history.in_force(tmp_path, moment - timedelta(seconds=1))


def test_a_port_0_is_a_port(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "nat.toml"
    path.write_text(TOLD)
    told = run("pool", "reverse", "203.0.113.10:0", "-c", str(path)).out.splitlines()
    assert [line.split() for line in told[-3:]] == [["subscriber", "nobody"], ["first", "0"], ["last", "0"]]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("reverse", "203.0.113.11", "-c"), 2, "is not ADDRESS:PORT"),
        (("reverse", "203.0.113.11:70000", "-c"), 2, "is not ADDRESS:PORT"),
        (("reverse", "198.51.100.7:4711", "-c"), 4, "198.51.100.7 is in no pool"),
        (("forward", "100.64.32.1", "-c"), 4, "pool 'other' is dynamic"),
        (("forward", "192.0.2.99", "-c"), 4, "he is in no subscriber prefix"),
    ],
)
def test_what_the_tool_cannot_answer(run: Run, tmp_path: Path, words: tuple[str, ...], status: int, said: str) -> None:
    path = tmp_path / "nat.toml"
    path.write_text(TOLD)
    done = run("pool", *words, str(path))
    assert done.status == status and said in done.err
