"""Where the generator's frames end: a program at the far veth counts what is addressed to one UDP port, and lets go of it.

It sits where the kernel takes in a packet (tcx, BPF_TCX_INGRESS), before routing and sockets, and is all that a frame costs
there; everything else passes, so that TCP and probes meet an ordinary host.
"""

from __future__ import annotations

import struct
from types import TracebackType
from typing import Any

from shards import bpf, xsk
from shards.bpf import I8, I16, I32, I64, POINTER

_TCX_INGRESS = 46
_SHOT, _OK = 2, 0  # TC_ACT_*
_DATA, _END = 76, 80  # of struct __sk_buff
_PROTOCOL_AT, _PORT_AT, _UDP = 23, 36, 17


class Sink:
    """Counts from when it is made until it is closed. To be made in the device's namespace."""

    def __init__(self, ifindex: int, port: int) -> None:
        self._cpus = bpf.possible_cpus()
        self._counter = bpf.create_map(bpf.PERCPU_ARRAY, 8, 1, "krn_sink")
        self._program = bpf.load_program(_program(port, self._counter), "krn_sink", bpf.CLASSIFIER)
        self._link = bpf.call(bpf.LINK_CREATE, struct.pack("<IIIIIIQ", self._program, ifindex, _TCX_INGRESS, 0, 0, 0, 0))

    def count(self) -> int:
        """Frames so far."""
        return sum(struct.unpack(f"<{self._cpus}Q", bpf.read_map(self._counter, 0, 8 * self._cpus)))

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for fd in (self._link, self._program, self._counter):
            xsk.close(fd)


def _program(port: int, counter: int) -> bpf.Source:
    source = bpf.Source()
    build, other = source.build, source.block()
    key = build.alloca(I32)
    build.store(I32(0), key)
    data, end = (build.inttoptr(build.zext(build.load(source.context(at)), I64), POINTER) for at in (_DATA, _END))
    _go_on_if(source, build.icmp_unsigned("<=", build.gep(data, [I64(_PORT_AT + 2)]), end), other)
    for at, kind, value in ((_PROTOCOL_AT, I8, _UDP), (_PORT_AT, I16, int.from_bytes(port.to_bytes(2, "big"), "little"))):
        found = build.load(build.bitcast(build.gep(data, [I64(at)]), kind.as_pointer()))
        _go_on_if(source, build.icmp_unsigned("==", found, kind(value)), other)
    row = source.call(bpf.MAP_LOOKUP_ELEM, [POINTER, POINTER], [source.map(counter), build.bitcast(key, POINTER)], POINTER)
    _go_on_if(source, build.icmp_unsigned("!=", build.ptrtoint(row, I64), I64(0)), other)
    place = build.bitcast(row, I64.as_pointer())
    build.store(build.add(build.load(place), I64(1)), place)
    build.ret(I32(_SHOT))
    build.position_at_end(other)
    build.ret(I32(_OK))
    return source


def _go_on_if(source: bpf.Source, condition: Any, other: Any) -> None:
    further = source.block()
    source.build.cbranch(condition, further, other)
    source.build.position_at_end(further)
