"""External ports: the keyed derivation (RFC 6056 3.3.3, RFC 6888 REQ-15) and that a twin derives the same."""

from __future__ import annotations

import numpy as np

from shards import ports
from tests import frames
from tests.bed import Bed, Core
from tests.pair import EPOCH, sender_of


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
