"""A packet never waits for the compiler: once the worker's warm-up is done, the first packet of any kind compiles nothing.

Counted, not timed: numba announces each compilation. (How long the first packet of each kind takes over real interfaces is
seen in `test_first_packets`.)
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from shards.jit import PURE
from tests.bare_core import Core
from tests.bed import Bed
from tests.frames import address, build, build_frame, mac_of, read

NOW = 50_000_000

# The first of each kind, in an order in which each can be what it is.
KINDS = (
    ("inside", "udp 100.64.0.2:4000 > 198.51.100.9:53", "forwarded_out"),
    ("inside", "tcp 100.64.0.2:4000 > 198.51.100.9:80 syn mss 1460", "forwarded_out"),
    ("inside", "echo 100.64.0.2:7 > 198.51.100.9", "forwarded_out"),
    ("inside", "tcp 100.64.0.2:4000 > 198.51.100.9:80 rst", "forwarded_out"),
    ("inside", "udp 100.64.0.2:4000 > 198.51.100.9:53 ttl 1", "ttl_exceeded"),
    ("inside", "udp 100.64.0.2:4000 > 198.51.100.9:53 df len 1700", "too_big"),
    ("inside", "udp 100.64.0.2:4000 > 203.0.113.1:2000", "no_mapping"),
    ("inside", "udp 100.64.0.2:4000 > 198.51.100.9:25", "rule_rejected"),
    ("inside", "udp 10.9.9.9:4000 > 198.51.100.9:53", "spoofed_source"),
    ("inside", "tcp 100.64.0.3:4000 > 198.51.100.9:80 ack", "tcp_not_opening"),
    ("inside", "time-exceeded 100.64.0.2 > 198.51.100.9 about [udp 198.51.100.9:53 > 100.64.0.2:4000]", "forwarded_out"),
    ("inside", "udp 100.64.0.2:80 > 203.0.113.1:8080", "hairpinned"),
    ("outside", "tcp 198.51.100.9:9 > 203.0.113.1:8080 syn", "forwarded_in"),
    ("outside", "udp 198.51.100.9:9 > 203.0.113.1:9999", "no_mapping"),
    ("outside", "ip/99 198.51.100.9 > 203.0.113.1 len 40", "protocol_not_served"),
    ("inside", "gre 100.64.0.2 > 198.51.100.9 len 40", "forwarded_out"),
    ("outside", "gre 198.51.100.9 > 203.0.113.1 len 40", "forwarded_in"),
)

if not PURE:
    import numba
    from numba.core import event

    from krononat import warm

    def new_core() -> Core:
        bed = Bed()
        for statement in (
            "rule outbound udp remote-ports 25 reject",
            "static tcp 203.0.113.1:8080 to 100.64.0.7:80",
            "static udp 203.0.113.1:8080 to 100.64.0.7:80",
            "mss 1400",
        ):
            bed.say(statement)
        core = Core(bed.complete(), NOW)
        core.resolve(*(address(f"100.64.0.{n}") for n in (2, 3, 7)))
        return core

    def test_the_first_packet_of_each_kind_compiles_nothing() -> None:
        warm.load()
        core = new_core()
        core.pass_time(NOW)  # what this bed alone asks of compiled code, here and for pieces, no worker has to have ready
        core._pieces(0)
        with event.install_recorder("numba:compile") as compiled:
            for side, line, verdict in KINDS:
                packet = read(line)
                station = address("100.64.0.1") if side == "inside" else address("192.0.2.2")
                sender = packet.source if side == "inside" else address("192.0.2.1")
                (result,) = core.receive([(side, build_frame(mac_of(station), mac_of(sender), build(packet)))], NOW)
                assert result.verdict == verdict, line
            core.pass_time(NOW + 10_000_000)
        assert compiled.buffer == []

    def test_a_worker_s_code_is_cached_under_the_digest_of_its_sources() -> None:
        told = "import krononat.worker, shards.shard, shards.jit as jit; "
        told += "print(jit.cache_folder(), shards.shard.breathe._cache.cache_path, sep='\\n')"
        done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
        folder, path = done.stdout.split()
        assert path.startswith(folder)

    def test_a_compilation_would_be_seen() -> None:
        with event.install_recorder("numba:compile") as compiled, pytest.MonkeyPatch.context():
            numba.njit(lambda x: x + 1)(1)
        assert compiled.buffer
