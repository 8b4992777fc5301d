"""External ports: the keyed derivation (RFC 6056 3.3.3, RFC 6888 REQ-15) and that a twin derives the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shards import ports
from shards.jit import PURE
from tests import frames
from tests.bed import Bed, Core
from tests.pair import EPOCH, Pair, sender_of


def chosen(count: int, secret: int = 0) -> list[int]:
    """External ports of `count` mappings, one after the other, with the bed's secret or another."""
    core = Core(Bed().complete(), EPOCH)
    if secret:
        core.state.settings[0]["secret"][0] = secret
    told = []
    for number in range(count):
        packet = frames.read(f"udp 100.64.0.2:{4000 + number} > 198.51.100.9:53")
        core.resolve(packet.source)
        ends = frames.mac_of(core.bed.inside.address), sender_of(core.bed, "inside", packet)
        frame = frames.build_frame(*ends, frames.build(packet))
        sent = core.receive([("inside", frame)], EPOCH)[0].sent
        assert sent
        told.append(frames.dissect(frames.split_frame(sent)[4]).source_port)
    return told


def test_siphash_gives_the_reference_vector() -> None:
    """Sixteen bytes 0 … 15 under the key 0 … 15: entry 16 of `vectors_sip64` of the reference implementation."""
    low, high = np.uint64(0x0706050403020100), np.uint64(0x0F0E0D0C0B0A0908)
    assert int(ports.siphash(low, high, low, high)) == 0x3F2ACC7F57C29BDB


def test_ports_are_not_in_any_order_a_stranger_could_go_on_with() -> None:
    steps = np.diff(chosen(64))
    assert len(set(steps.tolist())) > 40


def test_another_secret_makes_other_ports_and_the_same_makes_the_same() -> None:
    assert chosen(32) == chosen(32)
    assert sum(a == b for a, b in zip(chosen(32), chosen(32, secret=99), strict=True)) < 4


def full_pair() -> Pair:
    """A subscriber whose only block is full: one port since EPOCH + 100, the others a little longer."""
    bed = Bed()
    for statement in ("pool 203.0.113.1/32 block 64 blocks 1", "subscribers 100.64.0.0/24", "hold-down 0"):
        bed.say(statement)
    pair = Pair(bed.complete())
    pair.core.resolve(frames.address("100.64.0.2"))
    pair.pass_time(EPOCH + 100)
    assert ask(pair, "udp", 4000) == "forwarded_out"
    pair.pass_time(EPOCH + 900)
    assert {ask(pair, "udp", port) for port in range(4001, 4064)} == {"forwarded_out"}
    return pair


def ask(pair: Pair, protocol: str, port: int) -> str:
    """Verdict of a new flow of 100.64.0.2."""
    packet = frames.read(f"{protocol} 100.64.0.2:{port} > 198.51.100.9:53 {'syn' if protocol == 'tcp' else ''}")
    ends = frames.mac_of(pair.bed.inside.address), sender_of(pair.bed, "inside", packet)
    return pair.receive([("inside", frames.build_frame(*ends, frames.build(packet)))])[0].verdict


def test_a_port_that_is_released_can_be_had_in_the_second_in_which_there_was_none() -> None:
    pair = full_pair()
    pair.pass_time(EPOCH + 300_050)
    assert [ask(pair, "udp", port) for port in (5000, 5001)] == ["ports_exhausted"] * 2
    assert ask(pair, "tcp", 5000) == "forwarded_out"  # another protocol has ports of its own
    pair.pass_time(EPOCH + 300_700)
    assert [ask(pair, "udp", port) for port in (5002, 5003)] == ["forwarded_out", "ports_exhausted"]
    pair.check()


if PURE:

    def test_full_blocks_are_searched_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
        pair, search, searches = full_pair(), ports._free_port, []

        def counted(*told: Any) -> int:
            searches.append(told)
            return search(*told)

        monkeypatch.setattr(ports, "_free_port", counted)
        for now in (EPOCH + 1000, EPOCH + 1999, EPOCH + 2000):
            pair.pass_time(now)
            assert {ask(pair, "udp", port) for port in range(5000, 5020)} == {"ports_exhausted"}
        assert len(searches) == 2
