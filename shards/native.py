"""Machine instructions that numba has no word for, each beside a plain Python twin.

The plain function is what it means and what pure mode runs; compiled code gets the instruction in its place (`_stands_for`).
`tests/test_native.py` holds one against the other. None of these checks bounds, ``NUMBA_BOUNDSCHECK`` or not: an index must be
known to be right. `prefetch` alone may be given any index, since the processor ignores what it cannot read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from shards.jit import CHECKED, PURE, hot, whole
from shards.state import Array

Function = TypeVar("Function", bound=Callable[..., Any])
Word = Any  # np.uint64, which mypy would not let meet an int

TAGS = 8  # 16-bit tags at the head of a bucket line: one SIMD register of 128 bits
LINE_BYTES = 64  # a row of what is called lines here, whatever its dtype: a shift instead of a stride read from the array


def prefetch(array: Array, index: int) -> None:
    """Ask for the cache line of `array[index]` (of its first byte), whatever the dtype; more axes: of that row."""


def claim(array: Array, index: int) -> None:
    """`prefetch` of what will be written: the line comes as ours alone, and no other processor is asked for it again."""


def prefetch_line(lines: Array, line: int) -> None:
    """Ask for a line."""


def match_tags(lines: Array, line: int, tag: int) -> int:
    """Which of the first eight 16-bit words of a line equal `tag`: bit i for word i."""
    return sum(1 << i for i, word in enumerate(lines[line].view(np.uint16)[:TAGS].tolist()) if word == tag)


def word_32(lines: Array, line: int, column: int) -> int:
    """A line's 32-bit word."""
    return int(lines[line].view(np.uint32)[column])


def word_64(lines: Array, line: int, column: int) -> Word:
    """A line's 64-bit word."""
    return lines[line].view(np.uint64)[column]


def first_bit(bits: int) -> int:
    """Position of the lowest bit set; `bits` is not 0."""
    return (int(bits) & -int(bits)).bit_length() - 1


def choose(condition: bool, yes: int, no: int) -> int:
    """`yes if condition else no`, never as a branch: for what the processor could only guess."""
    return yes if condition else no


def fold_multiply(a: Word, b: Word) -> Word:
    """Upper half xor lower half of the 128-bit product."""
    product = int(a) * int(b)
    return np.uint64((product >> 64) ^ (product & 0xFFFF_FFFF_FFFF_FFFF))


# Wide fields are one load and one swap of bytes. With bounds checks the plain functions are compiled instead: they index.
_field: Callable[[Function], Function] = hot if CHECKED else lambda function: function


@_field
def read16(memory: Array, at: int) -> int:
    """Big-endian 16 bits at byte `at` of a flat uint8 array."""
    return (whole(memory[at]) << 8) | whole(memory[at + 1])


@_field
def read32(memory: Array, at: int) -> int:
    """Big-endian 32 bits."""
    return (read16(memory, at) << 16) | read16(memory, at + 2)


@_field
def read64(memory: Array, at: int) -> int:
    """Big-endian 64 bits as int64, so the highest one is a sign."""
    high = read32(memory, at)
    return ((high - (high >> 31 << 32)) << 32) | read32(memory, at + 4)


@_field
def write16(memory: Array, at: int, value: int) -> None:
    """Store the low 16 bits of `value`, big-endian."""
    memory[at] = (value >> 8) & 0xFF
    memory[at + 1] = value & 0xFF


@_field
def write32(memory: Array, at: int, value: int) -> None:
    """Store the low 32 bits, big-endian."""
    write16(memory, at, value >> 16)
    write16(memory, at + 2, value)


@_field
def write64(memory: Array, at: int, value: int) -> None:
    """Store 64 bits, big-endian."""
    write32(memory, at, value >> 32)
    write32(memory, at + 4, value)


