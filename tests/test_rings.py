"""Rings: against a fake kernel (whose frame is it, whatever happens) and against the real one (every frame is counted)."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest

from shards import atomics, frames, rings
from shards.burst import BURST, Burst, new_burst
from shards.frames import HAND, Rings, census, recycle
from shards.jit import PURE, hot
from shards.state import Array
from shards.verdict import FORWARDED_OUT, HELD_BACK, MARTIAN_SOURCE, TTL_EXCEEDED, TX_FULL
from tests.core import Core
from tests.fake_kernel import FakeKernel
from tests.ring_worker import forward
from tests.veth import Wires, drain, ipv4

# --- against the fake -----------------------------------------------------------------------------------------------------


def _taken_over(kernel: FakeKernel) -> Rings:
    handles = kernel.attach()
    rings.take_over(handles)
    rings.flush(handles)
    return handles


def _audit(kernel: FakeKernel, handles: Rings) -> None:
    """Every frame is on exactly one side, and the owners' words say which."""
    kernels = kernel.frames_held()
    free = handles.free[: handles.local[0]["free"]].tolist()
    hands = [frame for frame, word in enumerate(handles.owners.tolist()) if word >> 56 == HAND]
    assert sorted(kernels + free + hands) == list(range(len(handles.owners)))
    assert census(handles)["free"] == len(free)
    assert handles.ledger[0]["refused"] == 0


def test_a_burst_tells_port_place_and_length() -> None:
    kernel = FakeKernel((2, 1))
    handles, burst = _taken_over(kernel), new_burst()
    for queue, payload in enumerate((b"one", b"three", b"seventeen")):
        assert kernel.deliver(queue, payload)
    assert rings.receive(handles, burst, BURST) == 3
    assert burst.port[:3].tolist() == [0, 0, 1]
    seen = [bytes(handles.frames[at : at + length]) for at, length in zip(burst.at[:3], burst.length[:3], strict=True)]
    assert seen == [b"one", b"three", b"seventeen"]
    assert all(at % 4096 >= 256 for at in burst.at[:3])  # room for headers to grow


def test_a_limit_is_kept_and_every_queue_has_its_turn() -> None:
    kernel = FakeKernel((1, 1, 1), frames=32)
    handles, burst = _taken_over(kernel), new_burst()
    for queue in (0, 0, 1, 1, 2, 2):
        kernel.deliver(queue, b"frame")
    ports = []
    for _ in range(3):
        assert rings.receive(handles, burst, 2) == 2
        ports += burst.port[:2].tolist()
        rings.send(handles, burst, 0)
    assert ports == [0, 0, 1, 1, 2, 2]


def test_verdicts_decide_whose_the_frame_is_afterwards() -> None:
    kernel = FakeKernel()
    handles, burst = _taken_over(kernel), new_burst()
    for payload in (b"forwarded", b"held", b"dropped", b"answered"):
        kernel.deliver(0, payload)
    assert rings.receive(handles, burst, BURST) == 4
    burst.verdict[:4] = FORWARDED_OUT, HELD_BACK, MARTIAN_SOURCE, TTL_EXCEEDED
    burst.out_port[:4], burst.out_at[:4] = 1, burst.at[:4]
    burst.out_length[:4] = 9, 0, 0, 8
    rings.send(handles, burst, 4)
    kernel.transmit()
    assert kernel.sent == [b"forwarded", b"answered"]
    assert census(handles)["hand"] == 1  # the one held back
    assert rings.flush(handles) == 2
    recycle(handles, int(burst.at[1]) + 100)
    assert census(handles)["hand"] == 0
    _audit(kernel, handles)


def test_a_full_ring_is_a_verdict_but_not_for_what_was_dropped_anyway() -> None:
    kernel = FakeKernel((1, 1), entries=4, frames=16)
    handles, burst = _taken_over(kernel), new_burst()
    for expected in ([FORWARDED_OUT] * 4, [TX_FULL, TX_FULL, TTL_EXCEEDED, TX_FULL]):
        for _ in range(4):
            assert kernel.deliver(0, b"frame")
        assert rings.receive(handles, burst, BURST) == 4
        burst.verdict[:4] = FORWARDED_OUT, FORWARDED_OUT, expected[2], FORWARDED_OUT
        burst.out_port[:4], burst.out_at[:4], burst.out_length[:4] = 1, burst.at[:4], 5
        rings.send(handles, burst, 4)
        assert burst.verdict[:4].tolist() == expected
        rings.flush(handles)
    assert burst.out_length[:4].tolist() == [0] * 4
    _audit(kernel, handles)


