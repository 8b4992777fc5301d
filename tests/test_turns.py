"""Two processes with one cache share the compiler's work, and a second one is there for it exactly as long as there is any."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shards.jit import PURE, cache_folder

# Says what it compiles of ours. What numba compiles for itself is kept by no cache.
_PROGRAM = """
import sys
from numba.core import event
from krononat import warm

class Told(event.Listener):
    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        if function.__module__.startswith("shards.") and "<locals>" not in function.__qualname__:
            print(function.__module__, function.__qualname__, hash(event.data["args"]), flush=True)

    def on_end(self, event):
        pass

warm._stage()
event.register("numba:compile", Told())
print("ready", flush=True)
sys.stdin.readline()
warm._table()
"""

if not PURE:
    from krononat import warm

    def _begin(cache: Path) -> subprocess.Popen[str]:
        environment = os.environ | {"KRONONAT_CACHE": str(cache), "PYTHONHASHSEED": "0"}
        begun = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert begun.stdout and begun.stdout.readline() == "ready\n"
        return begun

    def test_two_processes_compile_no_function_twice(tmp_path: Path) -> None:
        both = [_begin(tmp_path) for _ in range(2)]
        for each in both:
            assert each.stdin
            each.stdin.write("\n")
            each.stdin.flush()
        compiled = Counter(line for each in both for line in each.communicate()[0].splitlines())
        assert [each.returncode for each in both] == [0, 0]
        assert any("lookup_bulk" in line for line in compiled)
        assert set(compiled.values()) == {1}

    def test_without_a_file_for_the_turns_all_is_compiled_nevertheless(tmp_path: Path) -> None:
        (tmp_path / cache_folder().name / "turns").mkdir(parents=True)
        alone = _begin(tmp_path)
        told, _ = alone.communicate("\n")
        assert alone.returncode == 0 and "lookup_bulk" in told

    class _Started:
        """Instead of a second process."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.ended = False
            PROCESSES.append(self)

        def terminate(self) -> None:
            """Told to end."""
            self.ended = True

        def wait(self) -> int:
            """It has ended."""
            assert self.ended
            return 0

    PROCESSES: list[_Started] = []

    @pytest.mark.parametrize("compiles", [False, True], ids=["warm", "cold"])
    def test_the_second_process_is_there_while_something_is_compiled(monkeypatch: pytest.MonkeyPatch, compiles: bool) -> None:
        import numba

        def step() -> None:
            if compiles:
                numba.njit(lambda x: x + 1)(1)

        PROCESSES.clear()
        monkeypatch.setattr(subprocess, "Popen", _Started)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        monkeypatch.setattr(warm, "STEPS", [("one", step), ("two", step)])
        warm.compile(lambda *_: None)
        assert [each.ended for each in PROCESSES] == ([True] if compiles else [])
