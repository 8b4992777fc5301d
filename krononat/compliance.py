"""What each RFC asks, our answer, and the tests that show it; `docs/compliance.md` is written from it, and so from their names.

A test is named after the rows that it shows: `rfc4787-req9a-hairpin.nat`, `rfc6092-rec1-3-7-addresses.nat`,
`test_rfc7857_sec2_2_forged_reset`. So a row without a test, and a test without a row, can be seen (tests/test_compliance.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from krononat import rfcs, rfcs6

TESTS = Path(__file__).parent.parent / "tests"  # of a source tree; an installation has none
DOCUMENT = Path(__file__).parent.parent / "docs" / "compliance.md"
BINDING = ("must", "should")  # rows that need a test or a reason
WHOLE = "-"  # name of the row that stands for all of an RFC


class Row(NamedTuple):
    """One requirement; `name` as the RFC numbers it: req9a, rec12, sec2.2."""

    rfc: int
    name: str
    priority: str
    asked: str
    answer: str

    @property
    def is_answered_without_test(self) -> bool:
        """Whether there is nothing that a test could show."""
        return self.answer.startswith(("n/a:", "no:"))

    @property
    def spoken(self) -> str:
        """As people say it: REQ-9a, section 2.2."""
        found = re.fullmatch(r"(req|rec|sec)(.*)", self.name)
        if not found:
            return "all"
        return f"section {found[2]}" if found[1] == "sec" else f"{found[1].upper()}-{found[2]}"


class Proof(NamedTuple):
    """A test that is named after rows."""

    name: str  # of the scenario file or of the function
    path: str  # its file, from the root of the tree
    rfc: int
    rows: tuple[str, ...]


# --- rows -----------------------------------------------------------------------------------------------------------------


def read_picture(picture: str) -> tuple[dict[int, str], list[Row]]:
    """(title of each RFC, rows) of a drawn table, see `rfcs`."""
    titles: dict[int, str] = {}
    rows: list[Row] = []
    for line in filter(None, picture.splitlines()):
        if line.startswith("        > "):
            rows[-1] = rows[-1]._replace(answer=f"{rows[-1].answer} {line.strip('> ')}".strip())
        elif line[0].isdigit():
            number, _, title = line.partition(" ")
            titles[int(number)] = title
        else:
            name, priority, asked = line.split(None, 2)
            rows.append(Row(list(titles)[-1], name, priority, asked, ""))
    return titles, rows


_TITLES4, _ROWS4 = read_picture(rfcs.PICTURE)
_TITLES6, _ROWS6 = read_picture(rfcs6.PICTURE)
TITLES = _TITLES4 | _TITLES6
ROWS = _ROWS4 + _ROWS6
KNOWN = {(row.rfc, row.name) for row in ROWS}


# --- tests ----------------------------------------------------------------------------------------------------------------


def rows_named(name: str) -> tuple[int, tuple[str, ...]]:
    """(RFC, names of rows) that a test's name begins with; RFC 0 where it is named after none.

    `rfc6092-rec1-3-7-addresses` shows rec1, rec3, rec7; `test_rfc7857_sec2_2_reset` shows sec2.2.
    """
    words = re.split(r"[-_]", name.removeprefix("test_"))
    if not re.fullmatch(r"rfc\d+", words[0]):
        return 0, ()
    found = re.fullmatch(r"(req|rec|sec)(\d[\d.]*[a-z]?)", words[1]) if len(words) > 1 else None
    if not found:
        return int(words[0][3:]), (WHOLE,)
    numbers = [found[2]]
    for word in words[2:]:
        if not re.fullmatch(r"\d[\d.]*[a-z]?", word):
            break
        numbers.append(word)
    if found[1] == "sec" and "_" in name:  # a function's name has no dots
        numbers = [".".join(numbers)]
    return int(words[0][3:]), tuple(found[1] + number for number in numbers)


def find_tests(folder: Path = TESTS) -> list[Proof]:
    """Every test in a folder that is named after a row, in the order of the names."""
    named = [(path.stem, f"tests/scenarios/{path.name}") for path in folder.glob("scenarios/*.nat")]
    for path in folder.glob("test_*.py"):
        functions = re.findall(r"^\s*def (test_rfc\w+)\(", path.read_text(), re.MULTILINE)
        named += [(function, f"tests/{path.name}") for function in functions]
    proofs = [Proof(name, path, *rows_named(name)) for name, path in sorted(named)]
    return [proof for proof in proofs if proof.rfc]


def shown_by(row: Row, tests: Iterable[Proof]) -> list[Proof]:
    """The tests that are named after a row; or after its number, where only its parts (11a, 11b) are rows."""
    number = row.name.rstrip("abcdefgh")
    names = {row.name} if (row.rfc, number) in KNOWN else {row.name, number}
    return [test for test in tests if test.rfc == row.rfc and not names.isdisjoint(test.rows)]


# --- what is wrong --------------------------------------------------------------------------------------------------------


def strays(tests: Iterable[Proof]) -> list[str]:
    """Tests that are named after rows which do not exist. One that names no row is of the RFC as a whole."""
    parts = {(rfc, name.rstrip("abcdefgh")) for rfc, name in KNOWN}
    named = [(test, row) for test in tests for row in test.rows]
    lost = [told for told in named if (told[0].rfc, told[1]) not in KNOWN | parts and not _is_of_all(*told)]
    return [f"{test.name}: RFC {test.rfc} has no row {row}" for test, row in lost]


def _is_of_all(test: Proof, row: str) -> bool:
    return row == WHOLE and test.rfc in TITLES


def gaps(tests: list[Proof]) -> list[Row]:
    """Rows that bind us, and that no test shows."""
    binding = [row for row in ROWS if row.priority in BINDING and not row.is_answered_without_test]
    return [row for row in binding if not shown_by(row, tests)]


# --- the document ---------------------------------------------------------------------------------------------------------


_HEAD = """# What the RFCs ask, and what shows the answer

Written by `krononat compliance --write` from the rows of `krononat/rfcs.py` and `rfcs6.py` and from the names of the tests, not
by hand. A test that is named after a row shows it. Those that end in `.nat` hold a model and the packet path, in pure Python
and compiled, against each other, frame by frame. `krononat compliance --run` runs them and prints this table with the results
(`--mode lab`: once more over AF_XDP, to a real core whose clock is moved); `pytest -m rfc` runs the same. "n/a" is followed by
the reason why there is nothing to show, "no" by why it is not so.
"""


def document(tests: list[Proof]) -> str:
    """The text of docs/compliance.md."""
    return "\n".join([_HEAD, *(line for rfc in TITLES for line in _section(rfc, tests))]).rstrip() + "\n"


def _section(rfc: int, tests: list[Proof]) -> Iterator[str]:
    yield f"## RFC {rfc}: {TITLES[rfc]}\n"
    yield "| row | | asked | our answer | shown by |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        if row.rfc == rfc:
            shown = "<br>".join(map(_link, shown_by(row, tests)))
            yield f"| {row.spoken} | {row.priority} | {row.asked} | {row.answer} | {shown} |"
    others = [test for test in tests if test.rfc == rfc and WHOLE in test.rows and (rfc, WHOLE) not in KNOWN]
    if others:
        yield f"\nBesides: {', '.join(map(_link, others))}"
    yield ""


def _link(proof: Proof) -> str:
    told = f"{proof.name}.nat" if proof.path.endswith(".nat") else proof.name
    return f"[{told}](../{proof.path})"
