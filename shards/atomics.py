"""Loads and stores that the kernel's side of a ring may rely on: C11 acquire and release on 32-bit words.

Each is a plain Python function, which is what it means and what pure mode runs (CPython on x86 orders memory strongly
enough), and compiled code gets the instruction in its place.
"""

from __future__ import annotations

from typing import Any

from shards.jit import PURE
from shards.state import Array


def load_acquire(words: Array, index: int) -> int:
    """Word `index` of a uint32 array; what its writer stored before it is visible afterwards."""
    return int(words[index])


def store_release(words: Array, index: int, value: int) -> None:
    """Set a word to `value` mod 2**32; whoever sees it also sees all that was stored before."""
    words[index] = value & 0xFFFFFFFF


if not PURE:
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic, overload

    def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
        view = context.make_array(array_type)(context, builder, array)
        return cgutils.get_item_pointer(context, builder, array_type, view, [index])

    @intrinsic  # type: ignore[untyped-decorator,unused-ignore]
    def _load_acquire(_: Any, words: Any, index: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            index_value = context.cast(builder, arguments[1], index, types.intp)
            word = builder.load_atomic(_place(context, builder, words, arguments[0], index_value), "acquire", 4)
            return builder.zext(word, ir.IntType(64))

        return types.int64(words, index), emit

    @intrinsic  # type: ignore[untyped-decorator,unused-ignore]
    def _store_release(_: Any, words: Any, index: Any, value: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            index_value = context.cast(builder, arguments[1], index, types.intp)
            word = context.cast(builder, arguments[2], value, types.uint32)
            builder.store_atomic(word, _place(context, builder, words, arguments[0], index_value), "release", 4)
            return context.get_dummy_value()

        return types.none(words, index, value), emit

    @overload(load_acquire, strict=False)  # type: ignore[untyped-decorator,unused-ignore]
    def _(words: Any, index: Any) -> Any:
        return lambda words, index: _load_acquire(words, index)

    @overload(store_release, strict=False)  # type: ignore[untyped-decorator,unused-ignore]
    def _(words: Any, index: Any, value: Any) -> Any:
        return lambda words, index, value: _store_release(words, index, value)
