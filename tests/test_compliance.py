"""The table of requirements: every row that binds has a test or a reason, every test that is named after a row has one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

from krononat import compliance, proving
from krononat.cli.compliance import compliance as command
from krononat.client import Trouble
from krononat.compliance import Proof, Row
from krononat.models import Config

PROOFS = compliance.find_tests()
CHECKED = {4787: 14, 5382: 10, 5508: 11, 6888: 15, 6092: 50}  # RFCs, and how many requirements they number


def test_every_row_that_binds_is_shown_or_has_a_reason() -> None:
    assert [f"RFC {row.rfc} {row.name}: {row.asked}" for row in compliance.gaps(PROOFS)] == []


def test_no_test_is_named_after_a_row_that_does_not_exist() -> None:
    assert compliance.strays(PROOFS) == []


def test_the_document_is_what_the_names_say() -> None:
    said = "docs/compliance.md is stale: run `krononat compliance --write`"
    assert compliance.DOCUMENT.read_text() == compliance.document(PROOFS), said


def test_no_reason_stands_beside_a_test() -> None:
    """What has a test is no longer n/a."""
    shown = [row for row in compliance.ROWS if row.is_answered_without_test and compliance.shown_by(row, PROOFS)]
    assert [f"RFC {row.rfc} {row.name}" for row in shown] == []


@pytest.mark.parametrize("rfc", CHECKED)
def test_each_numbered_requirement_is_a_row(rfc: int) -> None:
    numbers = {int("".join(filter(str.isdigit, row.name))) for row in compliance.ROWS if row.rfc == rfc and row.name != "-"}
    assert numbers == set(range(1, CHECKED[rfc] + 1))


def test_rows_are_whole_and_unique() -> None:
    assert len({(row.rfc, row.name) for row in compliance.ROWS}) == len(compliance.ROWS)
    assert [row for row in compliance.ROWS if not row.answer or row.priority not in ("must", "should", "may")] == []


def test_what_answers_name_of_the_configuration_is_in_it() -> None:
    """`nat.hold-down-s`, `[[bypass]]`: words in backticks that look like keys."""
    told = " ".join(row.answer for row in compliance.ROWS)
    keys = re.findall(r"`([a-z][a-z0-9]+(?:\.[a-z][a-z0-9-]*)+)(?:`| = )", told) + re.findall(r"\[\[([a-z.]+)\]\]", told)
    assert len(keys) > 20 and [key for key in keys if not is_a_key(Config, key.split("."))] == []


def is_a_key(model: type[BaseModel], path: list[str]) -> bool:
    """Whether a configuration has such a key; in lists and alternatives it may be of any of their models."""
    field = model.model_fields.get(path[0].replace("-", "_"))
    return field is not None and (len(path) == 1 or any(is_a_key(inner, path[1:]) for inner in models_in(field.annotation)))


def models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def test_every_scenario_named_after_a_row_begins_with_its_words() -> None:
    for path in compliance.TESTS.glob("scenarios/rfc*.nat"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("rfc4787-req9-9a-hairpin", (4787, ("req9", "req9a"))),
        ("rfc6092-rec1-3-7-addresses", (6092, ("rec1", "rec3", "rec7"))),
        ("rfc7857-sec2.2-rst", (7857, ("sec2.2",))),
        ("test_rfc7857_sec2_2_rst", (7857, ("sec2.2",))),
        ("test_rfc6888_req9_portal", (6888, ("req9",))),
        ("rfc6864-identifications-of-two-hosts", (6864, ("-",))),
        ("rfc6888-req8-hold-down-to-the-millisecond", (6888, ("req8",))),
        ("two-pools", (0, ())),
        ("rfcs-are-many", (0, ())),
    ],
)
def test_names_tell_rows(name: str, rows: tuple[int, tuple[str, ...]]) -> None:
    assert compliance.rows_named(name) == rows


def test_a_row_without_a_test_is_seen_and_so_is_a_test_without_a_row() -> None:
    one = [Proof(f"rfc4787-{name}-x", "", 4787, (name,)) for name in ("req1", "req15", "-")]
    assert Row(4787, "req2", "should", *_told("req2")) in compliance.gaps(one)
    assert "req1" not in [row.name for row in compliance.gaps(one) if row.rfc == 4787]
    assert compliance.strays(one) == ["rfc4787-req15-x: RFC 4787 has no row req15"]


def test_a_number_stands_for_its_parts_where_only_these_are_rows() -> None:
    proofs = [Proof("rfc6888-req11-x", "", 6888, ("req11",)), Proof("rfc4787-req9-x", "", 4787, ("req9",))]
    assert compliance.strays(proofs) == []
    shown = [(row.rfc, row.name) for row in compliance.ROWS if compliance.shown_by(row, proofs)]
    assert shown == [(4787, "req9"), (6888, "req11a"), (6888, "req11b"), (6888, "req11c"), (6888, "req11d")]


def _told(name: str) -> tuple[str, str]:
    row = next(row for row in compliance.ROWS if (row.rfc, row.name) == (4787, name))
    return row.asked, row.answer


def test_the_command_prints_every_row() -> None:
    told = CliRunner().invoke(command, ["--rfc", "4787"])
    assert told.exit_code == 0
    assert all(f"REQ-{number} " in told.output for number in range(1, 15))
    rows = json.loads(CliRunner().invoke(command, ["-o", "json"]).output)
    assert len(rows) == len(compliance.ROWS) and "rfc4787-req2-paired-pooling" in rows[1]["shown_by"]


def test_an_unknown_rfc_is_refused() -> None:
    told = CliRunner().invoke(command, ["--rfc", "791"])
    assert told.exit_code != 0 and "791" in str(told.exception)


def test_an_installation_says_that_it_has_no_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = compliance.find_tests
    monkeypatch.setattr(compliance, "find_tests", lambda: find(tmp_path))
    told = CliRunner().invoke(command, ["--rfc", "4787"])
    assert told.exit_code == 0 and "this is an installation" in told.output and "REQ-14a" in told.output
    refused = CliRunner().invoke(command, ["--run"])
    assert refused.exit_code != 0 and "no tests" in str(refused.exception)


def test_run_runs_them() -> None:
    """One row, in a process of its own; what fails is said, and so is the exit status."""
    heard: list[tuple[str, int]] = []
    chosen = [proof for proof in PROOFS if proof.name == "rfc6864-identifications-of-two-hosts"]
    trial = proving.try_mode(chosen, "pure", lambda *told: heard.append(told))
    assert trial.results == {"rfc6864-identifications-of-two-hosts": "passed"}
    assert {number for _, number in heard} == {len(heard)}, "each of that RFC is told, with how many there are"
    assert not trial.failed and trial.failures == []


def ran(monkeypatch: pytest.MonkeyPatch, outcome: proving.Trial, *words: str) -> Result:
    """What the command says and makes of a trial that came out so."""
    monkeypatch.setattr(proving, "try_mode", lambda *_: outcome)
    monkeypatch.setattr(proving, "compile_first", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return CliRunner().invoke(command, ["--rfc", "5382", "--run", *words])


def test_what_only_the_laboratory_was_asked_for_is_judged_by_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in compliance.ROWS if row.rfc == 5382][:3]
    shown = {proof.name: "passed" for row in rows for proof in compliance.shown_by(row, PROOFS)}
    done = ran(monkeypatch, proving.Trial(shown, False, []), "--mode", "lab")
    assert done.exit_code == 0 and "five minutes" in done.stderr and "not shown on wires, but without" in done.stderr
    done = ran(monkeypatch, proving.Trial(shown, False, []), "--mode", "lab", "--mode", "pure")
    assert done.exit_code == 1 and "\nnot shown: RFC 5382" in done.stderr
    name = next(iter(shown))
    done = ran(monkeypatch, proving.Trial(shown | {name: "FAILED"}, True, ["E  it broke"]), "--mode", "lab")
    assert done.exit_code == 1 and f"lab: failed: {name}" in done.stderr and "it broke" in done.stderr
    assert ran(monkeypatch, proving.Trial({}, False, []), "--mode", "lab").exit_code == 1, "nothing was run"


def test_the_laboratory_is_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(command, ["--rfc", "5382", "--run", "--mode", "lab"])
    assert isinstance(done.exception, Trouble) and "needs root" in done.exception.what


@pytest.mark.parametrize(
    ("line", "name", "result"),
    [
        ("tests/test_scenarios.py::test_scenario[rfc4787-req1-x] PASSED   [ 50%]", "rfc4787-req1-x", "passed"),
        ("tests/test_ports.py::test_rfc6056_random[3-a b] FAILED [ 50%]", "test_rfc6056_random", "FAILED"),
        ("tests/test_ports.py::test_rfc6056_random SKIPPED (no root) [ 50%]", "test_rfc6056_random", "FAILED"),
    ],
)
def test_lines_of_pytest_are_understood(line: str, name: str, result: str) -> None:
    assert list(proving.results_in(line)) == [(name, result)]


@pytest.mark.parametrize(
    ("line", "chosen"),
    [
        ("collecting ... collected 3016 items / 2604 deselected / 412 selected", 412),
        ("collected 1 item", 1),
        ("tests/test_ports.py::test_collected PASSED [ 50%]", 0),
    ],
)
def test_pytest_says_how_many_there_are(line: str, chosen: int) -> None:
    assert proving.chosen_in(line) == chosen


def test_the_mark_is_given_by_the_name() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "rfc", "-p", "no:cacheprovider"]
    told = subprocess.run(
        [*command, "tests/test_scenarios.py"],
        cwd=compliance.TESTS.parent, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    chosen = {line.partition("[")[2].rstrip("]") for line in told.stdout.splitlines() if "::test_scenario[" in line}
    assert chosen == {path.stem for path in compliance.TESTS.glob("scenarios/rfc[0-9]*.nat")}
