"""The only way to compile: `@hot`.

`@hot` compiles ahead into a cache on disk whose folder is named by a digest of every source file of this package and of the
versions underneath, because numba's own cache does not notice a change in a *called* module.

With ``NUMBA_DISABLE_JIT=1`` numba is not even imported: every function stays plain Python. That is the pure pipeline of the
tests, and it is what lets `krononat trace` walk a packet through a copy of the state in a process without a compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from shards.burst import BURST, PITCH, Burst
from shards.state import State

Function = TypeVar("Function", bound=Callable[..., Any])

PURE = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") not in ("", "0")


# Of replication what is compiled, too: one file's functions call another's, and each one's own stamp is its own file only.
COMPILED_BESIDE = ("calls.py", "checksum.py", "harvest.py", "steady.py")


def digest() -> str:
    """Name of everything that decides what machine code comes out: sources, versions, bounds checks, CPU."""
    told = hashlib.sha256()
    folder = Path(__file__).parent
    for source in (*sorted(folder.glob("*.py")), *(folder.parent / "replication" / name for name in COMPILED_BESIDE)):
        told.update(source.name.encode() + source.read_bytes())
    for name in ("numba", "llvmlite", "numpy", "pyzmq"):
        told.update(f"{name}={metadata.version(name)}".encode())
    told.update(f"{os.environ.get('NUMBA_BOUNDSCHECK', '0')} {platform.machine()} {platform.python_version()}".encode())
    return told.hexdigest()[:16]


def cache_folder() -> Path:
    """Where compiled code is kept: ``$KRONONAT_CACHE``, else the user's cache directory."""
    base = os.environ.get("KRONONAT_CACHE")
    if base is None:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "krononat")
    return Path(base) / digest()


if PURE:
    # Hashes wrap on purpose; compiled code says nothing about it either.
    np.seterr(over="ignore")

    def hot(function: Function) -> Function:
        """Leave the function as it is (pure mode)."""
        return function

    inlined = hot

    def whole(value: Any) -> int:
        """A field of a row as a plain int."""
        return int(value)

else:
    import numba

    from shards import inlay, passing, turns

    passing.by_reference(State)
    passing.by_reference(Burst, BURST, PITCH)

    # Not by its environment variable: numba may have been imported, and have read that, before.
    _settings: Any = numba.config
    _settings.CACHE_DIR = str(cache_folder())

    _OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy", "_nrt": False}
    _INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    _registry: Any = numba.core.registry

    class _Hot(turns.InTurn, inlay.Inlay):
        """A function that compiled code calls directly; Python calls it by a twin that is compiled when first asked for.

        Most functions are only ever called by others, and wrappers for Python took a third of the time to compile them all.
        """

        def __init__(self, function: Callable[..., Any], **more: bool) -> None:
            super().__init__(function, targetoptions=_OPTIONS | _INNER | more)
            self._twin: Any = None

        @property
        def twin(self) -> Any:
            """What Python calls."""
            if self._twin is None:
                self._twin = _compile_for_python(self.py_func)
            return self._twin

        def __call__(self, *arguments: Any) -> Any:
            return self.twin(*arguments)

    class _Twin(turns.InTurn, _registry.CPUDispatcher):  # type: ignore[misc]
        """Numba's own dispatcher."""

    def _compile_for_python(function: Any) -> Any:
        """By another name, so that it has its own file in the cache."""
        twin = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
        twin.__qualname__ = f"{function.__qualname__}.twin"
        compiled = _Twin(twin, targetoptions=_OPTIONS)
        compiled.enable_caching()
        return compiled

    def hot(function: Function) -> Function:
        """Compile for the packet path: no GIL, cached on disk, division by zero yields numbers instead of exceptions.

        Without numba's runtime (`_nrt`): nothing compiled here can allocate, and no array is reference-counted, which also
        takes a third off the compiler's time. Typed as the identity so that mypy goes on seeing the function's own signature.
        """
        compiled: Any = _Hot(function)
        return cast(Function, compiled)

    def inlined(function: Function) -> Function:
        """`hot` for the steps of the sweep: always a part of its caller. A call per row and step costs more than the step."""
        compiled: Any = _Hot(function, forceinline=True)
        return cast(Function, compiled)

    @hot
    def whole(value: Any) -> int:
        """A field of a row as a plain int. Numba's own `int` keeps it unsigned, and unsigned meets signed as a float."""
        number: Any = np.int64(value)
        return number  # type: ignore[no-any-return]  # to the compiler an int64 is an int