if not PURE:
    from llvmlite import ir
    from numba import core, extending

    # What numba says of its types is right in parts only.
    cgutils: Any = core.cgutils
    types: Any = core.types
    extend: Any = extending
    _instruction: Callable[[Callable[..., Any]], Any] = extend.intrinsic

    def _stands_for(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
        return cast(Callable[[Callable[..., Any]], Any], extend.overload(plain, strict=False))  # strict compares annotations

    _BYTE, _INT32, _WIDE, _DOUBLE = (ir.IntType(bits) for bits in (8, 32, 64, 128))
    _TAGS = ir.VectorType(ir.IntType(16), TAGS)
    _NOTHING, _FIRST = ir.Constant(_TAGS, ir.Undefined), ir.Constant(ir.VectorType(_INT32, TAGS), [0] * TAGS)

    def _address(context: Any, builder: Any, array_type: Any, array: Any, index_type: Any, index: Any) -> Any:
        """Byte pointer to `array[index]` along the first axis."""
        view = context.make_array(array_type)(context, builder, array)
        if array_type.ndim == 1 and array_type.layout == "C":  # a constant, where the compiler would have to multiply
            stride = _WIDE(context.get_abi_sizeof(context.get_data_type(array_type.dtype)))
        else:
            stride = cgutils.unpack_tuple(builder, view.strides, array_type.ndim)[0]
        offset = builder.mul(context.cast(builder, index, index_type, types.intp), stride)
        return builder.gep(builder.bitcast(view.data, _BYTE.as_pointer()), [offset])

    def _line(context: Any, builder: Any, array_type: Any, array: Any, index_type: Any, index: Any) -> Any:
        """Byte pointer to a line."""
        view = context.make_array(array_type)(context, builder, array)
        offset = builder.mul(context.cast(builder, index, index_type, types.intp), _WIDE(LINE_BYTES))
        return builder.gep(builder.bitcast(view.data, _BYTE.as_pointer()), [offset])

    def _word(wide: Any) -> Callable[..., Any]:
        """Emitter of a load of a `wide` word out of a line, zero-extended."""

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lines, line, column = signature.args
            words = builder.bitcast(_line(context, builder, lines, arguments[0], line, arguments[1]), wide.as_pointer())
            word = builder.load(builder.gep(words, [context.cast(builder, arguments[2], column, types.intp)]))
            return word if wide is _WIDE else builder.zext(word, _WIDE)

        return emit

    def _ask(builder: Any, address: Any, writing: int = 0) -> None:
        """Prefetch, for reading or for writing, into every level, data."""
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT32, _INT32, _INT32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [address, _INT32(writing), _INT32(3), _INT32(1)])

    @_instruction
    def _prefetch(_: Any, array: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _ask(builder, _address(context, builder, array, arguments[0], index, arguments[1]))
            return context.get_dummy_value()

        return types.none(array, index), emit

    @_instruction
    def _claim(_: Any, array: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _ask(builder, _address(context, builder, array, arguments[0], index, arguments[1]), 1)
            return context.get_dummy_value()

        return types.none(array, index), emit

    @_instruction
    def _prefetch_line(_: Any, lines: Any, line: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _ask(builder, _line(context, builder, lines, arguments[0], line, arguments[1]))
            return context.get_dummy_value()

        return types.none(lines, line), emit

    @_instruction
    def _word_32(_: Any, lines: Any, line: Any, column: Any) -> Any:
        return types.int64(lines, line, column), _word(_INT32)

    @_instruction
    def _word_64(_: Any, lines: Any, line: Any, column: Any) -> Any:
        return types.uint64(lines, line, column), _word(_WIDE)

    @_instruction
    def _match_tags(_: Any, lines: Any, line: Any, tag: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = _line(context, builder, lines, arguments[0], line, arguments[1])
            words = builder.load(builder.bitcast(address, _TAGS.as_pointer()), align=16)
            wanted = context.cast(builder, arguments[2], tag, types.uint16)
            splat = builder.shuffle_vector(builder.insert_element(_NOTHING, wanted, _INT32(0)), _NOTHING, _FIRST)
            return builder.zext(builder.bitcast(builder.icmp_unsigned("==", words, splat), _BYTE), _WIDE)

        return types.int64(lines, line, tag), emit

    @_instruction
    def _first_bit(_: Any, bits: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.cttz(context.cast(builder, arguments[0], bits, types.int64), ir.IntType(1)(1))

        return types.int64(bits), emit

    @_instruction
    def _choose(_: Any, condition: Any, yes: Any, no: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            chosen = builder.select(*arguments)
            chosen.set_metadata("unpredictable", builder.module.add_metadata([]))
            return chosen

        return types.int64(types.boolean, types.int64, types.int64), emit

    @_instruction
    def _fold_multiply(_: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            product = builder.mul(*(builder.zext(argument, _DOUBLE) for argument in arguments))
            upper = builder.trunc(builder.lshr(product, _DOUBLE(64)), _WIDE)
            return builder.xor(upper, builder.trunc(product, _WIDE))

        return types.uint64(types.uint64, types.uint64), emit

    def _reader(bits: int) -> Any:
        """Instruction that loads so many bits from anywhere in a flat array of bytes and swaps them."""

        @_instruction
        def read(_: Any, memory: Any, at: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                address = _address(context, builder, memory, arguments[0], at, arguments[1])
                word = builder.load(builder.bitcast(address, ir.IntType(bits).as_pointer()), align=1)
                return builder.zext(builder.bswap(word), _WIDE)

            return types.int64(memory, at), emit

        return read

    def _writer(bits: int) -> Any:
        """Instruction that stores the low bits of a number, swapped."""

        @_instruction
        def write(_: Any, memory: Any, at: Any, value: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                address = _address(context, builder, memory, arguments[0], at, arguments[1])
                word = builder.bswap(builder.trunc(arguments[2], ir.IntType(bits)))
                builder.store(word, builder.bitcast(address, ir.IntType(bits).as_pointer()), align=1)
                return context.get_dummy_value()

            return types.none(memory, at, types.int64), emit

        return write

    _read16, _read32, _read64 = _reader(16), _reader(32), _reader(64)
    _write16, _write32, _write64 = _writer(16), _writer(32), _writer(64)

    @_stands_for(claim)
    def _(array: Any, index: Any) -> Any:
        return lambda array, index: _claim(array, index)

    @_stands_for(prefetch)
    def _(array: Any, index: Any) -> Any:
        return lambda array, index: _prefetch(array, index)

    @_stands_for(prefetch_line)
    def _(lines: Any, line: Any) -> Any:
        return lambda lines, line: _prefetch_line(lines, line)

    @_stands_for(word_32)
    def _(lines: Any, line: Any, column: Any) -> Any:
        return lambda lines, line, column: _word_32(lines, line, column)

    @_stands_for(word_64)
    def _(lines: Any, line: Any, column: Any) -> Any:
        return lambda lines, line, column: _word_64(lines, line, column)

    @_stands_for(match_tags)
    def _(lines: Any, line: Any, tag: Any) -> Any:
        return lambda lines, line, tag: _match_tags(lines, line, tag)

    @_stands_for(first_bit)
    def _(bits: Any) -> Any:
        return lambda bits: _first_bit(bits)

    @_stands_for(choose)
    def _(condition: Any, yes: Any, no: Any) -> Any:
        return lambda condition, yes, no: _choose(condition, yes, no)

    @_stands_for(fold_multiply)
    def _(a: Any, b: Any) -> Any:
        return lambda a, b: _fold_multiply(a, b)

    if not CHECKED:

        @_stands_for(read16)
        def _(memory: Any, at: Any) -> Any:
            return lambda memory, at: _read16(memory, at)

        @_stands_for(read32)
        def _(memory: Any, at: Any) -> Any:
            return lambda memory, at: _read32(memory, at)

        @_stands_for(read64)
        def _(memory: Any, at: Any) -> Any:
            return lambda memory, at: _read64(memory, at)

        @_stands_for(write16)
        def _(memory: Any, at: Any, value: Any) -> Any:
            return lambda memory, at, value: _write16(memory, at, value)

        @_stands_for(write32)
        def _(memory: Any, at: Any, value: Any) -> Any:
            return lambda memory, at, value: _write32(memory, at, value)

        @_stands_for(write64)
        def _(memory: Any, at: Any, value: Any) -> Any:
            return lambda memory, at, value: _write64(memory, at, value)
