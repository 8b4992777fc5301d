"""memif's rings against a server in the same process: whose frame is it, whatever the worker or its other side does."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from shards import atomics, frames, memif, memif_rings, rings, tap, xsk
from shards.burst import BURST, new_burst
from shards.frames import FREE, HAND, Rings, census
from shards.jit import PURE
from shards.memif import BROKEN, BUFFER_BYTES, FILLED, GIVEN, REFUSED, SENT, TAKEN
from shards.notes import LINK_WORDS
from shards.outcomes import OUTCOMES
from shards.verdict import FORWARDED_OUT, TX_FULL
from tests.fake_kernel import FakeKernel
from tests.fake_server import FakeServer
from tests.frames import build, build_frame, mac_of, read
from tests.ring_worker import forward
from tests.test_rings import killed_at

FRAMES = 128
PACKET = bytes.fromhex("020000000001 020000000002 0800") + bytes(16) + bytes.fromhex("c6336407") + bytes(30)


class Bench:
    """Two memif ports (or an XDP port 0 and a memif port 1) of one worker, with their other sides."""

    def __init__(self, xdp: bool = False, log2_entries: int = 5, taps: tuple[int, int] = (-1, -1)) -> None:
        first = 1 if xdp else 0
        self.servers = [FakeServer(port, None, log2_entries, taps[port]) for port in range(first, 2)]
        lines = [server.line() for server in self.servers]
        self.kernel = FakeKernel((1,) if xdp else (), entries=32, frames=FRAMES, lines=lines)
        for server in self.servers:
            server.memory = self.kernel.memory
        self.handles = self.take_over()

    def take_over(self) -> Rings:
        """What a (new) worker does first."""
        handles = self.kernel.attach()
        rings.take_over(handles)
        rings.flush(handles)
        return handles

    def close(self) -> None:
        """No descriptor stays."""
        for server in self.servers:
            server.close()

    def audit(self, handles: Rings) -> None:
        """Every frame is on exactly one side, and the owners' words say which."""
        away = self.kernel.frames_held()
        for queue in range(len(self.kernel.description["queues"]), len(handles.queues)):
            for each in memif_rings.on_its_way(handles, queue):
                away += each.tolist()
        free = handles.free[: handles.local[0]["free"]].tolist()
        hands = [frame for frame, word in enumerate(handles.owners.tolist()) if word >> 56 == HAND]
        assert sorted(away + free + hands) == list(range(FRAMES))
        assert all(handles.owners[frame] == FREE for frame in free)
        assert handles.ledger[0]["refused"] == 0


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def packet(serial: int) -> bytes:
    return PACKET + b"%06d" % serial


def test_a_frame_leaves_by_the_other_port_without_a_copy(bench: Bench) -> None:
    left, right = bench.servers
    at = left.given()[0]
    assert left.deliver(packet(1))
    assert forward(bench.handles, new_burst(), 1) == 1
    assert right.sent() == [(at, packet(1))]
    assert right.take() == [packet(1)]
    rings.flush(bench.handles)
    assert census(bench.handles)["sending"] == 0
    bench.audit(bench.handles)


def test_a_frame_goes_between_xdp_and_memif_without_a_copy() -> None:
    bench = Bench(xdp=True)
    (server,), kernel, burst = bench.servers, bench.kernel, new_burst()
    for serial in range(100):
        assert kernel.deliver(0, packet(serial))
        assert server.deliver(packet(1000 + serial))
        assert forward(bench.handles, burst, 1) == 2
        kernel.transmit()
        assert server.take() == [packet(serial)]
        bench.audit(bench.handles)
    assert kernel.sent == [packet(1000 + serial) for serial in range(100)]
    bench.close()


def test_a_limit_is_kept_and_both_ports_have_their_turn(bench: Bench) -> None:
    burst, ports = new_burst(), []
    for serial in range(8):
        bench.servers[serial % 2].deliver(packet(serial))
    for _ in range(4):
        assert rings.receive(bench.handles, burst, 2) == 2
        ports += burst.port[:2].tolist()
        burst.verdict[:2], burst.out_length[:2] = FORWARDED_OUT, 0
        rings.send(bench.handles, burst, 2)
    assert ports == [0, 0, 1, 1] * 2
    bench.audit(bench.handles)


