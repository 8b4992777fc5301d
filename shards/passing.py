"""How compiled code receives `State`, `Burst` and `Rings`: as one pointer to their arrays.

Numba passes a named tuple member by member, seven words an array, so a call with a `State` and a `Burst` would copy 3 KiB and
the compiler would carry 380 arguments through every function. By reference it is one word: loading a member's pointer costs
nothing that is seen, since the tuple does not change while a call runs and the loads say so (`invariant.load`). Python code is
the same either way; members are read by name. The processor's time to compile everything from cold fell from 65 to 43 s by it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import core, extending
from numba.core import imputils
from numba.core.typing import templates

# What numba says of its types is right in parts only.
types: Any = core.types
cgutils: Any = core.cgutils
extend: Any = extending
_lowering: Any = imputils
_templates: Any = templates


class Reference(types.Type):  # type: ignore[misc]
    """Type of a named tuple that is passed by reference; `members`: (name, type) each."""

    def __init__(self, name: str, members: tuple[tuple[str, Any], ...]) -> None:
        self.members = dict(members)
        super().__init__(f"Reference({name}, {', '.join(f'{member}: {kind}' for member, kind in members)})")


def by_reference(named_tuple: type[tuple[Any, ...]]) -> None:
    """From now on compiled functions receive values of this class by reference."""

    def type_of(value: Any, context: Any) -> Any:
        members = tuple((name, extend.typeof_impl(member, context)) for name, member in value._asdict().items())
        return Reference(named_tuple.__name__, members)

    extend.typeof_impl.register(named_tuple)(type_of)


@extend.infer_getattr
class _Members(_templates.AttributeTemplate):  # type: ignore[misc]
    key = Reference

    def generic_resolve(self, reference: Any, name: str) -> Any:
        return reference.members.get(name)


def _member(context: Any, builder: Any, reference: Any, pointer: Any, name: str) -> Any:
    record = ir.LiteralStructType([context.get_value_type(kind) for kind in reference.members.values()])
    typed = builder.bitcast(pointer, record.as_pointer())
    return _load(builder, cgutils.gep_inbounds(builder, typed, 0, list(reference.members).index(name)))


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
    """Lay the members down on the stack of the call."""
    kinds = list(reference.members.values())
    whole = context.unbox(types.Tuple(kinds), value)
    builder = context.builder
    place = cgutils.alloca_once_value(builder, whole.value)
    # The compiler must not see that this is its own stack: it would read the invariant words before they are written.
    opaque = builder.asm(ir.FunctionType(cgutils.voidptr_t, [cgutils.voidptr_t]), "", "=r,0,~{memory}",
                         [builder.bitcast(place, cgutils.voidptr_t)], side_effect=True)  # fmt: skip
    return extend.NativeValue(opaque, is_error=whole.is_error, cleanup=whole.cleanup)


extend.register_model(Reference)(extend.models.OpaqueModel)
_lowering.lower_getattr_generic(Reference)(_member)
extend.unbox(Reference)(_unbox)
