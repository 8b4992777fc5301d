"""Compiled functions that only compiled code calls: linked into their callers, never machine code by themselves.

By itself numba optimises every function together with all that it calls, and makes machine code of both; their callers do the
same again: in a path eight calls deep, half of the compiler's time. Here a function is optimised once, with what is small
enough to be a part of it; the rest is tied to it unseen. All of it is optimised together, and made into machine code, where
it ends: in a function that Python calls (`jit`). The processor's time to compile everything from cold fell by a third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from numba.core import caching, codegen, compiler, dispatcher, registry

# What numba says of its types is right in parts only.
_llvm: Any = llvmlite.binding
_caching: Any = caching
_codegen: Any = codegen
_compiler: Any = compiler
_dispatcher: Any = dispatcher
_registry: Any = registry

_SMALL = 12_000  # bytes of bitcode: what has more is not worth being optimised again with each of its callers


class _Library(_codegen.JITCodeLibrary):  # type: ignore[misc]
    """The code of one function, with that of all it calls."""

    def finalize(self) -> None:
        """Optimise it, then tie what it calls to it."""
        self._raise_if_finalized()
        small: list[Any] = []
        large: list[Any] = []
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            module = library._get_module_for_linking()
            (small if len(module.as_bitcode()) < _SMALL else large).append(module)
        self._link(small)
        self._optimize_final_module()
        self._link(large)
        self._finalize_final_module()

    def _link(self, modules: list[Any]) -> None:
        for module in modules:
            self._final_module.link_in(module, preserve=True)

    def _finalize_final_module(self) -> None:
        """No machine code: the engine does not even hear of it."""
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def serialize_using_object_code(self) -> tuple[str, bytes]:
        """What the cache keeps: there is no object code."""
        self._ensure_finalized()
        return self.name, self._get_module_for_linking().as_bitcode()

    @classmethod
    def read(cls, target: Any, kept: tuple[str, bytes]) -> _Library:
        """From the cache."""
        name, bitcode = kept
        library = cls(target.codegen(), name)
        library._final_module = library._shared_module = _llvm.parse_bitcode(bitcode)
        library._finalized = True
        return library


class _Impl(_caching.CompileResultCacheImpl):  # type: ignore[misc]
    def rebuild(self, target_context: Any, payload: tuple[Any, ...]) -> Any:
        """As `CompileResult._rebuild`, without asking the engine for an address; what is kept is numba's `_reduce`."""
        kept, fndesc, environment, signature, objectmode, lifted, annotation, reload_init, environments = payload
        return _compiler.compile_result(
            target_context=target_context,
            typing_context=target_context.typing_context,
            library=_Library.read(target_context, kept),
            environment=environment,
            entry_point=object(),
            fndesc=fndesc,
            type_annotation=annotation,
            signature=signature,
            objectmode=objectmode,
            lifted=lifted,
            reload_init=reload_init,
            referenced_envs=environments,
        )


class _Cache(_caching.FunctionCache):  # type: ignore[misc]
    _impl_class = _Impl


class _Compiler(_dispatcher._FunctionCompiler):  # type: ignore[misc]
    def _compile_core(self, args: Any, return_type: Any) -> Any:
        """As numba's own, into a library of ours; the entry point is no function, but a name by which callers find the code."""
        target, flags = self.targetdescr.target_context, _compiler.Flags()
        self.targetdescr.options.parse_as_flags(flags, self.targetoptions)
        flags.no_compile = True
        library = _Library(target.codegen(), self.py_func.__qualname__)
        result = _compiler.compile_extra(
            self.targetdescr.typing_context, target, self.py_func, args, return_type, flags, self.locals, library,
            self.pipeline_class,
        )._replace(entry_point=object())  # fmt: skip
        target.insert_user_function(result.entry_point, result.fndesc, [library])
        return result


class Inlay(_registry.CPUDispatcher):  # type: ignore[misc]
    """A function that compiled code calls; numba's own dispatcher but for what becomes of the code."""

    def __init__(self, function: Callable[..., Any], targetoptions: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=targetoptions)
        self._compiler = _Compiler(function, self.targetdescr, targetoptions, {}, _compiler.Compiler)
        self._cache = _Cache(function)

    def add_overload(self, result: Any) -> None:
        """Only what types calls is to know of it: Python has nothing to call."""
        self.overloads[tuple(result.signature.args)] = result
