"""The few system calls that compiled code makes itself; only `poll` waits. Section 2 of the manual has them.

Compiled, they are direct calls into the C library; pure mode makes the same calls by ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

from shards.jit import PURE

_TwoArguments = Callable[[int, int], int]
_ThreeArguments = Callable[[int, int, int], int]
_SixArguments = Callable[[int, int, int, int, int, int], int]

sendto: _SixArguments
recvfrom: _SixArguments
poll: _ThreeArguments
read: _ThreeArguments
write: _ThreeArguments
clock_gettime: _TwoArguments

if PURE:
    _libc = ctypes.CDLL(None)

    def _call(name: str, *arguments: Any, result: Any = ctypes.c_ssize_t) -> Any:
        found = getattr(_libc, name)
        found.argtypes, found.restype = arguments, result
        return lambda *told: found(*map(int, told))  # ctypes knows nothing of numpy's integers

    _word, _address = ctypes.c_int, ctypes.c_void_p
    sendto = _call("sendto", _word, _address, ctypes.c_size_t, _word, _address, ctypes.c_size_t)
    recvfrom = _call("recvfrom", _word, _address, ctypes.c_size_t, _word, _address, ctypes.c_size_t)
    poll = _call("poll", _address, ctypes.c_ulong, _word, result=ctypes.c_int)
    read = _call("read", _word, _address, ctypes.c_size_t)
    write = _call("write", _word, _address, ctypes.c_size_t)
    clock_gettime = _call("clock_gettime", _word, _address, result=ctypes.c_int)
else:
    from numba import types

    _six = types.int64(types.int32, types.uintp, types.uintp, types.int32, types.uintp, types.uintp)
    _three = types.int64(types.int32, types.uintp, types.uintp)
    sendto = cast(_SixArguments, types.ExternalFunction("sendto", _six))
    recvfrom = cast(_SixArguments, types.ExternalFunction("recvfrom", _six))
    poll = cast(_ThreeArguments, types.ExternalFunction("poll", types.int32(types.uintp, types.uintp, types.int32)))
    read = cast(_ThreeArguments, types.ExternalFunction("read", _three))
    write = cast(_ThreeArguments, types.ExternalFunction("write", _three))
    _two = types.int32(types.int32, types.uintp)
    clock_gettime = cast(_TwoArguments, types.ExternalFunction("clock_gettime", _two))