def test_a_frame_not_in_hand_is_neither_freed_nor_sent() -> None:
    kernel = FakeKernel()
    handles, burst = _taken_over(kernel), new_burst()
    kernel.deliver(0, b"frame")
    rings.receive(handles, burst, BURST)
    before = census(handles)
    recycle(handles, int(burst.at[0]))
    recycle(handles, int(burst.at[0]))
    burst.verdict[0], burst.out_length[0], burst.out_at[0] = FORWARDED_OUT, 5, burst.at[0]
    rings.send(handles, burst, 1)
    assert handles.ledger[0]["refused"] == 2 and census(handles)["free"] == before["free"] + 1
    kernel.transmit()
    assert kernel.sent == []


def test_cursors_may_wrap() -> None:
    kernel = FakeKernel()
    for ring in (*kernel.view.rx, *kernel.view.tx, *kernel.view.fill, *kernel.view.completion):
        kernel.view.words[[ring["producer"], ring["consumer"]]] = 0xFFFFFFFD
    handles, burst = _taken_over(kernel), new_burst()
    for serial in range(20):
        assert kernel.deliver(serial % 2, b"%d" % serial)
        assert forward(handles, burst, 1) == 1
        kernel.transmit()
        if serial % 3 == 0:
            handles = _taken_over(kernel)
        _audit(kernel, handles)
    assert kernel.sent == [b"%d" % serial for serial in range(20)]


def _traffic(kernel: FakeKernel, handles: Rings, first: int) -> None:
    """A worker's life in small: frames come, are forwarded, dropped or held back, are sent, and some lie unread at the end."""
    burst = new_burst()
    for round_ in range(3):
        _talk(kernel, handles, burst, first + 3 * round_)
        for serial in range(3):
            kernel.deliver(serial % 2, b"%d" % (first + 3 * round_ + serial))
        count = rings.receive(handles, burst, 8)
        for i in range(count):
            burst.verdict[i] = FORWARDED_OUT
            burst.out_port[i], burst.out_at[i], burst.out_length[i] = 1 - burst.port[i], burst.at[i], burst.length[i]
        rings.send(handles, burst, count)
        if round_ != 1:
            kernel.transmit()
        rings.flush(handles)


def _talk(kernel: FakeKernel, handles: Rings, burst: Burst, serial: int) -> None:
    """Control traffic comes and is answered; what comes by the second port lies unread."""
    for queue in range(2):
        kernel.deliver(queue, b"asked", control=True)
    for i in range(rings.receive_control(handles, burst, 1)):
        recycle(handles, int(burst.at[i]))
        frame = rings.spare_frame(handles, int(burst.port[i]))
        if frame >= 0:
            text = np.frombuffer(b"said %d" % serial, np.uint8)
            at = (frame << 12) + 256
            handles.frames[at : at + len(text)] = text
            rings.send_control(handles, int(burst.port[i]), at, len(text))


def _life(kernel: FakeKernel) -> None:
    _traffic(kernel, _taken_over(kernel), 100)


CODE = (rings.__file__, frames.__file__, atomics.__file__)


class _Killed(BaseException):
    pass


