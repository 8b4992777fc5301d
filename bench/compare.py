"""`krononat bench compare A B`: what changed from A to B beyond the noise.

A and B are folders of `bench all` or files of a bench's `-o json`; beside such a file only the figures of its bench are looked
at. A figure has changed where the two spreads do not overlap and the medians lie more than 2 % apart (what was measured once
only has no spread); it is better or worse from the side of its unit. More loss is worse whatever the rate, beyond what a search
on veths bears. Figures of different machines, kinds or sizes are told loudly: they say little.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from bench import report
from bench.report import LESS_IS_BETTER, Result
from bench.search import LOSS_BORNE
from krononat.client import Trouble

BETTER, WORSE, SAME, NEW, GONE = "better", "worse", "same", "new", "gone"

NOISE = 0.02  # what two runs without a spread may differ by
BEARING = ("wire/", "connections/kernel/")  # figures that come with a little loss: `bench.search` says why
# What must be equal for a comparison to say something; versions and commits are what one compares.
DECISIVE = ("kind", "quick", "cpu", "cores", "threads_a_core", "memory_mib", "kernel", "pages")


class Measured(NamedTuple):
    """A report: its results by name, and the environment of each bench."""

    results: dict[str, Result]
    environments: dict[str, dict[str, Any]]


class Change(NamedTuple):
    """What became of one figure; `change` is relative to before."""

    name: str
    before: float | None
    after: float | None
    unit: str
    change: float | None
    verdict: str


class Difference(NamedTuple):
    """Something decisive that was not equal."""

    bench: str
    what: str
    before: Any
    after: Any


def read(path: Path) -> Measured:
    """A report or the output of one bench; Trouble where it is neither."""
    file = path / "result.json" if path.is_dir() else path
    try:
        told = json.loads(file.read_text())
        results = {result["name"]: Result(**result) for result in told["results"]}
        env = told["env"]
        return Measured(results, env["benches"] if "benches" in env else {env["bench"]: env})
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it has not the shape of a bench's results"
        raise Trouble(
            f"{path} cannot be compared", why or str(error), "give folders of `bench all`, or files of -o json"
        ) from None


def changes(before: Measured, after: Measured) -> list[Change]:
    """One for each figure that either has, in the order of the later report, then what is gone."""
    found = [_change(before.results.get(name), result) for name, result in after.results.items()]
    gone = [result for name, result in before.results.items() if name not in after.results]
    return found + [Change(result.name, result.value, None, result.unit, None, GONE) for result in gone]


def alike(before: Measured, after: Measured) -> tuple[Measured, Measured]:
    """Both, cut down to the one bench where either is of one only."""
    single = next((told for told in (before, after) if len(told.environments) == 1), None)
    if single is None:
        return before, after
    stems = {name.partition("/")[0] for name in single.results}
    return _cut(before, stems), _cut(after, stems)


def _cut(told: Measured, stems: set[str]) -> Measured:
    return told._replace(results={name: result for name, result in told.results.items() if name.partition("/")[0] in stems})


def _change(before: Result | None, after: Result) -> Change:
    if before is None:
        return Change(after.name, None, after.value, after.unit, None, NEW)
    relative = after.value / before.value - 1 if before.value else after.value and math.copysign(math.inf, after.value)
    return Change(after.name, before.value, after.value, after.unit, relative, verdict(before, after, relative))


def verdict(before: Result, after: Result, relative: float) -> str:
    """BETTER, WORSE or SAME."""
    borne = LOSS_BORNE if after.name.startswith(BEARING) else 0
    if (after.loss or 0) > max(before.loss or 0, borne):
        return WORSE
    overlap = before.low <= after.high and after.low <= before.high
    if overlap or abs(relative) <= NOISE:
        return SAME
    return WORSE if (relative > 0) == (after.unit in LESS_IS_BETTER) else BETTER


def differences(before: Measured, after: Measured) -> Iterator[Difference]:
    """What was not equal about the machines that the two were measured on."""
    for bench in before.environments.keys() & after.environments.keys():
        for what in DECISIVE:
            was, now = before.environments[bench].get(what), after.environments[bench].get(what)
            if was != now:
                yield Difference(bench, what, was, now)


@click.command("compare", epilog="Example: krononat bench compare report/2026-11-20-1200-abc report/2026-11-21-1200-def")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("-o", "--output", "form", type=click.Choice(["json", "table"]), default="table", help="How to print.")
@click.option("--all", "everything", is_flag=True, help="In the table also what has not changed.")
@click.option("--strict", is_flag=True, help="Exit with 1 where something is worse or gone.")
def compare(before: Path, after: Path, form: str, everything: bool, strict: bool) -> None:
    """Tell what changed from one report to another beyond the noise."""
    first, second = alike(read(before), read(after))
    found, unequal = changes(first, second), sorted(differences(first, second))
    if form == "json":
        told = {"changes": [change._asdict() for change in found], "differences": [each._asdict() for each in unequal]}
        click.echo(json.dumps(told, indent=2))
    else:
        _show([change for change in found if everything or change.verdict != SAME], len(found))
    _warn(unequal)
    sys.exit(1 if strict and any(change.verdict in (WORSE, GONE) for change in found) else 0)


def _warn(unequal: list[Difference]) -> None:
    for each in unequal:
        told = f"NOT COMPARABLE: {each.bench} was measured with {each.what} {each.before!r}, then {each.after!r}"
        click.secho(told, fg="red", bold=True, err=True)


def _show(told: list[Change], count: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "before", "after", "unit", "change", "verdict"):
        table.add_column(column, justify="right" if column in ("before", "after", "change") else "left")
    for change in told:
        figures = ["" if value is None else report.figure(value) for value in (change.before, change.after)]
        relative = "" if change.change is None else f"{100 * change.change:+.1f} %"
        table.add_row(change.name, *figures, change.unit, relative, change.verdict, style=_STYLES[change.verdict])
    console = Console(width=None if sys.stdout.isatty() else 128, highlight=False)
    console.print(table if told else f"none of {count} figures changed beyond the noise")


_STYLES = {BETTER: "green", WORSE: "red", GONE: "red", NEW: "", SAME: "dim"}

if __name__ == "__main__":
    compare()
