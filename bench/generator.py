"""40,000 flows of 64-byte UDP onto a veth, as cheaply as the kernel can: XDP frames made by an XDP program, without an skb.

BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES runs a program over and over, on frames of a page pool, and really does what
it returns; ours copies the next flow's frame from a map over each, and redirects it to the veth. To the veth's other end that
is what a network card's driver would hand up: a page, and no skb yet. (A sender with sockets pays some 500 ns more for an skb a
frame, and its receiver as much again to make a page of it: then the generator would be measured, not the device.)

To keep a pace the program looks at the clock, and drops frames until it is time for the next one. It runs until a signal ends
it. A frame is 60 bytes, 64 on the wire with its check sequence. Specified in the kernel's `Documentation/bpf/bpf_prog_run.rst`.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import signal
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from bench import traffic
from bench.veths import entered
from shards import bpf, xsk
from shards.bpf import I32, I64, POINTER
from shards.state import Array

FLOWS = 40_000
SUBSCRIBERS = 2_000
PORT = 7777  # where all of them talk to
FRAME_BYTES = 60
_SLOT_BYTES = 64

# What the program is told, and tells: the value of a map.
_ORDERS = np.dtype([(name, "u8") for name in ("sent", "first_ns", "last_ns", "next_ns", "period_ns", "flow")])

_LIVE_FRAMES, _BATCH = 2, 64  # BPF_F_TEST_XDP_LIVE_FRAMES; frames between two flushes
_ARRAY, _MMAPABLE = 2, 1 << 10
_MAP_VALUE = 2  # BPF_PSEUDO_MAP_VALUE
_KTIME_GET_NS, _REDIRECT = 5, 23  # helpers


class Flow(NamedTuple):
    """Who sends and who is the next station, as MAC addresses."""

    source: bytes
    station: bytes


class Sent(NamedTuple):
    """How many frames left, and in what time from the first to the last of them."""

    frames: int
    seconds: float


def frames_of(flow: Flow, flows: int = FLOWS, port: int = PORT) -> Array:
    """One frame of each flow, checksums right: uint8 (flows, FRAME_BYTES)."""
    number = np.arange(flows)
    frames = np.zeros((flows, FRAME_BYTES), np.uint8)
    frames[:, 0:14] = np.frombuffer(flow.station + flow.source + b"\x08\x00", np.uint8)
    frames[:, 14:26] = np.frombuffer(bytes([0x45, 0, 0, 46, 0, 0, 0x40, 0, traffic.TTL, 17, 0, 0]), np.uint8)
    traffic.put(frames, 26, 0x64400100 + number % SUBSCRIBERS, 4)
    traffic.put(frames, 30, 0xC633640A + number % 200, 4)
    traffic.put(frames, 34, 2000 + number // SUBSCRIBERS, 2)
    traffic.put(frames, 36, np.full(flows, port), 2)
    traffic.put(frames, 38, np.full(flows, 26), 2)
    traffic.write_checksums(frames)
    return frames


class Generator:
    """Sends frames, one after the other and round and round, out of a device of a namespace."""

    def __init__(self, namespace: str, ifindex: int, frames: Array) -> None:
        self._namespace = namespace
        self._maps = [_new_map(_SLOT_BYTES, len(frames), "krn_frames"), _new_map(_ORDERS.itemsize, 1, "krn_orders")]
        slots = np.frombuffer(_mapped(self._maps[0], len(frames) * _SLOT_BYTES), np.uint8, len(frames) * _SLOT_BYTES)
        slots.reshape(-1, _SLOT_BYTES)[:, :FRAME_BYTES] = frames
        self._orders = np.frombuffer(_mapped(self._maps[1], _ORDERS.itemsize), _ORDERS, 1)
        self._program = bpf.load_program(_program(self._maps, len(frames), ifindex), "krn_generator")

    def send(self, seconds: float, rate: int = 0) -> Sent:
        """Send for so long, `rate` frames a second (0: as fast as it goes)."""
        order = self._orders[0]
        order["sent"] = order["next_ns"] = 0
        order["period_ns"] = 1_000_000_000 // rate if rate else 0
        with entered(self._namespace), _alarm(seconds):
            _run_live(self._program)
        return Sent(int(order["sent"]), int(order["last_ns"] - order["first_ns"]) / 1e9)

    def close(self) -> None:
        """Let go of program and maps."""
        for fd in (self._program, *self._maps):
            xsk.close(fd)


@contextlib.contextmanager
def generator(namespace: str, ifindex: int, frames: Array) -> Iterator[Generator]:
    """A generator for a while."""
    made = Generator(namespace, ifindex, frames)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """A signal after so many seconds, which ends the system call it meets and does nothing else."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _new_map(value_bytes: int, entries: int, name: str) -> int:
    return bpf.call(bpf.MAP_CREATE, struct.pack("<7I16s", _ARRAY, 4, value_bytes, entries, _MMAPABLE, 0, 0, name.encode()))


