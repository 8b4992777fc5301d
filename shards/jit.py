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
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

PURE = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def digest() -> str:
    """Name of everything that decides what machine code comes out: sources, versions, bounds checks, CPU."""
    told = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        told.update(source.name.encode() + source.read_bytes())
    for name in ("numba", "llvmlite", "numpy"):
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

    def whole(value: Any) -> int:
        """A field of a row as a plain int."""
        return int(value)

else:
    import numba

    # Not by its environment variable: numba may have been imported, and have read that, before.
    _settings: Any = numba.config
    _settings.CACHE_DIR = str(cache_folder())

    _OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "_nrt": False}
    _compile: Any = numba.njit(**_OPTIONS)

    def hot(function: Function) -> Function:
        """Compile for the packet path: no GIL, cached on disk, division by zero yields numbers instead of exceptions.

        Without numba's runtime (`_nrt`): nothing compiled here can allocate, and no array is reference-counted, which also
        takes a third off the compiler's time. Typed as the identity so that mypy goes on seeing the function's own signature.
        """
        compiled: Function = _compile(function)
        return compiled

    @hot
    def whole(value: Any) -> int:
        """A field of a row as a plain int. Numba's own `int` keeps it unsigned, and unsigned meets signed as a float."""
        number: Any = np.int64(value)
        return number  # type: ignore[no-any-return]  # to the compiler an int64 is an int
