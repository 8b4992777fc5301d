"""Loads and stores that the other side of a ring may rely on: C11 acquire and release on words of 16, 32 or 64 bits.

Each is a plain Python function, which is what it means and what pure mode runs (CPython on x86 orders memory strongly
enough), and compiled code gets the instruction in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from shards.jit import PURE
from shards.state import Array


def load_acquire(words: Array, index: int) -> int:
    """Word `index` of an array of integers; what its writer stored before it is visible afterwards."""
    return int(words[index])


def store_release(words: Array, index: int, value: int) -> None:
    """Set a word to as much of `value` as it holds; whoever sees it also sees all that was stored before."""
    words[index] = int(value) & (1 << 8 * words.itemsize) - 1


def fence() -> None:
    """All that was stored before it is visible before anything is loaded after it: even x86 lets a load overtake a store."""


if not PURE:
    from llvmlite import ir
    from numba import core, extending

    # What numba says of its types is right in parts only.
    types: Any = core.types
    extend: Any = extending
    _instruction: Callable[[Callable[..., Any]], Any] = extend.intrinsic

    def _stands_for(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
        return cast(Callable[[Callable[..., Any]], Any], extend.overload(plain, strict=False))  # strict compares annotations

    def _place(context: Any, builder: Any, array_type: Any, array: Any, index_type: Any, index: Any) -> Any:
        """Pointer to a word of a contiguous array."""
        view = context.make_array(array_type)(context, builder, array)
        return builder.gep(view.data, [context.cast(builder, index, index_type, types.intp)])

    @_instruction
    def _load_acquire(_: Any, words: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _place(context, builder, words, arguments[0], index, arguments[1])
            loaded = builder.load_atomic(place, "acquire", words.dtype.bitwidth // 8)
            return loaded if words.dtype.bitwidth == 64 else builder.zext(loaded, ir.IntType(64))

        return types.int64(words, index), emit

    @_instruction
    def _store_release(_: Any, words: Any, index: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = _place(context, builder, words, arguments[0], index, arguments[1])
            narrowed = context.cast(builder, arguments[2], value, words.dtype)
            builder.store_atomic(narrowed, place, "release", words.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.none(words, index, value), emit

    @_instruction
    def _fence(_: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.none(), emit

    @_stands_for(fence)
    def _() -> Any:
        return lambda: _fence()

    @_stands_for(load_acquire)
    def _(words: Any, index: Any) -> Any:
        return lambda words, index: _load_acquire(words, index)

    @_stands_for(store_release)
    def _(words: Any, index: Any, value: Any) -> Any:
        return lambda words, index, value: _store_release(words, index, value)
