"""How compiled code receives `State`, `Burst` and `Rings`: as one pointer to their arrays.

Numba passes a named tuple member by member, seven words an array, so a call with a `State` and a `Burst` would copy 3 KiB and
the compiler would carry 380 arguments through every function. By reference it is one word: loading a member's pointer costs
nothing that is seen, since the tuple does not change while a call runs and the loads say so (`invariant.load`). Python code is
the same either way; members are read by name. The processor's time to compile everything from cold fell from 65 to 43 s by it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from llvmlite import ir
from numba import core, extending
from numba.core import imputils
from numba.core.typing import templates
from numba.np import arrayobj

# What numba says of its types is right in parts only.
types: Any = core.types
cgutils: Any = core.cgutils
extend: Any = extending
_lowering: Any = imputils
_templates: Any = templates
arrays: Any = arrayobj

_WORD, _WORD_BYTES = ir.IntType(64), 8


class Reference(types.Type):  # type: ignore[misc]
    """Type of a named tuple that is passed by reference; `members`: (name, type) each.

    With a `length` the members are columns of 64-bit words, so long, each `pitch` words behind the one before: the reference is
    then the first one's address, and every other one is that plus a constant.
    """

    def __init__(self, name: str, members: tuple[tuple[str, Any], ...], length: int, pitch: int) -> None:
        self.members = dict(members)
        self.length, self.pitch = length, pitch
        told = hashlib.sha256(repr(members).encode()).hexdigest()[:16]
        super().__init__(f"Reference({name}, {told}, {length}, {pitch})")  # short: it is part of every symbol's name

    def place(self, name: str) -> int:
        """Position of a member."""
        return list(self.members).index(name)


def by_reference(named_tuple: type[tuple[Any, ...]], length: int = 0, pitch: int = 0) -> None:
    """From now on compiled functions receive values of this class by reference."""

    def type_of(value: Any, context: Any) -> Any:
        members = tuple((name, extend.typeof_impl(member, context)) for name, member in value._asdict().items())
        return Reference(named_tuple.__name__, members, length, pitch)

    extend.typeof_impl.register(named_tuple)(type_of)


@extend.infer_getattr
class _Members(_templates.AttributeTemplate):  # type: ignore[misc]
    key = Reference

    def generic_resolve(self, reference: Any, name: str) -> Any:
        return reference.members.get(name)


def _member(context: Any, builder: Any, reference: Any, pointer: Any, name: str) -> Any:
    if reference.length:
        return _column(context, builder, reference, pointer, name)
    typed = builder.bitcast(pointer, _record(context, reference).as_pointer())
    return _load(builder, cgutils.gep_inbounds(builder, typed, 0, reference.place(name)))


def _record(context: Any, reference: Any) -> Any:
    return ir.LiteralStructType([context.get_value_type(kind) for kind in reference.members.values()])


def _column(context: Any, builder: Any, reference: Any, pointer: Any, name: str) -> Any:
    """An array made of nothing but constants and the one address."""
    kind = reference.members[name]
    column = context.make_array(kind)(context, builder)
    first = builder.bitcast(pointer, context.get_data_type(kind.dtype).as_pointer())
    data = builder.gep(first, [_WORD(reference.place(name) * reference.pitch)])
    shape, strides = (context.get_constant(types.intp, number) for number in (reference.length, _WORD_BYTES))
    arrays.populate_array(column, data, [shape], [strides], _WORD_BYTES, None)
    return column._getvalue()


def _load(builder: Any, place: Any) -> Any:
    """Load a value word by word, each as invariant: LLVM forgets that of a structure that is loaded as a whole."""
    kind = place.type.pointee
    if not isinstance(kind, ir.types.Aggregate):
        word = builder.load(place)
        word.set_metadata("invariant.load", builder.module.add_metadata([]))
        return word
    value = ir.Constant(kind, ir.Undefined)
    for part in range(len(kind)):
        value = builder.insert_value(value, _load(builder, cgutils.gep_inbounds(builder, place, 0, part)), part)
    return value


def _unbox(reference: Any, value: Any, context: Any) -> Any:
    whole = context.unbox(types.Tuple(list(reference.members.values())), value)
    reach = _first_column if reference.length else _on_the_stack
    pointer, is_error = reach(reference, whole, context)
    return extend.NativeValue(pointer, is_error=is_error, cleanup=whole.cleanup)


def _on_the_stack(reference: Any, whole: Any, context: Any) -> tuple[Any, Any]:
    """Lay the members down on the stack of the call."""
    builder = context.builder
    place = cgutils.alloca_once(builder, _record(context.context, reference))
    for number in range(len(reference.members)):
        builder.store(builder.extract_value(whole.value, number), cgutils.gep_inbounds(builder, place, 0, number))
    # The compiler must not see that this is its own stack: it would read the invariant words before they are written.
    kind = ir.FunctionType(cgutils.voidptr_t, [cgutils.voidptr_t])
    bare = builder.bitcast(place, cgutils.voidptr_t)
    return builder.asm(kind, "", "=r,0,~{memory}", [bare], side_effect=True), whole.is_error


def _first_column(reference: Any, whole: Any, context: Any) -> tuple[Any, Any]:
    """Address of the first column; a TypeError where the others do not follow it as they should."""
    builder = context.builder
    wrong, first = whole.is_error, None
    for number, kind in enumerate(reference.members.values()):
        column = context.context.make_array(kind)(context.context, builder, builder.extract_value(whole.value, number))
        address = builder.ptrtoint(column.data, _WORD)
        first = address if first is None else first
        due = builder.add(first, _WORD(number * reference.pitch * _WORD_BYTES))
        misplaced = builder.icmp_unsigned("!=", address, due)
        short = builder.icmp_unsigned("!=", column.nitems, _WORD(reference.length))
        wrong = builder.or_(wrong, builder.or_(misplaced, short))
    with builder.if_then(wrong, likely=False):
        context.pyapi.err_set_string("PyExc_TypeError", "these columns do not lie one behind the other: use new_burst()")
    return builder.inttoptr(first, cgutils.voidptr_t), wrong


extend.register_model(Reference)(extend.models.OpaqueModel)
_lowering.lower_getattr_generic(Reference)(_member)
extend.unbox(Reference)(_unbox)