def killed_at(line: int, life: Callable[[], object], files: tuple[str, ...] = CODE) -> bool:
    """Live until the `line`-th line of the code in `files` is reached; whether it was."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise _Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        life()
    except _Killed:
        return True
    finally:
        sys.settrace(before)
    return False


def test_killed_at_any_line_every_frame_and_packet_is_accounted_for_once() -> None:
    if not PURE:  # compiled code has no lines: the same test, in a process where it is Python
        name = f"{__file__}::test_killed_at_any_line_every_frame_and_packet_is_accounted_for_once"
        env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", name], env=env, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
        return
    line, killed = 0, True
    while killed:
        kernel = FakeKernel(frames=32, control=4)
        killed = killed_at(line, partial(_life, kernel))
        killed_at(line * 7 % 211, partial(_taken_over, kernel))  # the successor dies too, while taking over
        third = _taken_over(kernel)
        _audit(kernel, third)
        _traffic(kernel, third, 200)
        _audit(kernel, third)
        assert len(set(kernel.sent)) == len(kernel.sent), f"sent twice after a kill at line {line}"
        line += 1
    assert line > 500


def test_control_comes_and_goes_whatever_waits_of_data() -> None:
    kernel = FakeKernel((1, 1), entries=8, frames=64, control=4)
    handles, burst = _taken_over(kernel), new_burst()
    kernel_full = [kernel.deliver(0, b"data") for _ in range(30)].count(True)
    assert kernel_full == 8, "data fills its ring, and leaves frames for control"
    assert [kernel.deliver(0, b"control", control=True) for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(8):
        frame = rings.spare_frame(handles, 1)  # the other port's ring of data is full of what nobody sends
        at = frame << 12
        handles.frames[at : at + 4] = np.frombuffer(b"data", np.uint8)
        burst.at[0] = burst.out_at[0] = at
        burst.verdict[0], burst.out_port[0], burst.out_length[0], burst.port[0] = FORWARDED_OUT, 1, 4, 0
        rings.send(handles, burst, 1)
    assert rings.receive_control(handles, burst, BURST) == 4
    assert burst.port[:4].tolist() == [0] * 4 and burst.length[:4].tolist() == [7] * 4
    for i in range(4):
        recycle(handles, int(burst.at[i]))
    for _ in range(4):
        frame = rings.spare_frame(handles, 1)
        handles.frames[frame << 12 : (frame << 12) + 3] = np.frombuffer(b"own", np.uint8)
        assert rings.send_control(handles, 1, frame << 12, 3)
    assert rings.spare_frame(handles, 1) == -1, "its ring is full"
    _audit(kernel, handles)
    kernel.transmit()
    assert kernel.sent == [b"data"] * 8 + [b"own"] * 4
    rings.flush(handles)
    _audit(kernel, handles)


def test_a_few_frames_are_never_given_away() -> None:
    kernel = FakeKernel((1, 1), entries=64, frames=128, control=64)
    handles = _taken_over(kernel)
    assert handles.local[0]["reserve"] == 2 == handles.local[0]["free"]
    assert rings.spare_frame(handles, 0) >= 0 and rings.spare_frame(handles, 1) >= 0 and rings.spare_frame(handles, 1) == -1


def test_atomics_are_what_their_twins_are() -> None:
    words = np.array([7, 0xFFFFFFFF, 9], np.uint32)
    assert _swap(words, 1, 0x1_0000_0005) == 0xFFFFFFFF
    assert words.tolist() == [7, 5, 9]


@hot
def _swap(words: Array, index: int, value: int) -> int:
    before = atomics.load_acquire(words, index)
    atomics.store_release(words, index, value)
    return before


if not PURE and platform.machine() == "x86_64":  # other processors have other words for it

    def test_a_fence_keeps_a_load_behind_a_store() -> None:
        import numba

        def announce(words: Array) -> int:
            atomics.store_release(words, 0, 1)
            atomics.fence()
            return atomics.load_acquire(words, 1)

        compiled: Any = numba.njit(announce)
        assert compiled(np.array([0, 7], np.uint32)) == 7
        assert re.search(r"mfence|lock\s+or", next(iter(compiled.inspect_asm().values())))


# --- against the kernel ---------------------------------------------------------------------------------------------------


class Worker:
    """The forwarder in a process of its own, with no privilege at all."""

    def __init__(self, core: Core) -> None:
        order = json.dumps({"memory_fd": core.memory_fd, "notes_fd": core.notes_fd, "description": core.sockets.description})
        bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        self.process = subprocess.Popen(
            [*bare, sys.executable, "-m", "tests.ring_worker", order],
            pass_fds=[core.memory_fd, core.notes_fd, *core.sockets.fds()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def stop(self) -> dict[str, Any]:
        """Its last word."""
        told, _ = self.process.communicate(timeout=20)
        return dict(json.loads(told))

    def kill(self) -> None:
        """No last word."""
        self.process.kill()
        self.process.wait()


def _forward_until_quiet(handles: Rings) -> int:
    burst, total = new_burst(), 0
    while rings.wait(handles, 20):
        total += forward(handles, burst, 8)
    return total + forward(handles, burst, 1)


@pytest.mark.lab
@pytest.mark.parametrize("mode", ["native", "generic"])
@pytest.mark.parametrize("queues", [[1], [1, 1], [2, 2], [4, 1, 2]])
def test_every_frame_is_forwarded_and_counted_alike_by_us_and_by_the_peers(queues: list[int], mode: str) -> None:
    with Wires(queues) as wires, Core(wires, mode=mode, frames=4096) as core:
        handles = core.open_rings()
        forward(handles, new_burst(), 1)
        total = 0
        for row in range(len(queues)):
            with wires.peer(row) as peer, wires.peer((row + 1) % len(queues)) as next_peer:
                for round_ in range(10):
                    frames = [ipv4("198.51.100.7", b"%d" % serial + bytes(serial * 7), flow=serial) for serial in range(100)]
                    for frame in frames:
                        peer.send(frame)
                    total += _forward_until_quiet(handles)
                    assert sorted(drain(next_peer)) == sorted(frames), round_
        assert total == 1000 * len(queues) == sum(each.count()["redirected"][0] for each in core.steerings)
        assert [wires.counters(row)["rx"][0] for row in range(len(queues))] == [1000] * len(queues)
        assert core.sockets.lost() == 0 == handles.ledger[0]["refused"]
        whose = census(handles)
        assert (whose["hand"], whose["sending"], sum(whose.values())) == (0, 0, len(handles.owners))


@pytest.mark.lab
def test_a_burst_larger_than_the_rings_gets_out_whole() -> None:
    """Sending stops at a full completion ring, so that must be emptied on the way."""
    with Wires([4, 1]) as wires, Core(wires) as core, wires.peer(0) as peer, wires.peer(1) as far:
        assert core.sockets.description["entries"] == 64
        handles = core.open_rings()
        forward(handles, new_burst(), 1)
        for flow in range(160):  # some 40 for each queue
            peer.send(ipv4("198.51.100.7", flow=flow))
        assert forward(handles, new_burst(), 1) == 160 == len(drain(far))


@pytest.mark.lab
def test_a_worker_without_privileges_forwards() -> None:
    with Wires([1, 1]) as wires, Core(wires) as core, wires.peer(0) as peer:
        worker = Worker(core)
        for serial in range(1, 501):
            peer.send(ipv4("198.51.100.7", b"%d" % serial))
            if serial % 100 == 0:  # fewer at once than a ring holds, however late the worker is woken
                _until(partial(_has_received, wires, serial))
        report = worker.stop()
        assert report["privileges"] == 0
        assert (report["forwarded"], report["ledger"]) == (500, {"attached": 1, "lost": 0, "refused": 0})


@pytest.mark.lab
def test_after_kill_9_a_new_worker_goes_on_and_every_frame_is_accounted_for() -> None:
    with Wires([1, 1]) as wires, Core(wires) as core, wires.peer(0) as peer, wires.peer(1) as far:
        sent, random_ = 0, random.Random(2)
        for _ in range(4):
            worker = Worker(core)
            for crowd in (random_.randrange(500, 3000), 200):
                for serial in range(sent, sent + crowd):
                    peer.send(ipv4("198.51.100.7", b"%d" % serial))
                sent += crowd
                worker.kill()  # the second crowd meets nobody
        report = Worker(core).stop()
        arrived = drain(far)
        assert len(set(arrived)) == len(arrived)  # none twice
        assert core.steerings[0].count()["redirected"][0] == sent == wires.counters(0)["tx"][0]
        assert len(arrived) + report["ledger"]["lost"] + core.sockets.lost() == sent
        assert wires.counters(1)["rx"][0] == len(arrived)
        census = report["census"]
        assert (census["hand"], census["sending"], sum(census.values())) == (0, 0, core.sockets.description["frames"])
        assert report["ledger"]["attached"] == 5 and report["ledger"]["refused"] == 0


def _has_received(wires: Wires, frames: int) -> bool:
    return wires.counters(1)["rx"][0] == frames


def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    latest = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < latest, "waited in vain"
        time.sleep(0.01)