def _mapped(fd: int, size: int) -> mmap.mmap:
    return mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)


def _run_live(program: int) -> None:
    data = ctypes.create_string_buffer(FRAME_BYTES)
    attributes = struct.pack(
        "<IIIIQQIIIIQQIII4x",
        program, 0, FRAME_BYTES, 0, ctypes.addressof(data), 0, 0xFFFFFFFF, 0, 0, 0, 0, 0, _LIVE_FRAMES, 0, _BATCH,
    )  # fmt: skip
    with contextlib.suppress(InterruptedError):
        bpf.call(bpf.PROG_TEST_RUN, attributes)


# --- the program ----------------------------------------------------------------------------------------------------------


def _program(maps: Sequence[int], flows: int, ifindex: int) -> bpf.Source:
    """XDP: the next frame of the map, if it is time for it, out of the device."""
    source = bpf.Source()
    build, orders = source.build, _Orders(source, maps[1])
    data, end = (build.inttoptr(build.zext(build.load(source.context(at)), I64), POINTER) for at in (0, 4))
    flow, key, now = orders.read("flow"), build.alloca(I32), source.call(_KTIME_GET_NS, [], [])
    build.store(build.trunc(flow, I32), key)
    frame = source.call(bpf.MAP_LOOKUP_ELEM, [POINTER, POINTER], [source.map(maps[0]), build.bitcast(key, POINTER)], POINTER)
    idle = source.block()
    for condition in (
        build.icmp_unsigned("<=", build.gep(data, [I64(FRAME_BYTES)]), end),
        build.icmp_unsigned("!=", build.ptrtoint(frame, I64), I64(0)),
        build.icmp_unsigned("<=", orders.read("next_ns"), now),
    ):
        further = source.block()
        build.cbranch(condition, further, idle)
        build.position_at_end(further)
    _copy(build, frame, data)
    _note(build, orders, flow, now, flows)
    build.ret(build.trunc(source.call(_REDIRECT, [I64, I64], [I64(ifindex), I64(0)]), I32))
    build.position_at_end(idle)
    build.ret(I32(bpf.XDP_DROP))
    return source


class _Orders:
    """The one value of a map, addressed directly."""

    def __init__(self, source: bpf.Source, fd: int) -> None:
        self._build = source.build
        source.map(fd)  # which also declares the pseudo call
        pseudo = source.module.globals["llvm.bpf.pseudo"]
        self._base = self._build.inttoptr(self._build.call(pseudo, [I64(_MAP_VALUE), I64(fd)]), POINTER)

    def _place(self, name: str) -> Any:
        fields: Any = _ORDERS.fields
        return self._build.bitcast(self._build.gep(self._base, [I64(fields[name][1])]), I64.as_pointer())

    def read(self, name: str) -> Any:
        return self._build.load(self._place(name))

    def write(self, name: str, value: Any) -> None:
        self._build.store(value, self._place(name))


def _copy(build: ir.IRBuilder, source: Any, target: Any) -> None:
    for at in range(0, FRAME_BYTES, 4):
        from_, to = (build.bitcast(build.gep(each, [I64(at)]), I32.as_pointer()) for each in (source, target))
        build.store(build.load(from_), to)


def _note(build: ir.IRBuilder, orders: _Orders, flow: Any, now: Any, flows: int) -> None:
    """What follows, and when; a pace is kept from the first frame on."""
    following, sent = build.add(flow, I64(1)), orders.read("sent")
    first = build.icmp_unsigned("==", sent, I64(0))
    orders.write("flow", build.select(build.icmp_unsigned("==", following, I64(flows)), I64(0), following))
    orders.write("sent", build.add(sent, I64(1)))
    orders.write("first_ns", build.select(first, now, orders.read("first_ns")))
    orders.write("last_ns", now)
    orders.write("next_ns", build.add(build.select(first, now, orders.read("next_ns")), orders.read("period_ns")))
