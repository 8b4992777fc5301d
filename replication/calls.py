"""The few functions of ZeroMQ that compiled code calls itself, on a socket that pyzmq has made; none of them ever waits here.

`socket.underlying` is the address that they take. pyzmq brings its libzmq along, and its extension is linked with it: what that
exports is found through it, so there is never a second libzmq in the process. Compiled code that was cached names a function,
not its address, which is told to the linker here. Pure mode makes the same calls by ctypes. (zmq_send(3), zmq_recv(3),
zmq_getsockopt(3), zmq_msg_recv(3).)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import zmq.backend.cython._zmq as extension

from shards.jit import PURE

_FourArguments = Callable[[int, int, int, int], int]
MESSAGE_BYTES = 64  # of zmq_msg_t (zmq.h)

send: _FourArguments  # socket, address, bytes, flags; -1: not taken
receive: _FourArguments  # socket, address, room, flags; bytes of the part, which may be more than the room; -1: there is none
option: _FourArguments  # socket, option, address of its value, address of its size
take: Callable[[int, int, int], int]  # address of a message, socket, flags; bytes of the part, which is there from then on
data: Callable[[int], int]  # address of a message; where its bytes are
copy: Callable[[int, int, int], int]  # to, from, bytes

try:
    _library: Any = ctypes.CDLL(extension.__file__)
    _names = ("zmq_send", "zmq_recv", "zmq_getsockopt", "zmq_msg_recv", "zmq_msg_data", "zmq_msg_init", "zmq_msg_gets")
    _found = {name: getattr(_library, name) for name in _names}
except (OSError, AttributeError) as error:
    raise ImportError(f"libzmq cannot be called through {extension.__file__}: {error}; install pyzmq's own wheel") from None

if PURE:

    def _call(name: str, *arguments: Any, result: Any = ctypes.c_int) -> Callable[..., int]:
        found = _found[name]
        found.argtypes, found.restype = arguments, result
        return lambda *told: int(found(*map(int, told)) or 0)  # ctypes knows nothing of numpy's integers

    _word, _address = ctypes.c_int, ctypes.c_void_p
    send = _call("zmq_send", _address, _address, ctypes.c_size_t, _word)
    receive = _call("zmq_recv", _address, _address, ctypes.c_size_t, _word)
    option = _call("zmq_getsockopt", _address, _word, _address, _address)
    take = _call("zmq_msg_recv", _address, _address, _word)
    data = _call("zmq_msg_data", _address, result=_address)
    copy = lambda target, source, size: ctypes.memmove(int(target), int(source), int(size))  # noqa: E731
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
    _taking = types.int32(types.uintp, types.uintp, types.int32)
    take = cast(Callable[[int, int, int], int], types.ExternalFunction("zmq_msg_recv", _taking))
    data = cast(Callable[[int], int], types.ExternalFunction("zmq_msg_data", types.uintp(types.uintp)))
    copy = cast(
        Callable[[int, int, int], int], types.ExternalFunction("memcpy", types.uintp(types.uintp, types.uintp, types.uintp))
    )


def new_message() -> Any:
    """Memory of an empty message (zmq_msg_init(3)), which `take` fills; a numpy array of MESSAGE_BYTES, which must not move."""
    message = np.zeros(MESSAGE_BYTES, np.uint8)
    _found["zmq_msg_init"].argtypes = [ctypes.c_void_p]
    _found["zmq_msg_init"](message.ctypes.data)
    return message


def property_of(message: Any, name: str) -> str:
    """What ZeroMQ knows of the connection that a message has come by (zmq_msg_gets(3)); KeyError where it does not."""
    ask = _found["zmq_msg_gets"]
    ask.argtypes, ask.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_char_p
    found = ask(message.ctypes.data, name.encode())
    if found is None:
        raise KeyError(name)
    return str(found.decode())