def test_cursors_of_16_bits_may_wrap(bench: Bench) -> None:
    links, burst = bench.handles.links, new_burst()
    for queue, server in enumerate(bench.servers):
        memif_rings.disconnect(bench.handles, queue)
        server.halves[:, 32] = 0xFFFD
        links[LINK_WORDS * queue + memif.CONNECTION] = server.connection["number"]
        links[[LINK_WORDS * queue + cursor for cursor in (GIVEN, FILLED, SENT, TAKEN)]] = 0xFFFD
    handles = bench.take_over()
    for serial in range(100):
        assert bench.servers[serial % 2].deliver(packet(serial))
        assert forward(handles, burst, 1) == 1
        assert bench.servers[1 - serial % 2].take() == [packet(serial)]
        if serial % 7 == 0:
            handles = bench.take_over()
        bench.audit(handles)


def test_a_full_ring_refuses_and_a_taken_frame_makes_room(bench: Bench) -> None:
    left, right = bench.servers
    for serial in range(40):
        assert left.deliver(packet(serial))
        forward(bench.handles, new_burst(), 1)
    assert [sent for _, sent in right.sent()] == [packet(serial) for serial in range(32)]
    assert right.take()
    left.deliver(packet(40))
    forward(bench.handles, new_burst(), 1)
    assert right.take() == [packet(40)]
    bench.audit(bench.handles)


@pytest.mark.parametrize(("flags", "length"), [(1, 60), (0, BUFFER_BYTES + 1), (0, 0xFFFFFFFF), (1, 0xFFFFFFFF)])
def test_a_bad_descriptor_is_a_runt_and_is_counted(bench: Bench, flags: int, length: int) -> None:
    left, _ = bench.servers
    burst = new_burst()
    left.deliver(packet(1), flags, length)
    left.deliver(packet(2))
    left.deliver(packet(3))
    assert rings.receive(bench.handles, burst, BURST) == 3
    bad = 1 + (flags & 1)  # what follows a piece is a piece, too
    assert burst.length[:3].tolist() == [0] * bad + [len(packet(0))] * (3 - bad)
    assert bench.handles.links[REFUSED] == bad


@pytest.mark.parametrize("xdp", [False, True])
def test_what_has_grown_beyond_its_frame_is_not_sent(xdp: bool) -> None:
    bench, burst = Bench(xdp=xdp), new_burst()
    server = bench.servers[-1]
    for serial in range(3):
        server.deliver(packet(serial))
    assert rings.receive(bench.handles, burst, BURST) == 3
    burst.verdict[:3], burst.out_port[:3], burst.out_at[:3] = FORWARDED_OUT, 0, burst.at[:3]
    burst.out_length[:3] = 60, BUFFER_BYTES + 1, BUFFER_BYTES
    rings.send(bench.handles, burst, 3)
    assert burst.verdict[:3].tolist() == [FORWARDED_OUT, TX_FULL, FORWARDED_OUT]
    assert census(bench.handles)["sending"] == 2
    bench.close()


def test_what_a_dead_server_had_comes_back_and_what_it_had_not_taken_is_counted(bench: Bench) -> None:
    left, right = bench.servers
    for serial in range(5):
        left.deliver(packet(serial))
    forward(bench.handles, new_burst(), 1)
    assert len(right.sent()) == 5
    memif_rings.disconnect(bench.handles, 1)
    bench.audit(bench.handles)
    assert bench.handles.ledger[0]["lost"] == 5
    left.deliver(packet(5))
    forward(bench.handles, new_burst(), 1)  # nobody there: freed
    bench.audit(bench.handles)
    right.close()
    right.connect()
    memif_rings.connect(bench.handles, 1, right.connection)
    memif_rings.connect(bench.handles, 1, right.connection)  # said twice
    rings.flush(bench.handles)
    assert right.deliver(packet(6)) and left.deliver(packet(7))
    assert forward(bench.handles, new_burst(), 1) == 2
    assert (right.take(), left.take()) == ([packet(7)], [packet(6)])
    bench.audit(bench.handles)


def test_a_successor_begins_anew_where_its_predecessor_had_not_come_to(bench: Bench) -> None:
    left, right = bench.servers
    left.deliver(packet(1))
    forward(bench.handles, new_burst(), 1)
    right.close()
    right.connect()
    bench.kernel.lines = [left.line(), right.line()]
    handles = bench.take_over()
    bench.audit(handles)
    assert handles.ledger[0]["lost"] == 1
    assert left.deliver(packet(2))
    forward(handles, new_burst(), 1)
    assert right.take() == [packet(2)]


