"""What every bench prints, and the command that each one is.

A bench is a module with `KIND` ("memory", "memif" or "veth") and `run(quick, told) -> list[Result]`; the rest is one line,
`NAME = report.command("NAME", KIND, run, "What it measures.")`, which makes it `krononat bench NAME` and, at the end of the
module, `python -m bench.NAME`. `told` takes a sentence of what is being done now; it is shown beside the progress bar.

A goal that is missed is told in `ok`; only with `--strict` it is exit status 1 as well: figures of a busy machine are no
failure. What was translated wrongly is: a bench raises then. So is what a bench could not do at all: `failing` is the last word
of the names of figures that count it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import click

from bench import environment
from krononat.client import Trouble

Told = Callable[[str], None]
Run = Callable[..., "list[Result]"]  # quick, told, and by keyword what `more` options say

COLUMNS = ("name", "value", "low", "high", "unit", "goal", "ok", "loss")
LESS_IS_BETTER = ("B", "us", "ms", "s", "share", "count")  # units; of all others more is better


@dataclass(frozen=True)
class Result:
    """One figure. `low` and `high`: its spread over the repetitions; `loss`: share of packets that did not arrive."""

    name: str
    value: float
    unit: str
    low: float
    high: float
    goal: float | None = None
    ok: bool | None = None
    loss: float | None = None


def measured(name: str, unit: str, samples: Sequence[float], goal: float | None = None, loss: float | None = None) -> Result:
    """The median of `samples` with their lowest and highest; `ok` where the median reaches the goal, from the unit's side."""
    value = float(statistics.median(samples))
    reached = None if goal is None else value <= goal if unit in LESS_IS_BETTER else value >= goal
    return Result(name, value, unit, float(min(samples)), float(max(samples)), goal, reached, loss)


def ratio(
    name: str, ours: Sequence[float], theirs: Sequence[float], goal: float | None = None, loss: float | None = None
) -> Result:
    """Median of ours/theirs over pairs that were measured one right after the other."""
    return measured(name, "x", [our / their for our, their in zip(ours, theirs, strict=True)], goal, loss)


def command(name: str, kind: str, run: Run, told: str, more: Sequence[click.Option] = (), failing: str = "") -> click.Command:
    """The command of a bench: `-o json|table`, `--quick`, `--strict`, a progress bar on stderr; and options of its own."""

    @click.command(name, help=f"{told}\n\nExample: krononat bench {name} --quick -o json")
    @click.option("-o", "--output", "form", type=click.Choice(["json", "table"]), default="table", help="How to print.")
    @click.option("--quick", is_flag=True, help="Fewer or smaller repetitions; under 50 s.")
    @click.option("--strict", is_flag=True, help="Exit with 1 where a goal is missed.")
    def bench(form: str, quick: bool, strict: bool, **own: Any) -> None:
        try:
            results, env = perform(name, kind, partial(run, **own), quick)
        except Trouble as trouble:  # `python -m bench.NAME` has nobody else to tell it
            click.echo(trouble.told(), err=True)
            sys.exit(trouble.status)
        if form == "json":
            click.echo(as_json(results, env))
        else:
            show(results, env)
        missed = [result.name for result in results if result.ok is False]
        sys.exit(1 if (strict and missed) or any(each.rpartition("/")[2] == failing for each in missed) else 0)

    bench.params[:0] = more
    return bench


def perform(name: str, kind: str, run: Run, quick: bool) -> tuple[list[Result], dict[str, Any]]:
    """Run a bench under a progress bar of its own; its results, and the environment they were measured in."""
    env, begun = {"bench": name, **environment.before(kind, quick)}, time.monotonic()
    with progress(name) as told:
        results = run(quick, told)
    return results, environment.after(env, time.monotonic() - begun)


@contextmanager
def progress(name: str) -> Iterator[Told]:
    """A bar on stderr that says what is being done; plain lines where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: click.echo(f"{name}: {text}", err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.fields[name]}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("begins", total=None, name=name)
        yield lambda text: bar.update(task, description=text)


def as_json(results: list[Result], env: dict[str, Any]) -> str:
    """The shape that `bench compare` and the reports read."""
    return json.dumps({"results": [asdict(result) for result in results], "env": env}, indent=2)


def show(results: list[Result], env: dict[str, Any]) -> None:
    """The same for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 128, highlight=False)
    console.print(title(env), style="italic")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("name", "unit", "ok") else "right")
    for result in results:
        table.add_row(*cells(result), style="red" if result.ok is False else "")
    console.print(table)


def title(env: dict[str, Any]) -> str:
    """One line on the environment."""
    load = " to ".join(f"{env[key]:.1f}" for key in ("load_before", "load_after") if key in env)
    kind = f"{env['kind']}, quick" if env["quick"] else env["kind"]
    return f"{kind}: {env['cpu']}, {env['pages']} pages, load {load}, steal {env['steal_ticks']} ticks, {env['commit']}"


def figure(number: float) -> str:
    """A number for people: two decimals, or two digits where that would be none."""
    return f"{number:,.2f}" if number == 0 or abs(number) >= 0.1 else f"{number:.2g}"


def cells(result: Result) -> list[str]:
    """A result as a row of a table, for people."""
    figures = [figure(number) for number in (result.value, result.low, result.high)]
    sign = "≤ " if result.unit in LESS_IS_BETTER else "≥ "
    goal = "" if result.goal is None else f"{sign}{result.goal:.4g}"
    fine = {None: "", True: "yes", False: "no"}[result.ok]
    return [result.name, *figures, result.unit, goal, fine, "" if result.loss is None else f"{result.loss:.2g}"]
