"""The few functions of ZeroMQ that compiled code calls itself, on a socket that pyzmq has made; none of them ever waits here.

`socket.underlying` is the address that they take. pyzmq brings its libzmq along, and its extension is linked with it: what that
exports is found through it, so there is never a second libzmq in the process. Compiled code that was cached names a function,
not its address, which is told to the linker here. Pure mode makes the same calls by ctypes. (zmq_send(3), zmq_recv(3),
zmq_getsockopt(3).)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import zmq.backend.cython._zmq as extension

from shards.jit import PURE

_FourArguments = Callable[[int, int, int, int], int]

send: _FourArguments  # socket, address, bytes, flags; -1: not taken
receive: _FourArguments  # socket, address, room, flags; bytes of the part, which may be more than the room; -1: there is none
option: _FourArguments  # socket, option, address of its value, address of its size

try:
    _library: Any = ctypes.CDLL(extension.__file__)
    _found = {name: getattr(_library, name) for name in ("zmq_send", "zmq_recv", "zmq_getsockopt")}
except (OSError, AttributeError) as error:
    raise ImportError(f"libzmq cannot be called through {extension.__file__}: {error}; install pyzmq's own wheel") from None

if PURE:

    def _call(name: str, *arguments: Any) -> _FourArguments:
        found = _found[name]
        found.argtypes, found.restype = arguments, ctypes.c_int
        return lambda *told: int(found(*map(int, told)))  # ctypes knows nothing of numpy's integers

    _word, _address = ctypes.c_int, ctypes.c_void_p
    send = _call("zmq_send", _address, _address, ctypes.c_size_t, _word)
    receive = _call("zmq_recv", _address, _address, ctypes.c_size_t, _word)
    option = _call("zmq_getsockopt", _address, _word, _address, _address)
else:
    from llvmlite import binding
    from numba import types

    for _name, _function in _found.items():
        binding.add_symbol(_name, ctypes.cast(_function, ctypes.c_void_p).value)
    _moving = types.int32(types.uintp, types.uintp, types.uintp, types.int32)
    _asking = types.int32(types.uintp, types.int32, types.uintp, types.uintp)
    send = cast(_FourArguments, types.ExternalFunction("zmq_send", _moving))
    receive = cast(_FourArguments, types.ExternalFunction("zmq_recv", _moving))
    option = cast(_FourArguments, types.ExternalFunction("zmq_getsockopt", _asking))
