"""Run the tests that show what `compliance` says: pytest in a process of its own for each mode, heard line by line.

In the laboratory all are run that are named after a row, those too that `./test.sh` leaves out because they are long.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from krononat.compliance import TESTS, Proof

PASSED, FAILED = "passed", "FAILED"


class Mode(NamedTuple):
    """A way to run tests: which of them, what is set in the environment, and how long all of them take."""

    marks: str
    environment: dict[str, str]
    takes: str

    @property
    def is_compiled(self) -> bool:
        """Whether compiled code runs."""
        return self.environment["NUMBA_DISABLE_JIT"] == "0"


MODES = {
    "pure": Mode("rfc and not lab and not alone", {"NUMBA_DISABLE_JIT": "1"}, "a minute"),
    "compiled": Mode("rfc and not lab and not alone", {"NUMBA_DISABLE_JIT": "0"}, "three minutes"),
    "lab": Mode("rfc and lab", {"NUMBA_DISABLE_JIT": "0"}, "five minutes, over AF_XDP in network namespaces"),
}
_NOTHING_CHOSEN = 5  # exit status of pytest
_CHOSEN = re.compile(r"collected (\d+) items?(?:.* / (\d+) selected)?")
_HEARD = re.compile(r"(tests/\S+::.+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*")


class Trial(NamedTuple):
    """What came of the tests of a mode."""

    results: dict[str, str]  # by name of the test
    failed: bool  # whether pytest was not content, or did not come to its end
    last: list[str]  # the end of what it said

    @property
    def failures(self) -> list[str]:
        """Tests that have shown nothing."""
        return [name for name, result in self.results.items() if result == FAILED]


def try_mode(proofs: Sequence[Proof], mode: str, heard: Callable[[str, int], None]) -> Trial:
    """Run the tests of some proofs in a mode; `heard` is called with the name of each that has ended, and how many there are.

    That number is 0 until pytest has said it, and a name comes as often as its test has parameters.
    """
    wanted = {proof.name for proof in proofs}
    results: dict[str, str] = {}
    said: list[str] = []
    chosen = 0
    with _started(sorted({f"rfc{proof.rfc}" for proof in proofs}), MODES[mode]) as process:
        assert process.stdout
        for line in process.stdout:
            said = [*said[-40:], line.rstrip()]
            chosen = chosen or chosen_in(line)
            for name, result in results_in(line):
                heard(name, chosen)
                if name in wanted:
                    results[name] = FAILED if FAILED in (result, results.get(name)) else PASSED
    return Trial(results, process.returncode not in (0, _NOTHING_CHOSEN), said)


def compile_first() -> None:
    """Fill the compiler's cache, which says how far it is: tests would wait for it one by one, in silence."""
    subprocess.run([sys.executable, "-m", "krononat", "compile"], cwd=TESTS.parent, stdout=subprocess.DEVNULL, check=True)


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


def chosen_in(line: str) -> int:
    """How many tests are to be run, if a line of pytest tells it; else 0."""
    found = _CHOSEN.search(line)
    return int(found[2] or found[1]) if found else 0


def results_in(line: str) -> Iterator[tuple[str, str]]:
    """(name of the proof, result) that a line of pytest tells. What was skipped has shown nothing."""
    found = _HEARD.fullmatch(line.rstrip())
    if found:
        yield name_of(found[1]), PASSED if found[2] == "PASSED" else FAILED


def name_of(node: str) -> str:
    """Name of the proof that a test is: of its scenario, else of its function."""
    inside = re.search(r"\[(rfc\d+-[^\]]*)\]$", node)
    return inside[1] if inside else node.rpartition("::")[2].partition("[")[0]
