"""What nobody sends by accident: nothing of it crashes, nothing invalid leaves, and model and pipeline agree on every byte.

Where each kind of it is named: land, martians, truncated headers, other MACs and tags in `frames-that-are-wrong`, `martians`,
`vlan-tags`, `ipv6-frames-that-are-wrong`, `rfc6092-rec1-3-7-addresses`; teardrop and ping of death in
`rfc4787-req14a-fragments-that-harm`, `rfc5722-overlapping-fragments`, `ipv6-fragments-that-harm`; RH0 and broken chains in
`rfc6092-rec4-extension-headers`; jumbo frames, padding and tags within tags in `hostile-frames`, `ipv6-hostile-frames`. Here is
everything, cut everywhere.
"""

from __future__ import annotations

import pytest

from tests.fuzz_guided import Bench, repaired

ETHERNET = 14
LOOKED_AT = 1 + ETHERNET + 80  # bytes that have headers
BENCH_LINES = 36  # seeds of the guided fuzz: every kind of packet and error of both families, whole and in fragments


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def test_every_frame_cut_behind_every_byte_is_judged_alike(bench: Bench) -> None:
    """A frame that ends too early; what is left of its headers says otherwise."""
    seeds = bench.seeds()
    assert len(seeds) == BENCH_LINES
    for data in seeds:
        for length in range(1, min(len(data), LOOKED_AT)):
            bench.take(data[:length])
    bench.pair.check()


def test_every_packet_that_says_itself_that_it_is_shorter_is_judged_alike(bench: Bench) -> None:
    """A packet that is truncated and whole: lengths and checksums fit what is left."""
    for data in bench.seeds():
        for length in range(1 + ETHERNET, min(len(data), LOOKED_AT), 2):
            bench.take(repaired(data[:length]))
    bench.pair.check()


def test_every_field_of_a_header_set_to_its_ends_is_judged_alike(bench: Bench) -> None:
    for data in bench.seeds():
        for at in range(1 + ETHERNET, min(len(data), LOOKED_AT), 2):
            bench.take(repaired(data[:at] + b"\xff\0" + data[at + 2 :]))
            bench.take(repaired(data[: at - 1] + b"\xff\0" + data[at + 1 :]))
    bench.pair.check()
