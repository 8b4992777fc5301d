"""CRC-32 of a frame in compiled code: `zlib.crc32`, which is what it means and what pure mode runs.

Compiled, 64 bytes are folded at a time by carry-less multiplication (V. Gopal and others, "Fast CRC Computation for Generic
Polynomials Using PCLMULQDQ Instruction", Intel 2009; constants of the reflected polynomial 0xEDB88320 from its table), and what
is left goes through a table. A processor without that instruction has the table alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from shards.jit import PURE, hot, whole
from shards.state import Array

LANES_BYTES = 64  # folded at once


def crc32(memory: Array, length: int, before: int) -> int:
    """CRC-32 of the first `length` bytes of a flat uint8 array, after what `before` is the checksum of."""
    return zlib.crc32(memory[:length].data, int(before))


def _table() -> Array:
    """What becomes of a byte (RFC 1952, section 8)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0xEDB88320), table >> 1).astype(np.uint32)
    return table


TABLE = _table()

if not PURE:
    from llvmlite import binding, ir
    from numba import core, extending

    cgutils: Any = core.cgutils
    types: Any = core.types
    extend: Any = extending
    _instruction: Callable[[Callable[..., Any]], Any] = extend.intrinsic

    HAS_MULTIPLICATION = bool(binding.get_host_cpu_features().get("pclmul"))
    _WIDE, _INT32, _BYTE = (ir.IntType(bits) for bits in (64, 32, 8))
    _PAIR = ir.VectorType(_WIDE, 2)
    _BY_64 = ir.Constant(_PAIR, [0x154442BD4, 0x1C6E41596])
    _BY_16 = ir.Constant(_PAIR, [0x1751997D0, 0x0CCAA009E])

    def _fold_one(builder: Any, lane: Any, by: Any, more: Any) -> Any:
        """`lane` moved on, over `more`."""
        kind = ir.FunctionType(_PAIR, [_PAIR, _PAIR, _BYTE])
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.pclmulqdq")
        low, high = (builder.call(multiply, [lane, by, _BYTE(half)]) for half in (0x00, 0x11))
        return builder.xor(builder.xor(low, high), more)

    @_instruction
    def _fold(_: Any, memory: Any, blocks: Any, crc: Any) -> Any:
        """(lower, upper) half of the 128 bits that so many blocks of LANES_BYTES have the same remainder as; `blocks` > 0."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            view = context.make_array(signature.args[0])(context, builder, arguments[0])
            pairs = builder.bitcast(view.data, _PAIR.as_pointer())
            lanes = [cgutils.alloca_once(builder, _PAIR) for _ in range(4)]

            def load(at: Any) -> Any:
                return builder.load(builder.gep(pairs, [at]), align=1)

            first = builder.insert_element(ir.Constant(_PAIR, [0, 0]), arguments[2], _INT32(0))
            for number, lane in enumerate(lanes):
                word = load(_WIDE(number))
                builder.store(builder.xor(word, first) if number == 0 else word, lane)
            with cgutils.for_range(builder, builder.sub(arguments[1], _WIDE(1))) as loop:
                at = builder.mul(builder.add(loop.index, _WIDE(1)), _WIDE(4))
                for number, lane in enumerate(lanes):
                    word = load(builder.add(at, _WIDE(number)))
                    builder.store(_fold_one(builder, builder.load(lane), _BY_64, word), lane)
            folded = builder.load(lanes[0])
            for lane in lanes[1:]:
                folded = _fold_one(builder, folded, _BY_16, builder.load(lane))
            halves = [builder.extract_element(folded, _INT32(number)) for number in (0, 1)]
            return context.make_tuple(builder, signature.return_type, halves)

        return types.UniTuple(types.uint64, 2)(memory, types.int64, types.uint64), emit

    def _stands_for(make: Callable[..., Any]) -> Any:
        return extend.overload(crc32, strict=False)(make)  # strict compares annotations

    @hot
    def _by_table(crc: int, byte: int) -> int:
        return whole(TABLE[(crc ^ byte) & 0xFF]) ^ (crc >> 8)

    @hot
    def _crc32(memory: Array, length: int, before: int) -> int:
        crc, done = before ^ 0xFFFFFFFF, 0
        if HAS_MULTIPLICATION and length >= LANES_BYTES:
            done = length // LANES_BYTES * LANES_BYTES
            low, high = _fold(memory, length // LANES_BYTES, np.uint64(crc))
            crc = 0
            for half in (low, high):
                for _ in range(8):
                    crc = _by_table(crc, whole(half & np.uint64(0xFF)))
                    half = half >> np.uint64(8)
        for at in range(done, length):
            crc = _by_table(crc, whole(memory[at]))
        return crc ^ 0xFFFFFFFF

    @_stands_for
    def _(memory: Any, length: Any, before: Any) -> Any:
        return lambda memory, length, before: _crc32(memory, length, before)
