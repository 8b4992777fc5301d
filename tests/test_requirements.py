"""Requirements of RFCs that no single scenario can show: what is random, what a configuration may say, what is written down."""

from __future__ import annotations

import selectors
import socket
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from krononat import appliance, config
from krononat.cli import metrics
from krononat.control import Control
from krononat.natlog import Reader, event
from shards import ports, sessions
from shards.state import UDP, State
from tests import frames
from tests.bare_core import Core
from tests.bed import Bed
from tests.frames import address, build, build_frame, mac_of, read
from tests.pair import EPOCH
from tests.test_config import RIGHT, complaints

FLOWS = 2048


def derived(secret: tuple[int, int], below: int, hosts: int = 1) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """First choices, below a number, of flows that come one after the other: hosts' source ports count up."""
    settings = np.zeros(1, [("secret", "u8", (2,))])
    settings["secret"] = secret
    each = FLOWS // hosts
    told = [ports.derive(settings, 1, 0x64400002 + n // each, 1, UDP, 4000 + n % each, below) for n in range(FLOWS)]
    return np.array(told, np.int64)


def is_even(counts: list[int]) -> bool:
    """Pearson's test with the 99.9 % bound of Wilson and Hilferty: whether counts are as even as chance makes them."""
    mean, free = sum(counts) / len(counts), len(counts) - 1
    square = sum((count - mean) ** 2 / mean for count in counts)
    return bool(square < free * (1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5) ** 3)


# --- random ports ---------------------------------------------------------------------------------------------------------


def test_the_test_of_evenness_can_fail() -> None:
    assert not is_even([FLOWS // 8] * 4 + [FLOWS // 16] * 8) and is_even([256] * 8)


@pytest.mark.parametrize("hosts", [1, 64])
def test_rfc6056_first_choices_are_even_and_tell_nothing_of_the_next(hosts: int) -> None:
    """RFC 6056 3.1: neither a port nor the step to the next one is likelier than others, for a host or for many."""
    chosen = derived((7, 9), 512, hosts)
    steps = np.diff(chosen) % 512
    for told in (chosen, steps):
        assert is_even(np.bincount(told // 16, minlength=32).tolist())
    assert abs(np.corrcoef(chosen[:-1], chosen[1:])[0, 1]) < 4 / FLOWS**0.5


def test_rfc7857_sec9_another_secret_chooses_otherwise() -> None:
    """An attacker who knows everything but the secret learns no more than by guessing: one port in 512 is the same."""
    same = np.count_nonzero(derived((7, 9), 512) == derived((7, 10), 512))
    assert same < 20


def test_rfc7857_sec8_parity_is_that_of_chance() -> None:
    sources = 4000 + np.arange(FLOWS)
    kept = np.count_nonzero(derived((7, 9), 512) % 2 == sources % 2)
    assert abs(kept - FLOWS / 2) < 4 * (FLOWS / 4) ** 0.5


def test_rfc6888_req15_a_subscribers_block_is_as_hard_to_guess() -> None:
    """Hosts next to each other get blocks anywhere in the pool."""
    bed = Bed()
    bed.say("pool 203.0.113.1/32 block 64 ports 1024-65535")
    core = Core(bed.complete(), EPOCH)
    taken = [int(sent_by(core, f"udp 100.64.0.{host}:4000 > 198.51.100.9:53").source_port) // 64 for host in range(2, 66)]
    steps = Counter(np.diff(taken).tolist())
    assert len(set(taken)) == 64 and max(steps.values()) < 8


def sent_by(core: Core, line: str) -> frames.Packet:
    """What leaves when this comes from inside."""
    packet = read(line)
    core.resolve(packet.source)
    frame = build_frame(mac_of(core.bed.inside.address), mac_of(packet.source), build(packet))
    sent = core.receive([("inside", frame)], EPOCH)[0].sent
    assert sent
    return frames.dissect(frames.split_frame(sent)[4])


# --- errors of ours -------------------------------------------------------------------------------------------------------


def test_rfc5508_req10d_errors_of_ours_are_network_control() -> None:
    """CS6 whatever the packet had (RFC 1812 4.3.2.5: precedence 6 or 7)."""
    core = Core(Bed().complete(), EPOCH)
    told = sent_by(core, "udp 100.64.0.2:4000 > 198.51.100.9:53 ttl 1 tos 0x28")
    assert (told.kind, told.tos) == (0x0B00, 0xC0)


# --- what a configuration may say -----------------------------------------------------------------------------------------


def test_rfc4787_req7_a_pool_that_overlaps_with_subscribers_is_refused() -> None:
    told = complaints(RIGHT.replace("203.0.113.0/28", "100.64.0.64/28"))
    assert any("overlaps subscribers[0] 100.64.0.0/24" in line for line in told)


def test_rfc4787_req8_filtering_is_one_word_or_one_of_each_protocol() -> None:
    """What is written is read again; what the rows say is what the configuration said."""
    for told, words in (
        ('"address-dependent"', ("address-dependent",) * 3),
        ('{ tcp = "address-dependent" }', ("endpoint-independent", "address-dependent", "endpoint-independent")),
    ):
        read = config.read(f"{RIGHT}filtering = {told}\n")
        assert read.pool[0].filtering.words == words
        assert config.read(config.canonical(read)).pool[0].filtering.words == words
        assert [sessions.filtering_of(appliance.offline(read), 0, protocol) for protocol in (1, 6, 17)] == [
            appliance.FILTERINGS[word] for word in words
        ]


def test_rfc6888_req3_a_pool_of_any_size_and_with_any_gaps() -> None:
    """Prefixes in any order, with gaps: each address of them is found again, none between them is."""
    prefixes = ["203.0.113.7/32", "198.18.0.0/22", "203.0.113.0/30", "192.88.99.1/32"]
    state = appliance.offline(config.read(RIGHT.replace('"203.0.113.0/28"', ", ".join(f'"{each}"' for each in prefixes))))
    inside = [int(IPv4Address(told)) for told in ("203.0.113.7", "198.18.2.9", "203.0.113.3", "192.88.99.1")]
    outside = [int(IPv4Address(told)) for told in ("203.0.113.4", "203.0.113.6", "198.18.4.0", "192.88.99.0", "192.88.99.2")]
    assert len({sessions.external_ordinal(state, host) for host in inside} - {-1}) == 4
    assert {sessions.external_ordinal(state, host) for host in outside} == {-1}
    assert int(state.pools[0]["externals"]) == 1 + 1024 + 4 + 1


# --- what is written down -------------------------------------------------------------------------------------------------


def state_after(log: str, *lines: str) -> State:
    """Of a core that logs so much, after these came from inside."""
    bed = Bed()
    for statement in (f"log {log}", "subscribers 100.64.0.0/24 sessions 2"):
        bed.say(statement)
    core = Core(bed.complete(), EPOCH)
    core.resolve(address("100.64.0.2"))
    for line in lines:
        core.receive(
            [("inside", build_frame(mac_of(address("100.64.0.1")), mac_of(address("100.64.0.2")), build(read(line))))], EPOCH
        )
    core.pass_time(EPOCH + 301_000)
    return core.state


SEEN = (
    "udp 100.64.0.2:4000 > 198.51.100.9:53",
    "udp 100.64.0.2:4000 > 198.51.100.10:53",
    "udp 100.64.0.2:4001 > 198.51.100.11:53",
)


@pytest.mark.parametrize("log", ["blocks", "mappings"])
def test_rfc6888_req12_no_destination_is_written_down_unless_sessions_are(log: str) -> None:
    rows = Reader(state_after(log, *SEEN)).rows()
    assert len(rows) > 1 and not rows["remote_address"].any() and not rows["remote_port"].any()
    assert config.read(RIGHT).log.events == "blocks"
    assert Reader(state_after("sessions", *SEEN)).rows()["remote_address"].any()


def test_rfc6888_req11c_a_refusal_is_told_to_management() -> None:
    """Who was refused, and why; the third session of two that he may have."""
    told = [event(row) for row in Reader(state_after("blocks", *SEEN)).rows()]
    assert [(each.kind, each.reason, each.internal) for each in told if each.reason] == [
        ("quota_exceeded", "session_limit", "100.64.0.2")
    ]


# --- who may manage it ----------------------------------------------------------------------------------------------------


def test_rfc6092_rec50_nobody_outside_can_manage_it(tmp_path: Path) -> None:
    """Orders are taken by a Unix socket that others may not write to; figures are served on the loopback by default."""
    path = tmp_path / "nat.sock"
    control = Control(str(path), selectors.DefaultSelector(), {})
    assert control._listener.family == socket.AF_UNIX and path.stat().st_mode & 0o007 == 0
    control.close()
    assert metrics.LISTEN.startswith("127.0.0.1:")
