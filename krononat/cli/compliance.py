"""`krononat compliance`: what the RFCs ask, our answer, and the tests that show it."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from krononat.cli.output import output_option, print_json, print_table
from krononat.client import Trouble

if TYPE_CHECKING:
    from krononat.compliance import Proof, Row
    from krononat.proving import Trial

MODES = ("pure", "compiled", "lab")
TENTHS = 10


@click.command(epilog="Example: krononat compliance --rfc 4787 --run")
@click.option("--rfc", "rfcs", type=int, multiple=True, metavar="NUMBER", help="Only this RFC; may be given several times.")
@click.option("--run", "run_them", is_flag=True, help="Run the tests, and show what came of them.")
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True, help="How to run them; default: pure and compiled.")
@click.option("--write", is_flag=True, help="Write docs/compliance.md anew.")
@output_option()
def compliance(rfcs: tuple[int, ...], run_them: bool, modes: tuple[str, ...], write: bool, form: str) -> None:
    """Show what each RFC asks, our answer, and the tests that show it, which are named after it.

    Tests belong to the source tree; where there are none (an installation), requirements and answers are all there is to show.
    With --run the exit status is 1 unless every row that must be shown is shown by tests that pass. `lab` needs root, takes
    five minutes, and shows what can be shown on wires: by itself it leaves other rows alone, and says which.
    """
    from krononat import compliance as table

    rows = [row for row in table.ROWS if not rfcs or row.rfc in rfcs]
    if not rows:
        known = ", ".join(map(str, table.TITLES))
        raise Trouble(
            f"RFC {rfcs[0]} is not in the table", "its requirements are not those of this appliance", f"ask for {known}"
        )
    proofs = table.find_tests()
    if not proofs:
        _need_no_tests(run_them or write)
    if write:
        table.DOCUMENT.write_text(table.document(proofs))
        click.echo(f"wrote {table.DOCUMENT}", err=True)
        return
    trials = _run(rows, proofs, modes or MODES[:2]) if run_them else {}
    told = [_told(row, proofs, trials) for row in rows]
    _print(told, list(trials), form)
    _judge(told, trials)


def _need_no_tests(needed: bool) -> None:
    """Say that this is no source tree; Trouble where one is needed."""
    why = "tests belong to the source tree, and this is an installation"
    if needed:
        raise Trouble("there are no tests here", why, "run `krononat compliance` of a clone")
    click.echo(f"{why}: what follows is what each RFC asks and what we answer, without what shows it", err=True)


def _run(rows: list[Row], proofs: list[Proof], modes: tuple[str, ...]) -> dict[str, Trial]:
    from krononat import compliance as table
    from krononat import proving

    if "lab" in modes and os.geteuid() != 0:
        why = "network namespaces, AF_XDP"
        raise Trouble("the laboratory needs root", why, "sudo, or leave out --mode lab")
    names = {proof.name for row in rows for proof in table.shown_by(row, proofs)}
    chosen = [proof for proof in proofs if proof.name in names]
    for mode in modes:
        click.echo(f"{mode}: all of it takes about {proving.MODES[mode].takes}", err=True)
    if any(proving.MODES[mode].is_compiled for mode in modes):
        proving.compile_first()
    return {mode: _try(chosen, mode) for mode in modes}


def _try(chosen: list[Proof], mode: str) -> Trial:
    """Run the tests of a mode, and tell how far it is: by a bar on a terminal, else by a line for each tenth."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from krononat import proving

    console, begin = Console(stderr=True), time.monotonic()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, ended = bar.add_task(mode, total=None, last=""), 0

        def heard(name: str, of: int) -> None:
            nonlocal ended
            ended += 1
            bar.update(task, completed=ended, total=of or None, last=name)
            if not console.is_terminal and of and ended * TENTHS // of > (ended - 1) * TENTHS // of:
                click.echo(f"{mode}: {ended} of {of} tests", err=True)

        trial = proving.try_mode(chosen, mode, heard)
        bar.update(task, last="")
    told = f"{mode}: {ended} tests in {time.monotonic() - begin:.0f} s"
    click.echo(f"{told}, {len(trial.failures)} rows' tests failed" if trial.failed else f"{told}, all passed", err=True)
    return trial


def _told(row: Row, proofs: list[Proof], trials: dict[str, Trial]) -> dict[str, Any]:
    from krononat import compliance as table

    names = [proof.name for proof in table.shown_by(row, proofs)]
    told = {"rfc": str(row.rfc), "row": row.spoken, "priority": row.priority, "asked": row.asked, "answer": row.answer}
    told |= {"reason": row.answer if row.is_answered_without_test else ""}
    return told | {"shown_by": names} | {mode: _outcome(names, trial) for mode, trial in trials.items()}


def _outcome(names: list[str], trial: Trial) -> str:
    """Of a row in a mode: the worst of its tests; nothing where none was run."""
    results = [trial.results[name] for name in names if name in trial.results]
    return max(results, key=lambda result: result != "passed", default="")


def _print(told: list[dict[str, Any]], modes: list[str], form: str) -> None:
    if form == "json":
        print_json(told)
        return
    last = "shown_by" if any(row["shown_by"] for row in told) else "answer"
    joined = [row | {"shown_by": ", ".join(row["shown_by"]) or row["reason"] or "nothing"} for row in told]
    print_table(joined, ("rfc", "row", "priority", *modes, "asked", last))


def _judge(told: list[dict[str, Any]], trials: dict[str, Trial]) -> None:
    """Exit with status 1 where a trial failed, or a row that binds us was not tried in any mode.

    On wires alone not every row can be shown; there nothing must be left of those that were tried.
    """
    for mode, trial in trials.items():
        if trial.failed:
            click.echo(f"\n{mode}: pytest was not content:\n" + "\n".join(trial.last), err=True)
            click.echo(f"\n{mode}: failed: {', '.join(trial.failures) or 'none of these rows'}", err=True)
    bare = [row for row in told if trials and row["priority"] != "may" and not any(row[mode] for mode in trials)]
    open_rows = [f"RFC {row['rfc']} {row['row']}" for row in bare if not row["reason"]]
    on_wires_alone = list(trials) == ["lab"]
    if open_rows:
        where = "not shown on wires, but without (--mode pure, compiled)" if on_wires_alone else "not shown"
        click.echo(f"\n{where}: {', '.join(open_rows)}", err=True)
    nothing = bool(trials) and not any(trial.results for trial in trials.values())
    if nothing:
        click.echo("\nno test was run", err=True)
    if nothing or (open_rows and not on_wires_alone) or any(trial.failed for trial in trials.values()):
        sys.exit(1)