@pytest.mark.parametrize(("ring", "tail"), [(0, 1), (0, 0xFFFF), (1, 33), (1, 0x8000), (1, 0xFFFF)])
def test_an_impossible_cursor_breaks_the_link_and_nothing_else(bench: Bench, ring: int, tail: int) -> None:
    left, right = bench.servers
    left.halves[ring, 32] = tail
    forward(bench.handles, new_burst(), 1)
    assert bench.handles.links[BROKEN] == 1 and bench.handles.links[LINK_WORDS + BROKEN] == 0
    bench.audit(bench.handles)
    handles = bench.take_over()  # it stays broken for a successor
    assert handles.lines[0]["up"] == 0 and handles.lines[1]["up"] == 1
    bench.audit(handles)
    assert right.deliver(packet(1))
    forward(handles, new_burst(), 1)
    left.close()
    left.connect()
    memif_rings.connect(handles, 0, left.connection)
    rings.flush(handles)
    assert right.deliver(packet(2))
    forward(handles, new_burst(), 1)
    assert left.take() == [packet(2)]
    bench.audit(handles)


def test_whatever_a_server_scribbles_frames_stay_where_they_belong() -> None:
    random_ = random.Random(3)
    for _ in range(60):
        bench = Bench()
        handles, burst = bench.handles, new_burst()
        for _ in range(40):
            server = random_.choice(bench.servers)
            for _ in range(random_.randrange(4)):
                at = random_.choice([4, 6, 64, 128 + 4 * random_.randrange(128)]) + random_.choice([0, memif.ring_bytes(5)])
                server.map[at] = random_.randrange(256)
            for each in bench.servers:
                each.halves[1, 32] += random_.choice([0, 1, 2, 5])
            count = rings.receive(handles, burst, BURST)
            for at, length in zip(burst.at[:count].tolist(), burst.length[:count].tolist(), strict=True):
                assert length >= 0 and (at + max(length, 1) - 1) >> xsk.FRAME_SHIFT == at >> xsk.FRAME_SHIFT
            burst.verdict[:count], burst.out_port[:count] = FORWARDED_OUT, 1 - burst.port[:count]
            burst.out_at[:count], burst.out_length[:count] = burst.at[:count], burst.length[:count]
            rings.send(handles, burst, count)
            rings.flush(handles)
            bench.audit(handles)
            if random_.random() < 0.1:
                handles = bench.take_over()
            for queue, each in enumerate(bench.servers):
                if handles.links[LINK_WORDS * queue + BROKEN] and random_.random() < 0.5:
                    each.close()
                    each.connect()
                    memif_rings.connect(handles, queue, each.connection)
                    bench.kernel.lines = [one.line() for one in bench.servers]
            bench.audit(handles)
        bench.close()


# --- killed ---------------------------------------------------------------------------------------------------------------


def _traffic(bench: Bench, handles: Rings, first: int, taken: list[bytes]) -> None:
    """A worker's life in small: packets come, are forwarded, some lie unread at the end; a server goes and comes."""
    burst, serials = new_burst(), iter(range(first, first + 100))
    for round_ in range(3):
        for server in bench.servers:
            server.deliver(packet(next(serials)))
            server.deliver(packet(next(serials)))
        forward(handles, burst, 1)
        if round_ != 1:
            for server in bench.servers:
                taken += server.take()
        rings.flush(handles)


def _life(bench: Bench, taken: list[bytes]) -> None:
    handles = bench.take_over()
    _traffic(bench, handles, 100, taken)
    last = bench.servers[-1]
    last.connect()
    bench.kernel.lines = [server.line() for server in bench.servers]
    queue = len(handles.queues) - 1
    memif_rings.disconnect(handles, queue)
    memif_rings.connect(handles, queue, last.connection)
    _traffic(bench, handles, 300, taken)


