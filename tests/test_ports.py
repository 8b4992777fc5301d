"""External ports: the keyed derivation (RFC 6056 3.3.3, RFC 6888 REQ-15), that a twin derives the same, and sides."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from shards import ports, slabs
from shards.jit import PURE
from shards.state import NAT_MAPPING, PICKUP_ASIDE
from tests import frames, fuzz
from tests.bare_core import Core
from tests.bed import Bed, fill_shards
from tests.pair import EPOCH, Pair, sender_of
from tests.replicas import mappings, replicate


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


# --- sides ----------------------------------------------------------------------------------------------------------------

SHARED = """
pool 203.0.113.0/30 block 128 blocks 3 ports 1024-5119
subscribers 100.64.0.0/24
sides two
hold-down 0
"""


def replica(side: int) -> Core:
    """A replica of a shard, on its own."""
    return Core(fuzz.bed(f"{SHARED}shard 0 side {side}", extents=6), EPOCH)


def open_flow(core: Core, number: int, host: int) -> str:
    """Verdict of a new flow of a subscriber."""
    return send(core, f"udp 100.64.0.{host}:{1024 + number} > 198.51.100.9:53")


def send(core: Core, text: str) -> str:
    """Verdict of a subscriber's packet."""
    packet = frames.read(text)
    core.resolve(packet.source)
    ends = frames.mac_of(core.bed.inside.address), sender_of(core.bed, "inside", packet)
    return core.receive([("inside", frames.build_frame(*ends, frames.build(packet)))], EPOCH)[0].verdict


@pytest.mark.parametrize("seed", range(3))
def test_two_replicas_that_cannot_hear_each_other_never_hand_out_the_same_endpoint(seed: int) -> None:
    """Nor the same row: together they are a union. Both know what was before; then each gets flows in its own order."""
    choice = random.Random(seed)
    both = replica(0), replica(1)
    for number in range(300):
        open_flow(both[0], number, choice.randrange(2, 12))
    replicate(both[0].state, both[1], EPOCH)
    before = {mapping[:2] for mapping in mappings(both[0].state)}
    for core in both:
        told = Counter(open_flow(core, choice.randrange(2000), choice.randrange(2, 40)) for _ in range(900))
        assert told["forwarded_out"] > 100
    new = [{mapping[:2] for mapping in mappings(core.state)} - before for core in both]
    assert min(map(len, new)) > 100 and not new[0] & new[1]
    rows = [set(np.flatnonzero(core.state.mappings["kind"] == NAT_MAPPING).tolist()) for core in both]
    wired = [{slabs.wire_row(core.state, row) for row in mine} for core, mine in zip(both, rows, strict=True)]
    assert len(wired[0] & wired[1]) == len(before)


def test_the_sides_of_a_pool_are_those_that_the_picture_says() -> None:
    """Of 8 blocks the last is the other side's, and of each block the last eighth of its chunks, but one at least."""
    for size, picture in ((64, "0"), (128, "01"), (512, "00000001"), (1024, "0" * 14 + "11")):
        core = Core(fuzz.bed(f"pool 203.0.113.1/32 block {size}\nsides two"), EPOCH)
        other = picture.translate({ord("0"): "1", ord("1"): "0"})
        first, end = int(core.state.pools[0]["first_block"]), int(core.state.pools[0]["end_block"])
        wanted = "".join(other if block % 8 == 7 else picture for block in range(first, end))
        chunks = core.state.chunks["side"][0, first * size // 64 : end * size // 64]
        assert "".join(map(str, chunks.tolist())) == wanted


def test_a_backup_that_has_taken_over_derives_the_port_that_the_other_had_given() -> None:
    """So a flow that it was never told of goes on: with side 0 and the same block, which comes with any mapping of his."""
    first, second = replica(0), replica(1)
    open_flow(first, 0, 2)
    replicate(first.state, second, EPOCH)
    assert open_flow(first, 1, 2) == "forwarded_out"
    second.bed.say("shard 0 side 0 epoch 2")
    fill_shards(second.state, second.bed, EPOCH)
    assert open_flow(second, 1, 2) == "forwarded_out"
    assert sorted(mappings(second.state)) == sorted(mappings(first.state))


def test_after_a_takeover_new_connections_leave_the_ports_of_unknown_ones_alone() -> None:
    """Forty were opened that the backup was never told of. New ones come first, then those speak up and find their ports."""
    first, second = replica(0), replica(1)
    open_flow(first, 0, 2)
    replicate(first.state, second, EPOCH)
    for number in range(40):
        assert send(first, f"tcp 100.64.0.2:{5000 + number} > 198.51.100.9:80 syn") == "forwarded_out"
    second.bed.say("shard 0 side 0 epoch 2 pickup 10")
    fill_shards(second.state, second.bed, EPOCH)
    second.state.shards[0]["pickup"] = PICKUP_ASIDE
    known = {mapping[:2] for mapping in mappings(second.state)}
    for number in range(40):
        assert send(second, f"tcp 100.64.0.2:{6000 + number} > 198.51.100.9:80 syn") == "forwarded_out"
    new = {mapping[:2] for mapping in mappings(second.state)} - known
    assert len(new) == 40 and not new & {mapping[:2] for mapping in mappings(first.state)}
    for number in range(40):
        assert send(second, f"tcp 100.64.0.2:{5000 + number} > 198.51.100.9:80 ack") == "forwarded_out"
    ours, theirs = ({mapping[:2] for mapping in mappings(core.state)} for core in (second, first))
    assert len(ours - new - theirs) <= 2, "but for one that had not got the port derived first"


def test_a_pool_with_no_block_of_our_side_is_searched_once_a_second() -> None:
    core = Core(fuzz.bed("pool 203.0.113.1/32 block 64 ports 1024-2047\nsubscribers 100.64.0.0/24\nsides two"), EPOCH)
    assert Counter(open_flow(core, 0, host) for host in range(2, 18)) == {"forwarded_out": 14, "pool_exhausted": 2}
    assert core.state.pools[0]["blocks_free"] == 2 and core.state.pools[0]["dry"] == 1 << 2
    core.bed.say("shard 0 side 1 epoch 2")
    fill_shards(core.state, core.bed, EPOCH)
    assert Counter(open_flow(core, 0, host) for host in (20, 21, 22)) == {"forwarded_out": 2, "pool_exhausted": 1}


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
