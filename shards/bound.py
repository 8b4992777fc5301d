"""Calls from Python into compiled code, hundreds of times a second, whose arguments stay the same but for a few.

At each call numba looks at the types of all arguments, of every member of a named tuple too, to find the code for them: of a
`State` that takes 5 us, 30 after a breath, whose packets have taken the caches. What `bound` returns knows the code, and only
hands the arguments over: a sixth of the time, a quarter after a breath.

No argument of another type reaches the code. What is given for ever is looked at once and stays what it was, for named tuples
and the types of their arrays do not change. What the function declares as a number is made one, as by `int` or `bool`, or is
an error. Of every other array dtype, dimensions, order and whether it may be written are compared with an example at each call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from shards.jit import PURE
from shards.state import Array

Result = TypeVar("Result")


def bound(function: Callable[..., Result], *given: Any, **like: Array) -> Callable[..., Result]:
    """`function` with its first arguments given for ever. `like`: by name, an array of the kind of each that is not.

    What is returned takes the other arguments in order, never by name. TypeError where one of them is neither.
    """
    parameters = list(inspect.signature(function).parameters.values())[len(given) :]
    numbers = [each.name for each in parameters if each.annotation in ("int", "bool")]
    if missing := [each.name for each in parameters if each.name not in numbers and each.name not in like]:
        raise TypeError(f"what is {' and '.join(missing)} of {function.__name__} like?")
    entry = partial(_entry(function, given, parameters, like), *given)
    kinds = [(place, _kind(like[each.name])) for place, each in enumerate(parameters) if each.name in like]
    return _checked(entry, kinds) if kinds else entry


def _kind(array: Array) -> tuple[Any, ...]:
    """What compiled code takes for granted of an array."""
    return array.dtype, array.ndim, array.flags.c_contiguous, array.flags.writeable


def _checked(entry: Callable[..., Result], kinds: list[tuple[int, tuple[Any, ...]]]) -> Callable[..., Result]:
    def call(*rest: Any) -> Result:
        for place, kind in kinds:
            if _kind(rest[place]) != kind:
                raise TypeError(f"argument {place} is {_kind(rest[place])}, and not {kind}")
        return entry(*rest)

    return call


if PURE:

    def _entry(function: Any, given: tuple[Any, ...], parameters: list[inspect.Parameter], like: dict[str, Array]) -> Any:
        """Python's own call looks at no types."""
        return function

else:
    from numba import types
    from numba._dispatcher import compute_fingerprint

    _known: dict[tuple[type, bytes], Any] = {}
    _NUMBERS: dict[str, Any] = {"int": types.int64, "bool": types.boolean}

    def _entry(function: Any, given: tuple[Any, ...], parameters: list[inspect.Parameter], like: dict[str, Array]) -> Any:
        """The code for these types, which `krononat.warm` has loaded if Python ever calls it in a worker."""
        twin = function.twin
        rest = (_type(twin, like[each.name]) if each.name in like else _NUMBERS[each.annotation] for each in parameters)
        kinds = (*(_type(twin, value) for value in given), *rest)
        known = twin.overloads.get(kinds)
        return known.entry_point if known else twin.compile(kinds)

    def _type(twin: Any, value: Any) -> Any:
        """Numba's type of a value; of a `State` it takes milliseconds to make."""
        told = type(value), compute_fingerprint(value)
        if told not in _known:
            _known[told] = twin.typeof_pyval(value)
        return _known[told]