def test_killed_at_any_line_every_frame_and_packet_is_accounted_for_once() -> None:
    if not PURE:  # compiled code has no lines: the same test, in a process where it is Python
        name = f"{__file__}::test_killed_at_any_line_every_frame_and_packet_is_accounted_for_once"
        env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", name], env=env, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
        return
    files = tuple(str(module.__file__) for module in (rings, frames, memif_rings, tap, atomics))
    line, killed = 0, True
    while killed:
        bench, taken = Bench(xdp=line % 2 == 1), list[bytes]()
        killed = killed_at(line, partial(_life, bench, taken), files)
        killed_at(line * 7 % 211, bench.take_over, files)  # the successor dies too, while taking over
        third = bench.take_over()
        bench.audit(third)
        _traffic(bench, third, 600, taken)
        bench.audit(third)
        assert len(set(taken)) == len(taken), f"sent twice after a kill at line {line}"
        bench.close()
        line += 3
    assert line > 1500


# --- asleep and awake -----------------------------------------------------------------------------------------------------


def test_events_are_asked_for_asleep_and_sent_where_they_are_wanted(bench: Bench) -> None:
    left, right = bench.servers
    assert left.halves[1, 2] & 1  # awake: no events, please
    assert not rings.wait(bench.handles, 1)
    assert left.halves[1, 2] & 1
    os.eventfd_write(left.events[1], 1)
    assert rings.wait(bench.handles, 1000)
    assert not rings.wait(bench.handles, 0)  # the event was read
    left.deliver(packet(1))
    assert rings.wait(bench.handles, 1000)  # seen even where the server saw no wish for an event
    right.halves[0, 2] = 1
    forward(bench.handles, new_burst(), 1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(right.events[0])
    right.halves[0, 2] = 0
    left.deliver(packet(2))
    forward(bench.handles, new_burst(), 1)
    assert os.eventfd_read(right.events[0]) == 1


if PURE:  # a compiled system call that waits cannot be interrupted

    @pytest.mark.parametrize("ring", [0, 1])
    def test_events_never_keep_the_worker(bench: Bench, ring: int) -> None:
        """The server may do with its descriptors what it likes: let both ends wait, and fill what we write to."""
        left, right = bench.servers

        def too_long(*_: object) -> None:
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, 10)
        try:
            if ring == 0:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(right.events[0], 2**64 - 2)
                os.set_blocking(right.events[0], True)
                right.halves[0, 2] = 0
                for serial in range(400):  # more than the socket holds
                    left.deliver(packet(serial))
                    forward(bench.handles, new_burst(), 1)
                    right.take()
            else:
                os.set_blocking(left.events[1], True)
                assert not rings.wait(bench.handles, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


# --- the kernel's share ---------------------------------------------------------------------------------------------------


if PURE:  # compiled code calls the C library itself

    def test_what_comes_as_the_worker_lies_down_is_not_slept_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server was just storing when its rings were looked at, and had not seen yet that it is to wake us."""
        waits: list[int] = []

        def poll(_polled: int, _count: int, timeout: int) -> int:
            if not waits:
                assert bench.servers[0].deliver(packet(1))
            waits.append(timeout)
            return 0

        monkeypatch.setattr(rings, "poll", poll)
        assert rings.wait(bench.handles, 100)
        assert waits == [0]


def test_what_is_the_kernels_goes_to_the_tap_and_what_it_says_leaves() -> None:
    pairs = [os.pipe2(os.O_NONBLOCK), os.pipe2(os.O_NONBLOCK)]
    bench = Bench(taps=(pairs[0][1], pairs[1][1]))
    left, right = bench.servers
    arp = PACKET[:12] + b"\x08\x06" + bytes(46)
    ours = build_frame(mac_of(1), mac_of(2), build(read("udp 100.64.0.2:1 > 198.51.100.9:53")))
    for frame in (ours, arp, arp, ours, arp):
        left.deliver(frame)
    assert forward(bench.handles, new_burst(), 1) == 2
    assert right.take() == [ours, ours]
    assert os.read(pairs[0][0], 1000) == arp * 3
    counts = bench.handles.links[memif.OUTCOME : memif.OUTCOME + len(OUTCOMES)].tolist()
    assert dict(zip([each.name for each in OUTCOMES], counts, strict=True))["not_ip"] == 3
    bench.handles.lines["tap"] = [pair[0] for pair in pairs]  # a pipe has two ends, a tap is one
    os.write(pairs[1][1], arp)
    assert rings.listen(bench.handles) == 1
    assert right.take() == [arp]
    assert bench.handles.links[LINK_WORDS + memif.FROM_KERNEL] == 1
    rings.flush(bench.handles)
    bench.audit(bench.handles)
    for pair in pairs:
        os.close(pair[0])
        os.close(pair[1])
    bench.close()
