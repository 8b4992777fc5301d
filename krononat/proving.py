"""Run the tests that show what `compliance` says: pytest in a process of its own for each mode, heard line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from krononat.compliance import TESTS, Proof

PASSED, FAILED = "passed", "FAILED"


class Mode(NamedTuple):
    """A way to run tests: which of them, and what is set in the environment."""

    marks: str
    environment: dict[str, str]


MODES = {
    "pure": Mode("rfc and not lab and not alone", {"NUMBA_DISABLE_JIT": "1"}),
    "compiled": Mode("rfc and not lab and not alone", {"NUMBA_DISABLE_JIT": "0"}),
    "lab": Mode("rfc and lab", {"NUMBA_DISABLE_JIT": "0"}),
}
_NOTHING_CHOSEN = 5  # exit status of pytest
_HEARD = re.compile(r"(tests/\S+::.+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*")


class Trial(NamedTuple):
    """What came of the tests of a mode."""

    results: dict[str, str]  # by name of the test
    failed: bool  # whether pytest was not content
    last: list[str]  # the end of what it said


def try_mode(proofs: Iterable[Proof], mode: str, heard: Callable[[str], None]) -> Trial:
    """Run the tests of some proofs in a mode; `heard` is called with the name of each that has ended."""
    wanted = {proof.name for proof in proofs}
    results: dict[str, str] = {}
    said: list[str] = []
    with _started(sorted({f"rfc{proof.rfc}" for proof in proofs}), MODES[mode]) as process:
        assert process.stdout
        for line in process.stdout:
            said = [*said[-40:], line.rstrip()]
            for name, result in results_in(line):
                if name in wanted:
                    results[name] = FAILED if FAILED in (result, results.get(name)) else PASSED
                    heard(name)
    return Trial(results, process.returncode not in (0, _NOTHING_CHOSEN), said)


def _started(rfcs: list[str], mode: Mode) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "-m", mode.marks]
    return subprocess.Popen(
        [*command, "-k", " or ".join(rfcs), str(TESTS)],
        cwd=TESTS.parent,
        env=os.environ | mode.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results_in(line: str) -> Iterator[tuple[str, str]]:
    """(name of the proof, result) that a line of pytest tells. What was skipped has shown nothing."""
    found = _HEARD.fullmatch(line.rstrip())
    if found:
        yield name_of(found[1]), PASSED if found[2] == "PASSED" else FAILED


def name_of(node: str) -> str:
    """Name of the proof that a test is: of its scenario, else of its function."""
    inside = re.search(r"\[(rfc\d+-[^\]]*)\]$", node)
    return inside[1] if inside else node.rpartition("::")[2].partition("[")[0]
